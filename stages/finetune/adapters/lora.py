"""LoRA, rsLoRA and DoRA: placed by peft, trained in float32, saved for plain diffusers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.errors import TrainingError
from pipeline.seeding import derive_seed
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.base_model import BaseModel
from stages.finetune.adapters.targets import is_adapted, text_targets, unet_targets

ADAPTER = "default"


@dataclass(frozen=True)
class AdaptedModel:
    """A network with an adapter; `prefix` is its name in the exported file."""

    prefix: str  # "unet", "text_encoder", "text_encoder_2"
    module: Any  # torch module with peft's `add_adapter` and `peft_config`

    def parameters(self) -> list[nn.Parameter]:
        """List the trained tensors, in a fixed order; nothing else of the network is trained."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Map "prefix.name" to each trained tensor, in the order of `parameters`."""
        return {
            f"{self.prefix}.{name}": parameter
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad
        }


def add_adapters(base: BaseModel, config: FinetuneConfig, seed: int) -> list[AdaptedModel]:
    """Put adapters on the UNet and, where the config says so, on every text encoder.

    A rank or target that does not fit is refused before anything is changed.

    Adapter weights are float32 whatever the base model's dtype: in bfloat16, Adam's updates are
    smaller than the spacing of the numbers and vanish. Initialised as in the LoRA paper (A random,
    B zero), from (seed, tensor name), so a fresh adapter changes nothing.

    Raises:
        TrainingError: No layer matches the targets, or the rank exceeds what a layer can use.
    """
    from peft import LoraConfig

    places: list[tuple[str, Any, int, tuple[str, ...]]] = [
        ("unet", base.unet, config.lora_rank, unet_targets(config))
    ]
    if config.train_text_encoder:
        rank = config.text_encoder_rank or config.lora_rank
        places += [
            (prefix, encoder, rank, text_targets(config))
            for prefix, encoder in named_encoders(base).items()
        ]
    for prefix, module, rank, targets in places:
        require_rank(prefix, target_layers(prefix, module, targets), rank)
    models = []
    for prefix, module, rank, targets in places:
        settings = LoraConfig(
            r=rank,
            lora_alpha=alpha_of(rank, config),
            target_modules=list(targets),
            use_rslora=config.adapter == "rslora",
            use_dora=config.adapter == "dora",
        )
        module.add_adapter(settings, adapter_name=ADAPTER)
        model = AdaptedModel(prefix, module)
        for name, parameter in model.named_parameters().items():
            initialise(name, parameter, seed)
        models.append(model)
    return models


def named_encoders(base: BaseModel) -> dict[str, Any]:
    """Map "text_encoder", "text_encoder_2" to the text encoders, as the pipelines name them."""
    return dict(zip(("text_encoder", "text_encoder_2"), base.text_encoders, strict=False))


def alpha_of(rank: int, config: FinetuneConfig) -> float:
    """Return the alpha that gives `rank` the same scale as the UNet's rank has.

    The scale is alpha / rank, and with rsLoRA alpha / sqrt(rank).
    """
    ratio = rank / config.lora_rank
    alpha = config.lora_alpha or float(config.lora_rank)
    return alpha * (math.sqrt(ratio) if config.adapter == "rslora" else ratio)


def initialise(name: str, parameter: nn.Parameter, seed: int) -> None:
    """Set an adapter tensor in float32: A uniform (Kaiming, a = sqrt 5), B zero.

    DoRA's magnitudes keep what peft gave them, the norms of the base model's weights.
    """
    if "lora_magnitude_vector" in name:
        parameter.data = parameter.data.float()
        return
    parameter.data = torch.zeros_like(parameter, dtype=torch.float32)
    if ".lora_A." in name:
        drawn = torch.empty(parameter.shape)
        generator = torch.Generator().manual_seed(derive_seed(seed, "lora", name))
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        parameter.data.copy_(drawn)


def target_layers(
    prefix: str, module: nn.Module, targets: Sequence[str]
) -> dict[str, nn.Linear | nn.Conv2d]:
    """Find the layers whose name ends in one of `targets`, as peft matches them.

    Raises:
        TrainingError: A target matches nothing.
    """
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    for target in targets:
        if not any(is_adapted(name, (target,)) for name in layers):
            raise TrainingError(
                f"finetune.target_modules: {target!r} matches no linear or convolution layer of "
                f"{prefix}; it has for example {', '.join(list(layers)[:4])}"
            )
    return {name: layer for name, layer in layers.items() if is_adapted(name, targets)}


def require_rank(prefix: str, layers: Mapping[str, nn.Linear | nn.Conv2d], rank: int) -> None:
    """Refuse a rank beyond the smaller side of any target: the surplus could hold nothing.

    Raises:
        TrainingError: Names the narrowest layer, the rank and its limit.
    """
    limits = {name: largest_rank(layer) for name, layer in layers.items()}
    narrowest = min(limits, key=lambda name: limits[name])
    if rank > limits[narrowest]:
        field = "lora_rank" if prefix == "unet" else "text_encoder_rank"
        raise TrainingError(
            f"finetune.{field} is {rank}, but {prefix} layer {narrowest!r} can use at most "
            f"{limits[narrowest]}. Lower it, or leave such layers out of target_modules."
        )


def largest_rank(layer: nn.Linear | nn.Conv2d) -> int:
    """Return the rank of the largest change that a layer can take; not of packed 4-bit weights."""
    if isinstance(layer, nn.Linear):
        return min(layer.in_features, layer.out_features)
    return min(layer.weight[0].numel(), layer.out_channels)
