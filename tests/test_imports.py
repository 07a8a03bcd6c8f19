"""Imports go down only, as the folders say: ground < rooms < stages < roof.

The ground is `pipeline/*.py`, a room is a folder of `stages/components/`, a stage any other folder
of `stages/`, and the roof is the folders of `pipeline/`. Nothing here names one of them: a new room
or stage is checked on arrival.
"""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import registry

ROOT = Path(__file__).resolve().parent.parent
GROUND, ROOM, STAGE, ROOF = range(4)


@dataclass(frozen=True)
class Place:
    """Where a module lies: its level, the folder that holds it, and its room, stage or roof."""

    level: int
    home: str
    folder: str


@dataclass(frozen=True)
class Import:
    """One import statement's target, and whether it runs when the module is loaded."""

    module: str
    is_top_level: bool


def code(root: Path = ROOT) -> dict[str, Path]:
    """Map the dotted name of every module of ours to its file."""
    paths = [path for top in ("pipeline", "stages") for path in (root / top).rglob("*.py")]
    return {name_of(path.relative_to(root)): path for path in sorted(paths)}


def name_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(module: str, is_package: bool = False) -> Place:
    """Tell a module's place from its dotted name alone."""
    parts = module.split(".")
    folder = module if is_package else module.rpartition(".")[0]
    depth = len(parts) + is_package
    if parts[0] == "pipeline":
        return Place(GROUND, "pipeline", folder) if depth <= 2 else Place(ROOF, parts[1], folder)
    if parts[:2] == ["stages", "components"]:
        return Place(ROOM, parts[2] if len(parts) > 2 else "", folder)
    return Place(STAGE, parts[1] if len(parts) > 1 else "", folder)


def imports(path: Path, modules: Iterable[str]) -> Iterator[Import]:
    """Yield every import of ours in a file, those for types alone included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    known = set(modules)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: import by full name"
            assert node.module is not None
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in inner]
        else:
            continue
        for name in dict.fromkeys(names):
            if name.split(".")[0] in ("pipeline", "stages"):
                yield Import(name, id(node) not in lazy)


def fault(importer: Place, imported: Import, is_package: bool = False) -> str | None:
    """Say what is wrong with an import; None where it goes down."""
    target = place(imported.module, is_package)
    name = imported.module.rpartition(".")[2]
    if name.startswith("_") and not name.startswith("__") and target.folder != importer.folder:
        return "underscore"
    if importer.level == ROOF:  # a command calls a stage when it runs, so that --help loads none
        is_eager = target.level in (ROOM, STAGE) and imported.is_top_level
        return "upward" if is_eager or (importer.home, target.home) == ("run", "cli") else None
    if target.level > importer.level:
        return "upward"
    if importer.level == target.level == STAGE and target.home != importer.home:
        return "sideways"
    return None


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Return one circle of a graph, in order; empty where there is none."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


CODE = code()
EDGES = {
    module: {target.module for target in imports(path, CODE) if target.module in CODE}
    for module, path in CODE.items()
}


def test_there_is_something_to_check() -> None:
    homes = {(place(module).level, place(module).home) for module in CODE}
    assert sum(level == ROOM for level, _ in homes) >= 9
    assert sum(level == STAGE for level, _ in homes) >= 8


@pytest.mark.parametrize("module", CODE)
def test_imports_go_down_only(module: str) -> None:
    here = place(module, CODE[module].name == "__init__.py")
    found = {
        target.module: why
        for target in imports(CODE[module], CODE)
        if (
            why := fault(
                here,
                target,
                target.module in CODE and CODE[target.module].name == "__init__.py",
            )
        )
    }
    assert found == {}, f"{module} imports {found}"


@pytest.mark.parametrize(
    ("importer", "imported", "is_top_level", "why"),
    [
        ("stages.caption.stage", "stages.preprocess.splits", False, "sideways"),
        ("stages.caption.stage", "pipeline.run.runner", True, "upward"),
        ("stages.components.imaging.pixels", "stages.caption.stage", False, "upward"),
        ("stages.components.imaging.pixels", "pipeline.run.manifest", True, "upward"),
        ("pipeline.contracts", "stages.components.imaging.pixels", False, "upward"),
        ("pipeline.contracts", "pipeline.cli.app", False, "upward"),
        ("pipeline.cli.app", "stages.evaluate.compare", True, "upward"),
        ("pipeline.cli.app", "stages.evaluate.compare", False, None),
        ("pipeline.run.plan", "pipeline.cli.app", False, "upward"),
        ("stages.embedded.build", "stages.finetune.loss", True, "sideways"),
        ("stages.evaluate.stage", "stages.evaluate.metrics._pairs", True, "underscore"),
        ("stages.evaluate.metrics.ms_ssim", "stages.evaluate.metrics._pairs", True, None),
    ],
)
def test_a_wrong_import_is_found(
    importer: str, imported: str, is_top_level: bool, why: str | None
) -> None:
    assert fault(place(importer), Import(imported, is_top_level)) == why


def test_no_circle_of_files() -> None:
    assert circles(EDGES) == []


def test_no_circle_of_rooms() -> None:
    """So that rooms have an order, each importing only earlier ones."""
    rooms: dict[str, set[str]] = {}
    for module, targets in EDGES.items():
        if place(module).level == ROOM:
            homes = {place(target).home for target in targets if place(target).level == ROOM}
            rooms.setdefault(place(module).home, set()).update(homes - {place(module).home, ""})
    assert circles(rooms) == []


def test_a_circle_is_found() -> None:
    assert set(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_no_module_lies_loose_among_the_rooms() -> None:
    loose = [path.name for path in (ROOT / "stages/components").glob("*.py")]
    assert loose == ["__init__.py"]


def lines_of_imports(path: Path) -> int:
    """Count the lines of a file's import block."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    block = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return sum((node.end_lineno or 0) - node.lineno + 1 for node in block)


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    ("count", "limit", "of"),
    [(count_lines, 400, "*.py"), (count_lines, 300, "stage.py"), (lines_of_imports, 30, "*.py")],
    ids=["file", "recipe", "imports"],
)
def test_files_can_be_read_at_a_sitting(count: Callable[[Path], int], limit: int, of: str) -> None:
    long = {name: count(path) for name, path in CODE.items() if path.match(of)}
    assert {name: lines for name, lines in long.items() if lines > limit} == {}


def test_torchvision_is_not_needed() -> None:
    users = [name for name, path in CODE.items() if "torchvision" in path.read_text("utf-8")]
    assert [name for name in users if "import torchvision" in CODE[name].read_text("utf-8")] == []


def loaded_after(code: str) -> set[str]:
    """Run code in a fresh interpreter and return which heavy libraries it has loaded."""
    heavy = {"torch", "diffusers", "transformers", "peft", "accelerate", "sklearn", "matplotlib"}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*({heavy!r} & set(sys.modules)))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_command_line_leaves_torch_unloaded() -> None:
    assert loaded_after("import pipeline.cli.app") == set()


def test_plan_leaves_torch_unloaded() -> None:
    """Configs are checked, planned and compared with what is there without any model code."""
    assert loaded_after("import pipeline.run.runner, pipeline.run.results") == set()


def test_plugins_import_heavy_libraries_only_when_used() -> None:
    assert len(registry.KINDS) >= 11
    code = (
        "from pipeline import registry\n"
        "for package in registry.KINDS:\n"
        "    for name in registry.available(package):\n"
        "        registry.find(package, name)\n"
    )
    assert loaded_after(code) & {"torch", "diffusers", "transformers"} == set()
