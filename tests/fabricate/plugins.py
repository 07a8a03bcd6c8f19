"""Files put beside the plug-ins of a package for a while, or in their place, as a user would."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

PARTS = Path(__file__).parent / "parts"  # one of every kind, and what tests share


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
        forget(home, name)


@contextmanager
def replaced(package: str, folder: Path) -> Iterator[None]:
    """Let a package's plug-ins be the files of a folder and no others, and undo it at the end."""
    home = importlib.import_module(package)
    real = list(home.__path__)
    loaded = {name: sys.modules[f"{package}.{name}"] for name in loaded_in(home)}
    for name in loaded:
        forget(home, name)
    home.__path__[:] = [str(folder)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        home.__path__[:] = real
        for name in loaded_in(home):
            forget(home, name)
        for name, module in loaded.items():
            sys.modules[f"{package}.{name}"] = module
            setattr(home, name, module)


def loaded_in(home: ModuleType) -> list[str]:
    """List the modules of a package that were imported, by their own names."""
    prefix = f"{home.__name__}."
    return [name.removeprefix(prefix) for name in sys.modules if name.startswith(prefix)]


def forget(home: ModuleType, name: str) -> None:
    """Let a module of a package be imported anew."""
    if sys.modules.pop(f"{home.__name__}.{name}", None) is not None and hasattr(home, name):
        delattr(home, name)
