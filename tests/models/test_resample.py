"""Resampling: orthogonal, in the field's conventions."""

from __future__ import annotations

import pytest
import torch
from scipy.fft import dctn

from irae.models.resample import RESAMPLERS, BlockDCT, Haar, OrthogonalMixing, pad_image


@pytest.mark.parametrize("name", RESAMPLERS)
def test_energy_is_kept(name: str) -> None:
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    squeezed = RESAMPLERS[name]().squeeze(x)
    torch.testing.assert_close(squeezed.square().sum(), x.square().sum())


def test_block_dct_is_scipys() -> None:
    block = torch.randn(8, 8, dtype=torch.float64)
    mine = BlockDCT().squeeze(block[None, None]).flatten()
    frequencies = [(i, j) for i in range(8) for j in range(8)]
    order = sorted(range(64), key=lambda f: sum(frequencies[f]))  # stable: by diagonal, then as in the block
    theirs = torch.from_numpy(dctn(block.numpy(), norm="ortho")).flatten()[order]
    torch.testing.assert_close(mine, theirs)


def test_first_haar_channels_are_the_means() -> None:
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    means = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(Haar().squeeze(x)[:, :3], 2 * means)


def test_mixing_starts_as_the_identity_and_stays_orthogonal() -> None:
    mixing = OrthogonalMixing(5)
    torch.testing.assert_close(mixing.matrix(), torch.eye(10))
    with torch.no_grad():
        for parameter in mixing.parameters():
            parameter.normal_(0, 2)
    torch.testing.assert_close(mixing.matrix() @ mixing.matrix().mT, torch.eye(10), atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", ["denoise", "photo", "jpeg", "inpaint"])
def test_only_noise_is_mirrored_beyond_the_border(task: str) -> None:
    image = torch.arange(24.0).view(1, 1, 4, 6)
    found = pad_image(image, 3, 2, task)
    rows, columns = ([2, 1, 0], [4, 3]) if task in ("denoise", "photo") else ([3, 3, 3], [5, 5])
    assert torch.equal(found, image[..., [0, 1, 2, 3, *rows], :][..., [0, 1, 2, 3, 4, 5, *columns]])
    assert torch.equal(pad_image(image, 0, 0, task), image)


def test_what_is_smaller_than_its_extension_is_repeated() -> None:
    pixel = torch.rand(2, 3, 1, 1)
    assert torch.equal(pad_image(pixel, 7, 3, "denoise"), pixel.expand(2, 3, 8, 4))
