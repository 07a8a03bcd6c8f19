"""Collect the scores of an experiment's fresh artifacts, and print them."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline import manifest
from pipeline.contracts import ScoreRecord
from pipeline.plan import Node, standing

SCORED = ("evaluate", "classify")


def collect(nodes: Sequence[Node], experiment_dir: Path) -> list[ScoreRecord]:
    """Read every score of the fresh `evaluate` and `classify` artifacts of a plan, in order."""
    scores: list[ScoreRecord] = []
    for node in nodes:
        if node.stage in SCORED and standing(node, experiment_dir).state == "fresh":
            artifact = manifest.open_artifact(node.folder(experiment_dir), ScoreRecord)
            scores.extend(artifact.records())
    return scores


def to_json(scores: Sequence[ScoreRecord]) -> str:
    """Write scores as a JSON list of objects."""
    return json.dumps([score.model_dump(mode="json") for score in scores], indent=2)


def print_table(scores: Sequence[ScoreRecord], console: Console) -> None:
    """Print scores as a table; an arrow shows which direction is better."""
    table = Table("arm", "stage", "metric", "features", "group", box=None, pad_edge=False)
    for name in ("value", "low", "high", "n real", "n synthetic"):
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
        )
    console.print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
