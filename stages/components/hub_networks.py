"""Feature networks in the hub's layout: a folder of one's own, or what the hub's cache holds.

Nothing is downloaded while images are scored: a run that needs a network says how to fetch it.
"""

from pathlib import Path

from stages.components import weights
from stages.components.image_networks import file_problem, file_sha256

FILE = "model.safetensors"


def problems(model: str, revision: str | None, sha256: str | None) -> list[str]:
    """List what keeps a network from loading, with what to do; loads nothing."""
    folder = weights.find_folder(model, revision)
    remedy = (
        "Give a folder that holds config.json and model.safetensors"
        if weights.is_folder_name(model)
        else f"Run: hf download {model}" + (f" --revision {revision}" if revision else "")
    )
    if folder is None:
        return [f"{model!r} is not on this machine. {remedy}, or leave the network out"]
    if not (folder / "config.json").is_file():
        return [f"no config.json in {str(folder)!r}. {remedy}"]
    problem = file_problem(folder / FILE, sha256, remedy)
    return [problem] if problem else []


def folder_of(model: str, revision: str | None) -> Path:
    """Return the folder of a network that `problems` found nothing wrong with."""
    folder = weights.find_folder(model, revision)
    assert folder is not None, model
    return folder


def digest(model: str, revision: str | None) -> str:
    """Return the SHA-256 of the network's weights."""
    return file_sha256(folder_of(model, revision) / FILE)
