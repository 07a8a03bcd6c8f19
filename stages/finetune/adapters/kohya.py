"""Kohya's layout of an adapter, beside diffusers' own."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.files import write_whole
from stages.components.diffusion.adapters import read_settings
from stages.components.networks.weights import Family

# In a folder of its own: `load_lora_weights(ARTIFACT)` must find one file only.
KOHYA_FILE = "kohya/lora.safetensors"
KOHYA_PREFIXES: dict[Family, dict[str, str]] = {
    "sd": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}
# Layers inside a residual block, as SDXL's own code names them.
RESNET_NAMES = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def save_kohya(
    source: Path, target: Path, family: Family, unet_config: Mapping[str, Any]
) -> Path | None:
    """Write an exported adapter again, in the layout of kohya's sd-scripts.

    Args:
        source: A file that `save_adapter` wrote.
        target: The artifact's root.
        family: Of the base model.
        unet_config: The UNet's settings, for SDXL's block numbers.

    Returns:
        The file, or None for DoRA: readers of that layout do not agree on its magnitudes.
    """
    from safetensors.torch import load_file, save_file

    tensors = kohya_state(load_file(source), read_settings(source), family, unet_config)
    if tensors is None:
        return None
    path = target / KOHYA_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda partial: save_file(tensors, partial, {"format": "pt"}))
    return path


def kohya_state(
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    family: Family,
    unet_config: Mapping[str, Any],
) -> dict[str, Tensor] | None:
    """Rename an adapter's tensors and add alphas; None for DoRA.

    `alpha` is such that alpha / rank is the adapter's true scale, rsLoRA's too, which that layout
    does not know.
    """
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not name.endswith((".lora_A.weight", ".lora_B.weight")):
            return None
        layer, _, kind = name.removesuffix(".weight").rpartition(".")
        part, _, inner = layer.partition(".")
        if part == "unet" and family == "sdxl":
            inner = sgm_name(inner, int(unet_config["layers_per_block"]))
        key = f"{KOHYA_PREFIXES[family][part]}_{inner.replace('.', '_')}"
        if kind == "lora_A":
            rank, alpha = settings[f"{part}.r"], settings[f"{part}.lora_alpha"]
            if settings[f"{part}.use_rslora"]:
                alpha *= math.sqrt(rank)
            state[f"{key}.alpha"] = torch.tensor(float(alpha))
            state[f"{key}.lora_down.weight"] = value
        else:
            state[f"{key}.lora_up.weight"] = value
    return state


def sgm_name(name: str, layers_per_block: int) -> str:
    """Name a layer of SDXL's UNet as Stability's own code does, and so kohya's files.

    Example:
        >>> sgm_name("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 2)
        'input_blocks.4.1.transformer_blocks.0.attn1.to_q'
        >>> sgm_name("up_blocks.0.resnets.2.conv1", 2)
        'output_blocks.2.0.in_layers.2'
        >>> sgm_name("mid_block.attentions.0.proj_in", 2)
        'middle_block.1.proj_in'
    """
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name)
    if match is not None:
        side, block, kind, number, rest = match.groups()
        index = int(block) * (layers_per_block + 1) + int(number)
        place = f"input_blocks.{index + 1}" if side == "down" else f"output_blocks.{index}"
        if kind == "attentions":
            return f"{place}.1.{rest}"
        return f"{place}.0.{RESNET_NAMES[rest]}"
    match = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
    assert match is not None, name  # adapters sit in blocks only
    kind, number, rest = match.groups()
    if kind == "attentions":
        return f"middle_block.1.{rest}"
    return f"middle_block.{2 * int(number)}.{RESNET_NAMES[rest]}"
