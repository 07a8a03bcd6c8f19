"""Checkpoints of a fine-tuning run: the result as others load it, and all that resuming needs.

A checkpoint is a folder `checkpoints/step-000500` that is whole or absent. Only the newest keeps
its optimiser state; nothing is pickled. `best/step-000300` holds the state with the least held-out
loss or KID so far, where a run selects by it.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from pipeline.errors import ArtifactError
from pipeline.files import publish_folder
from stages.components.diffusion.adapters import ADAPTER_FILE
from stages.components.diffusion.base_model import BaseModel
from stages.finetune.adapters.export import result_file, save_trained
from stages.finetune.adapters.kohya import save_kohya
from stages.finetune.adapters.lora import AdaptedModel
from stages.finetune.averaging import Trained
from stages.finetune.optimizers import group_numbers, restore_group_numbers

FOLDER = "checkpoints"
BEST = "best"
STATE_FILE = "training_state.safetensors"


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


def save_checkpoint(root: Path, step: int, seconds: float, trained: Trained, keep: int) -> None:
    """Write a checkpoint, then drop older optimiser states and all but the `keep` newest.

    A disk that fills up leaves the checkpoints that are there as they are.
    """
    from safetensors.torch import save_file

    with whole_folder(checkpoint_path(root, step)) as partial:
        with trained.as_exported():
            save_trained(trained.models, partial)
        tensors, numbers = training_state(trained)
        header = {
            "step": step,
            "seconds": seconds,
            "numbers": numbers,
            "groups": group_numbers(trained.optimizer),
        }
        save_file(tensors, partial / STATE_FILE, {"header": json.dumps(header, sort_keys=True)})
    older = [other for other in list_checkpoints(root) if other < step]
    for other in older:
        (checkpoint_path(root, other) / STATE_FILE).unlink(missing_ok=True)
    for other in older[: max(0, len(older) + 1 - keep)]:
        shutil.rmtree(checkpoint_path(root, other))


def restore_newest(root: Path, trained: Trained) -> tuple[int, float]:
    """Go back to the newest checkpoint, in place.

    Returns:
        The optimiser steps done and the seconds they took; (0, 0.0) without a checkpoint.

    Raises:
        ArtifactError: The state is damaged or of other adapters.
    """
    from safetensors import SafetensorError, safe_open

    steps = list_checkpoints(root)
    if not steps:
        return 0, 0.0
    path = checkpoint_path(root, steps[-1]) / STATE_FILE
    advice = "remove that folder to go on from the one before, or the whole partial run"
    try:
        with safe_open(path, framework="pt") as stored:
            header = json.loads(stored.metadata()["header"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); {advice}") from error
    parameters, optimizer = trained.parameters, trained.optimizer
    if set(parameters) != {n.removeprefix("weight/") for n in tensors if n.startswith("weight/")}:
        raise ArtifactError(f"{path} holds other adapters than this run's; {advice}")
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
    return int(header["step"]), float(header["seconds"])


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
    """Write the state that is the best so far, by the measure that selects.

    The one before stays until `drop_best`: a run that is killed now goes back to a checkpoint
    before this step, where the other was the best.
    """
    with whole_folder(checkpoint_path(root, step, BEST)) as partial:
        save_trained(models, partial)


def drop_best(root: Path, keep: int | None) -> None:
    """Remove the best states but the one of step `keep`."""
    for step in list_checkpoints(root, BEST):
        if step != keep:
            shutil.rmtree(checkpoint_path(root, step, BEST))


def save_result(root: Path, trained: Trained, base: BaseModel, best: int | None) -> None:
    """Write what was trained at the artifact's root, in its layouts; drop what only resuming needs.

    Args:
        root: The artifact's.
        trained: As it is after the last step.
        base: What it was trained on, for kohya's layout.
        best: The step of the best state, where that is the result; None: the last one is.
    """
    name = result_file(trained.models)
    if best is not None:
        shutil.copyfile(checkpoint_path(root, best, BEST) / name, root / name)
    else:
        with trained.as_exported():
            save_trained(trained.models, root)
    shutil.rmtree(root / BEST, ignore_errors=True)
    if name == ADAPTER_FILE:
        save_kohya(root / name, root, base.family, trained.models[0].module.config)
    drop_states(root)


def drop_states(root: Path) -> None:
    """Remove what only resuming needs, once the run is finished."""
    for step in list_checkpoints(root):
        (checkpoint_path(root, step) / STATE_FILE).unlink(missing_ok=True)
