"""Optimisers: what turns a gradient into a step (rates, groups of parameters, clipping)."""

import contextlib
import importlib
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.errors import TrainingError
from pipeline.settings import FinetuneConfig
from stages.components.networks.muon import Muon
from stages.finetune.adapters.lora import AdaptedModel
from stages.finetune.checks import missing_library

Groups = Sequence[tuple[Sequence[nn.Parameter], float]]


def build_optimizer(name: str, groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """Build an optimiser over (parameters, peak rate) groups; betas are 0.9 and 0.999.

    Args:
        name: "adamw", "adamw_8bit" (bitsandbytes), "muon", "prodigy" or "schedule_free".
        groups: Trained tensors with the highest rate of each group.
        weight_decay: Decoupled, in the unit of the rate.

    Raises:
        TrainingError: The optimiser's library is not installed.

    Source: AdamW: Loshchilov and Hutter 2019. 8 bits: Dettmers et al. 2022. Muon: Jordan et al.
    2024; an adapter is nothing but matrices. Prodigy: Mishchenko
    and Defazio 2024, with bias correction and without the warm-up in its estimate, as its authors
    advise for diffusion models. Schedule-free: Defazio et al. 2024.
    """
    problem = missing_library(name)
    if problem is not None:
        raise TrainingError(problem)
    rows = [{"params": list(parameters), "lr": rate} for parameters, rate in groups]
    if name == "adamw":
        # fused: an adapter is hundreds of small tensors, and a Python loop over them costs a
        # tenth of a tiny model's step.
        return torch.optim.AdamW(rows, weight_decay=weight_decay, fused=True)
    if name == "muon":
        return Muon(rows, lr=0.0, weight_decay=weight_decay)
    built: Any
    if name == "adamw_8bit":
        built = importlib.import_module("bitsandbytes").optim.AdamW8bit(
            rows, weight_decay=weight_decay
        )
    elif name == "prodigy":
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it was told
            built = importlib.import_module("prodigyopt").Prodigy(
                rows,
                lr=1.0,
                weight_decay=weight_decay,
                use_bias_correction=True,
                safeguard_warmup=True,
            )
    else:
        built = importlib.import_module("schedulefree").AdamWScheduleFree(
            rows, betas=(0.9, 0.999), weight_decay=weight_decay
        )
        built.train()
    optimizer: torch.optim.Optimizer = built
    return optimizer


def parameter_groups(
    models: Sequence[AdaptedModel], config: FinetuneConfig
) -> list[tuple[list[nn.Parameter], float]]:
    """Pair trained tensors with their peak rates: UNet, then all text encoders together."""
    unet = [p for model in models if model.prefix == "unet" for p in model.parameters()]
    encoders = [p for model in models if model.prefix != "unet" for p in model.parameters()]
    groups = [group for group in (unet, encoders) if group]
    return list(zip(groups, peak_rates(config), strict=True))


def peak_rates(config: FinetuneConfig) -> list[float]:
    """Return the highest rate of each parameter group."""
    if config.is_inversion:
        return [config.inversion.learning_rate]
    rates = [config.learning_rate]
    if config.train_text_encoder:
        rates.append(config.text_encoder_learning_rate or config.learning_rate)
    return rates


def learning_rates(config: FinetuneConfig, step: int) -> list[float]:
    """Return the rate of each parameter group in a step: UNet, then text encoders, as trained.

    Set by hand: accelerate would step a scheduler once per process, and scripts that scale its
    counts by the accumulation never leave the warm-up.
    """
    return [
        learning_rate(
            step,
            peak=peak,
            warmup_steps=config.warmup_steps,
            max_steps=config.max_steps,
            schedule=config.lr_schedule,
        )
        for peak in peak_rates(config)
    ]


def learning_rate(
    step: int, *, peak: float, warmup_steps: int, max_steps: int, schedule: str
) -> float:
    """Return the rate of optimiser step `step`, in 1..max_steps.

    Linear warm-up that reaches `peak` at `warmup_steps`, then ("cosine") half a cosine that
    reaches 0 at `max_steps`, or ("constant") `peak`.

    Example:
        >>> rate = dict(peak=1e-4, warmup_steps=50, max_steps=500, schedule="cosine")
        >>> learning_rate(50, **rate), learning_rate(275, **rate), learning_rate(500, **rate)
        (0.0001, 5e-05, 0.0)
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * done))


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Give each parameter group its rate."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the first group's rate; Prodigy's is a multiple of the distance that it estimates."""
    group = optimizer.param_groups[0]
    return float(group["lr"] * group.get("d", 1.0))


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale gradients in place to a joint norm of at most `max_norm`; return the norm before.

    Takes a sequence, not an iterator: one that an optimiser has already consumed would clip
    nothing and report 0.

    Raises:
        TrainingError: No parameter has a gradient, so nothing would be learnt.
    """
    if not any(parameter.grad is not None for parameter in parameters):
        raise TrainingError(f"none of {len(parameters)} trained tensors received a gradient")
    return float(nn.utils.clip_grad_norm_(parameters, max_norm))


def group_numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """Collect each group's plain numbers: Prodigy's and schedule-free's state is partly there."""
    return [
        {key: value for key, value in group.items() if isinstance(value, bool | int | float)}
        for group in optimizer.param_groups
    ]


def restore_group_numbers(
    optimizer: torch.optim.Optimizer, numbers: Sequence[dict[str, float]]
) -> None:
    """Put back what `group_numbers` collected, in place."""
    for group, stored in zip(optimizer.param_groups, numbers, strict=True):
        group.update(stored)
