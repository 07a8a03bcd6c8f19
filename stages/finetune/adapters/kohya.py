"""Kohya's layout of an adapter, beside diffusers' own."""

import json
import math
import re
from collections.abc import Iterable, Mapping
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
# As sd-scripts writes them; AUTOMATIC1111 shows an adapter only with base models of its version.
VERSIONS: dict[Family, str] = {"sd": "sd_v1", "sdxl": "sdxl_base_v1-0"}
# Layers inside a residual block, as SDXL's own code names them.
RESNET_NAMES = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
# Those outside of the blocks.
OUTER_NAMES = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def save_kohya(
    source: Path, target: Path, family: Family, unet_config: Mapping[str, Any]
) -> Path | None:
    """Write an exported adapter again, in the layout of kohya's sd-scripts.

    The same adapter gives the same bytes.

    Args:
        source: A file that `save_adapter` wrote.
        target: The artifact's root.
        family: Of the base model.
        unet_config: The UNet's settings, for SDXL's block numbers.

    Returns:
        The file, or None where that layout has no place for it: for DoRA (readers do not agree on
        its magnitudes) and for layers without a name there (`unnamed_layers`).
    """
    from safetensors.torch import load_file

    settings = read_settings(source)
    tensors = kohya_state(load_file(source), settings, family, unet_config)
    if tensors is None:
        return None
    metadata = {
        "format": "pt",
        "ss_base_model_version": VERSIONS[family],
        "ss_network_alpha": str(kohya_alpha(settings, "unet")),
        "ss_network_dim": str(settings["unet.r"]),
        "ss_network_module": "networks.lora",
    }
    path = target / KOHYA_FILE
    write_whole(path, lambda partial: partial.write_bytes(to_bytes(tensors, metadata)))
    return path


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Serialise with a sorted header: safetensors writes several metadata in any order."""
    from safetensors.torch import save

    content: bytes = save(dict(tensors), dict(metadata))
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":"))
    padded = header.encode().ljust(-(-len(header.encode()) // 8) * 8)  # data begin at a multiple
    return len(padded).to_bytes(8, "little") + padded + content[start:]


def kohya_state(
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    family: Family,
    unet_config: Mapping[str, Any],
) -> dict[str, Tensor] | None:
    """Rename an adapter's tensors and add alphas; None where one has no place in that layout."""
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not name.endswith((".lora_A.weight", ".lora_B.weight")):
            return None
        layer, _, kind = name.removesuffix(".weight").rpartition(".")
        key = kohya_name(layer, family, unet_config)
        if key is None:
            return None
        if kind == "lora_A":
            alpha = kohya_alpha(settings, layer.partition(".")[0])
            state[f"{key}.alpha"] = torch.tensor(alpha)
            state[f"{key}.lora_down.weight"] = value
        else:
            state[f"{key}.lora_up.weight"] = value
    return state


def kohya_alpha(settings: Mapping[str, Any], part: str) -> float:
    """Return what divided by the rank is the adapter's scale; rsLoRA's too, unknown there."""
    rank, alpha = settings[f"{part}.r"], settings[f"{part}.lora_alpha"]
    return float(alpha * math.sqrt(rank) if settings[f"{part}.use_rslora"] else alpha)


def unnamed_layers(
    parameters: Iterable[str], family: Family, unet_config: Mapping[str, Any]
) -> list[str]:
    """List the adapted layers that kohya's layout cannot hold; `parameters` are peft's names."""
    layers = dict.fromkeys(name.partition(".lora_")[0] for name in parameters)
    return [layer for layer in layers if kohya_name(layer, family, unet_config) is None]


def kohya_name(layer: str, family: Family, unet_config: Mapping[str, Any]) -> str | None:
    """Name a layer, "part.layer", as kohya's files do; None if they have no name for it."""
    part, _, inner = layer.partition(".")
    named: str | None = inner
    if part == "unet" and family == "sdxl":
        named = sgm_name(inner, int(unet_config["layers_per_block"]))
    return named and f"{KOHYA_PREFIXES[family][part]}_{named.replace('.', '_')}"


def sgm_name(name: str, layers_per_block: int) -> str | None:
    """Name a layer of SDXL's UNet as Stability's own code does, and so kohya's files.

    Example:
        >>> sgm_name("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 2)
        'input_blocks.4.1.transformer_blocks.0.attn1.to_q'
        >>> sgm_name("up_blocks.0.resnets.2.conv1", 2)
        'output_blocks.2.0.in_layers.2'
        >>> sgm_name("mid_block.attentions.0.proj_in", 2)
        'middle_block.1.proj_in'
        >>> sgm_name("down_blocks.0.downsamplers.0.conv", 2), sgm_name("conv_out", 2)
        ('input_blocks.3.0.op', 'out.2')
    """
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.([a-z]+)\.(\d+)\.(.+)", name)
    if match is not None:
        side, block, kind, number, rest = match.groups()
        first = int(block) * (layers_per_block + 1) + (side == "down")
        blocks = "input_blocks" if side == "down" else "output_blocks"
        if kind == "attentions":
            return f"{blocks}.{first + int(number)}.1.{rest}"
        if kind == "resnets" and rest in RESNET_NAMES:
            return f"{blocks}.{first + int(number)}.0.{RESNET_NAMES[rest]}"
        if (kind, rest) == ("downsamplers", "conv"):
            return f"{blocks}.{first + layers_per_block}.0.op"
        if (kind, rest) == ("upsamplers", "conv"):  # behind a residual block and its attention
            return f"{blocks}.{first + layers_per_block}.2.conv"
        return None
    match = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
    if match is None:
        return None
    kind, number, rest = match.groups()
    if kind == "attentions":
        return f"middle_block.1.{rest}"
    inner = RESNET_NAMES.get(rest)
    return inner and f"middle_block.{2 * int(number)}.{inner}"
