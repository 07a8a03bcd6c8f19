"""Delivery out of this machine after an artifact is published, once for each destination.

The destination is no part of an artifact's digest: an artifact that is fresh can be sent later. A
note beside its folder, `<digest>.sent`, says where it went.
"""

from pathlib import Path

from pipeline.contracts import Stage
from pipeline.run.plan import Node


def destination(node: Node) -> str | None:
    """Return where a node's artifact is to go; None: nowhere."""
    repository: str | None = getattr(node.config, "push_to_hub", None)
    return repository


def is_owed(node: Node, experiment_dir: Path) -> bool:
    """Tell whether an artifact has not been sent where its config asks."""
    target = destination(node)
    if target is None:
        return False
    note = _note(node, experiment_dir)
    return not note.is_file() or target not in note.read_text(encoding="utf-8").splitlines()


def send(stage: Stage, node: Node, experiment_dir: Path) -> str:
    """Send a published artifact and take a note of it; return where it is now.

    Raises:
        RemoteError: The destination refuses it; the same run tries again.
    """
    assert stage.deliver is not None, stage.name
    where = stage.deliver(node.config, node.folder(experiment_dir))
    with _note(node, experiment_dir).open("a", encoding="utf-8") as note:
        note.write(f"{destination(node)}\n")
    return where


def _note(node: Node, experiment_dir: Path) -> Path:
    folder = node.folder(experiment_dir)
    return folder.with_name(f"{folder.name}.sent")
