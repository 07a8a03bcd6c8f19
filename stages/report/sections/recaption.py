"""Section of re-captioning: each arm's fields beside the captioner's own error."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.contracts import REAL, ScoreRecord
from stages.report.numbers import (
    MISSING,
    SHARE,
    Legend,
    format_any,
    format_interval,
    format_value,
)
from stages.report.tables import Panel, Table

PREFIX = "recaption_"


def is_recaption(score: ScoreRecord) -> bool:
    """Tell whether a score is one of re-captioning."""
    return score.metric.startswith(PREFIX)


def table_recaption(
    scores: Sequence[ScoreRecord], notes: Mapping[str, Any], legend: Legend
) -> tuple[tuple[Panel, ...], str]:
    """Lay out re-captioning, and say how to read it; nothing, and "", without it."""
    shown = [score for score in scores if is_recaption(score)]
    recorded = notes.get("recaption")
    if not shown or not recorded:
        return (), ""
    fields = list(dict.fromkeys(score.metric.removeprefix(PREFIX) for score in shown))
    by_cell = {(score.arm, score.metric.removeprefix(PREFIX)): score for score in shown}
    rows = []
    for arm in dict.fromkeys(score.arm for score in shown):
        cells = [f"{legend.row(arm)}: the captioner itself" if arm == REAL else legend.row(arm)]
        for field in fields:
            score = by_cell.get((arm, field))
            if score is None:
                cells.append(MISSING)
                continue
            chance = recorded["fields"][arm][field]["chance"]
            ends = format_interval(score.low, score.high, SHARE)
            n = format_any(score.n_real + score.n_synthetic)
            groups = format_any(score.num_groups)
            cells.append(
                f"{format_value(score.value, SHARE)} ({ends}; chance "
                f"{format_value(chance, SHARE)}; n = {n}, {groups} groups)"
            )
        rows.append(tuple(cells))
    head = ("", *(f"{field} (%)" for field in fields))
    table = Table.of(head, rows)
    unknown = recorded["error_unknown"]
    words = (
        f"Re-captioning by {recorded['vlm']} measures generator and captioner together: read each "
        f"share beside the captioner's own on {legend.slices}. Chance deals the captioner's own "
        "answers out at random. The side is left against right, of images in which the captioner "
        "sees a tumour"
    )
    if unknown:
        words += f". Of {', '.join(unknown)} the captioner's own error is not known here"
    title = f"What {recorded['vlm']} reads in the images, against what their prompts asked for"
    return ((title, table),), words
