"""Checkpoints of the embedded models' training: whole or absent, and refused where they misfit."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import TrainingError
from pipeline.files import write_whole

# Of libraries and places, not of the network.
PASSING = frozenset({"transformers_version", "dtype", "torch_dtype"})


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
    found = []
    for key in sorted(made.keys() & now.keys()):
        if isinstance(made[key], Mapping) and isinstance(now[key], Mapping):
            found += differences(made[key], now[key], f"{place}{key}.")
        elif made[key] != now[key]:
            found.append(f"{place}{key} is {made[key]}, expected {now[key]}")
    return found


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
