"""The captions section, from notes as the caption stage writes them."""

from typing import Any

import pytest

from pipeline.contracts import CaptionRecord, SliceRecord
from stages.caption.quality import summarise
from stages.report.sections.captions import CaptionTable, list_caption_tables, list_silent

NUM = 12


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    """Captions that name every tumour a glioma in an axial slice; labels are all that is known."""
    slices, records = [], []
    for index in range(NUM):
        label = ("glioma", "meningioma", "notumor")[index % 3]
        slices.append(
            SliceRecord(
                slice_id=f"s{index}",
                subject_id=None,
                group_id=f"g{index}",
                source="image_folder",
                split="train",
                label=label,
                image_path="x.png",
                original="x.jpg",
                original_width_px=8,
                original_height_px=8,
            )
        )
        yes = "tumor: yes; orientation: axial; description: a glioma " + "and more " * 40
        records.append(
            CaptionRecord(
                file_name="x.png",
                text="a glioma",
                slice_id=f"s{index}",
                label=label,
                split="train",
                status="ok",
                report=None,
                raw="tumor: no" if label == "notumor" else yes,
                num_tokens=70,
            )
        )
    notes = summarise(records, slices, lambda text: len(text.split()), 77, seed=1)
    return {"counts": {"written": NUM, "failed": 1}, "notes": notes}


@pytest.fixture(scope="module")
def tables(manifest: dict[str, Any]) -> dict[str, CaptionTable]:
    return {it.title: it for it in list_caption_tables({"mine": manifest})}


def row(table: CaptionTable, *start: str) -> dict[str, str]:
    cells = next(cells for cells in table.table.rows if cells[: len(start)] == start)
    return dict(zip(table.table.head, cells, strict=True))


def test_fields_stand_beside_their_baselines(tables: dict[str, CaptionTable]) -> None:
    table = tables["Right, field by field"]
    kind = row(table, "mine", "tumour type")
    assert kind["Compared with"] == "folder label"
    assert (kind["Slices"], kind["Groups"], kind["Stated (%)"]) == ("8", "8", "100.0")
    assert kind["Right (%)"].startswith("50.0 (")
    assert kind["Commonest answer (%)"] == "50.0 (glioma)"
    assert kind["Chance (%)"] == "50.0"
    assert kind["Kappa"] == "0.000"  # the same in every draw, which is no interval
    assert row(table, "mine", "tumour present")["Kappa"] == "1.000"
    assert all(len(cells) == len(table.table.head) for cells in table.table.rows)


def test_presence_is_counted(tables: dict[str, CaptionTable]) -> None:
    found = tables["Tumour or not"].table.rows[0]
    assert found[:2] == ("mine", "folder label")
    assert found[2].startswith("100.0 (")
    assert found[4:] == ("8", "8", "8", "0", "0", "4", "4", "4", "0", "0")


def test_the_posters_columns(tables: dict[str, CaptionTable]) -> None:
    found = row(tables["In the poster’s form"], "mine")
    assert found["tumor"] == "1"
    assert found["location"] == "–"


def test_lengths_fill_rates_and_classes(tables: dict[str, CaptionTable]) -> None:
    lengths = tables["Length and variety"].table.rows[0]
    assert lengths[:5] == ("mine", "12", "1", "2", "1")
    assert lengths[-5] == "8 (66.7 %)"
    assert lengths[-2:] == ("0 (0.0 %)", "77")
    fill = row(tables["What captions state"], "mine")
    assert (fill["tumour present"], fill["tumour type"], fill["size"]) == ("100.0", "100.0", "0.0")
    named = row(tables["Captions that name the class"], "mine")
    assert (named["glioma"], named["meningioma"]) == ("100.0 of 4", "0.0 of 4")


def test_what_was_not_recorded_is_left_out_and_named(manifest: dict[str, Any]) -> None:
    both = {"mine": manifest, "old": {"counts": {}, "notes": {"fill_rate": {"size": 0.5}}}}
    found = {it.title: it for it in list_caption_tables(both)}
    assert [cells[0] for cells in found["Tumour or not"].table.rows] == ["mine"]
    assert row(found["What captions state"], "old")["tumour type"] == "–"
    assert list_silent(both) == (
        "The captions by old have no recorded agreement with what is known of their slices.",
    )
    assert list_caption_tables({}) == ()
