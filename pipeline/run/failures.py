"""Failures of a stage that are no fault of its code: disk, memory, a damaged or vanished file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import files
from pipeline.errors import ArtifactError, DiskError, OutOfMemoryError, is_out_of_memory
from pipeline.run import manifest
from pipeline.run.plan import Node


@contextmanager
def explained(node: Node, experiment_dir: Path) -> Iterator[None]:
    """Say on one line what a user can mend, if that is why a node cannot be made.

    Raises:
        DiskError: The disk is full, or may not be written.
        OutOfMemoryError: Memory ran out.
        ArtifactError: An input has changed since it was made, or a file went while the stage ran.
    """
    try:
        with files.disk_explained(node.title):
            yield
    except (DiskError, OutOfMemoryError):
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".strip(": ").splitlines()[0]
        if isinstance(error, FileNotFoundError) and _is_below(error.filename, experiment_dir):
            raise ArtifactError(
                f"{node.title}: {error.filename} went while it was being used; run the same "
                "command again, and let nothing else remove files there."
            ) from error
        for source in node.upstream():
            folder = source.folder(experiment_dir)
            if problems := manifest.list_problems(folder, is_deep=True):
                fault = manifest.summarize(problems)
                raise ArtifactError(
                    f"{node.title} failed ({cause}): its input {source.title} is {fault}. "
                    f"Delete {folder}, then run the same command again."
                ) from error
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"{node.title}: memory ran out ({cause}). What is done is kept; close other "
                "programs or ask for smaller batches, then run the same command again to go on."
            ) from error
        raise


def _is_below(name: object, folder: Path) -> bool:
    return isinstance(name, str) and Path(name).resolve().is_relative_to(folder.resolve())
