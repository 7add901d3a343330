"""Shared fixtures: a photograph, a small network with random weights, and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.data import chelsea

from irae.conditions import JPEG_CONDITION
from irae.models.irae import IRAE, IRAEConfig
from irae.weights import save_weights

SMALL = IRAEConfig(channels=(16,), blocks=(1,), block_options={"subnet": "u", "hidden": 8})
TASKS = {
    "denoise": SMALL,
    "photo": replace(SMALL, task="photo"),
    "jpeg": replace(SMALL, task="jpeg", cond=JPEG_CONDITION, stem=True),
    "inpaint": replace(SMALL, task="inpaint", cond=1, keep_known=True, stem=True),
}


@pytest.fixture(scope="session")
def photo() -> NDArray[Any]:
    """A cat, (120, 157, 3), uint8: an odd width."""
    return np.ascontiguousarray(chelsea()[60:180, 120:277])


def random_model(config: IRAEConfig = SMALL, scale: float = 0.05) -> IRAE:
    """A network whose every parameter is drawn at random: a zero-initialised one is the identity."""
    torch.manual_seed(0)
    model = IRAE(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale)
    return model.eval()


@pytest.fixture(scope="session")
def task_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of a small network with random parameters for each task."""
    folder = tmp_path_factory.mktemp("weights")
    for task, config in TASKS.items():
        save_weights(folder / f"{task}.safetensors", config, random_model(config).state_dict(), {"steps": 0})
    return {task: folder / f"{task}.safetensors" for task in TASKS}


@pytest.fixture(scope="session")
def weights_file(task_weights: dict[str, Path]) -> Path:
    """Weights of a small denoiser with random parameters."""
    return task_weights["denoise"]
