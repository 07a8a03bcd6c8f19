"""Both layouts in plain diffusers, and adapters that do not fit."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline import registry
from pipeline.errors import MissingWeightsError
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.adapters import ADAPTER_FILE, require_fitting
from stages.components.diffusion.base_model import BaseModel
from stages.finetune.adapters.export import save_adapter
from stages.finetune.adapters.kohya import KOHYA_FILE, save_kohya, unnamed_layers
from stages.finetune.adapters.lora import add_adapters
from tests.fabricate.pipelines import tiny_settings


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def export(
    plugin: ModuleType,
    weights_dir: Path,
    folder: Path,
    kind: str = "lora",
    text: int | None = 8,
    targets: tuple[str, ...] | None = None,
) -> BaseModel:
    """Train nothing, but give adapters weights that change images; write both layouts."""
    base: BaseModel = plugin.load(
        tiny_settings(plugin, weights_dir), dtype=torch.float32, device="cpu"
    )
    config = FinetuneConfig(
        lora_rank=4,
        lora_alpha=6.0,
        target_preset=None if targets else "wider",
        target_modules=targets,
        train_text_encoder=text is not None,
        text_encoder_rank=text,
        adapter=kind,  # type: ignore[arg-type]
    )
    models = add_adapters(base, config, seed=0)
    generator = torch.Generator().manual_seed(3)
    for model in models:
        for name, parameter in model.named_parameters().items():
            if "lora_" in name:
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_adapter(models, folder)
    save_kohya(folder / ADAPTER_FILE, folder, base.family, base.unet.config)
    return base


def image_of(pipeline: Any) -> Any:
    return pipeline(
        "tumor: yes; size: large",
        height=32,
        width=32,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd15", "lora"),
        ("sdxl", "lora"),
        pytest.param("sdxl", "rslora", marks=pytest.mark.slow),
        ("sd15", "dora"),
    ],
)
def test_plain_diffusers_reads_both_layouts_to_our_image(
    name: str, kind: str, weights_dir: Path, tmp_path: Path
) -> None:
    plugin = registry.find(registry.BASE_MODELS, name)
    base = export(plugin, weights_dir, tmp_path, kind)
    settings = tiny_settings(plugin, weights_dir)
    ours = plugin.load_pipeline(settings, dtype=torch.float32, device="cpu")
    untouched = image_of(ours)
    ours.unet, ours.text_encoder = base.unet, base.text_encoders[0]
    if len(base.text_encoders) > 1:
        ours.text_encoder_2 = base.text_encoders[1]
    expected = image_of(ours)
    assert np.abs(expected - untouched).max() > 8 / 255  # the adapter does something
    places = [tmp_path] if kind == "dora" else [tmp_path, tmp_path / KOHYA_FILE]
    for place in places:
        plain = plugin.load_pipeline(settings, dtype=torch.float32, device="cpu")
        plain.load_lora_weights(place)
        assert np.abs(image_of(plain) - expected).max() <= 2 / 255, place


def test_kohya_file_has_the_names_that_older_readers_expect(
    weights_dir: Path, tmp_path: Path
) -> None:
    export(registry.find(registry.BASE_MODELS, "sdxl"), weights_dir, tmp_path, "rslora")
    state = load_file(tmp_path / KOHYA_FILE)
    starts = {name.split("_layers_")[0] for name in state if name.startswith("lora_te")}
    assert starts == {"lora_te1_text_model_encoder", "lora_te2_text_model_encoder"}
    assert {name.split(".", 1)[1] for name in state} == {
        *("alpha", "lora_down.weight", "lora_up.weight")
    }
    key = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"
    # Two resnets a block here: level 0 is input_blocks 1 to 2, so level 1 begins at 3.
    assert state[f"{key}.alpha"].item() == pytest.approx(6.0 * 2)  # alpha / 4 is 6 / sqrt(4)
    assert state[f"{key}.lora_down.weight"].shape == (4, 32)
    export(registry.find(registry.BASE_MODELS, "sd15"), weights_dir, tmp_path / "sd")
    names = load_file(tmp_path / "sd" / KOHYA_FILE)
    assert any(name.startswith("lora_te_text_model_encoder_layers_0_mlp_fc1") for name in names)
    assert any(name.startswith("lora_unet_down_blocks_1_attentions_0_proj_in") for name in names)


def test_dora_has_no_kohya_file(weights_dir: Path, tmp_path: Path) -> None:
    export(registry.find(registry.BASE_MODELS, "sd15"), weights_dir, tmp_path, "dora", None)
    assert not (tmp_path / KOHYA_FILE).exists()


def test_adapter_of_the_other_family_is_named(weights_dir: Path, tmp_path: Path) -> None:
    bases = {
        name: export(registry.find(registry.BASE_MODELS, name), weights_dir, tmp_path / name)
        for name in ("sd15", "sdxl")
    }
    for name, base in bases.items():
        require_fitting(tmp_path / name / ADAPTER_FILE, base.unet)
    with pytest.raises(
        MissingWeightsError, match=r"sdxl.*trained on another base model.*here it takes 32"
    ):
        require_fitting(tmp_path / "sdxl" / ADAPTER_FILE, bases["sd15"].unet)
    plugin = registry.find(registry.BASE_MODELS, "sdxl")
    with pytest.raises(MissingWeightsError, match=r"sd15.*trained on another base model"):
        plugin.load_pipeline(
            tiny_settings(plugin, weights_dir),
            dtype=torch.float32,
            device="cpu",
            adapter_dir=tmp_path / "sd15",
        )
    with pytest.raises(MissingWeightsError, match="this model has no such layer"):
        require_fitting(tmp_path / "sd15" / ADAPTER_FILE, torch.nn.Linear(2, 2))


def test_truncated_adapter_is_named(weights_dir: Path, tmp_path: Path) -> None:
    base = export(registry.find(registry.BASE_MODELS, "sd15"), weights_dir, tmp_path, text=None)
    path = tmp_path / ADAPTER_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MissingWeightsError, match=rf"{ADAPTER_FILE} cannot be read"):
        require_fitting(path, base.unet)


def test_layers_outside_of_the_blocks_have_names_too(weights_dir: Path, tmp_path: Path) -> None:
    """As diffusers, ComfyUI and AUTOMATIC1111 read them; diffusers draws the same image."""
    outer = ("conv_in", "conv_out", "linear_1", "linear_2", "time_emb_proj", "conv_shortcut")
    for name, targets in (
        ("sdxl", ("to_q", "downsamplers.0.conv", "upsamplers.0.conv", *outer)),
        ("sd15", ("to_q", *outer)),
    ):
        plugin, folder = registry.find(registry.BASE_MODELS, name), tmp_path / name
        base = export(plugin, weights_dir, folder, text=None, targets=targets)
        images = []
        for place in (folder, folder / KOHYA_FILE):
            plain = plugin.load_pipeline(
                tiny_settings(plugin, weights_dir), dtype=torch.float32, device="cpu"
            )
            plain.load_lora_weights(place)
            images.append(image_of(plain))
        assert np.abs(images[0] - images[1]).max() <= 2 / 255
        names = [f"unet.{layer}.lora_A.default.weight" for layer in ("conv_in", "mid_block.x")]
        unnamed = unnamed_layers(names, base.family, base.unet.config)
        assert unnamed == (["unet.mid_block.x"] if name == "sdxl" else [])
    state = load_file(tmp_path / "sdxl" / KOHYA_FILE)
    layers = {key.partition(".")[0] for key in state}
    assert {
        *("lora_unet_input_blocks_0_0", "lora_unet_out_2", "lora_unet_time_embed_0"),
        *("lora_unet_time_embed_2", "lora_unet_label_emb_0_0", "lora_unet_label_emb_0_2"),
    } <= layers


@pytest.mark.parametrize(("name", "version"), [("sdxl", "sdxl_base_v1-0"), ("sd15", "sd_v1")])
def test_header_says_what_readers_ask_for_and_is_the_same_every_time(
    weights_dir: Path, tmp_path: Path, name: str, version: str
) -> None:
    plugin = registry.find(registry.BASE_MODELS, name)
    base = export(plugin, weights_dir, tmp_path, "rslora", text=None)
    content = (tmp_path / KOHYA_FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert list(header) == sorted(header) and length % 8 == 0
    assert list(header["__metadata__"].items()) == [
        ("format", "pt"),
        ("ss_base_model_version", version),
        ("ss_network_alpha", "12.0"),  # 6 times the root of 4: readers know no rsLoRA
        ("ss_network_dim", "4"),
        ("ss_network_module", "networks.lora"),
    ]
    for _ in range(8):
        save_kohya(tmp_path / ADAPTER_FILE, tmp_path, base.family, base.unet.config)
        assert (tmp_path / KOHYA_FILE).read_bytes() == content


def test_a_kohya_write_that_fails_leaves_nothing(
    weights_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = export(registry.find(registry.BASE_MODELS, "sd15"), weights_dir, tmp_path, text=None)
    (tmp_path / KOHYA_FILE).unlink()

    def fill(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match="No space"):
        save_kohya(tmp_path / ADAPTER_FILE, tmp_path, base.family, base.unet.config)
    assert list((tmp_path / "kohya").iterdir()) == []


def test_adapter_does_not_say_where_its_base_model_lay(weights_dir: Path, tmp_path: Path) -> None:
    export(registry.find(registry.BASE_MODELS, "sdxl"), weights_dir, tmp_path)
    for path in (tmp_path / ADAPTER_FILE, tmp_path / KOHYA_FILE):
        assert str(weights_dir).encode() not in path.read_bytes()
