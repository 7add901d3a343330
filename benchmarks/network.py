"""The bare networks on one image: milliseconds and, on a GPU, memory beyond that of weights and image.

python benchmarks/network.py [--device cuda] [--sides 1024,2048] [--models NAMES] [--repeat 5]
"""

from __future__ import annotations

import time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from irae.conditions import noise_condition
from irae.restorer import pick_device
from irae.training.train import autocast
from irae.weights import load_network


@torch.inference_mode()
def measure(network: nn.Module, image: Tensor, cond: Tensor, precision: str, repeat: int) -> tuple[float, float]:
    """Seconds of one pass, the shortest of `repeat` after two to warm up, and the peak of memory in MiB (GPUs only).

    Shape: image (1, 3, H, W) in [0, 1], cond (1, 2, 1, 1) as `irae.conditions.noise_condition` makes it.
    """
    cuda = image.device.type == "cuda"
    held, times = torch.cuda.memory_allocated() if cuda else 0, []
    with autocast(image.device, precision):
        for turn in range(repeat + 2):
            if turn == 2 and cuda:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            network(image, cond)
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return min(times[2:]), (torch.cuda.max_memory_allocated() - held) / 2**20 if cuda else float("nan")


def main(
    device: Annotated[str, typer.Option()] = "auto",
    sides: Annotated[str, typer.Option(help="Heights of square images.")] = "1024,2048",
    models: Annotated[str, typer.Option()] = "denoise,denoise-best,weights/baselines/dncnn-denoise.safetensors",
    repeat: Annotated[int, typer.Option()] = 5,
) -> None:
    """Print the table."""
    place = pick_device(device)
    torch.backends.cudnn.benchmark = True
    table = Table("network", "pixels", "precision", "milliseconds", "MiB")
    for name in models.split(","):
        network = load_network(name).to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for side in map(int, sides.split(",")):
            image = torch.rand(1, 3, side, side, device=place).contiguous(memory_format=torch.channels_last)
            for precision in ("bf16", "fp32"):
                seconds, memory = measure(network, image, noise_condition(25).to(place), precision, repeat)
                table.add_row(name, f"{side} x {side}", precision, f"{1000 * seconds:.2f}", f"{memory:.0f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
