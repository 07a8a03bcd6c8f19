"""The tiny VAE: losses, augmentation, resume, and latents that are ordered without loss."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stages.embedded.vae import (
    VaeTraining,
    augment,
    laplacian_l1,
    local_std,
    new_vae,
    order_latents,
    psnr_db,
    train,
)


def smooth_images(count: int, size: int, seed: int = 0) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.standard_normal((count, size, size)), (0, 4, 4))
    return np.clip(128 + 400 * noise, 0, 255).astype(np.uint8)


def test_the_laplacian_loss_ignores_nothing_but_the_lowest_band() -> None:
    real = torch.zeros(1, 1, 32, 32)
    assert laplacian_l1(real, real) == 0
    assert laplacian_l1(real, real + 1).item() == pytest.approx(0, abs=1e-6)
    checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 16)[None, None]
    assert laplacian_l1(real, checkers).item() == pytest.approx(1)


def test_local_std_is_that_of_the_window() -> None:
    flat = local_std(torch.full((1, 1, 16, 16), 0.3))
    assert flat.max() < 0.01
    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    assert local_std(noise).mean().item() == pytest.approx(0.97, abs=0.05)


def test_augmented_views_keep_range_and_size_and_repeat() -> None:
    images = torch.from_numpy(smooth_images(4, 44))[:, None].float() / 255
    first = augment(images.clone(), 32, np.random.default_rng(3))
    again = augment(images.clone(), 32, np.random.default_rng(3))
    other = augment(images.clone(), 32, np.random.default_rng(4))
    assert first.shape == (4, 1, 32, 32)
    assert first.min() >= -1
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    def settings(steps: int) -> VaeTraining:
        # equal rates at every step, so that a shorter run is the beginning of a longer one
        return VaeTraining(steps=steps, batch_size=2, warmup_steps=10, checkpoint_every=1)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    lines: list[str] = []
    fine = smooth_images(12, 44)
    expected = train(fine, 32, whole, settings(3), "cpu", lines.append)
    train(fine, 32, broken, settings(2), "cpu", lines.append)
    resumed = train(fine, 32, broken, settings(3), "cpu", lines.append)
    assert "vae: going on at step 2" in lines
    for name, value in expected.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_ordering_latents_keeps_reconstructions_and_sorts_channels() -> None:
    torch.manual_seed(0)
    vae = new_vae(32).eval()
    images = smooth_images(24, 32)
    real = torch.from_numpy(images)[:, None].float().expand(-1, 3, -1, -1) / 127.5 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(real).latent_dist.mean).sample
    order_latents(vae, images)
    with torch.no_grad():
        latents = vae.encode(real).latent_dist.mean
        after = vae.decode(latents).sample
    assert (before - after).abs().max() < 1e-3
    assert latents.mean((0, 2, 3)).abs().max() < 1e-2
    spread = latents.var((0, 2, 3))
    assert (spread[:-1] >= spread[1:] * 0.99).all()
    assert spread.mean().item() * vae.config.scaling_factor**2 == pytest.approx(1, rel=0.02)


def test_psnr_is_that_of_the_definition() -> None:
    class Brighter:
        """Gives every pixel back with an error of 0.1 of the range."""

        device = torch.device("cpu")

        def encode(self, pixels: torch.Tensor) -> Any:
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=pixels))

        def decode(self, latents: torch.Tensor) -> Any:
            return SimpleNamespace(sample=latents + 0.2)

    images = np.full((2, 32, 32), 128, np.uint8)
    assert psnr_db(Brighter(), images) == pytest.approx(20, abs=1e-4)
