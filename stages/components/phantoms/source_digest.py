"""Which code made a phantom: the digest that names it in the cache."""

import functools
import hashlib
from importlib.metadata import version
from pathlib import Path

from pipeline import source_code

FOLDER = Path(__file__).parent
UNREAD = frozenset({"notice.py", "source_digest.py"})  # no phantom depends on these


@functools.cache
def generator_digest(folder: Path = FOLDER) -> str:
    """Digest the generator's code and its template's version: a change makes new subjects."""
    digest = hashlib.sha256(version("nilearn").encode())
    for path in _generator_files(folder):
        digest.update(path.name.encode() + source_code.digest(path).encode())
    return digest.hexdigest()


def _generator_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if path.name not in UNREAD)
