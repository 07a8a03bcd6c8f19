"""Scores of an experiment's fresh artifacts: collected, chosen and printed."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.contracts import ALL, GAP_CLOSED, CaptionRecord, ScoreRecord
from pipeline.errors import UsageError
from pipeline.run import manifest
from pipeline.run.plan import Node, standing

SCORED = ("evaluate", "classify")
# What an overview shows of each arm, over all slices: distance, fidelity, copies, what prompts
# asked for, classifiers, and the captions behind it.
HEADLINES = (
    *("kid", GAP_CLOSED, "fid", "precision", "recall", "copied_share"),
    *("location_presence", "location_side", "location_side_flip"),
    *("accuracy", "auroc", "side_accuracy"),
)


def collect(nodes: Sequence[Node], experiment_dir: Path) -> list[ScoreRecord]:
    """Read every score of the fresh artifacts of a plan, in order.

    `evaluate` and `classify` keep theirs as records, `caption` in its manifest's notes.
    """
    scores: list[ScoreRecord] = []
    for node in nodes:
        if node.stage not in (*SCORED, "caption"):
            continue
        if standing(node, experiment_dir).state != "fresh":
            continue
        folder = node.folder(experiment_dir)
        if node.stage in SCORED:
            scores.extend(manifest.open_artifact(folder, ScoreRecord).records())
        else:
            notes = manifest.open_artifact(folder, CaptionRecord).manifest["notes"]
            for arm in node.arm_names:
                scores.extend(caption_scores(notes, experiment_dir.name, arm))
    return scores


def caption_scores(notes: Mapping[str, Any], experiment: str, arm: str) -> Iterator[ScoreRecord]:
    """Yield what a caption artifact found out about its captions, as rows of one of its arms.

    `FIELD_accuracy`, `FIELD_above_majority` and `FIELD_kappa` compare with what is known of the
    slices, `tumor_sensitivity` and `tumor_specificity` too; `FIELD_stated`, `distinct_texts` and
    `over_token_limit` (the captioner's own words) are shares of captions. `n_real` counts slices.
    """

    def score(
        metric: str,
        estimate: Mapping[str, float | None],
        n: int,
        num_groups: int | None = None,
        higher_is_better: bool = True,
    ) -> Iterator[ScoreRecord]:
        if estimate["value"] is not None:  # kappa and shares of nothing are not defined
            yield ScoreRecord(
                experiment=experiment,
                arm=arm,
                stage="caption",
                metric=metric,
                features=None,
                group=ALL,
                value=estimate["value"],
                low=estimate["low"],
                high=estimate["high"],
                n_real=n,
                n_synthetic=0,
                higher_is_better=higher_is_better,
                num_groups=num_groups,
            )

    def share(value: float) -> dict[str, float | None]:
        return {"value": value, "low": None, "high": None}

    for row in notes.get("agreement") or ():
        for name in ("accuracy", "above_majority", "kappa"):
            yield from score(f"{row['field']}_{name}", row[name], row["n"], row["num_groups"])
    presence = notes.get("presence") or {}
    for name, side in (("sensitivity", "with"), ("specificity", "without")):
        if name in presence:
            counts = (presence[f"{what}_{side}_tumor"] for what in ("n", "groups"))
            yield from score(f"tumor_{name}", presence[name], *counts)
    distinct = notes.get("distinct") or {}
    count = distinct.get("n", 0)
    if count:
        for field, rate in (notes.get("fill_rate") or {}).items():
            yield from score(f"{field}_stated", share(rate), count)
        yield from score("distinct_texts", share(distinct["text"] / count), count)
        over = notes["tokens"]["before"]["share_over"]
        yield from score("over_token_limit", share(over), count, higher_is_better=False)


def headlines(scores: Sequence[ScoreRecord]) -> list[ScoreRecord]:
    """Choose at most a dozen scores of each arm, on the features that the claims rest on."""
    first = next((score.features for score in scores if score.metric == "kid"), None)
    return [
        score
        for score in scores
        if score.metric in HEADLINES and score.group == ALL and score.features in (None, first)
    ]


def select(
    scores: Sequence[ScoreRecord], chosen: Mapping[str, Collection[str]]
) -> list[ScoreRecord]:
    """Choose scores by the values of some fields; an empty choice takes all.

    Raises:
        UsageError: No score has a value that was asked for.
    """
    for field, values in chosen.items():
        known = sorted({str(getattr(score, field)) for score in scores})
        for value in values:
            if scores and value not in known:
                raise UsageError(
                    f"--{field}: no score of this run has {value!r}; there are {', '.join(known)}"
                )
    return [
        score
        for score in scores
        if all(not values or getattr(score, field) in values for field, values in chosen.items())
    ]


def to_json(scores: Sequence[ScoreRecord]) -> str:
    """Write scores as a JSON list of objects."""
    return json.dumps([score.model_dump(mode="json") for score in scores], indent=2)


def print_table(scores: Sequence[ScoreRecord], console: Console) -> None:
    """Print scores as a table; an arrow shows which direction is better."""
    table = Table("arm", "stage", "metric", "features", "group", box=None, pad_edge=False)
    for name in ("value", "low", "high", "n real", "n synthetic", "groups"):
        table.add_column(name, justify="right", no_wrap=True)
    for score in scores:
        arrow = "↑" if score.higher_is_better else "↓"
        table.add_row(
            score.arm,
            score.stage,
            f"{score.metric} {arrow}",
            score.features or "",
            score.group,
            *(_number(value) for value in (score.value, score.low, score.high)),
            str(score.n_real),
            str(score.n_synthetic),
            "" if score.num_groups is None else str(score.num_groups),
        )
    console.print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
