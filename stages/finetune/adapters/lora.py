"""LoRA, rsLoRA and DoRA: placed by peft, trained in float32, saved for plain diffusers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pipeline.errors import TrainingError
from pipeline.seeding import derive_seed
from stages.components.diffusion.base_model import BaseModel
from stages.finetune.adapters.targets import TEXT_ATTENTION

ADAPTER = "default"


@dataclass(frozen=True)
class LoraPlan:
    """Where adapters go. `text_encoder_rank` None: the text encoders stay as they are."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    text_encoder_rank: int | None
    kind: Literal["lora", "rslora", "dora"] = "lora"
    text_targets: tuple[str, ...] = TEXT_ATTENTION

    def alpha_of(self, rank: int) -> float:
        """Return the alpha that gives `rank` the same scale as `self.rank` has.

        The scale is alpha / rank, and with rsLoRA alpha / sqrt(rank).
        """
        ratio = rank / self.rank
        return self.alpha * (math.sqrt(ratio) if self.kind == "rslora" else ratio)


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


def add_adapters(base: BaseModel, plan: LoraPlan, seed: int) -> list[AdaptedModel]:
    """Put adapters on the UNet and, if the plan says so, on every text encoder.

    A rank or target that does not fit is refused before anything is changed.

    Adapter weights are float32 whatever the base model's dtype: in bfloat16, Adam's updates are
    smaller than the spacing of the numbers and vanish. Initialised as in the LoRA paper (A random,
    B zero), from (seed, tensor name), so a fresh adapter changes nothing.

    Raises:
        TrainingError: No layer matches the targets, or the rank exceeds what a layer can use.
    """
    from peft import LoraConfig

    places: list[tuple[str, Any, int, float, tuple[str, ...]]] = [
        ("unet", base.unet, plan.rank, plan.alpha, plan.target_modules)
    ]
    if plan.text_encoder_rank is not None:
        rank = plan.text_encoder_rank
        for number, encoder in enumerate(base.text_encoders, start=1):
            prefix = "text_encoder" if number == 1 else f"text_encoder_{number}"
            places.append((prefix, encoder, rank, plan.alpha_of(rank), plan.text_targets))
    for prefix, module, rank, _, targets in places:
        require_rank(prefix, target_layers(prefix, module, targets), rank)
    models = []
    for prefix, module, rank, alpha, targets in places:
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=list(targets),
            use_rslora=plan.kind == "rslora",
            use_dora=plan.kind == "dora",
        )
        module.add_adapter(config, adapter_name=ADAPTER)
        model = AdaptedModel(prefix, module)
        for name, parameter in model.named_parameters().items():
            initialise(name, parameter, seed)
        models.append(model)
    return models


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
        if not any(matches(name, target) for name in layers):
            raise TrainingError(
                f"finetune.target_modules: {target!r} matches no linear or convolution layer of "
                f"{prefix}; it has for example {', '.join(list(layers)[:4])}"
            )
    return {n: layer for n, layer in layers.items() if any(matches(n, t) for t in targets)}


def matches(name: str, target: str) -> bool:
    """Tell whether a layer's dotted name is the target or ends in it, whole words only."""
    return name == target or name.endswith(f".{target}")


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
