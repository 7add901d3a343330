"""The runner: what does not fit in memory is tried in smaller batches, then in smaller tiles."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from irae.models.irae import IRAE
from irae.runner import BYTES_A_PIXEL, LEAST_TILE, Request, Runner, Shape, Workers, choose_shape
from irae.tiles import reach, restore_tiled
from tests.conftest import random_model

CPU = torch.device("cpu")


class SmallMemory(IRAE):
    """A network that needs more memory than there is for more than `limit` pixels at a time."""

    limit = 0

    def restore(self, y: Tensor, cond: Tensor | None = None) -> Tensor:
        if len(y) * y.shape[-2] * y.shape[-1] > self.limit > 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().restore(y, cond)


@pytest.fixture
def model() -> SmallMemory:
    usual = random_model(scale=0.08)
    model = SmallMemory(usual.config).eval()
    model.load_state_dict(usual.state_dict())
    return model


def restore(model: IRAE, image: Tensor, runner: Runner) -> Tensor:
    cond = torch.tensor([[[[0.1]], [[1.0]]]])
    with torch.no_grad():
        return restore_tiled(model, image, lambda *_: cond, runner)


@pytest.mark.parametrize("shape", [Shape(128, 4), Shape(128, 2), Shape(64, 1)])
def test_batch_then_tile_are_halved(model: SmallMemory, shape: Shape) -> None:
    image = torch.rand(1, 3, 400, 410)
    whole = restore(model, image, Runner(CPU, Shape(512)))
    model.limit = shape.batch * (shape.tile + 2 * reach(model)) ** 2
    with Workers([CPU], Shape(128, 4)) as workers:
        torch.testing.assert_close(restore(model, image, workers), whole, atol=1e-5, rtol=0)
        assert workers.shape == shape
    runner = Runner(CPU, Shape(512))
    torch.testing.assert_close(restore(model, image, runner), whole, atol=1e-5, rtol=0)


def test_memory_that_never_suffices_is_told(model: SmallMemory) -> None:
    reach(model)
    model.limit = 50 * 50
    with Workers([CPU], Shape(256, 2)) as workers:
        for _ in range(2):
            with pytest.raises(MemoryError):
                restore(model, torch.rand(1, 3, 400, 410), workers)
        assert workers.shape == Shape(LEAST_TILE, 1)


def test_other_errors_come_out_where_they_were_asked_for(model: SmallMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallMemory, "restore", lambda *_: 1 / 0)
    with Workers([CPU], Shape(256)) as workers, pytest.raises(ZeroDivisionError):
        restore(model, torch.rand(1, 3, 40, 40), workers)


def test_all_workers_are_used_and_short_batches_padded(model: SmallMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    used, shapes, both = set[str](), set[int](), threading.Barrier(2, timeout=30)
    attempt, whole = Workers._attempt, SmallMemory.restore

    def wait(self: Workers, requests: list[Request], device: torch.device, batch: int) -> Any:
        name = threading.current_thread().name
        if name not in used:
            used.add(name)
            both.wait()
        return attempt(self, requests, device, batch)

    def note(self: SmallMemory, y: Tensor, cond: Tensor | None = None) -> Tensor:
        shapes.add(len(y))
        return whole(self, y, cond)

    image = torch.rand(1, 3, 300, 300)
    expected = restore(model, image, Runner(CPU, Shape(512)))
    monkeypatch.setattr(Workers, "_attempt", wait)
    monkeypatch.setattr(SmallMemory, "restore", note)
    with Workers([CPU, CPU], Shape(64, 4)) as workers:
        torch.testing.assert_close(restore(model, image, workers), expected, atol=1e-5, rtol=0)
    assert len(used) == 2 and shapes <= {1, 4}  # 1: the network's reach is measured


def test_the_shape_fits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, tile in ((64 << 30, 640), (1 << 30, 320), (1 << 20, 2 * LEAST_TILE)):
        monkeypatch.setattr("irae.runner.free_memory", lambda *_, free=free: free)
        assert LEAST_TILE <= choose_shape(CPU).tile <= tile and choose_shape(CPU).batch == 1
    monkeypatch.setattr("irae.runner.free_memory", lambda *_: 64 << 30)
    assert choose_shape(torch.device("cuda")) == Shape(1024, 4, window=2048)
    monkeypatch.setattr("irae.runner.free_memory", lambda *_: 6 << 30)
    assert choose_shape(torch.device("cuda")) == Shape(1024, 1, window=1254)


@pytest.mark.parametrize("free", [1 << 20, 1 << 30, 4 << 30, 64 << 30])
@pytest.mark.parametrize("reach", [0, 52, 392, 544])
def test_windows_fit_the_memory_whatever_the_reach(monkeypatch: pytest.MonkeyPatch, free: int, reach: int) -> None:
    monkeypatch.setattr("irae.runner.free_memory", lambda *_: free)
    shape = choose_shape(CPU)
    step = shape.step(reach)
    assert step == LEAST_TILE or (step + 2 * reach) ** 2 * BYTES_A_PIXEL <= free // 2
    assert step >= 4 * reach or step + 2 * reach >= shape.window or step == LEAST_TILE


def test_a_worker_that_breaks_leaves_nobody_waiting(model: SmallMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise SystemError("the device is gone")

    monkeypatch.setattr(Workers, "_serve", broken)
    with Workers([CPU], Shape(64)) as workers, pytest.raises(SystemError, match="gone"):
        restore(model, torch.rand(1, 3, 40, 40), workers)
