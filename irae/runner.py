"""Runs networks on windows of images: at once, or by workers that keep every device busy.

Windows of one shape, of one image or of several, go through a network together. What does not fit in memory is tried
again with half the batch, then with half the tile.
"""

from __future__ import annotations

import copy
import math
import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from irae.models.baselines import Network

BYTES_A_PIXEL = 1024  # of a window while the network works on it; the shipped ones took 700 to 900
LEAST_TILE = 64
CPU_TILE = 640  # on two servers windows of up to 768 pixels a side ran a third quicker a pixel than those of 1024
GPU_TILE, GPU_BATCH = 1024, 4
NO_MEMORY = "There is not enough memory for this image."
OUT_OF_MEMORY = (  # what torch and its libraries say, in small letters
    "out of memory",
    "not enough memory",
    "can't allocate",
    "bad_alloc",
    "could not create a primitive",
    "status_alloc_failed",
)
STREAMS = 2  # workers of a GPU: while one copies, the other computes


@dataclass(frozen=True)
class Shape:
    """How images are cut.

    Attributes:
        tile: side of the part of a result that one window makes, in pixels.
        batch: windows that go through the network together; shorter batches are padded, so that results do not depend
            on what else there was to do.
        window: side of the largest window that memory has room for; 0 where the tile alone decides.
    """

    tile: int
    batch: int = 1
    window: int = 0

    def step(self, reach: int) -> int:
        """Side of the tiles of a network that reaches so far: larger ones where most of a window would be overlap."""
        if not self.window:
            return self.tile
        return max(LEAST_TILE, min(max(self.tile, 4 * reach), self.window - 2 * reach))


class TileTooLarge(Exception):
    """A window did not fit in memory, and the runner's shape is smaller by now: cut again."""


