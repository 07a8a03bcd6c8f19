import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.code_digest import imported, source_files

CODE = {
    "pipeline/contracts.py": "RECORD = 1\n",
    "pipeline/settings.py": "DEFAULT = 1\n",
    "stages/__init__.py": "",
    "stages/report/stage.py": (
        "import stages.components.page\nfrom pipeline import contracts, settings\n"
    ),
    "stages/components/__init__.py": "",
    "stages/components/imaging/pixels.py": "def resize(image):\n    return image  # nearest\n",
    "stages/components/unused.py": "X = 1\n",
    "stages/components/page/__init__.py": "from .charts import draw\n",
    "stages/components/page/charts.py": (
        "def draw():\n    from stages.components.imaging import pixels\n    return pixels\n"
    ),
    "stages/components/page/page.css": "body {}\n",
    "stages/components/page/NOTES.md": "notes\n",
    "stages/evaluate/metrics/kid.py": "K = 1\n",
}
Write = Callable[[str, str], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in CODE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def rewrite(path: Path, text: str) -> None:
    """Write a file and move its clock on, as an editor would a while later."""
    path.write_text(text)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def test_imports_are_followed_through_packages_and_functions(root: Path) -> None:
    assert list(source_files("report", root=root)) == [
        "pipeline/contracts.py",
        "stages/components/imaging/pixels.py",
        "stages/components/page/__init__.py",
        "stages/components/page/charts.py",
        "stages/components/page/page.css",
        "stages/report/stage.py",
    ]


def test_plugins_named_in_the_config_are_added(root: Path) -> None:
    files = source_files("report", ["stages.evaluate.metrics.kid"], root=root)
    assert "stages/evaluate/metrics/kid.py" in files


@pytest.mark.parametrize(
    ("name", "text", "counts"),
    [
        ("stages/report/stage.py", CODE["stages/report/stage.py"] + "\n# why\n", False),
        ("stages/report/stage.py", CODE["stages/report/stage.py"] + "\nA = 1\n", True),
        ("stages/components/imaging/pixels.py", "def resize(image):\n    return (image)\n", False),
        ("stages/components/imaging/pixels.py", "def resize(image):\n    return -image\n", True),
        ("stages/components/page/page.css", "body { color: red }\n", True),
        ("stages/components/page/NOTES.md", "other notes\n", False),
        ("stages/components/unused.py", "X = 2\n", False),
        ("pipeline/settings.py", "DEFAULT = 2\n", False),
        ("pipeline/contracts.py", "RECORD = 2\n", True),
    ],
)
def test_what_counts_as_a_change(root: Path, name: str, text: str, counts: bool) -> None:
    before = source_files("report", root=root)
    rewrite(root / name, text)
    assert (source_files("report", root=root) != before) is counts


def test_relative_imports_are_resolved(root: Path) -> None:
    path = root / "stages/components/page/charts.py"
    rewrite(path, "from . import axes\nfrom ..imaging.pixels import resize\n")
    found = set(imported(path, "stages.components.page.charts"))
    assert {"stages.components.page.axes", "stages.components.imaging.pixels"} <= found


def test_the_page_is_not_made_again_for_code_that_makes_images_or_scores() -> None:
    rooms = {Path(file).parts[2] for file in source_files("report") if "components" in file}
    assert rooms == {"captioning"}  # names of captioners
