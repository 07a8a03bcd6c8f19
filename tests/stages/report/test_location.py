"""The section on doing as told, from scores and notes as evaluate writes them."""

from typing import Any

from pipeline.contracts import ScoreRecord
from stages.report.arms import Arm
from stages.report.numbers import Legend
from stages.report.sections import location
from stages.report.sections.location import has_location, is_location, lay_out_location

LEGEND = Legend({}, "reference phantoms")
FACTS = {"chance": 0.48, "majority": 0.5, "commonest": "left", "n": 72, "num_groups": 72}
NOTES: dict[str, Any] = {
    "location": {
        "judge": {"name": "embedded"},
        "fields": {
            arm: dict.fromkeys(("presence", "side"), FACTS)
            for arm in ("mine", "base/x", "real", "vae/x")
        },
        "confusion": {"mine": {"side": {"left": {"left": 30, "none": 6}, "right": {"none": 36}}}},
        "flips": {"mine": {"n": 40, "chance": 0.25}},
    },
    "differences": {
        "base/x - mine": [
            {
                "metric": "location_side",
                "value": -0.02,
                "low": -0.09,
                "high": 0.04,
                "features": None,
            }
        ]
    },
}
ARMS = (Arm("mine", "x", "sdxl", "truth", 8, False), Arm("other", "x", "sdxl", "truth", 8, True))


def score(arm, field, value, low=None, high=None, negative=None):
    return ScoreRecord(
        experiment="test",
        arm=arm,
        stage="evaluate",
        metric=f"location_{field}",
        features=None,
        group="all",
        value=value,
        low=low,
        high=high,
        n_real=61,
        n_synthetic=72,
        higher_is_better=True,
        num_groups=55,
        num_negative_groups=negative,
    )


SCORES = [
    score("mine", "presence", 0.9, 0.8, 0.95, negative=12),
    score("mine", "sensitivity", 0.92, 0.86, 0.95),
    score("mine", "sensitivity_corrected", 0.97, 0.89, 1.0),
    score("mine", "side", 0.82, 0.7, 0.9),
    score("mine", "side_flip", 0.6, 0.45, 0.75),
    score("base/x", "side", 0.84, 0.73, 0.91),
    score("real", "side", 0.97),
    score("real", "sensitivity", 0.99, 0.95, 1.0),
    score("real", "dice", 0.834),
    score("vae/x", "side", 0.95),
]


def row(table, first):
    cells = next(cells for cells in table.rows if cells[0] == first)
    return dict(zip(table.head, cells, strict=True))


def test_the_table_has_the_posters_columns_and_a_dash_for_what_is_not_scored():
    found = lay_out_location(SCORES, NOTES, ARMS, LEGEND)
    assert found.table is not None
    mine = row(found.table, "mine")
    assert list(mine)[1:] == [
        "tumor",
        "location: left or right",
        "location: region",
        "size",
        "shape",
        "intensity",
        "orientation",
    ]
    assert mine["location: left or right"] == (
        "82.0 (70.0 to 90.0); chance 48.0; n = 72, groups 55"
    )
    assert mine["tumor"].endswith("n = 72, groups 55 (12 without tumour)")
    assert mine["size"] == mine["shape"] == mine["intensity"] == "–"
    own = row(found.table, "reference phantoms: the judge itself")
    assert own["location: left or right"].startswith("97.0;")
    assert "judge’s own accuracy" in found.words


def test_the_judges_own_accuracy_stands_beside():
    panels = dict(lay_out_location(SCORES, NOTES, ARMS, LEGEND).panels)
    own = panels["The judge itself, on reference phantoms"]
    real = row(own, "reference phantoms: the judge itself")
    assert real["sees a tumour that is there"] == "99.0 (95.0 to 100.0); n = 61, groups 55"
    assert real["overlap (Dice)"] == "0.834; n = 61, groups 55"
    assert [cells[0] for cells in own.rows][1] == "VAE of x alone"
    flips = row(panels["Does the tumour move with the prompt?"], "mine")
    assert flips == {
        "": "mine", "moves (%)": "60.0 (45.0 to 75.0)", "chance (%)": "25.0", "pairs": "40"
    }  # fmt: skip


def test_presence_stands_as_it_is_read_and_corrected():
    panels = dict(lay_out_location(SCORES, NOTES, ARMS, LEGEND).panels)
    table = panels["Is there a tumour where one is asked for, and none where none is?"]
    assert table.rows == (
        (
            "mine",
            "92.0 (86.0 to 95.0); n = 72, groups 55",
            "97.0 (89.0 to 100.0); n = 72, groups 55",
            "–",
            "–",
        ),
    )


def test_sides_stand_beside_those_of_the_model_without_lora():
    panels = dict(lay_out_location(SCORES, NOTES, ARMS, LEGEND).panels)
    table = panels["Left or right, beside the same model without LoRA"]
    assert row(table, "mine") == {
        "": "mine",
        "as asked (%)": "82.0 (70.0 to 90.0); n = 72, groups 55",
        "without LoRA (%)": "84.0 (73.0 to 91.0); n = 72, groups 55",
        "difference (points)": "2.0 (−4.0 to 9.0)",
        "chance (%)": "48.0",
    }
    assert len(table.rows) == 1  # the other arm was not judged


def test_confusion_is_a_table_by_request():
    ((title, table),) = lay_out_location(SCORES, NOTES, ARMS, LEGEND).details
    assert title == "mine: side found (columns) for each that was asked for (rows)"
    assert table.head == ("", "left", "none")
    assert table.rows == (("left", "30", "6"), ("right", "0", "36"))


def test_a_run_without_pairs_has_no_table_of_them():
    recorded = {**NOTES["location"], "flips": {}}
    assert len(lay_out_location(SCORES, {"location": recorded}, (), LEGEND).panels) == 2


def test_without_a_judge_the_reason_stands_there():
    missing = {"location": {"missing": "the slices have no masks"}}
    found = lay_out_location([], missing, ARMS, LEGEND)
    assert found.table is None
    assert "was not scored: the slices have no masks." in found.words
    assert lay_out_location([], {}, (), LEGEND).words == location.NOT_RECORDED
    assert has_location(NOTES)
    assert not has_location(missing)
    assert is_location(SCORES[0])
    assert not is_location(SCORES[0].model_copy(update={"metric": "kid"}))
