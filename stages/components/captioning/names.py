"""Names of captioners: as what they really are, and which of the study's they stand for."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pipeline.contracts import Licence, Part, read_parts

# The captioners of the reproduced study, by what their checkpoints and caption files begin with.
STUDY: Mapping[str, Licence] = {
    "gemini": Licence(part="Gemini", terms="Google's API terms; images leave the machine."),
    "gemma": Licence(part="Gemma 3", terms="Gemma terms of use, with a list of prohibited uses."),
    "llava_med": Licence(part="LLaVA-Med 1.5", terms="Research only."),
    "ovis": Licence(part="Ovis2", terms="Apache 2.0.", is_permissive=True),
}
OWN_TERMS = "Terms of its own: see its model card."


def find_study(name: str) -> str | None:
    """Find which captioner of the study a checkpoint, folder or file is named after.

    >>> find_study("chaoyinshe/llava-med-v1.5-mistral-7b-hf"), find_study("captions/ovis.jsonl")
    ('llava_med', 'ovis')
    >>> find_study("llava-hf/llava-1.5-7b-hf") is None
    True
    """
    plain = PurePosixPath(name).name.lower().replace("-", "_")
    return next((captioner for captioner in STUDY if plain.startswith(captioner)), None)


def identify_checkpoint(model: str) -> Part:
    """Say what a checkpoint is, from its hub id or folder; nobody knows the terms of most."""
    name, study = PurePosixPath(model).name, find_study(model)
    licence = STUDY[study] if study is not None else Licence(part=name, terms=OWN_TERMS)
    return Part(name=name, licence=licence, study=study)


def read_captioner(manifest: Mapping[str, Any] | None) -> Part | None:
    """Read who wrote a caption artifact; by its plug-in's name where it says no more.

    >>> read_captioner({"config": {"vlm": {"name": "truth", "settings": {}}}}).name
    'truth'
    """
    plugin = ((manifest or {}).get("config") or {}).get("vlm")
    if manifest is None or plugin is None:
        return None
    return next(iter(read_parts(manifest, "vlm")), Part(name=str(plugin["name"])))
