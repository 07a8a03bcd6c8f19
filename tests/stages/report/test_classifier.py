"""The classifiers' part of the page: tables of what classify recorded, and nothing else."""

from pipeline.contracts import ScoreRecord
from stages.report.numbers import Legend
from stages.report.sections.classifier import (
    describe_test_use,
    lay_out_classifiers,
    list_not_run,
)


def score(metric, value, arm="real", group="all"):
    return ScoreRecord(
        experiment="e", arm=arm, stage="classify", metric=metric, features=None, group=group,
        value=value, low=value - 0.01, high=value + 0.01, n_real=30, n_synthetic=0,
        higher_is_better=True,
    )  # fmt: skip


USE = {
    "binary": {
        "num_slices": 1234,
        "sha256": "ab" * 32,
        "looks": {"real, seed 0": {"looks": 1}, "good, seed 0": {"looks": 1}},
    }
}
SCORES = [
    score("accuracy", 0.9),
    score("accuracy_at_operating_point", 0.8),
    score("ece", 0.123),
    score("class_accuracy", 0.7),
    score("independence_gap", 0.25, group="protected:sex"),
    score("accuracy", 0.5, group="contrast:t1"),
]
NOTES = {
    "test_use": USE,
    "differences": {"good - real": [{"metric": "auroc", "value": -0.2, "low": -0.3, "high": -0.1}]},
    "calibration": {"real": [{"said": 0.4, "true": 0.55, "n": 12}]},
    "fairness": {"attribute": "sex", "rates": {"real": {"f": {"n": 7, "called": 0.5}}}},
    "four_class": {"confusion": {"real": {"glioma": {"glioma": 3}}}, "calibration": {}},
}


def test_scores_stand_in_tables_by_kind():
    section = lay_out_classifiers(SCORES, {"notes": NOTES, "config": {}}, Legend({}))
    tables = dict(section.scores)
    first = {title: table.rows[0][:3] for title, table in tables.items()}
    assert first == {
        "Tumour or not, from a probability of 0.5": ("real", "90.0", "89.0 to 91.0"),
        "Tumour or not, at the operating point set on validation slices": (
            "real", "80.0", "79.0 to 81.0",
        ),
        "Tumour or not: ranking and calibration": ("real", "0.123", "0.113 to 0.133"),
        "Which class it is": ("real", "70.0", "69.0 to 71.0"),
        "Largest gaps between groups of sex, at the operating point": (
            "real", "25.0", "24.0 to 26.0",
        ),
    }  # fmt: skip


def test_details_hold_differences_groups_calibration_and_rates():
    details = dict(lay_out_classifiers(SCORES, {"notes": NOTES, "config": {}}, Legend({})).details)
    pairs = details["Differences between arms, tumour or not, paired on the test slices"]
    assert pairs.rows[0][0] == "good − real" and "−0.200" in pairs.rows[0][1]
    groups = details["By class, orientation, contrast and source"]
    assert [row[3] for row in groups.rows] == ["contrast:t1"]
    curve = details["Calibration of the probability of a tumour"]
    assert curve.rows == (("real", "0.400", "0.550", "12"),)
    assert details["Rates within groups of sex, at the operating point"].rows[0][1:] == ("7", "0.5")
    assert "Classes named for each true class (rows), real" in details


def test_looks_at_the_test_slices_are_counted():
    words = describe_test_use(USE)
    assert "binary: 2 trained states judged 1,234 test slices (SHA-256 abababababab)" in words
    assert "at most 1 time each" in words


def test_what_was_not_recorded_is_said_or_left_out():
    section = lay_out_classifiers([], {"notes": {}, "config": {}}, Legend({}))
    assert (section.scores, section.details) == ((), ())
    assert "does not record how often" in section.words


def test_the_curve_in_n_has_a_table_of_its_own():
    curve = [score("auroc", 0.6, "ratio/0"), score("auroc", 0.7, "ratio/2/good"),
             score("auroc", 0.7, "ratio/2/good", "axial")]  # fmt: skip
    row = {"metric": "auroc", "value": 0.1, "low": 0.0, "high": 0.2}
    notes = {
        **NOTES, "ratios": {"notumor": 6, "glioma": 6},
        "differences": {"ratio/2/good - ratio/0": [row]},
    }  # fmt: skip
    section = lay_out_classifiers([*SCORES, *curve], {"notes": notes, "config": {}}, Legend({}))
    (table,) = (table for title, table in section.scores if "add to few real ones" in title)
    assert [row[:2] for row in table.rows] == [
        ("real alone", "0.600"), ("real, and 2 × as many of good", "0.700"),
    ]  # fmt: skip
    details = dict(section.details)
    pairs = details.pop("Differences between arms, tumour or not, paired on the test slices")
    assert pairs.rows[0][0] == "ratio/2/good − ratio/0"
    assert pairs.rows[0][pairs.head.index("n real")] == "30"
    assert not any("ratio" in row[0] for table in details.values() for row in table.rows)


def test_what_was_not_run_is_said_with_the_line_that_would():
    lines = list(list_not_run({"regimes": ["real", "synthetic"]}))
    wanted = ("cross_test: {NAME:", "protected: {", "ratios: [0, 1, 2, 4]", "real_with_augment")
    assert [any(part in line for line in lines) for part in wanted] == [True] * 4
    config = {"cross_test": {"a": {}}, "protected": {"attribute": "sex"}, "ratios": [0, 1]}
    assert list(list_not_run({**config, "regimes": ["real_with_augmentation"]})) == []
