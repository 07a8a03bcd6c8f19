"""What stands between a loaded base model and the first step: what is trained, and by whom."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pipeline.settings import FinetuneConfig
from stages.components.adapter_targets import text_targets, unet_targets
from stages.components.diffusion.base_model import BaseModel
from stages.components.lora import AdaptedModel, LoraPlan, add_adapters
from stages.components.merged_adapters import merge_while_training
from stages.components.textual_inversion import add_words


def add_trained(base: BaseModel, config: FinetuneConfig, seed: int) -> list[AdaptedModel]:
    """Add what the config's method trains; checkpoint the UNet (most activations are its).

    Raises:
        TrainingError: An adapter or a new word does not fit the base model.
    """
    models: list[AdaptedModel]
    if config.is_inversion:
        models = list(add_words(base, config.inversion))
        base.unet.train()  # has no dropout; only a network in training mode is checkpointed
    else:
        models = add_adapters(base, plan_adapters(config), seed)
        merge_while_training(models, least_rows(base, config))
    for model in models:
        model.module.train()
    if config.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    if config.compile_blocks:
        base.unet.compile_repeated_blocks()
    return models


def least_rows(base: BaseModel, config: FinetuneConfig) -> int:
    """Return how many cells or tokens of a micro-batch pass the layer that sees the fewest."""
    levels = len(base.unet.config.block_out_channels) - 1
    side: int = config.resolution // 2 ** (len(base.vae.config.block_out_channels) - 1) // 2**levels
    tokens = int(base.tokenizers[0].model_max_length)
    return config.batch_size * max(1, min(side * side, tokens))


def plan_adapters(config: FinetuneConfig) -> LoraPlan:
    """Say where adapters go and how large they are."""
    rank = config.lora_rank
    return LoraPlan(
        rank=rank,
        alpha=config.lora_alpha or float(rank),
        target_modules=unet_targets(config),
        text_encoder_rank=(config.text_encoder_rank or rank) if config.train_text_encoder else None,
        kind=config.adapter,
        text_targets=text_targets(config),
    )


def build_accelerator(config: FinetuneConfig, device: str) -> Any:
    """Build accelerate's part: accumulation and gradient exchange, no autocast, no schedule."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # The last layer of SDXL's first text encoder feeds nothing, so its adapter gets no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.train_text_encoder)
    return Accelerator(
        mixed_precision="no",  # whatever `accelerate launch` was told: `trainer` casts by dtype
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        cpu=device == "cpu",
        device_placement=False,
        kwargs_handlers=[unused],
    )


def release(base: BaseModel, config: FinetuneConfig) -> None:
    """Move to the CPU what has been cached for good; on a GPU, memory is what limits the batch."""
    base.vae.to("cpu")
    for encoder in [] if config.trains_text else base.text_encoders:
        encoder.to("cpu")


def with_prepared(
    base: BaseModel, models: Sequence[AdaptedModel], modules: Sequence[nn.Module]
) -> BaseModel:
    """Put accelerate's networks (wrapped, when there are several processes) in place of ours."""
    prepared = dict(zip((model.prefix for model in models), modules, strict=True))
    encoders = [module for prefix, module in prepared.items() if prefix != "unet"]
    return replace(
        base, unet=prepared.get("unet", base.unet), text_encoders=encoders or base.text_encoders
    )
