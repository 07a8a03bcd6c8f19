"""SD 1.5 and SDXL as they are, without their weights: on the meta device and as empty files.

`tests/full_size/` holds the two models' configurations in the hub's folder layout.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline import registry
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.base_model import BaseModel
from stages.components.networks.weights import NETWORKS, TOKENIZERS
from stages.finetune import checks, memory
from stages.finetune.adapters import lora
from stages.finetune.adapters.kohya import sgm_name
from stages.finetune.adapters.lora import add_adapters
from stages.finetune.adapters.targets import ATTENTION, TEXT_ATTENTION, UNET_TARGETS, is_adapted

FOLDER = Path(__file__).parents[2] / "full_size"
FAMILIES = {"sd15": "sd", "sdxl": "sdxl"}
NUMBERS = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}
# Rank x (in + out) of every attention projection. Rank 4 of the UNets is the size of the adapters
# that the published example scripts write: 797,184 and 5,806,080 numbers.
PER_RANK = {
    "sd15": {"unet": 797_184 // 4, "text_encoder": 12 * 4 * 2 * 768},
    "sdxl": {
        "unet": 5_806_080 // 4,
        "text_encoder": 12 * 4 * 2 * 768,
        "text_encoder_2": 32 * 4 * 2 * 1280,
    },
}
POSTER = {"lora_rank": 128, "gradient_checkpointing": True}


def build(name: str, part: str) -> nn.Module:
    """Build one network on the meta device from its configuration."""
    import diffusers
    import transformers

    given = json.loads((FOLDER / name / part / "config.json").read_text())
    with torch.device("meta"):
        if part.startswith("text_encoder"):
            kind = getattr(transformers, given["architectures"][0])
            built: nn.Module = kind(transformers.CLIPTextConfig(**given))
        else:
            built = getattr(diffusers, given["_class_name"]).from_config(given)
    return built.requires_grad_(False)


@pytest.fixture(scope="module")
def shapes() -> dict[str, dict[str, memory.Shapes]]:
    """Map model and part to tensor shapes, under the names that the hub's files have."""
    found: dict[str, dict[str, memory.Shapes]] = {}
    for name in FAMILIES:
        found[name] = {}
        for part in NUMBERS[name]:
            tensors = build(name, part).state_dict()
            level = "" if part in ("unet", "vae") else "text_model."
            found[name][part] = {
                key if key.startswith((level, "text_projection")) else f"{level}{key}": tuple(
                    value.shape
                )
                for key, value in tensors.items()
            }
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_configurations_are_those_of_the_published_weights(
    name: str, shapes: dict[str, dict[str, memory.Shapes]]
) -> None:
    assert {part: memory.size_of(s) for part, s in shapes[name].items()} == NUMBERS[name]
    assert set(NUMBERS[name]) == set(NETWORKS[FAMILIES[name]])


@pytest.mark.parametrize("rank", [128, 248])
@pytest.mark.parametrize("name", FAMILIES)
def test_poster_ranks_train_as_many_numbers_as_they_should(
    name: str, rank: int, shapes: dict[str, dict[str, memory.Shapes]]
) -> None:
    for part, per_rank in PER_RANK[name].items():
        targets = ATTENTION if part == "unet" else TEXT_ATTENTION
        found = memory.adapter_size(shapes[name][part], targets, rank, is_dora=False)
        assert found == rank * per_rank, part


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_build_where_the_poster_has_them(name: str) -> None:
    """The very code of a run, at rank 248 on UNet and text encoders."""
    parts = {part: build(name, part) for part in PER_RANK[name]}
    unet = parts.pop("unet")
    base = BaseModel(FAMILIES[name], [], list(parts.values()), unet, None, None, False)
    layers = lora.target_layers("unet", unet, ATTENTION)
    assert len(layers) == {"sd15": 16, "sdxl": 70}[name] * 2 * 4  # two attentions a block
    assert {layer.split(".")[-2] for layer in layers} == {"attn1", "attn2", "to_out"}
    with torch.device("meta"):
        models = add_adapters_on_meta(base)
    assert {model.prefix: sum(p.numel() for p in model.parameters()) for model in models} == {
        part: 248 * per_rank for part, per_rank in PER_RANK[name].items()
    }
    assert {p.dtype for model in models for p in model.parameters()} == {torch.float32}


