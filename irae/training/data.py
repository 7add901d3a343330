"""Training batches: a batch is a pure function of the recipe, the images and the step, so a run resumes exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import kornia.enhance
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from irae.datasets import DatasetError, image_paths
from irae.training.recipe import Data, Recipe
from irae.training.tasks import TASKS, Inpainting

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """Patches for one step: damaged and clean (N, 3, P, P), condition (N, K, P, P)."""

    damaged: Tensor
    clean: Tensor
    cond: Tensor

    def pin_memory(self) -> Batch:
        """The batch where a GPU copies from without waiting; the data loader calls it."""
        return Batch(self.damaged.pin_memory(), self.clean.pin_memory(), self.cond.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, images in channels_last."""
        layout = torch.channels_last
        return Batch(
            self.damaged.to(device, non_blocking=True, memory_format=layout),
            self.clean.to(device, non_blocking=True, memory_format=layout),
            self.cond.to(device, non_blocking=True),
        )


class PatchBatches(Dataset[Batch]):
    """The batches of a recipe; item `step` is the batch of that step.

    Args:
        recipe: what to cut, and how to damage it.
        images: (H, W, 3) RGB each, at least as large as the largest patch.
    """

    def __init__(self, recipe: Recipe, images: list[Image]) -> None:
        self.task = TASKS[recipe.model.task](recipe)
        largest = max(stage.patch for stage in recipe.stages) + self.task.margin
        self.images = [image for image in images if min(image.shape[:2]) >= largest]
        if not self.images:
            raise DatasetError(f"No training image is at least {largest} x {largest} pixels.")
        self.recipe = recipe
        area = np.array([image.shape[0] * image.shape[1] for image in self.images], dtype=np.float64)
        self.weights = area / area.sum()

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.recipe.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        stage, data = self.recipe.stage_at(step), self.recipe.data
        task = self.task if stage.masks is None else Inpainting(stage.masks)
        picks = rng.choice(len(self.images), stage.batch, p=self.weights)
        patches = np.stack([cut_patch(self.images[i], stage.patch + self.task.margin, data, rng) for i in picks])
        clean = torch.from_numpy(patches).permute(0, 3, 1, 2).float() / 255
        clean = recolour(clean, data.recolour, rng)
        grey = rng.random(stage.batch) < data.grey
        samples = [
            task.sample(image.mean(0, keepdim=True) if is_grey else image, rng, generator)
            for image, is_grey in zip(clean, grey, strict=True)
        ]
        damaged, target, cond = (torch.stack(parts) for parts in zip(*samples, strict=True))
        return Batch(damaged, target, cond)


def cut_patch(image: Image, size: int, data: Data, rng: np.random.Generator) -> Image:
    """A random patch (size, size, 3), shrunk from a larger one in a share of the cases, flipped and turned."""
    height, width = image.shape[:2]
    side = size
    if rng.random() < data.shrink:
        side = min(int(size * rng.uniform(1, data.shrink_most)), height, width)
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    patch = image[top : top + side, left : left + side]
    if side != size:
        patch = np.asarray(cv2.resize(patch, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    return np.rot90(patch, int(rng.integers(4)))


def recolour(clean: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Saturation, hue and the order of channels changed in a share of the patches (N, 3, P, P) in [0, 1]."""
    chosen = torch.from_numpy(np.flatnonzero(rng.random(len(clean)) < share))
    if not len(chosen):
        return clean
    saturation = torch.from_numpy(rng.uniform(0.5, 2.5, len(chosen))).float()
    hue = torch.from_numpy(rng.uniform(-np.pi, np.pi, len(chosen))).float()
    patches = kornia.enhance.adjust_hue(kornia.enhance.adjust_saturation(clean[chosen], saturation), hue)
    clean = clean.clone()
    clean[chosen] = patches[:, torch.from_numpy(rng.permutation(3))].clamp(0, 1)
    return clean


def load_training_images(data: Data, root: Path | None = None) -> tuple[list[Image], dict[str, Image]]:
    """The training images, and the held-out ones by name; (H, W, 3) RGB, uint8.

    Raises:
        DatasetError: a set is not there, or an image cannot be read.
    """
    if not image_paths(data.holdout, root):
        raise DatasetError(f"The held-out set {data.holdout} has no images.")
    held_out = {path.resolve(): path for path in image_paths(data.holdout, root)}
    paths = [path for name in data.sets for path in image_paths(name, root)]
    training = [read_rgb(path) for path in paths if path.resolve() not in held_out]
    return training, {path.stem: read_rgb(path) for path in held_out.values()}


def read_rgb(path: Path) -> Image:
    """An image file as (H, W, 3) RGB, uint8."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise DatasetError(f"{path} cannot be read as an image.")
    return np.asarray(image, dtype=np.uint8)
