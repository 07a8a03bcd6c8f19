"""Set-up of a training before step 1: what is trained added to a base model, and the process."""

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pipeline import registry
from pipeline.contracts import Context
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.base_model import BaseModel, torch_dtype
from stages.components.diffusion.grounding import watch_attention
from stages.finetune.adapters.lora import AdaptedModel, add_adapters
from stages.finetune.adapters.merged import merge_while_training
from stages.finetune.adapters.textual_inversion import add_words
from stages.finetune.averaging import AdapterAverage, Trained
from stages.finetune.loss import require_prediction_type
from stages.finetune.optimizers import build_optimizer, parameter_groups
from stages.finetune.quantisation import quantise_unet
from stages.finetune.trainer import Trainer
from stages.finetune.training_set import TrainingSet

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
BLOCKS = (2**30, 2**25)  # bytes; glibc before 2.35 takes no more than the second
HELD = 2**30  # bytes that may lie free


def keep_freed_memory() -> bool:
    """Keep what is freed for the next step, which asks for the same again; return whether it does.

    By default glibc returns large blocks to the system at once and takes them back page by page:
    5,000 page faults and 3 % of a step of the benchmark's training. Only glibc has these knobs.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # This one first: once the other is set, glibc no longer adapts this one by itself.
    if not any(mallopt(M_MMAP_THRESHOLD, size) == 1 for size in BLOCKS):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, HELD) == 1)


def build_accelerator(config: FinetuneConfig, device: str) -> Any:
    """Build accelerate's part: accumulation and gradient exchange, no autocast, no schedule."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # The last layer of SDXL's first text encoder feeds nothing, so its adapter gets no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.train_text_encoder)
    return Accelerator(
        mixed_precision="no",  # whatever `accelerate launch` was told: the loss casts by dtype
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        cpu=device == "cpu",
        device_placement=False,
        kwargs_handlers=[unused],
    )


def load_base(config: FinetuneConfig, context: Context, device: torch.device) -> BaseModel:
    """Load the base model, in 4 bits where the config asks for it; only this function picks one.

    Raises:
        MissingWeightsError: It is not on this machine.
        TrainingError: Its target is unknown here, or it cannot be quantised.
    """
    assert config.base_model is not None, "filled in by the runner"
    dtype = torch_dtype(context.dtype)
    plugin = registry.find(registry.BASE_MODELS, config.base_model.name)
    settings = plugin.Settings.model_validate(config.base_model.settings)
    base: BaseModel = plugin.load(settings, dtype=dtype, device=device)
    require_prediction_type(base.noise_scheduler.config.prediction_type)
    if config.quantize_base:
        quantise_unet(base.unet, dtype)
    return base


def build_trainer(
    base: BaseModel,
    config: FinetuneConfig,
    context: Context,
    *,
    accelerator: Any,
    device: torch.device,
    train: TrainingSet,
    held_out: TrainingSet,
) -> Trainer:
    """Add what is trained to the base model, and hand networks and optimiser to accelerate.

    Raises:
        TrainingError: An adapter or a new word does not fit the base model.
    """
    watched = watch_attention(base.unet) if config.grounding_weight > 0 else []
    models = add_trained(base, config, context.seed)
    optimizer = build_optimizer(
        config.optimizer, parameter_groups(models, config), config.weight_decay
    )
    *modules, prepared = accelerator.prepare(*(model.module for model in models), optimizer)
    decay = config.ema_decay
    return Trainer(
        config=config,
        base=with_prepared(base, models, modules),
        trained=Trained(
            models, optimizer, None if decay is None else AdapterAverage(models, decay)
        ),
        optimizer=prepared,
        accelerator=accelerator,
        device=device,
        dtype=torch_dtype(context.dtype),
        train=train,
        held_out=held_out,
        seed=context.seed,
        watched=watched,
    )


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
        models = add_adapters(base, config, seed)
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


def with_prepared(
    base: BaseModel, models: Sequence[AdaptedModel], modules: Sequence[nn.Module]
) -> BaseModel:
    """Put accelerate's networks (wrapped, when there are several processes) in place of ours."""
    prepared = dict(zip((model.prefix for model in models), modules, strict=True))
    encoders = [module for prefix, module in prepared.items() if prefix != "unet"]
    return replace(
        base, unet=prepared.get("unet", base.unet), text_encoders=encoders or base.text_encoders
    )


def release(base: BaseModel, config: FinetuneConfig) -> None:
    """Move to the CPU what has been cached for good; on a GPU, memory is what limits the batch."""
    base.vae.to("cpu")
    for encoder in [] if config.trains_text else base.text_encoders:
        encoder.to("cpu")
