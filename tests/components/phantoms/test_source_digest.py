"""What makes new subjects, and what leaves the cached ones alone."""

import shutil
from pathlib import Path

import pytest

from stages.components.phantoms import source_digest
from stages.components.phantoms.source_digest import generator_digest


@pytest.mark.parametrize(
    ("name", "line", "counts"),
    [
        ("head.py", "\n# a remark\n", False),
        ("head.py", "\nA = 1\n", True),
        ("notice.py", "\nA = 1\n", False),
        ("source_digest.py", "\nA = 1\n", False),
        ("another.py", "A = 1\n", True),
    ],
)
def test_only_code_that_makes_subjects_counts(
    tmp_path: Path, name: str, line: str, counts: bool
) -> None:
    folder = shutil.copytree(source_digest.FOLDER, tmp_path / "phantoms")
    with (folder / name).open("a", encoding="utf-8") as out:
        out.write(line)
    assert (generator_digest(folder) != generator_digest()) is counts
