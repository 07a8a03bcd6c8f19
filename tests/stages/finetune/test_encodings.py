from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import registry
from pipeline.errors import ValueRangeError
from pipeline.files import read_arrays, write_arrays
from stages.components.diffusion import latents, text_embeddings
from stages.components.diffusion.base_model import BaseModel, encode_prompts
from stages.components.imaging.pixels import save_png, to_rgb
from stages.finetune import encodings
from stages.finetune.encodings import weights_digest
from tests.fabricate.pipelines import build_vae, tiny_settings


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    plugin = registry.find(registry.BASE_MODELS, "sdxl")
    settings = tiny_settings(plugin, tmp_path_factory.mktemp("weights"))
    loaded: BaseModel = plugin.load(settings, dtype=torch.float32, device="cpu")
    return loaded


def picture(seed: int, size: int = 40) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(found):
        save_png(path, to_rgb(picture(seed)))
    return found


def build(base: BaseModel, paths: list[Path], cache_dir: Path, crops: int = 1) -> Any:
    return encodings.cache_latents(
        base,
        paths,
        resolution=32,
        crops_per_image=crops,
        cache_dir=cache_dir,
        progress=lambda line: None,
    )


def test_moments_are_those_of_the_vae_times_its_scaling(base: BaseModel) -> None:
    image = to_rgb(picture(0, 32))[None]
    mean, std = latents.encode_images(base.vae, image)
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2) / 127.5 - 1
    posterior = base.vae.encode(pixels).latent_dist
    assert mean.shape == (1, 12, 4, 4)
    torch.testing.assert_close(mean, posterior.mean * 0.7)
    torch.testing.assert_close(std, posterior.std * 0.7)


def test_latent_statistics_of_the_config_are_undone_as_sdxl_undoes_them(base: BaseModel) -> None:
    mean, std = torch.arange(12.0), torch.arange(1.0, 13.0)

    class Vae:
        config = {"latents_mean": mean.tolist(), "latents_std": std.tolist()}  # noqa: RUF012

    Vae.config = type("Config", (dict,), {"__getattr__": dict.__getitem__})(
        Vae.config, scaling_factor=0.5
    )
    offset, scale = latents.normalisation(Vae)
    raw = torch.randn(2, 12, 4, 4)
    normalised = (raw - offset) * scale
    decoded = normalised * std.view(1, -1, 1, 1) / 0.5 + mean.view(1, -1, 1, 1)
    torch.testing.assert_close(decoded, raw)


def test_cache_is_keyed_by_content_and_used(
    base: BaseModel, paths: list[Path], tmp_path: Path
) -> None:
    first = build(base, paths, tmp_path)
    assert first.mean.shape == first.std.shape == (3, 1, 12, 4, 4)
    assert first.crops.tolist() == [[[0, 0]]] * 3
    renamed = paths[0].rename(tmp_path / "renamed.png")
    for entry in tmp_path.rglob("*.npz"):  # who reads the entries sees it
        arrays = read_arrays(entry)
        write_arrays(entry, **(arrays | {"mean": arrays["mean"] + 1}))
    again = build(base, [paths[2], renamed], tmp_path)
    assert torch.equal(again.mean, first.mean[[2, 0]] + 1)
    cut = build(base, [paths[1]], tmp_path, crops=2)
    torch.testing.assert_close(cut.mean[0, 0], first.mean[1, 0])  # the whole slice, encoded anew


def test_a_vae_is_known_by_its_weights_wherever_it_lies(base: BaseModel, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    base.vae.save_pretrained(tmp_path)
    moved = AutoencoderKL.from_pretrained(tmp_path)
    digest = weights_digest(base.vae, base.vae.config)
    assert weights_digest(moved, moved.config) == digest
    moved.register_to_config(scaling_factor=0.5)
    assert weights_digest(moved, moved.config) != digest


def test_an_entry_does_not_depend_on_its_neighbours(
    base: BaseModel, paths: list[Path], tmp_path: Path
) -> None:
    together = build(base, paths, tmp_path / "a")
    alone = build(base, paths[1:2], tmp_path / "b")
    assert torch.equal(together.mean[1], alone.mean[0])
    assert not list(tmp_path.rglob("*.partial"))


def test_random_crops_are_places_of_the_enlarged_slice(tmp_path: Path) -> None:
    image = to_rgb(picture(0, 64))
    views, places = encodings.cut_crops(image, 64, 5)
    assert views.shape == (5, 64, 64, 3)
    assert np.array_equal(views[0], image)
    assert places[0] == (0, 0)
    assert all(0 <= v <= 8 for place in places for v in place)  # 64 * 1.125 - 64
    assert len(set(places)) > 2
    assert encodings.cut_crops(image, 64, 5)[1] == places


def test_latents_that_are_not_finite_stop_the_run(base: BaseModel, tmp_path: Path) -> None:
    vae = build_vae()
    torch.nn.init.constant_(vae.quant_conv.bias, float("nan"))
    with pytest.raises(ValueRangeError, match=r"not finite, in torch.float32"):
        latents.encode_images(vae, to_rgb(picture(0, 32))[None])


def test_each_text_is_encoded_once_and_looked_up_by_itself(base: BaseModel) -> None:
    cache = text_embeddings.encode_texts(
        base, ["tumor: no", "", "tumor: yes", "tumor: no"], batch_size=2
    )
    assert len(cache.index) == len(cache.prompt_embeds) == 3
    found = cache.look_up(["tumor: yes", "", "tumor: yes"], torch.device("cpu"))
    expected = encode_prompts(base, ["tumor: yes", "", "tumor: yes"])
    torch.testing.assert_close(found.prompt_embeds, expected.prompt_embeds, atol=1e-5, rtol=1e-5)
    assert found.pooled is not None
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda content: content[: len(content) // 2], lambda c: b"x" * len(c)],
    ids=["empty", "half", "garbage"],
)
def test_a_damaged_entry_is_encoded_again(
    base: BaseModel,
    paths: list[Path],
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = build(base, paths, tmp_path / "cache")
    path = sorted((tmp_path / "cache").rglob("*.npz"))[1]
    content = path.read_bytes()
    path.write_bytes(damage(content))
    again = build(base, paths, tmp_path / "cache")
    assert torch.equal(again.mean, whole.mean)
    assert path.read_bytes() == content
    build(base, paths, tmp_path / "cache")
    (said,) = caplog.messages
    assert said.startswith(f"{path}: a damaged entry of a cache")
