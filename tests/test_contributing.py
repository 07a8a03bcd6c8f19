"""The map in CONTRIBUTING.md leads to files that are there, in an order in which they are read."""

import re
from pathlib import Path

import pytest

from pipeline import registry
from tests.test_imports import CODE, EDGES, ROOM, ROOT, STAGE, place

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    section = TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def files(cell: str, home: str = "") -> list[str]:
    """Name the modules of a cell; a bare name lies in the folder of the one before."""
    found: list[Path] = []
    for name in re.findall(r"`([^`]+\.py)`", cell):
        folder = found[0].parent if not home and found else Path(home)
        if home and "/" not in name:
            folder = found[-1].parent
        found.append(folder / name)
    return [".".join(path.with_suffix("").parts) for path in found]


WALKS = {row[0]: row[1:] for row in rows("Three walks")}


@pytest.mark.parametrize("walk", WALKS)
def test_each_file_of_a_walk_is_imported_by_one_before_it(walk: str) -> None:
    of_stage, of_rooms = files(WALKS[walk][0]), files(WALKS[walk][1], "stages/components")
    assert of_stage
    assert {place(module).level for module in of_stage} == {STAGE}
    assert {place(module).level for module in of_rooms} <= {ROOM}
    seen: list[str] = []
    for module in [*of_stage, *of_rooms]:
        assert module in CODE, module
        is_plugin = module.rpartition(".")[0] in registry.KINDS  # found by its name
        is_met = any(module in EDGES[earlier] for earlier in seen)
        assert not seen or is_plugin or is_met, module
        seen.append(module)


def test_every_path_is_there() -> None:
    paths = {name for name in re.findall(r"`([\w./-]+)`", TEXT) if "/" in name}
    assert len(paths) > 15
    places = [ROOT, ROOT / "pipeline", ROOT / "stages/components", ROOT / "stages/evaluate"]
    places.append(ROOT / "stages/report")
    for name in sorted(paths):
        path = name.replace("/NAME.py", "").replace("/ROOM", "").replace("/STAGE", "")
        assert any((folder / path).exists() for folder in places), name


def test_parts_lie_where_the_registry_says() -> None:
    told = {row[1].strip("`").removesuffix("/NAME.py") for row in rows("What people come for")}
    kinds = (registry.METRICS, registry.VLMS, registry.BASE_MODELS, registry.SOURCES)
    assert {kind.replace(".", "/") for kind in kinds} <= told


def test_rooms_stand_in_an_order_in_which_each_imports_earlier_ones() -> None:
    line = next(line for line in TEXT.splitlines() if line.startswith("rooms "))
    order = line.split()[1:]
    here = {place(module).home for module in CODE if place(module).level == ROOM} - {""}
    assert set(order) == here
    for module, targets in EDGES.items():
        for target in targets:
            if place(module).level == place(target).level == ROOM and place(target).home:
                assert order.index(place(target).home) <= order.index(place(module).home), module
