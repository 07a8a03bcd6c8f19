"""Files of weights: where they lie, whether they are whole, and what to do when they are not.

Imports no torch, so that checks and freshness stay cheap.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.contracts import Licence, Part, Section
from pipeline.downloads import HubFiles
from pipeline.errors import MissingWeightsError
from pipeline.files import file_sha256
from pipeline.source_code import ROOT

Family = Literal["sd", "sdxl"]

PIPELINE_CLASSES: dict[Family, str] = {
    "sd": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}
TOKENIZERS: dict[Family, tuple[str, ...]] = {
    "sd": ("tokenizer",),
    "sdxl": ("tokenizer", "tokenizer_2"),
}
NETWORKS: dict[Family, tuple[str, ...]] = {
    "sd": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
}


EMBEDDED = (ROOT / "data" / "embedded").resolve()


class ModelSettings(Section):
    """Which weights: a folder in the hub's layout (relative: to the repository), or a hub id."""

    model: str
    revision: str | None = None  # hub only: branch, tag or commit
    variant: str | None = None  # "fp16": files named *.fp16.safetensors
    vae: str | None = None  # another VAE in place of the model's own: folder or hub id
    vae_revision: str | None = None


def is_folder_name(name: str) -> bool:
    """Tell a folder from a hub id; a hub id is exactly `owner/name`.

    Example:
        >>> is_folder_name("stable-diffusion-v1-5/stable-diffusion-v1-5")
        False
        >>> is_folder_name("data/embedded/tiny_sd15")
        True
    """
    return name.startswith((".", "~", "/")) or name.count("/") != 1 or local_folder(name).is_dir()


def local_folder(name: str) -> Path:
    """Resolve a path; a relative one counts from the repository, wherever one works."""
    return ROOT / Path(name).expanduser()


def is_embedded(name: str) -> bool:
    """Tell whether a model is one of those that this repository brings.

    Example:
        >>> is_embedded("data/embedded/llava"), is_embedded("google/gemma-3-12b-it")
        (True, False)
    """
    return is_folder_name(name) and local_folder(name).resolve().is_relative_to(EMBEDDED)


def identify_embedded(name: str) -> Part:
    """Say what one of this repository's own models is."""
    terms = "Embedded weights of this project, MIT."
    return Part(name=name, licence=Licence(part=name, terms=terms), is_embedded=True)


def find_folder(name: str, revision: str | None) -> Path | None:
    """Find a model's folder on this machine (given folder, or hub cache); nothing is downloaded.

    A snapshot of the cache need not be whole: what of it is needed, `missing_files` knows.
    """
    if is_folder_name(name):
        folder = local_folder(name)
        return folder if folder.is_dir() else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # No pattern, no demand: from 2.0 on the hub's library refuses a snapshot without every file
        # of the repository, which is what a download of chosen files leaves.
        return Path(
            snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=[])
        )
    except LocalEntryNotFoundError:
        return None


def hub_files(
    name: str,
    revision: str | None,
    parts: Sequence[str],
    variant: str | None,
    licence: Licence | None = None,
) -> HubFiles:
    """Return what of a hub model is needed: the files that `missing_files` asks for."""
    include = ["model_index.json"]
    for part in parts:
        prefix = f"{part}/" if part else ""
        if part.startswith("tokenizer") or part == "scheduler":
            include.append(f"{prefix}*")
        else:
            suffix = f".{variant}.safetensors" if variant else ".safetensors"
            include += [f"{prefix}*.json", f"{prefix}*{suffix}"]
    exclude = () if variant else ("*.fp16.safetensors", "*.non_ema.safetensors")
    return HubFiles(name, revision, tuple(include), exclude, licence)


