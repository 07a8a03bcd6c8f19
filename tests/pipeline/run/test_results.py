"""Scores of captions, which stand in a manifest's notes, beside those that are records."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.contracts import ScoreRecord
from pipeline.run import plan, results, runner
from pipeline.run.runner import Workplace
from pipeline.settings import RunConfig
from tests.pipeline.conftest import FakeStages


def estimate(value: float | None, half: float = 0.1) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - half, "high": value + half}


NOTES: dict[str, Any] = {
    "agreement": [
        {
            "field": "side",
            "n": 21,
            "num_groups": 7,
            "accuracy": estimate(0.75),
            "above_majority": estimate(0.25),
            "kappa": estimate(0.5),
        },
        {
            "field": "size",
            "n": 30,
            "num_groups": 10,
            "accuracy": estimate(1.0),
            "above_majority": estimate(0.0),
            "kappa": estimate(None),
        },
    ],
    "presence": {
        "sensitivity": estimate(0.875),
        "specificity": estimate(None),
        "n_with_tumor": 30,
        "n_without_tumor": 0,
        "groups_with_tumor": 9,
        "groups_without_tumor": 0,
    },
    "fill_rate": {"size": 0.625},
    "distinct": {"raw": 40, "text": 25, "n": 50},
    "tokens": {"limit": 77, "before": {"share_over": 0.375}, "after": {"share_over": 0.0}},
}


def rows(scores: Sequence[ScoreRecord]) -> dict[str, tuple[Any, ...]]:
    return {s.metric: (s.value, s.low, s.high, s.n_real, s.higher_is_better) for s in scores}


def test_each_number_of_the_notes_is_a_row() -> None:
    scores = list(results.caption_scores(NOTES, "trial", "a4"))
    assert rows(scores) == {
        "side_accuracy": (0.75, 0.65, 0.85, 21, True),
        "side_above_majority": (0.25, 0.15, 0.35, 21, True),
        "side_kappa": (0.5, 0.4, 0.6, 21, True),
        "size_accuracy": (1.0, 0.9, 1.1, 30, True),
        "size_above_majority": (0.0, -0.1, 0.1, 30, True),
        "tumor_sensitivity": (0.875, 0.775, 0.975, 30, True),
        "size_stated": (0.625, None, None, 50, True),
        "distinct_texts": (0.5, None, None, 50, True),
        "over_token_limit": (0.375, None, None, 50, False),
    }
    groups = {s.metric: s.num_groups for s in scores if s.num_groups is not None}
    assert groups == {
        **dict.fromkeys(("side_accuracy", "side_above_majority", "side_kappa"), 7),
        **dict.fromkeys(("size_accuracy", "size_above_majority"), 10),
        "tumor_sensitivity": 9,
    }
    assert {(s.arm, s.stage, s.group, s.n_synthetic) for s in scores} == {
        ("a4", "caption", "all", 0)
    }


def test_an_artifact_without_scores_has_no_rows() -> None:
    assert list(results.caption_scores({"failed": {}}, "trial", "a4")) == []
    nothing = {"agreement": [], "distinct": {"raw": 0, "text": 0, "n": 0}}
    assert list(results.caption_scores(nothing, "trial", "a4")) == []


def test_arms_that_share_captions_have_a_row_each(
    fakes: FakeStages,
    load: Callable[..., RunConfig],
    workplace: Workplace,
) -> None:
    fakes.notes = {"caption": NOTES}
    settings = load()
    experiment: Path = workplace.experiment_dir(settings)
    assert results.collect(plan.plan(settings), experiment) == []
    runner.run(settings, workplace, until="caption")
    scores = results.collect(plan.plan(settings), experiment)
    kappas = [score for score in scores if score.metric == "side_kappa"]
    assert [(s.experiment, s.arm) for s in kappas] == [("trial", arm) for arm in ("a4", "a8", "b4")]
    only = results.collect(plan.plan(settings, ["b4"]), experiment)
    assert {score.arm for score in only} == {"b4"}
