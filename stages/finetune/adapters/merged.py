"""LoRA computed on merged weights while training: the same function, in fewer operations.

peft runs an adapter beside its layer: y = W x + s B (A x). With W' = W + s B A the layer is one
product, and backward takes the gradient of W' once and hands it on to A and B. Per row (token or
pixel) that is 3 d_in d_out multiplications (forward, gradient of x, gradient of W') in place of
2 d_in d_out + 3 r (d_in + d_out), and 3 r d_in d_out once a micro-batch for B A and its gradients.
So narrow layers with a high rank gain, and wide ones are left as peft has them. Only in float32: in
bfloat16 the sum would round the adapter away.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.finetune.adapters.lora import ADAPTER, AdaptedModel


def merge_while_training(models: Sequence[AdaptedModel], num_rows: int) -> int:
    """Let every adapted layer that gains by it compute on merged weights; return how many do.

    Parameters, their names and what is exported stay as they are. DoRA, dropout, quantised base
    weights and anything but float32 are left to peft.

    Args:
        models: what `lora.add_adapters` returned.
        num_rows: tokens or pixels of a micro-batch, at least.
    """
    count = 0
    for model in models:
        for layer in adapted_layers(model.module):
            if is_mergeable(layer) and is_cheaper(layer, num_rows):
                is_linear = isinstance(layer.base_layer, nn.Linear)
                layer.forward = partial(linear if is_linear else convolution, layer)
                count += 1
    return count


def adapted_layers(module: nn.Module) -> Iterator[Any]:
    """Iterate over the layers that peft has put a LoRA on."""
    from peft.tuners.lora import LoraLayer

    return (layer for layer in module.modules() if isinstance(layer, LoraLayer))


def is_mergeable(layer: Any) -> bool:
    """Tell whether an adapted layer is a plain linear one or convolution in float32."""
    base = layer.base_layer
    return (
        type(base) in (nn.Linear, nn.Conv2d)
        and base.weight.dtype == torch.float32
        and getattr(base, "groups", 1) == 1
        and ADAPTER not in layer.lora_variant  # DoRA is one
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and not layer.lora_bias[ADAPTER]
    )


def is_cheaper(layer: Any, num_rows: int) -> bool:
    """Compare the multiplications of a micro-batch; see the module's docstring.

    For a convolution of k x k, W and A have k² times as many columns.
    """
    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    merged: int = layer.base_layer.weight.numel()
    beside: int = 3 * (down.numel() + up.numel())
    return num_rows * (beside - merged) > 3 * len(down) * merged


def merged_weight(layer: Any) -> Tensor:
    """Return W + s B A in the shape of W, float32; gradients flow to A and B."""
    base = layer.base_layer.weight
    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    scale = layer.scaling[ADAPTER]
    merged = torch.addmm(base.flatten(1), up.flatten(1), down.flatten(1), alpha=scale)
    return merged.view_as(base)


def linear(layer: Any, x: Tensor) -> Tensor:
    """Apply an adapted linear layer to (..., d_in)."""
    return F.linear(x, merged_weight(layer), layer.base_layer.bias)


def convolution(layer: Any, x: Tensor) -> Tensor:
    """Apply an adapted convolution to (batch, channel, h, w)."""
    base = layer.base_layer
    convolved: Tensor = base._conv_forward(x, merged_weight(layer), base.bias)
    return convolved
