"""Source digest of a stage: which code makes its artifacts, without importing anything.

A stage's sources are its recipe, the plug-in files that its configuration names, and, through their
import statements and onward, every module of `stages` and the few of `pipeline` whose code reaches
the result. What is not Python in the folder of a source (templates, tables) comes along.
Comments and layout do not count: what is hashed is the parsed code.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline import registry, source_code

# Not pipeline.settings: a setting's value is in the config digest, where it concerns one stage.
PIPELINE_MODULES = frozenset({"pipeline.contracts", "pipeline.seeding"})


def source_files(
    stage: str, plugins: Iterable[str] = (), root: Path = source_code.ROOT
) -> dict[str, str]:
    """Map every source of a stage (its path as it is imported) to the digest of its code.

    Args:
        stage: The stage's name; its recipe is `stages.<name>.stage`.
        plugins: Dotted names of the plug-ins that its configuration names; their files may also
            lie in folders that were put on their package's path.
        root: The folder that holds `pipeline` and `stages`.
    """
    files: dict[str, str] = {}
    waiting = [f"stages.{stage}.stage", *plugins]
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        path = _module_file(module, root)
        if path is None:
            continue
        folder = Path(*module.split("."))
        folder = folder if path.name == "__init__.py" else folder.parent
        for file in [path, *_companions(path)]:
            files[(folder / file.name).as_posix()] = source_code.digest(file)
        waiting.extend(imported(path, module))
    return dict(sorted(files.items()))


def imported(path: Path, module: str) -> Iterator[str]:
    """Yield the modules of ours that a file may import, relative imports resolved.

    `from package import name` yields both the package and `package.name`, which may be a module.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(source_code.parse(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                parts = package.split(".")
                start = ".".join([*parts[: len(parts) - node.level + 1], *start.split(".")])
                start = start.strip(".")
            names = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.startswith("stages.") or name in PIPELINE_MODULES:
                yield name


def _module_file(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    package, _, name = module.rpartition(".")
    if package in registry.KINDS:  # its folders may be more than the one under `root`
        places = (folder / f"{name}.py" for folder in registry.folders(package))
        return next((path for path in places if path.is_file()), None)
    return None


def _companions(path: Path) -> list[Path]:
    """List what is not Python beside a file: templates, tables."""
    return [
        file
        for file in sorted(path.parent.iterdir())
        if file.is_file() and file.suffix not in {".py", ".pyc", ".md"}
    ]
