"""Networks whose weights nobody ships: built with random ones, and named where they are missing."""

import hashlib
import sys
import types

import numpy as np
import pytest
import torch

from pipeline import registry
from pipeline.errors import MissingWeightsError, ValueRangeError
from pipeline.files import file_sha256
from stages.components.features.extractors import _hub as hub
from stages.components.features.extractors import clip, dinov2, inception, vgg16
from stages.evaluate.metric import Described

NAMES = ("vgg16", "inception", "dinov2", "clip")


def images(n, size=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_missing_weights_are_named_with_a_remedy(name, tmp_path):
    module = registry.find(registry.FEATURES, name)
    key = "weights" if name in ("vgg16", "inception") else "model"
    settings = module.Settings.model_validate({key: str(tmp_path / "gone")})
    lines = module.check(settings)
    assert lines and any("gone" in line for line in lines)
    assert module.input_digest(settings) == "absent"
    with pytest.raises(MissingWeightsError, match=f"extractors/{name}"):
        module.load(settings)


@pytest.mark.parametrize("digest", [vgg16.SHA256, inception.SHA256])
def test_digests_are_whole(digest):
    assert len(bytes.fromhex(digest)) == 32


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg.pth"
    state = {f"features.{key}": value for key, value in vgg16.build_network().state_dict().items()}
    torch.save({**state, "classifier.0.bias": torch.zeros(1)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return vgg16.load(vgg16.Settings(weights=str(path), sha256=digest))


def test_vgg_has_the_layers_of_the_checkpoint(vgg):
    shapes = {key: tuple(value.shape) for key, value in vgg.network.state_dict().items()}
    assert len(shapes) == 26
    assert shapes["0.weight"] == (64, 3, 3, 3)
    assert shapes["28.weight"] == (512, 512, 3, 3)


def test_vgg_pools_its_last_maps_and_batches_do_not_matter(vgg):
    batch = images(3)
    found = vgg(batch)
    assert found.shape == (3, 512) and found.dtype == np.float32
    np.testing.assert_array_equal(found[1:], vgg(batch[1:]))
    np.testing.assert_array_equal(found[::-1], vgg(batch[::-1]))
    assert vgg(images(0)).shape == (0, 512)


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "vgg.pth"
    path.write_bytes(b"other")
    with pytest.raises(MissingWeightsError, match=r"SHA-256 d9298a10d1b0…, expected 397923af8e79…"):
        vgg16.load(vgg16.Settings(weights=str(path)))


def test_floats_and_oblong_images_are_refused(vgg):
    with pytest.raises(ValueRangeError, match="extractors/vgg16 expects uint8"):
        vgg(np.full((1, 8, 8, 3), 0.5))
    with pytest.raises(ValueRangeError, match=r"\(1, 8, 9, 3\)"):
        vgg(np.zeros((1, 8, 9, 3), np.uint8))


def test_inception_says_when_torchvision_does_not_import(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"x")
    monkeypatch.setattr(inception, "check", lambda settings: [])
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingWeightsError, match="torch-fidelity does not import here"):
        inception.load(inception.Settings(weights=str(path)))


def test_inception_gives_torch_fidelity_bytes_at_its_own_size(tmp_path, monkeypatch):
    class Network(torch.nn.Module):
        def __init__(self, name, features, feature_extractor_weights_path):
            super().__init__()
            assert features == ["2048"]

        def forward(self, pixels):
            assert pixels.dtype == torch.uint8 and pixels.shape[1:] == (3, 299, 299)
            return (pixels.float().mean(dim=(1, 2, 3))[:, None].expand(-1, 2048),)

    name = "torch_fidelity.feature_extractor_inceptionv3"
    module = types.ModuleType(name)
    monkeypatch.setattr(module, "FeatureExtractorInceptionV3", Network, raising=False)
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(inception, "check", lambda settings: [])
    found = inception.load(inception.Settings())(np.full((2, 8, 8, 3), 9, np.uint8))
    assert found.shape == (2, 2048)
    assert found == pytest.approx(np.full((2, 2048), 9.0))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_dinov2_gives_its_class_token(dino):
    extractor = dinov2.load(dinov2.Settings(model=str(dino)))
    found = extractor(images(2))
    assert found.shape == (2, 16) and extractor.num_features == 16
    assert extractor.digest == dinov2.input_digest(dinov2.Settings(model=str(dino)))


def test_a_networks_file_is_checked_where_its_digest_is_given(dino):
    digest = file_sha256(dino / "model.safetensors")
    assert dinov2.check(dinov2.Settings(model=str(dino), sha256=digest)) == []
    lines = dinov2.check(dinov2.Settings(model=str(dino), sha256="0" * 64))
    assert "expected 000000000000…" in lines[0]


def test_a_hub_network_is_named_with_the_command_that_fetches_it():
    (line,) = hub.check(dinov2.Settings(revision="main"))
    assert "hf download facebook/dinov2-base --revision main" in line


def test_a_folder_without_a_config_is_named(tmp_path):
    (line,) = hub.check(dinov2.Settings(model=str(tmp_path)))
    assert "no config.json" in line


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory):
    import shutil
    from pathlib import Path

    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    root = Path(__file__).resolve().parents[4]
    tokenizer = root / "data" / "embedded" / "tiny_sd15" / "tokenizer"
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "projection_dim": 8}
    config = CLIPConfig(
        text_config=small | {"vocab_size": 49408, "eos_token_id": 1},
        vision_config=small | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    return clip.load(clip.Settings(model=str(folder)))


def test_clip_embeds_images_and_prompts_in_one_space(clip_model):
    found = clip_model(images(3))
    texts = clip_model.encode_texts(["a glioma", "no tumour", "brain " * 100])
    assert found.shape == texts.shape == (3, 8)
    assert np.ptp(texts, axis=0).max() > 0
    np.testing.assert_allclose(clip_model.encode_texts(["no tumour"])[0], texts[1], atol=1e-6)


def test_clip_score_equals_torchmetrics(clip_model):
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    from stages.evaluate.metrics import clip_score

    batch, prompts = images(3, size=32), ["a glioma", "no tumour", "a brain"]
    how = clip.NORMALISATION
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (how.mean, how.std))

    class Processor:
        def __call__(self, text=None, images=None, **kwargs):
            if images is not None:
                return {"pixel_values": torch.stack([(x / 255 - mean) / std for x in images])}
            return clip_model.tokenizer(text, padding="max_length", max_length=77,
                                        return_tensors="pt")  # fmt: skip

    class Model(torch.nn.Module):
        config = clip_model.network.config

        def get_image_features(self, pixels):
            return clip_model.forward(pixels)

        def get_text_features(self, ids, mask):
            found = clip_model.network.get_text_features(input_ids=ids, attention_mask=mask)
            return getattr(found, "pooler_output", found)

    pictures = [torch.from_numpy(image).permute(2, 0, 1) for image in batch]
    with torch.inference_mode():
        expected, _ = _clip_score_update(pictures, prompts, Model(), Processor())
    count = len(prompts)
    sample = Described(
        clip_model(batch).astype(float),
        np.arange(count),
        np.ones((1, count)),
        ("",) * count,
        tuple(prompts),
        clip_model.encode_texts(prompts).astype(float),
    )
    found = clip_score.describe(sample)[0, 0]
    assert found == pytest.approx(float(expected.mean()), rel=1e-5)
