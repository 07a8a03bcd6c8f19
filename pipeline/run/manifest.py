"""Manifests: write, read and verify `manifest.json`; digests; publish by rename; one writer.

A folder is an artifact when it holds a manifest, and the manifest is written last, in a sibling
`.partial` folder that is then renamed. So an artifact is complete or absent.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.contracts import SCHEMA_VERSION, SCRATCH, Artifact, RecordT
from pipeline.errors import ArtifactError, IncompleteArtifactError

NAME = "manifest.json"
KINDS: dict[str, tuple[type, ...]] = {  # what a manifest must hold
    "schema_version": (int,),
    "arm_names": (list,),
    "seed": (int,),
    "seconds": (int, float),
    "machine": (dict, str),
    **dict.fromkeys(("config", "inputs", "versions", "counts", "notes", "files"), (dict,)),
    **dict.fromkeys(("stage", "digest", "config_digest", "source_digest"), (str,)),
    **dict.fromkeys(("dtype", "device", "started"), (str,)),
}


def canonical(value: Any) -> str:
    """Write a JSON value in one way only: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value's canonical form, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Map every file of a folder (relative path) to its size in bytes and its SHA-256.

    The manifest and what only going on would need are left out.
    """
    return {relative: files.fingerprint(folder / relative) for relative in sorted(_sizes(folder))}


def _sizes(folder: Path) -> dict[str, int]:
    paths = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    sizes = {path.relative_to(folder): path.stat().st_size for path in paths if path.is_file()}
    return {
        path.as_posix(): size
        for path, size in sizes.items()
        if path.parts[0] not in (NAME, SCRATCH)
    }


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest whole."""
    assert not (faults := list(_faults(manifest))), faults
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    files.write_text(folder / NAME, text + "\n")


def read(folder: Path) -> dict[str, Any]:
    """Read an artifact's manifest.

    Raises:
        IncompleteArtifactError: There is none, so the run that made the folder did not finish.
        ArtifactError: It cannot be read, or another version of this program wrote it.
    """
    path = folder / NAME
    if not path.is_file():
        raise IncompleteArtifactError(
            f"{folder} has no {NAME}, so the run that made it did not finish. "
            f"Rerun {folder.parent.name}."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Delete {folder}; rerun.") from error
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        version = manifest.get("schema_version") if isinstance(manifest, dict) else manifest
        raise ArtifactError(
            f"{path}: expected schema_version {SCHEMA_VERSION}, found {version!r}. "
            f"Delete {folder} and rerun {folder.parent.name}."
        )
    if faults := list(_faults(manifest)):
        raise ArtifactError(f"{path}: {'; '.join(faults)}. Delete {folder} and rerun.")
    return manifest


def _faults(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Say what of a manifest is missing, or is not what a run writes there."""
    if missing := [key for key in KINDS if key not in manifest]:
        yield f"lacks {missing}"
    for key, kinds in KINDS.items():
        value = manifest.get(key)
        inner: Iterable[Any] = ()
        if key in ("files", "arm_names") and isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
        is_known = _is_fingerprint if key == "files" else _is_text
        is_right = isinstance(value, kinds) and all(is_known(item) for item in inner)
        if key in manifest and (not is_right or isinstance(value, bool)):
            yield f"{key} is {value!r:.60}, which no run writes"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_fingerprint(value: Any) -> bool:
    kinds = {"size": int, "sha256": str}
    return isinstance(value, dict) and {name: type(value[name]) for name in value} == kinds


def verify(folder: Path, manifest: Mapping[str, Any], *, is_deep: bool = False) -> list[str]:
    """Compare an artifact's files with its manifest; return what differs, one line each.

    Args:
        folder: The artifact.
        manifest: What `read` returns of it.
        is_deep: Compare digests too, which reads every byte, not only sizes.
    """
    sizes = _sizes(folder)
    problems = []
    for relative, known in manifest["files"].items():
        if relative not in sizes:
            problems.append(f"{relative} is missing")
        elif sizes[relative] != known["size"]:
            problems.append(f"{relative} has {sizes[relative]} bytes, not {known['size']}")
        elif is_deep and files.file_sha256(folder / relative) != known["sha256"]:
            problems.append(f"{relative} has changed")
    return problems


def list_problems(folder: Path, *, is_deep: bool = False) -> list[str]:
    """Return what is wrong with an artifact, its manifest included, a line each."""
    try:
        return verify(folder, read(folder), is_deep=is_deep)
    except ArtifactError as error:
        return [str(error)]


def summarize(problems: Sequence[str]) -> str:
    """Say several problems of one artifact on one line."""
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"damaged: {problems[0]}{more}"


def open_artifact(folder: Path, record_type: type[RecordT]) -> Artifact[RecordT]:
    """Open a finished artifact.

    Raises:
        IncompleteArtifactError: It has no manifest.
        ArtifactError: A file that the manifest lists is missing, or has another size.
    """
    manifest = read(folder)
    if problems := verify(folder, manifest):
        raise ArtifactError(f"{folder} is {summarize(problems)}. Rerun {folder.parent.name}.")
    return Artifact(folder, manifest["digest"], record_type, manifest)


def publish(partial: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    """Add the manifest and rename the folder into place, each once the disk has what is before it.

    What stands in its place without a manifest is no artifact and is removed.
    """
    files.sync_tree(partial)
    write(partial, manifest)
    _put_in_place(partial, final)


def adopt(partial: Path, final: Path, digest: str) -> list[str]:
    """Publish a folder whose run was killed after it wrote the manifest.

    A manifest that does not fit is removed, so that the stage goes on with the folder.

    Returns:
        What does not fit, one line each; nothing if the artifact is in place.
    """
    try:
        made = read(partial)
        problems = verify(partial, made, is_deep=True)
    except ArtifactError as error:
        problems = [str(error)]
    else:
        if made["digest"] != digest:
            problems.append(f"its digest is {made['digest']:.12}")
    if problems:
        (partial / NAME).unlink()
    else:
        _put_in_place(partial, final)
    return problems


def _put_in_place(partial: Path, final: Path) -> None:
    """Rename a folder that holds its manifest; what only going on would need is dropped first."""
    shutil.rmtree(partial / SCRATCH, ignore_errors=True)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    files.sync(final.parent)


@contextmanager
def using(data_dir: Path, *, is_alone: bool = False) -> Iterator[None]:
    """Hold a data folder: any number of runs at once, or alone whoever removes what they made.

    Raises:
        ArtifactError: It is held by those who do not go together with this one.
    """
    kind = fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH
    with (data_dir / ".lock").open("a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            users = "a run is at work" if is_alone else "somebody is cleaning up"
            raise ArtifactError(
                f"{users} in {data_dir}. Wait for it, or stop it, then run this again."
            ) from error
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it however the process ends.

    Raises:
        ArtifactError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            raise ArtifactError(
                f"another run (process {handle.read().strip() or 'unknown'}) is at work on "
                f"{path.with_suffix('')}. Wait for it, or stop it, then run this again."
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
        # Only after success: whoever waits for a failed run's work must meet this same file.
        path.unlink(missing_ok=True)
