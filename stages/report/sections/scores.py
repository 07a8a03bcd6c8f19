"""Section of scores: charts between floor and ceiling, and the table of all slices."""

from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from pipeline.contracts import (
    ALL,
    CONTROL,
    DISTANCE,
    FIDELITY,
    NOISE,
    OTHER_SCORES,
    REAL,
    VARIETY,
    ScoreRecord,
)
from stages.report import artifacts, charts, pictures, tables
from stages.report.artifacts import EDGES, is_control, kind_of, sort_by_kind
from stages.report.charts import Bar
from stages.report.numbers import MISSING, Legend, format_interval, format_value
from stages.report.pictures import to_picture


def read_bars(scores: Sequence[ScoreRecord], legend: Legend) -> list[Bar]:
    """Turn the scores of arms, bases and VAE rows into chart rows, arms first."""
    return [
        Bar(legend.row(score.arm), kind_of(score.arm), score.value, score.low, score.high)
        for score in sort_by_kind(scores)
        if score.arm not in EDGES
    ]


def find_edge(scores: Iterable[ScoreRecord], arm: str) -> ScoreRecord | None:
    """Find the floor ("real") or the ceiling ("noise") of a chart."""
    return next((score for score in scores if score.arm == arm), None)


SECTIONS = (DISTANCE, FIDELITY, VARIETY)  # come first


def draw_score_charts(
    scores: Sequence[ScoreRecord], features: str | None, legend: Legend
) -> list[tuple[Figure, pictures.Chart]]:
    """Draw KID, then FID, over all classes, for each feature extractor; the claims' one first."""
    overall = [
        score
        for score in scores
        if score.stage == "evaluate" and score.group == ALL and not is_control(score)
    ]
    extractors = sorted(
        {s.features or "" for s in overall}, key=lambda name: (name != features, name)
    )
    drawn = []
    for metric in ("kid", "fid"):
        for name in extractors:
            shown = [s for s in overall if s.metric == metric and (s.features or "") == name]
            bars = read_bars(shown, legend)
            if not bars:
                continue
            real, noise = find_edge(shown, REAL), find_edge(shown, NOISE)
            floor = None if real is None else (real.value, f"{legend.slices} to each other")
            title = f"{legend.name(metric)} to {legend.slices} ({name}), lower is better"
            figure = charts.draw_scores(bars, floor=floor, xlabel=title)
            style = legend[metric]
            sizes = sorted({score.n_synthetic for score in shown if score.arm != REAL})
            caption = (
                f"{title}. Lines span the recorded interval; n = "
                f"{' / '.join(str(size) for size in sizes)} a row."
            )
            if noise is not None:
                caption += f" Noise is far to the right, at {format_value(noise.value, style)}."
            values = "; ".join(f"{bar.name} {format_value(bar.value, style)}" for bar in bars)
            drawn.append(
                (figure, pictures.Chart(to_picture(figure, f"{title}: {values}"), caption))
            )
    return drawn


def table_overall(scores: Sequence[ScoreRecord], legend: Legend) -> tuple[tables.Panel, ...]:
    """Lay out scores over all classes, one table per section and feature extractor."""
    extractors = sorted(
        {score.features or "" for score in scores}, key=lambda name: (not name, name)
    )
    opened = dict.fromkeys(legend[score.metric].section for score in scores)
    own_sections = [name for name in opened if name not in (*SECTIONS, OTHER_SCORES)]
    panels: list[tables.Panel] = []
    for section in (*SECTIONS, *own_sections, OTHER_SCORES):
        for name in extractors:
            shown = [
                score
                for score in scores
                if (score.features or "") == name and legend[score.metric].section == section
            ]
            if shown:
                where = f"on {name} features" if name else "on pixels"
                table = tables.table_pivot(artifacts.sort_by_kind(shown), legend, "Arm")
                panels.append((f"{section}, {where}", table))
    return tuple(panels)


def table_controls(scores: Sequence[ScoreRecord], legend: Legend) -> tuple[tables.Panel, ...]:
    """Lay out positive controls under the floor: what was left alone, against what.

    One table per score and feature extractor that has any.
    """
    panels: list[tables.Panel] = []
    controls = [score for score in scores if is_control(score)]
    for metric, features in dict.fromkeys((score.metric, score.features) for score in controls):
        cells = {
            (score.arm, score.group): score
            for score in scores
            if (score.metric, score.features) == (metric, features)
        }
        groups = list(dict.fromkeys(g for arm, g in cells if arm.startswith(CONTROL)))
        rows = []
        for arm in (REAL, *dict.fromkeys(arm for arm, _ in cells if arm.startswith(CONTROL))):
            shown = [cells.get((arm, group)) for group in groups]
            name = "the floor" if arm == REAL else f"{arm.removeprefix(CONTROL)} alone"
            rows.append((name, *(_with_interval(score, legend) for score in shown)))
        head = ("Training slices", *(f"against {group}" for group in groups))
        title = (
            f"Positive controls: {legend.name(metric)} of {legend.slices} that are wrong in one "
            f"known way, on {features} features"
        )
        panels.append((title, tables.Table.of(head, rows)))
    return tuple(panels)


def _with_interval(score: ScoreRecord | None, legend: Legend) -> str:
    if score is None:
        return MISSING
    style = legend[score.metric]
    interval = format_interval(score.low, score.high, style)
    return f"{format_value(score.value, style)} ({interval}; n = {score.n_synthetic})"
