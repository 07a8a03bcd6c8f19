"""Files put beside the plug-ins of a package for a while, as a user would add them."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTS = Path(__file__).parent / "parts"  # one of every kind


@contextmanager
def added(package: str, name: str, folder: Path, text: str | None = None) -> Iterator[Path]:
    """Put `name.py` beside the plug-ins of a package, and take it away at the end.

    Args:
        package: of `registry.KINDS`.
        name: of the file, and so of the plug-in.
        folder: where it is written, in a folder of that kind.
        text: what it says; None: the part of that name.
    """
    place = folder / package.rpartition(".")[2]
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{name}.py"
    if text is None:
        shutil.copyfile(PARTS / f"{name}.py", path)
    else:
        path.write_text(text, encoding="utf-8")
    home = importlib.import_module(package)
    home.__path__.append(str(place))
    importlib.invalidate_caches()
    try:
        yield path
    finally:
        home.__path__.remove(str(place))
        if sys.modules.pop(f"{package}.{name}", None) is not None:
            delattr(home, name)