@dataclass(frozen=True, eq=False)
class Request:
    """A window and its condition on their way through a network.

    Attributes:
        image: (1, C, h, w); cond: (1, K, h, w) or (1, K, 1, 1).
        shape: how the image was cut.
        batch: windows that make a full batch with this one.
        autocast: whether, and in which dtype.
        result: (1, C, h, w) on the CPU; or TileTooLarge, MemoryError, or what the network raised.
    """

    model: Network
    image: Tensor
    cond: Tensor
    shape: Shape
    batch: int
    autocast: tuple[bool, torch.dtype]
    result: Future[Tensor] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Requests of one kind can share a batch."""
        return self.model, self.image.shape, self.cond.shape, self.batch, self.autocast


class Runner:
    """Runs each window at once, in the thread that asks, one thread at a time.

    Args:
        device: where to.
        shape: how images are to be cut; chosen from the free memory by default.
    """

    def __init__(self, device: torch.device, shape: Shape | None = None) -> None:
        self.device = device
        self.shape = shape or choose_shape(device, batches=False)
        self._copies: dict[tuple[Network, torch.device], Network] = {}
        self._lock = threading.Lock()

    @property
    def ahead(self) -> int:
        """How many windows of one image may wait."""
        return 1

    def submit(self, model: Network, image: Tensor, cond: Tensor, shape: Shape, full: bool = False) -> Future[Tensor]:
        """Run the network, sooner or later, in the autocast of the calling thread.

        Args:
            model: the network.
            image: (1, C, h, w), h and w multiples of its size multiple.
            cond: (1, K, h, w) or (1, K, 1, 1).
            shape: the runner's shape by which the image was cut.
            full: this is a full window, of which there are many in large images: it goes with others of its shape.

        Returns:
            (1, C, h, w) on the CPU; or TileTooLarge: cut again by the runner's shape as it is then; or MemoryError.
        """
        kind = self.device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        request = Request(model, image, cond, shape, shape.batch if full else 1, autocast)
        self._accept(request)
        return request.result

    def _accept(self, request: Request) -> None:
        with self._lock:
            self._serve([request], self.device, 1)

    def _serve(self, requests: list[Request], device: torch.device, batch: int) -> None:
        """Run requests of one kind in one batch, or in smaller ones where that does not fit in memory."""
        outcome = self._attempt(requests, device, batch)
        if isinstance(outcome, list):
            for request, result in zip(requests, outcome, strict=True):
                request.result.set_result(result)
        elif not out_of_memory(outcome):
            for request in requests:
                request.result.set_exception(outcome)
        elif batch > 1:
            _give_back(device)
            half = batch // 2
            self._shrink(requests[0].shape, replace(requests[0].shape, batch=half))
            for start in range(0, len(requests), half):
                self._serve(requests[start : start + half], device, half)
        else:
            _give_back(device)
            shape = requests[0].shape
            smaller = replace(shape, tile=shape.tile // 2, window=shape.window // 2)
            fits = smaller.tile >= LEAST_TILE
            if fits:
                self._shrink(shape, smaller)
            requests[0].result.set_exception(TileTooLarge() if fits else MemoryError("out of memory"))

    def _shrink(self, shape: Shape, smaller: Shape) -> None:
        """Change the shape, unless another worker did."""
        if self.shape == shape:
            self.shape = smaller

    def _attempt(self, requests: list[Request], device: torch.device, batch: int) -> list[Tensor] | Exception:
        enabled, dtype = requests[0].autocast
        spare = [requests[0]] * (batch - len(requests))
        try:
            model = self._on(requests[0].model, device)
            image, cond = (
                torch.cat(parts).to(device)
                for parts in zip(*((r.image, r.cond) for r in (*requests, *spare)), strict=True)
            )
            with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=enabled):
                return list(model(image, cond)[: len(requests)].cpu().split(1))
        except Exception as error:
            return error.with_traceback(None)  # whose frames would hold the memory

    def _on(self, model: Network, device: torch.device) -> Network:
        """The network, or its copy on another device."""
        place = next(model.parameters()).device
        if place.type == device.type and device.index in (None, place.index):
            return model
        if (model, device) not in self._copies:
            self._copies[model, device] = copy.deepcopy(model).to(device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # the other stream of this GPU uses it too
        return self._copies[model, device]


class Workers(Runner):
    """Threads that run windows in batches, on one or several devices; whichever is free takes the next batch.

    A context manager: leaving it ends the threads.

    Args:
        devices: where to, of one type.
        shape: how images are to be cut; chosen from the free memory by default.
    """

    def __init__(self, devices: Sequence[torch.device], shape: Shape | None = None) -> None:
        super().__init__(devices[0], shape or min((choose_shape(d) for d in devices), key=astuple))
        self._waiting: deque[Request] = deque()
        self._news = threading.Condition()
        self._closed = False
        places = [device for device in devices for _ in range(STREAMS if device.type == "cuda" else 1)]
        self._threads = [threading.Thread(target=self._work, args=(place,), daemon=True) for place in places]
        for thread in self._threads:
            thread.start()

    @property
    def ahead(self) -> int:
        return 2 * self.shape.batch * len(self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()
        for thread in self._threads:
            thread.join()

    def _accept(self, request: Request) -> None:
        with self._news:
            self._waiting.append(request)
            self._news.notify()

    def _take(self) -> list[Request]:
        """The requests of the next batch; none at the end."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closed)
            batch: list[Request] = []
            for request in list(self._waiting):
                if batch and (len(batch) == batch[0].batch or request.kind != batch[0].kind):
                    continue
                self._waiting.remove(request)
                if request.result.set_running_or_notify_cancel():
                    batch.append(request)
            return batch

    def _work(self, device: torch.device) -> None:
        with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext():
            while not (self._closed and not self._waiting):
                if requests := self._take():
                    try:
                        self._serve(requests, device, requests[0].batch)
                    except BaseException as error:  # somebody waits for each of them
                        for request in requests:
                            if not request.result.done():
                                request.result.set_exception(error)
                    del requests

    def _on(self, model: Network, device: torch.device) -> Network:
        with self._lock:
            return super()._on(model, device)


def all_of(device: torch.device) -> tuple[torch.device, ...]:
    """All devices of the kind: every GPU of the machine for "cuda", else the device itself."""
    if device.type != "cuda" or device.index is not None:
        return (device,)
    return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))


def choose_shape(device: torch.device, batches: bool = True) -> Shape:
    """Tile and batch that need at most half of the free memory; on a CPU batches gain nothing.

    Args:
        device: where the network runs.
        batches: windows can share a batch.
    """
    gpu = device.type == "cuda"
    room = free_memory(device) // 2 // (STREAMS if gpu and batches else 1)
    tile = GPU_TILE if gpu else CPU_TILE
    while tile // 2 >= LEAST_TILE and _bytes(tile) > room:
        tile //= 2
    batch = max(1, min(GPU_BATCH, room // _bytes(tile))) if gpu and batches else 1
    return Shape(tile, batch, math.isqrt(room // batch // BYTES_A_PIXEL))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that are free on a GPU, else for this process; a guess of 4 GiB where the system does not tell."""
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except (OSError, ValueError):
        pass
    try:  # the limit of a container, whose use counts files that are kept in memory until it is needed
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (group / "memory.stat").read_text().splitlines()
        files = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
        found.append(limit - used + files)
    except (OSError, ValueError):
        pass
    return max(0, min(found, default=4 << 30))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: Python's, that of a GPU, or that of torch on a CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
    )


def _bytes(tile: int) -> int:
    margin = 64  # about what most networks reach
    return (tile + 2 * margin) ** 2 * BYTES_A_PIXEL


def _give_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
