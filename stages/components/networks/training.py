"""The training loop of the small networks: one rate, one loop, and checkpoints to go on from.

Everything random in a step is drawn from (seed, step), so a killed training goes on to the weights
of an unbroken one. Checkpoints are whole or absent, and refused where they misfit.
"""

import json
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.files import write_whole
from stages.components.networks.muon import optimizers

# Of libraries and places, not of the network.
PASSING = frozenset({"transformers_version", "dtype", "torch_dtype"})
LEAST_RATE = 0.02  # of the peak, at the end


class Optimisation(Protocol):
    """What the settings of every network say; all counts are optimiser steps."""

    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def checkpoint_every(self) -> int: ...


class Losses(NamedTuple):
    """What a step descends, a scalar, and scalars whose means are told now and then, by name."""

    total: Tensor
    shown: Mapping[str, Tensor]


def learning_rate(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """Return the rate of a step, counted from 0: linear warm-up, then cosine to 2 % of the peak.

    Example:
        >>> [learning_rate(n, peak=1.0, warmup_steps=2, steps=4) for n in (0, 1, 2, 3)]
        [0.5, 1.0, 1.0, 0.51]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    cosine = 0.5 * (1 + np.cos(np.pi * done))
    return float(peak * (LEAST_RATE + (1 - LEAST_RATE) * cosine))


def word_means(means: Mapping[str, float]) -> str:
    """Word what is shown of the last steps, by name.

    >>> word_means({"caption loss": 1.5, "lesion loss": 0.25})
    'caption loss 1.5000, lesion loss 0.2500'
    """
    return ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())


def fit(
    modules: Mapping[str, nn.Module],
    compute: Callable[[int, np.random.Generator], Losses],
    settings: Optimisation,
    *,
    name: str,
    checkpoint: Path,
    architecture: Mapping[str, Any],
    progress: Callable[[str], None],
    rate_at: Callable[[int], float] | None = None,
    word: Callable[[Mapping[str, float]], str] = word_means,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Train `modules["model"]` in place, or go on where the checkpoint stands.

    Args:
        modules: what checkpoints hold: "model", and whatever `after_step` changes along with it.
        compute: from a step, counted from 0, and its generator, keyed (seed, step), to its losses.
        settings: of the optimisation.
        name: begins each line of progress.
        checkpoint: the file, written every `checkpoint_every` steps and after the last one.
        architecture: JSON values that say what the networks are, see `describe`.
        progress: takes one line at a time.
        rate_at: learning rate of a step; by default `learning_rate` over all steps.
        word: words the means of what was shown since the last line.
        after_step: called with the step once the weights have moved, before they are written.

    Raises:
        TrainingError: The loss is not finite, or the checkpoint does not fit.
    """
    model = modules["model"]
    parameters = list(model.parameters())
    steppers = optimizers(model, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    start = restore(checkpoint, modules, steppers, architecture)
    if start:
        progress(f"{name}: going on at step {start}")
    began, steps, totals = time.monotonic(), settings.steps, dict[str, float]()
    for step in range(start, steps):
        losses = compute(step, np.random.default_rng([settings.seed, step]))
        rate = (
            rate_at(step)
            if rate_at is not None
            else learning_rate(
                step, peak=settings.learning_rate, warmup_steps=settings.warmup_steps, steps=steps
            )
        )
        for group in (group for stepper in steppers for group in stepper.param_groups):
            group["lr"] = rate
        model.zero_grad(set_to_none=True)
        losses.total.backward()
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        for stepper in steppers:
            stepper.step()
        if not np.isfinite(losses.total.item()):
            raise TrainingError(
                f"{name}: the loss at step {step + 1} is {losses.total.item()}; lower the "
                f"learning rate of {settings.learning_rate:g}"
            )
        if after_step is not None:
            after_step(step)
        for key, value in losses.shown.items():
            totals[key] = totals.get(key, 0.0) + value.item()
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == steps:
            count = step % settings.checkpoint_every + 1
            seconds = (time.monotonic() - began) / (step + 1 - start)
            means = word({key: total / count for key, total in totals.items()})
            progress(f"{name}: step {step + 1} of {steps}, {means}, {seconds:.2f} s a step")
            totals.clear()
            save(checkpoint, step + 1, modules, steppers, architecture)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write whole or not at all."""
    write_whole(path, lambda partial: torch.save(state, partial))


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a network's configuration to what decides its weights' meaning, as JSON values.

    Example:
        >>> describe({"_name_or_path": "/somewhere", "heads": (1, 4), "dtype": "float32"})
        {'heads': [1, 4]}
    """
    kept = {k: v for k, v in config.items() if not k.startswith("_") and k not in PASSING}
    described: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return described


def differences(made: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> list[str]:
    """List settings that both know and that differ; another library's version may add some.

    Example:
        >>> differences({"unet": {"heads": [1, 3]}}, {"unet": {"heads": [1, 4], "new": 0}})
        ['unet.heads is [1, 3], expected [1, 4]']
    """
    lines = []
    for key in sorted(made.keys() & now.keys()):
        if isinstance(made[key], Mapping) and isinstance(now[key], Mapping):
            lines += differences(made[key], now[key], f"{place}{key}.")
        elif made[key] != now[key]:
            lines.append(f"{place}{key} is {made[key]}, expected {now[key]}")
    return lines


def save(
    path: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    architecture: Mapping[str, Any],
) -> None:
    """Write networks, optimisers, the number of steps done, and what the networks are."""
    save_checkpoint(
        path,
        {
            **{name: module.state_dict() for name, module in modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "architecture": dict(architecture),
        },
    )


def restore(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    architecture: Mapping[str, Any],
) -> int:
    """Put back what `save` wrote, and return the number of steps done; 0 if there is no file.

    A checkpoint that does not say of what architecture it is must prove itself by loading.

    Raises:
        TrainingError: The file is damaged, of an older format, or of another architecture.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
        known = state.get("architecture")
        misfits = differences(known, architecture) if known is not None else []
        if not misfits:
            for name, module in modules.items():
                module.load_state_dict(state[name])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            return int(state["step"])
        cause = "; ".join(misfits[:3])
    except KeyError as error:
        raise TrainingError(_refusal(path, f"it has no {error}")) from error
    except (
        AttributeError, EOFError, OSError, RuntimeError, TypeError, ValueError,
        pickle.UnpicklingError,
    ) as error:  # fmt: skip
        words = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        raise TrainingError(_refusal(path, words[:200])) from error
    raise TrainingError(_refusal(path, cause))


def _refusal(path: Path, cause: str) -> str:
    return (
        f"checkpoint {path} does not fit what is to be trained ({cause}): it is damaged, or of "
        "another version. Delete it to train from the start, or go back to the code that made it."
    )
