"""Feature networks in the hub's layout: a folder of one's own, or what the hub's cache holds.

Nothing is downloaded while images are scored: a run that needs a network says how to fetch it.
"""

from pathlib import Path
from typing import Any

from pipeline.contracts import Licence, Section
from pipeline.downloads import Download, HubFiles
from pipeline.files import file_sha256
from stages.components.features.extractors import _network as network
from stages.components.networks import weights

FILE = "model.safetensors"


class HubSettings(Section):
    """Which weights; a plug-in gives `model` its default."""

    model: str  # hub id, or a folder in the hub's layout
    revision: str | None = None  # hub only: branch, tag or commit
    sha256: str | None = None  # of model.safetensors; None: not checked, but recorded


def downloads(settings: HubSettings, licence: Licence) -> list[Download]:
    """List what of the hub the network is made of; nothing where a folder is named."""
    if weights.is_folder_name(settings.model):
        return []
    include = ("config.json", FILE, "*.txt", "tokenizer*.json", "vocab.json", "special_tokens*")
    return [HubFiles(settings.model, settings.revision, include, licence=licence)]


def check(settings: HubSettings) -> list[str]:
    """List what keeps the network from loading, with what to do; loads nothing."""
    model, revision = settings.model, settings.revision
    folder = weights.find_folder(model, revision)
    remedy = (
        "Give a folder that holds config.json and model.safetensors"
        if weights.is_folder_name(model)
        else f"Run: {HubFiles(model, revision).command()}"
    )
    if folder is None:
        return [f"{model!r} is not on this machine. {remedy}, or leave the network out"]
    if not (folder / "config.json").is_file():
        return [f"no config.json in {str(folder)!r}. {remedy}"]
    problem = weights.file_problem(folder / FILE, settings.sha256, remedy)
    return [problem] if problem else []


def input_digest(settings: HubSettings) -> str:
    """Identify the weights, for freshness: "absent" until they are there."""
    return "absent" if check(settings) else digest(settings)


def digest(settings: HubSettings) -> str:
    """Return the SHA-256 of the weights of a network that `check` found nothing wrong with."""
    return file_sha256(_folder(settings) / FILE)


def load(kind: Any, settings: HubSettings, *, name: str, device: str) -> Any:
    """Load a network of a class of transformers, in eval mode, float32.

    Raises:
        MissingWeightsError: The weights are absent or are not the ones of `sha256`.
    """
    network.require(name, check(settings))
    return kind.from_pretrained(_folder(settings), local_files_only=True).eval().to(device)


def load_tokenizer(kind: Any, settings: HubSettings) -> Any:
    """Load the tokenizer that lies beside a network."""
    return kind.from_pretrained(_folder(settings), local_files_only=True)


def _folder(settings: HubSettings) -> Path:
    folder = weights.find_folder(settings.model, settings.revision)
    assert folder is not None, settings.model
    return folder
