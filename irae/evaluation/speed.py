"""Work, time and memory of a method, each measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from irae.evaluation.methods import EvaluationError, Loaded, Method, find_method
from irae.evaluation.protocols import Image, find_setting
from irae.restorer import keep_freed_memory, pick_device

REPEATS = 3


@dataclass(frozen=True)
class Speed:
    """What a method costs.

    Attributes:
        seconds: a megapixel, the median of three runs after a first one.
        memory: MB that restoring takes at most beyond what the process holds before; None where it cannot be told.
    """

    seconds: float
    memory: float | None


def measure_apart(name: str, task: str, setting: str, image: Image, device: str, threads: int) -> Speed:
    """`measure` in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(measure, name, task, setting, image, device, threads).result()


def measure(name: str, task: str, setting: str, image: Image, device: str, threads: int) -> Speed:
    """Time and memory of a method on one image."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    keep_freed_memory()
    pick_device(device)
    method = find_method(name, task)
    if not isinstance(method, Method):
        raise EvaluationError(method)
    loaded = method.load(torch.device(device))
    case = find_setting(task, setting).damage("speed", image)
    with Peak(device) as peak:
        loaded.restore(case)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        loaded.restore(case)
        seconds.append(time.perf_counter() - start)
    return Speed(statistics.median(seconds) / (image.shape[0] * image.shape[1] / 1e6), peak.megabytes)


def macs(loaded: Loaded, task: str, setting: str, channels: tuple[int, ...]) -> int | None:
    """Multiply-accumulates a pixel, counted by torch's FlopCounterMode on 128 x 128 pixels; None without a network.

    Args:
        channels: of the images, (3,), or () for grey ones.
    """
    if loaded.network is None:
        return None
    case = find_setting(task, setting).damage("macs", np.full((128, 128, *channels), 128, np.uint8))
    with FlopCounterMode(display=False) as counter:
        loaded.restore(case)
    return round(counter.get_total_flops() / 2 / 128**2)


class Peak:
    """Memory that a block of code takes at most beyond what is held before, in MB: of the GPU on "cuda", else of the
    process, on Linux.
    """

    STATUS = Path("/proc/self/status")

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.megabytes: float | None = None

    def __enter__(self) -> Peak:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = float(torch.cuda.memory_allocated())
        elif sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            except OSError:
                self.before = self._read("VmHWM")
            else:
                self.before = self._read("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.megabytes = (torch.cuda.max_memory_allocated() - self.before) / 1e6
        elif sys.platform == "linux":
            self.megabytes = (self._read("VmHWM") - self.before) / 1e6

    def _read(self, name: str) -> float:
        line = next(line for line in self.STATUS.read_text().splitlines() if line.startswith(name))
        return float(line.split()[1]) * 1024
