from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.contracts import PluginConfig
from pipeline.errors import MissingWeightsError, ValueRangeError
from stages.evaluate.reconstruction import MAX_PSNR_DB, compute_psnr, iter_reconstructions, load_vae
from tests.fabricate.pipelines import tiny_settings


class Scaled(nn.Module):
    """A VAE's stand-in that multiplies pixels."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def encode(self, pixels):
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: pixels * self.factor))

    def decode(self, latents):
        return SimpleNamespace(sample=latents)


def images(n, size=8):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(n)]


def test_a_perfect_vae_gives_the_slices_back():
    psnr_db = []
    made = list(iter_reconstructions(Scaled(1.0), iter(images(6)), psnr_db))
    np.testing.assert_array_equal(made, images(6))
    assert psnr_db == [MAX_PSNR_DB] * 6


def test_values_beyond_the_range_are_clamped():
    made = np.stack(list(iter_reconstructions(Scaled(3.0), iter(images(3)), [])))
    assert (made.min(), made.max()) == (0, 255)


def test_psnr_is_that_of_the_definition():
    real = np.full((2, 4, 4, 3), 100, np.uint8)
    made = np.stack([np.full((4, 4, 3), 101, np.uint8), np.full((4, 4, 3), 110, np.uint8)])
    found = compute_psnr(real=real, made=made)
    assert found == pytest.approx([48.1308, 28.1308], abs=1e-4)


def test_pixels_that_are_not_finite_are_refused():
    with pytest.raises(ValueRangeError, match=r"not finite in torch\.float32"):
        list(iter_reconstructions(Scaled(float("nan")), iter(images(1)), []))


def test_missing_weights_are_named(tmp_path):
    plugin = PluginConfig(name="tiny_sd15", settings={"model": str(tmp_path / "absent")})
    with pytest.raises(MissingWeightsError, match="absent"):
        load_vae(plugin, "cpu")


def test_a_vae_is_loaded_alone(tmp_path):
    from stages.components.diffusion.base_models import tiny_sd15

    settings = tiny_settings(tiny_sd15, tmp_path)
    plugin = PluginConfig(name="tiny_sd15", settings=settings.model_dump())
    vae = load_vae(plugin, "cpu")
    assert next(vae.parameters()).dtype == torch.float32
    assert not vae.training
    psnr_db = []
    made = list(iter_reconstructions(vae, iter(images(3, size=32)), psnr_db))
    assert [image.shape for image in made] == [(32, 32, 3)] * 3
    assert len(psnr_db) == 3
