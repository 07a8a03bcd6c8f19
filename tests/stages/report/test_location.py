"""The section on doing as told, from scores and notes as evaluate writes them."""

from pipeline.contracts import ScoreRecord
from stages.report.sections import location
from stages.report.sections.location import has_location, is_location, lay_out_location

FACTS = {"chance": 0.48, "majority": 0.5, "commonest": "left", "n": 72, "num_groups": 72}
NOTES = {
    "location": {
        "judge": {"name": "embedded"},
        "fields": {
            arm: dict.fromkeys(("presence", "side"), FACTS) for arm in ("mine", "real", "vae/x")
        },
        "confusion": {"mine": {"side": {"left": {"left": 30, "none": 6}, "right": {"none": 36}}}},
        "flips": {"mine": {"n": 40, "chance": 0.25}},
    }
}


def score(arm, field, value, low=None, high=None):
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
    )


SCORES = [
    score("mine", "presence", 0.9, 0.8, 0.95),
    score("mine", "side", 0.82, 0.7, 0.9),
    score("mine", "side_flip", 0.6, 0.45, 0.75),
    score("real", "side", 0.97),
    score("real", "sensitivity", 0.99, 0.95, 1.0),
    score("real", "dice", 0.834),
    score("vae/x", "side", 0.95),
]


def row(table, first):
    cells = next(cells for cells in table.rows if cells[0] == first)
    return dict(zip(table.head, cells, strict=True))


def test_the_table_has_the_posters_columns_and_a_dash_for_what_is_not_scored():
    found = lay_out_location(SCORES, NOTES)
    assert found.table is not None
    mine = row(found.table, "mine")
    assert list(mine)[1:] == [
        "tumor",
        "location: side",
        "location: region",
        "size",
        "shape",
        "intensity",
        "orientation",
    ]
    assert mine["location: side"] == "82.0 (70.0 to 90.0); chance 48.0; n = 72"
    assert mine["size"] == mine["shape"] == mine["intensity"] == "–"
    assert row(found.table, "real slices: the judge itself")["location: side"].startswith("97.0;")
    assert "judge’s own accuracy" in found.words


def test_the_judges_own_accuracy_stands_beside():
    panels = dict(lay_out_location(SCORES, NOTES).panels)
    own = panels["The judge itself, on real slices"]
    real = row(own, "real slices: the judge itself")
    assert real["sees a tumour that is there"] == "99.0 (95.0 to 100.0); n = 61"
    assert real["overlap (Dice)"] == "0.834; n = 61"
    assert [cells[0] for cells in own.rows][1] == "vae/x: real slices through the VAE"
    flips = row(panels["Does the tumour move with the prompt?"], "mine")
    assert flips == {
        "": "mine", "moves (%)": "60.0 (45.0 to 75.0)", "chance (%)": "25.0", "pairs": "40"
    }  # fmt: skip


def test_confusion_is_a_table_by_request():
    ((title, table),) = lay_out_location(SCORES, NOTES).details
    assert title == "mine: side found (columns) for each that was asked for (rows)"
    assert table.head == ("", "left", "none")
    assert table.rows == (("left", "30", "6"), ("right", "0", "36"))


def test_a_run_without_pairs_has_no_table_of_them():
    recorded = {**NOTES["location"], "flips": {}}
    assert len(lay_out_location(SCORES, {"location": recorded}).panels) == 1


def test_without_a_judge_the_reason_stands_there():
    missing = {"location": {"missing": "the slices have no masks"}}
    found = lay_out_location([], missing)
    assert found.table is None
    assert "was not scored: the slices have no masks." in found.words
    assert lay_out_location([], {}).words == location.NOT_RECORDED
    assert has_location(NOTES)
    assert not has_location(missing)
    assert is_location(SCORES[0])
    assert not is_location(SCORES[0].model_copy(update={"metric": "kid"}))