def missing_files(folder: Path, parts: Sequence[str], variant: str | None) -> list[str]:
    """List what a model folder lacks or holds damaged; empty when it can be loaded.

    Args:
        folder: The model's folder in the hub's layout.
        parts: Subfolders that must be there; "" stands for the folder itself (a VAE alone).
        variant: "fp16" expects `*.fp16.safetensors`.
    """
    lacking: list[str] = []
    for part in parts:
        where = folder / part
        prefix = f"{part}/" if part else ""
        if part.startswith("tokenizer"):
            if not any((where / name).is_file() for name in ("vocab.json", "tokenizer.json")):
                lacking.append(f"{prefix}vocab.json")
        elif part == "scheduler":
            if not (where / "scheduler_config.json").is_file():
                lacking.append(f"{prefix}scheduler_config.json")
        else:
            if not (where / "config.json").is_file():
                lacking.append(f"{prefix}config.json")
            pattern = f"*.{variant}.safetensors" if variant else "*.safetensors"
            shards = sorted(where.glob(pattern))
            if not shards:
                lacking.append(f"{prefix}{pattern}")
            lacking.extend(f"{prefix}{s.name} (damaged)" for s in shards if is_damaged(s))
    return lacking


def is_damaged(path: Path) -> bool:
    """Tell whether a safetensors file is truncated or no safetensors at all; reads its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return False
    except (SafetensorError, OSError):
        return True


def file_problem(path: Path, sha256: str | None, remedy: str) -> str | None:
    """Say what is wrong with a file of weights, with what to do; None where nothing is."""
    if not path.is_file():
        return f"no weights at {str(path)!r}. {remedy}"
    if sha256 is None:
        return None
    digest = file_sha256(path)
    if digest == sha256:
        return None
    return f"{path} has SHA-256 {digest[:12]}…, expected {sha256[:12]}…. {remedy}"


def problems(
    name: str, revision: str | None, parts: Sequence[str], variant: str | None, remedy: str
) -> list[str]:
    """Say what keeps a model from loading, each with what to do; empty when nothing does."""
    folder = find_folder(name, revision)
    if is_folder_name(name):
        advice = f"Put a diffusers folder there, or name a hub id. {remedy}".strip()
    else:
        command = hub_files(name, revision, parts, variant).command()
        advice = f"{remedy} Run: {command}".strip()  # last, to be copied without a full stop
    if folder is None:
        where = local_folder(name) if is_folder_name(name) else "the Hugging Face cache"
        return [f"weights {name!r} are not on this machine (looked in {where}). {advice}"]
    lacking = missing_files(folder, parts, variant)
    if lacking:
        return [f"weights {name!r} in {folder} lack {', '.join(lacking)}. {advice}"]
    return []


def class_problems(folder: Path, family: Family) -> list[str]:
    """Say when a folder holds a pipeline of another family."""
    index = folder / "model_index.json"
    if not index.is_file():
        return [f"{index} is missing, so {folder} is no diffusers pipeline"]
    name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    expected = PIPELINE_CLASSES[family]
    if name != expected:
        return [f"{index} names the class {name!r}, expected {expected!r}: take the other plug-in"]
    return []


def require(lines: Sequence[str]) -> None:
    """Stop when there are problems.

    Raises:
        MissingWeightsError: There are; the message lists them all.
    """
    if lines:
        raise MissingWeightsError("\n  ".join(lines))


def digest_of(name: str, revision: str | None, variant: str | None) -> str:
    """Identify weights: a folder by the content of its files, a hub id by its commit.

    A card beside the weights changes nothing. Weights that are absent are named by id and revision.
    """
    folder = find_folder(name, revision)
    if not is_folder_name(name):
        return f"{name}@{folder.name if folder else revision or 'main'}:{variant or ''}"
    if folder is None:
        return f"{name}@absent"
    digest = hashlib.sha256((variant or "").encode())
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".json", ".jinja", ".model", ".txt", ".safetensors"} and path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\x1f{content}\n".encode())
    return digest.hexdigest()


def read_shapes(folder: Path, variant: str | None) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a network's tensors from the headers of its safetensors files."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob(f"*.{variant}.safetensors" if variant else "*.safetensors")):
        with safe_open(path, framework="numpy") as stored:
            for name in stored.keys():  # noqa: SIM118
                shapes[name] = tuple(stored.get_slice(name).get_shape())
    return shapes
