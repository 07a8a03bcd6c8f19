"""Trained adapters, loaded into a pipeline; nothing here knows how they were trained."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.errors import MissingWeightsError
from stages.components.diffusion.placeholder import EMBEDS_FILE, load_words

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"  # where diffusers looks for rank and alpha


def load_adapter(pipeline: "DiffusionPipeline", adapter_dir: Path) -> None:
    """Load a textual inversion, or a LoRA and, in float32, merge it into the weights.

    Merging makes sampling as fast as without an adapter. In bfloat16 it would round the adapter
    away, so there it stays beside the weights.

    Raises:
        MissingWeightsError: The folder holds no adapter, a damaged one, or another base model's.
    """
    if (adapter_dir / EMBEDS_FILE).is_file():
        load_words(pipeline, adapter_dir)
        return
    path = adapter_dir / ADAPTER_FILE
    if not path.is_file():
        raise MissingWeightsError(f"no adapter {path}; rerun finetune")
    require_fitting(path, pipeline.unet)
    pipeline.load_lora_weights(adapter_dir, weight_name=ADAPTER_FILE)
    if pipeline.unet.dtype == torch.float32:
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()


def require_fitting(path: Path, unet: nn.Module) -> None:
    """Refuse an adapter that was trained on another kind of UNet than this one.

    Raises:
        MissingWeightsError: The file is damaged, or a layer of it is absent or of another width.
    """
    from safetensors import safe_open

    read_settings(path)  # says so if the file is damaged
    layers = dict(unet.named_modules())
    with safe_open(path, framework="numpy") as stored:
        for name in stored.keys():  # noqa: SIM118
            if not (name.startswith("unet.") and name.endswith(".lora_A.weight")):
                continue
            width = stored.get_slice(name).get_shape()[1]
            place = name.removeprefix("unet.").removesuffix(".lora_A.weight")
            layer: Any = layers.get(place)
            takes = getattr(layer, "in_features", getattr(layer, "in_channels", None))
            if takes != width:
                has = "this model has no such layer" if layer is None else f"here it takes {takes}"
                raise MissingWeightsError(
                    f"adapter {path} was trained on another base model: its layer {place!r} takes "
                    f"{width} channels, {has}. Name the base model of its finetune run."
                )


def read_settings(path: Path) -> dict[str, Any]:
    """Read peft's settings, "part.name" to value, from an exported adapter's metadata.

    Raises:
        MissingWeightsError: The file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stored:
            settings: dict[str, Any] = json.loads((stored.metadata() or {}).get(METADATA_KEY, "{}"))
    except (SafetensorError, OSError) as error:
        raise MissingWeightsError(
            f"adapter {path} cannot be read ({error}); it is cut short or no safetensors file. "
            "Rerun finetune."
        ) from error
    return settings
