"""Imports go down only: cli, runner > stages > components > contracts."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path.relative_to(ROOT) for top in ("pipeline", "stages") for path in (ROOT / top).rglob("*.py")
)
# What stages and components may use of the pipeline; the rest stands above them.
FOUNDATIONS = {
    "pipeline.contracts",
    "pipeline.errors",
    "pipeline.files",
    "pipeline.registry",
    "pipeline.seeding",
    "pipeline.settings",
    "pipeline.source_code",
}
# The pipeline modules that call stages by name, inside their commands.
MAY_IMPORT_STAGES = {"pipeline/run/checks.py", "pipeline/cli/tools.py"}
PLUGIN_PACKAGES = (
    "sources",
    "vlms",
    "base_models",
    "refiners",
    "features",
    "metrics",
    "classifiers",
    "explanations",
    "judges",
)


def imports(path: Path) -> list[tuple[str, bool]]:
    """List (module, at the top level) for every import; `from a import b` also gives `a.b`."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: import by full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found.extend((name, id(node) in top) for name in names)
    return found


def upward(path: Path, name: str, is_top_level: bool) -> bool:
    """Tell whether an import goes up, or sideways between stages."""
    parts = name.split(".")
    if path.parts[0] == "pipeline":
        lazily_allowed = path.as_posix() in MAY_IMPORT_STAGES and not is_top_level
        return parts[0] == "stages" and not lazily_allowed
    if parts[0] == "pipeline":
        return ".".join(parts[:2]) not in FOUNDATIONS and name not in {
            f"pipeline.{module.split('.')[1]}" for module in FOUNDATIONS
        }
    return parts[0] == "stages" and parts[1] != "components"


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_down_only(path: Path) -> None:
    found = [name for name, is_top_level in imports(path) if upward(path, name, is_top_level)]
    assert found == [], f"{path} imports upward: {found}"


@pytest.mark.parametrize(
    ("path", "name", "is_top_level"),
    [
        ("stages/caption/stage.py", "stages.preprocess.stage.run", True),
        ("stages/caption/stage.py", "pipeline.run.runner", True),
        ("stages/components/imaging/pixels.py", "stages.caption.stage.run", False),
        ("stages/components/imaging/pixels.py", "pipeline.run.manifest.read", True),
        ("pipeline/contracts.py", "stages.components.imaging.pixels", False),
        ("pipeline/cli/tools.py", "stages.evaluate.compare.compare_folders", True),
    ],
)
def test_an_upward_import_is_found(path: str, name: str, is_top_level: bool) -> None:
    assert upward(Path(path), name, is_top_level)


def test_torchvision_is_not_needed() -> None:
    users = [path for path in FILES for name, _ in imports(path) if name.startswith("torchvision")]
    assert users == []


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
    assert loaded_after("import pipeline.runner, pipeline.results") == set()


def test_plugins_import_heavy_libraries_only_when_used() -> None:
    code = (
        "from pipeline import registry\n"
        f"for kind in {PLUGIN_PACKAGES!r}:\n"
        "    package = f'stages.components.{kind}'\n"
        "    for name in registry.available(package):\n"
        "        registry.find(package, name)\n"
    )
    assert loaded_after(code) & {"torch", "diffusers", "transformers"} == set()
