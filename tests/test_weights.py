"""Weights: what was saved comes back, and a damaged file is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from irae.weights import WeightsError, find_weights, installed_weights, load_model, model_facts, weights_info
from tests.conftest import SMALL, random_model


def test_round_trip(weights_file: Path) -> None:
    loaded = load_model(weights_file)
    assert loaded.config == SMALL and not loaded.training
    for name, tensor in random_model().state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)  # stored in half precision
    assert load_model(weights_file) is loaded


def test_every_changed_byte_is_noticed_or_harmless(weights_file: Path, tmp_path: Path) -> None:
    content, want = weights_file.read_bytes(), load_model(weights_file)
    damaged = tmp_path / "damaged.safetensors"
    for position in range(0, len(content), max(1, len(content) // 300)):
        changed = bytearray(content)
        changed[position] ^= 1
        damaged.write_bytes(changed)
        try:
            loaded = load_model(damaged)
        except WeightsError as error:
            assert "\n" not in str(error)
        else:  # white space of the header
            assert loaded.config == want.config
            assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), want.parameters(), strict=True))


@pytest.mark.parametrize("content", [b"", b"no weights", b"\0" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(WeightsError):
        load_model(tmp_path / "x.safetensors")


def test_unknown_weights_list_the_installed() -> None:
    with pytest.raises(WeightsError, match="denoise"):
        find_weights("denose")


@pytest.mark.parametrize("name", installed_weights())
def test_shipped_weights_are_small_and_have_a_card_of_their_size(name: str) -> None:
    info = weights_info(name)
    facts = model_facts(name)
    assert info.path.stat().st_size < 20e6
    for word in ("Recipe", "Data", "Licence", "Steps", "Hardware", "Limits"):
        assert word.lower() in info.card.lower()
    assert f"{facts['parameters']:,} parameters, {facts['mac_per_pixel']:,} MAC per pixel" in info.card
