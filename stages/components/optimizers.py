"""Optimisers by name: AdamW (also in 8 bits), Muon, Prodigy, schedule-free.

Rates are set by the caller. `adamw`, `adamw_8bit` and `muon` come with the core packages; `prodigy`
and `schedule_free` need the extra `optimizers`.
"""

import contextlib
import importlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.errors import TrainingError
from stages.components.networks.muon import Muon
from stages.components.training_checks import missing_library

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


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Give each parameter group its rate."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the first group's rate; Prodigy's is a multiple of the distance that it estimates."""
    group = optimizer.param_groups[0]
    return float(group["lr"] * group.get("d", 1.0))


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
