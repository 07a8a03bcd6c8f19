"""Checkpoints of a fine-tuning run: the result as others load it, and all that resuming needs.

A checkpoint is a folder `checkpoints/step-000500` that is whole or absent. What resuming needs lies
in the artifact's scratch, until it is published: `states/step-000500.safetensors`, weights and
optimiser, of the two newest steps (nothing is pickled), and `best/step-000300`, what has the least
held-out loss or KID so far, where a run selects by it.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.contracts import SCRATCH
from pipeline.errors import ArtifactError
from pipeline.files import publish_folder, write_whole
from stages.finetune.adapters.export import result_file, save_trained
from stages.finetune.adapters.lora import AdaptedModel
from stages.finetune.averaging import Trained
from stages.finetune.optimizers import group_numbers, restore_group_numbers

FOLDER = "checkpoints"
BEST = f"{SCRATCH}/best"
STATES = f"{SCRATCH}/states"
KEPT_STATES = 2  # so that one is left where the newest is damaged


def checkpoint_path(root: Path, step: int, folder: str = FOLDER) -> Path:
    """Return the folder of the checkpoint made after `step` optimiser steps."""
    return root / folder / f"step-{step:06d}"


def list_checkpoints(root: Path, folder: str = FOLDER) -> list[int]:
    """List the steps whose checkpoints are whole, oldest first."""
    paths = (root / folder).glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in paths if not path.suffix)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write to, and put it in place of `folder` once it is whole."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        publish_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_checkpoint(root: Path, step: int, trained: Trained, keep: int) -> None:
    """Write a checkpoint, then drop all but the `keep` newest.

    A disk that fills up leaves the checkpoints that are there as they are.
    """
    with whole_folder(checkpoint_path(root, step)) as partial, trained.as_exported():
        save_trained(trained.models, partial)
    older = [other for other in list_checkpoints(root) if other < step]
    for other in older[: max(0, len(older) + 1 - keep)]:
        shutil.rmtree(checkpoint_path(root, other))


def state_path(root: Path, step: int) -> Path:
    """Return the file of the state after `step` optimiser steps."""
    return root / STATES / f"step-{step:06d}.safetensors"


def list_states(root: Path) -> list[int]:
    """List the steps of the states that are kept, oldest first; the newest may be damaged."""
    return sorted(int(p.stem.removeprefix("step-")) for p in (root / STATES).glob("step-*"))


def save_state(root: Path, step: int, seconds: float, trained: Trained) -> None:
    """Write all that going on after `step` needs, then drop the states but the two newest."""
    from safetensors.torch import save_file

    tensors, numbers = training_state(trained)
    header = {
        "step": step,
        "seconds": seconds,
        "numbers": numbers,
        "groups": group_numbers(trained.optimizer),
    }
    metadata = {"header": json.dumps(header, sort_keys=True)}
    write_whole(state_path(root, step), lambda path: save_file(tensors, path, metadata))
    for other in [other for other in list_states(root) if other <= step][:-KEPT_STATES]:
        state_path(root, other).unlink()


def restore_newest(
    root: Path, trained: Trained, progress: Callable[[str], None]
) -> tuple[int, float]:
    """Go back to the newest state that can be read, in place; damaged ones are said.

    Returns:
        The optimiser steps done and the seconds they took; (0, 0.0) without a state.

    Raises:
        ArtifactError: The state is of other adapters.
    """
    from safetensors import SafetensorError

    for step in reversed(list_states(root)):
        path = state_path(root, step)
        try:
            tensors, header = read_state(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            progress(f"finetune: going back beyond step {step}: {path} cannot be read ({error})")
            continue
        names = {name.removeprefix("weight/") for name in tensors if name.startswith("weight/")}
        if names != set(trained.parameters):
            raise ArtifactError(
                f"{path} holds other adapters than this run's; delete {root} to train from the "
                "start"
            )
        apply_state(tensors, header, trained)
        return int(header["step"]), float(header["seconds"])
    return 0, 0.0


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state's tensors and numbers."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        header: dict[str, Any] = json.loads(stored.metadata()["header"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return tensors, header


def apply_state(tensors: dict[str, Tensor], header: dict[str, Any], trained: Trained) -> None:
    """Put a state in place of what is trained now; `tensors` is used up."""
    parameters, optimizer = trained.parameters, trained.optimizer
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors.pop(f"weight/{name}"))
        optimizer.state[parameter] = dict(header["numbers"].get(name, {}))
    averages = {n: tensors.pop(n) for n in list(tensors) if n.startswith("average/")}
    if trained.average is not None:
        trained.average.load({n.removeprefix("average/"): value for n, value in averages.items()})
    for key, value in tensors.items():
        _, name, entry = key.split("/")
        parameter = parameters[name]
        # AdamW's step counter is a tensor too, and stays where AdamW keeps it: on the device.
        optimizer.state[parameter][entry] = value.to(parameter.device)
    restore_group_numbers(optimizer, header["groups"])


def training_state(trained: Trained) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Collect weights, averages and optimiser state by tensor name, and plain numbers apart.

    Tensors are copied: 8-bit states share one lookup table, which safetensors refuses.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for name, parameter in trained.parameters.items():
        tensors[f"weight/{name}"] = parameter.detach().cpu().clone()
        if trained.average is not None:
            tensors[f"average/{name}"] = trained.average.values[name].cpu().clone()
        for entry, value in trained.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{entry}"] = value.detach().cpu().clone()
            else:
                numbers.setdefault(name, {})[entry] = value
    return tensors, numbers


def save_best(root: Path, step: int, models: Sequence[AdaptedModel]) -> None:
    """Write what is the best so far, by the measure that selects.

    The one before stays until `drop_best`: a run that is killed now goes back to a state before
    this step, where the other was the best.
    """
    with whole_folder(checkpoint_path(root, step, BEST)) as partial:
        save_trained(models, partial)


def drop_best(root: Path, keep: Collection[int | None]) -> None:
    """Remove what was the best but at the steps to `keep`."""
    for step in list_checkpoints(root, BEST):
        if step not in keep:
            shutil.rmtree(checkpoint_path(root, step, BEST))


def save_result(root: Path, trained: Trained, best: int | None) -> Path:
    """Write the result at the artifact's root: of step `best`, or as it is now; return the file."""
    name = result_file(trained.models)
    if best is not None:
        shutil.copyfile(checkpoint_path(root, best, BEST) / name, root / name)
    else:
        with trained.as_exported():
            save_trained(trained.models, root)
    return root / name
