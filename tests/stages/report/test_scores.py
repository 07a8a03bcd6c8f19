"""Section of scores: positive controls stand apart from arms."""

from pipeline.contracts import ScoreRecord, ScoreStyle
from stages.report.numbers import Legend
from stages.report.sections.scores import draw_score_charts, table_controls

LEGEND = Legend({"kid": ScoreStyle(name="KID", digits=4)})


def score(arm, value, group="all", features="blocks"):
    return ScoreRecord(
        experiment="test",
        arm=arm,
        stage="evaluate",
        metric="kid",
        features=features,
        group=group,
        value=value,
        low=value - 0.01,
        high=value + 0.01,
        n_real=20,
        n_synthetic=10,
        higher_is_better=False,
    )


SCORES = [
    score("real", 0.001),
    score("real", 0.002, "glioma"),
    score("good", 0.1),
    score("control/notumor", 0.02),
    score("control/notumor", 0.3, "glioma"),
    score("control/t2", 0.2),
]


def test_controls_stand_under_the_floor_by_what_they_are_scored_against():
    ((title, table),) = table_controls(SCORES, LEGEND)
    assert title.startswith("Positive controls: KID") and "blocks" in title
    assert table.head == ("Training slices", "against all", "against glioma")
    assert [row[0] for row in table.rows] == ["the floor", "notumor alone", "t2 alone"]
    assert table.rows[1][2] == "0.3000 (0.2900 to 0.3100; n = 10)"
    assert table.rows[2][2] == "–"


def test_without_controls_there_is_no_table():
    assert table_controls(SCORES[:3], LEGEND) == ()


def test_controls_are_no_arms_of_a_chart():
    ((_, chart),) = draw_score_charts(SCORES, "blocks", LEGEND)
    assert "good 0.1" in chart.picture.alt
    assert "alone" not in chart.picture.alt and "control" not in chart.picture.alt
