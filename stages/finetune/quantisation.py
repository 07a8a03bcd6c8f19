"""Quantisation of a frozen UNet to 4 bits, for small GPUs."""

from typing import Any

import torch
from torch import nn

from pipeline.errors import TrainingError

BLOCK = 64  # values that share one scale; a layer must hold a multiple of it


def quantise_unet(unet: Any, compute_dtype: torch.dtype) -> int:
    """Replace the linear layers of the transformer blocks by 4-bit ones, in place.

    NF4 with blocks of 64 and scales in float32: 4.5 bits a weight. Convolutions, embeddings and
    the layers outside transformer blocks stay as they are: they are few, or bitsandbytes has no
    4-bit form of them. Must come before adapters.

    Args:
        unet: UNet2DConditionModel, frozen.
        compute_dtype: What the weights are expanded to when they are used.

    Returns:
        How many layers were replaced.

    Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023.

    Raises:
        TrainingError: The UNet has no such layer.
    """
    import bitsandbytes

    names = [
        name
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear)
        and ".transformer_blocks." in name
        and layer.weight.numel() % BLOCK == 0
    ]
    if not names:
        raise TrainingError(
            f"finetune.quantize_base: {type(unet).__name__} has no linear layer in a transformer "
            "block that could be held in 4 bits; leave it out"
        )
    for name in names:
        layer = unet.get_submodule(name)
        replacement = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=compute_dtype,
            quant_type="nf4",
            compress_statistics=False,
        )
        replacement.weight = bitsandbytes.nn.Params4bit(
            layer.weight.detach().cpu(),
            requires_grad=False,
            quant_type="nf4",
            compress_statistics=False,
        )
        replacement.bias = layer.bias
        # Moving is what quantises.
        replacement.to(layer.weight.device).requires_grad_(False)
        unet.set_submodule(name, replacement)
    unet.is_loaded_in_4bit = True  # peft asks for it
    return len(names)