def add_adapters_on_meta(base: BaseModel) -> list[lora.AdaptedModel]:
    """Add adapters without drawing their numbers, which do not exist on the meta device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "initialise", lambda name, parameter, seed: None)
        return add_adapters(base, FinetuneConfig(lora_rank=248, train_text_encoder=True), seed=0)


def kept_by_autograd(name: str, is_checkpointed: bool, batch: int) -> float:
    """Count the float32 numbers that a forward pass of the adapted UNet keeps, for one image."""
    from peft import LoraConfig

    class Fused(torch.autograd.Function):
        """Attention that keeps its inputs and output only, as the fused kernels do."""

        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out = torch.empty_like(query)
            ctx.save_for_backward(query, key, value, out)
            return out

    unet: Any = build(name, "unet")
    with torch.device("meta"):
        unet.add_adapter(LoraConfig(r=128, lora_alpha=128, target_modules=list(ATTENTION)))
    unet.train()
    if is_checkpointed:
        unet.enable_gradient_checkpointing()
    weights = {p.untyped_storage()._cdata for p in unet.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    def meta(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, device="meta", dtype=dtype)

    added = {"text_embeds": meta(batch, 1280), "time_ids": meta(batch, 6)}
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        patch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda query, key, value, **_: Fused.apply(query, key, value),
        )
        unet(
            meta(batch, 4, 64, 64),
            meta(batch, dtype=torch.long),
            encoder_hidden_states=meta(batch, 77, unet.config.cross_attention_dim),
            added_cond_kwargs=added if name == "sdxl" else None,
        )
    return sum(storage.nbytes() for storage in kept.values()) / 4 / batch


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_kept_activations_are_predicted_within_a_fifth(
    name: str, shapes: dict[str, dict[str, memory.Shapes]]
) -> None:
    unet = shapes[name]["unet"]
    counted = kept_by_autograd(name, False, 2)
    assert memory.kept_values(unet, 512, False) == pytest.approx(counted, rel=0.2)
    # With checkpointing the prediction adds the one block that is made again.
    counted = kept_by_autograd(name, True, 2)
    blocks = memory.kept_values(unet, 512, True) - counted
    assert -0.2 * counted < blocks < 0.6 * counted


def write_empty_model(folder: Path, name: str, networks: dict[str, memory.Shapes]) -> None:
    """Write the hub's layout with headers of the true size over holes: it takes no disk space."""
    for source in sorted((FOLDER / name).rglob("*.json")):
        target = folder / source.relative_to(FOLDER / name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    for part in TOKENIZERS[FAMILIES[name]]:
        (folder / part).mkdir()
        (folder / part / "vocab.json").write_text("{}")
    for part, tensors in networks.items():
        header, offset = {}, 0
        for key, shape in tensors.items():
            size = 4 * torch.Size(shape).numel()
            header[key] = {
                "dtype": "F32",
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / part / "model.safetensors").open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + offset)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [  # GiB: weights, adapter and optimiser (8-bit Adam), activations of 2 images of 512 px
        ("sd15", POSTER, (2.1, 0.2, 0.6)),
        ("sd15", POSTER | {"lora_rank": 248}, (2.1, 0.5, 0.6)),
        ("sdxl", POSTER, (6.6, 1.7, 0.5)),
        ("sdxl", POSTER | {"lora_rank": 248, "train_text_encoder": True}, (6.6, 4.3, 0.8)),
        ("sdxl", POSTER | {"quantize_base": True}, (3.7, 1.7, 0.5)),
        ("sdxl", {"lora_rank": 128}, (6.6, 1.7, 4.8)),
    ],
)
def test_check_predicts_the_memory_of_the_poster(
    name: str,
    changes: dict[str, Any],
    expected: tuple[float, float, float],
    shapes: dict[str, dict[str, memory.Shapes]],
    tmp_path: Path,
) -> None:
    write_empty_model(tmp_path, name, shapes[name])
    plugin = registry.find(registry.BASE_MODELS, name)
    settings = plugin.Settings(model=str(tmp_path), vae=None)
    assert plugin.check(settings) == []
    config = FinetuneConfig(**changes)
    networks = plugin.read_networks(settings)
    found = checks.predict_memory(config, networks, "bfloat16")
    gib = [part / memory.GIB for part in (found.weights, found.trained, found.activations)]
    assert gib == pytest.approx(expected, abs=0.06)
    assert list(checks.problems(config, networks, "bfloat16", found.total)) == []
    (line,) = checks.problems(config, networks, "bfloat16", 2 * memory.GIB)
    assert f"finetune needs {found.describe()}, and 2.0 GiB are free" in line
    too_wide = config.model_copy(update={"lora_rank": 999, "train_text_encoder": False})
    (line,) = checks.problems(too_wide, networks, "bfloat16", 10**12)
    assert "rank 999 of unet is larger than its layer" in line


def test_kohya_names_of_sdxl_are_unique_and_those_of_its_own_code(
    shapes: dict[str, dict[str, memory.Shapes]],
) -> None:
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    targets = UNET_TARGETS["wider"]
    unet = memory.layers(shapes["sdxl"]["unet"])
    layers = [layer for layer in unet if is_adapted(layer, targets)]
    named = {f"lora_unet_{sgm_name(n, 2).replace('.', '_')}.lora_down.weight": n for n in layers}
    assert len(named) == len(layers)
    config = type("Config", (), {"layers_per_block": 2})
    back = _maybe_map_sgm_blocks_to_diffusers({k: k for k in named}, config)
    assert len(back) == len(layers)
    for new, old in back.items():
        place = new.removeprefix("lora_unet_").split(".")[0]
        kind = "_attentions_" if ".attentions." in named[old] else "_resnets_"
        ours = named[old].replace(".", "_")
        aliases = {"input_": "down_", "output_": "up_", "middle_block": "mid_block"}
        for sgm, diffusers in aliases.items():
            place = place.replace(sgm, diffusers)
        assert place.split(kind)[0] == ours.split(kind)[0], (old, named[old])
        assert place.split(kind)[1].split("_")[0] == ours.split(kind)[1].split("_")[0]
