"""Source code of this project: where it lies, and its digest without comments and layout."""

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # holds `pipeline`, `stages` and `data`


def parse(path: Path) -> ast.Module:
    """Parse a file of Python; kept until the file changes."""
    return _parse(path, path.stat().st_mtime_ns)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file: of Python the parsed code, of anything else the bytes."""
    return _digest(path, path.stat().st_mtime_ns)


@cache
def _parse(path: Path, changed_ns: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def _digest(path: Path, changed_ns: int) -> str:
    if path.suffix == ".py":
        data = ast.unparse(_parse(path, changed_ns)).encode()
    else:
        data = path.read_bytes()
    return hashlib.sha256(data).hexdigest()
