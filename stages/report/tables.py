"""Tables of the page, read from manifests and records; a note that is absent is said to be."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.contracts import ScoreRecord
from stages.report.arms import Arm, Manifest, flatten
from stages.report.claims.evidence import Evidence
from stages.report.numbers import (
    MISSING,
    Legend,
    format_any,
    format_groups,
    format_interval,
    format_key,
    format_p,
    format_seconds,
    format_value,
)

# Notes that have a place of their own on the page.
PLACED_NOTES = frozenset(
    {"methods", "metrics", "scores", "differences", "confusion", "warnings", "copies"}
    | {"calibration", "fairness", "four_class", "test_use", "ratios"}  # of classifiers
    | {"cross_test", "explanations"}
    | {"recaption", "location"}  # of evaluate
    | {"agreement", "presence", "fill_rate", "tokens", "distinct", "names_class"}  # of captions
)


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; `numeric` names the columns that are aligned to the right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def of(cls, head: Sequence[str], rows: Iterable[tuple[str, ...]]) -> "Table":
        """Make a table of numbers behind a first column of names."""
        return cls(tuple(head), tuple(rows), numeric=frozenset(range(1, len(head))))


Panel = tuple[str, Table]


def table_facts(facts: Mapping[str, Any]) -> Table:
    """Lay out facts as two columns, name and value; names of nested ones are joined."""
    rows = tuple((_name(path), format_any(value)) for path, value in flatten(facts).items())
    return Table(head=("", ""), rows=rows, numeric=frozenset({1}))


def table_nested(facts: Mapping[str, Any]) -> Table:
    """Lay out nested counts with the innermost names as columns; flat ones as `table_facts`."""
    paths = flatten({key: value for key, value in facts.items() if value != {}})
    paths = {path: value for path, value in paths.items() if value != {}}
    if not paths or any(len(path) < 2 for path in paths):
        return table_facts(facts)
    columns = list(dict.fromkeys(path[-1] for path in paths))
    names = list(dict.fromkeys(path[:-1] for path in paths))
    rows = tuple(
        (_name(name), *(format_any(paths.get((*name, column))) for column in columns))
        for name in names
    )
    return Table.of(("", *(column.replace("_", " ") for column in columns)), rows)


def list_notes(manifest: Manifest) -> tuple[Panel, ...]:
    """Lay out a manifest's counts and notes, without the notes that have a place of their own."""
    counts = manifest.get("counts") or {}
    plain, nested = _split_notes(manifest)
    panels = [("Counts", table_facts(counts))] if counts else []
    panels += [("Notes", table_facts(plain))] if plain else []
    panels += [(format_key(key), table_nested(value)) for key, value in nested.items()]
    return tuple(panels)


def list_notes_side_by_side(manifests: Mapping[str, Manifest]) -> tuple[Panel, ...]:
    """Lay out the counts and notes of several manifests of one stage, a column each."""
    overview: dict[str, dict[str, Any]] = {}
    nested: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, manifest in manifests.items():
        plain, groups = _split_notes(manifest)
        overview[name] = {**(manifest.get("counts") or {}), **plain}
        for key, value in groups.items():
            nested.setdefault(key, {})[name] = value
    if not overview:
        return ()
    panels = [("Counts", _side_by_side(overview))]
    for key, columns in nested.items():
        full = {name: columns.get(name, {}) for name in manifests}
        panels.append((format_key(key), _side_by_side(full)))
    return tuple(panels)


def table_stages(manifests: Iterable[tuple[str, Manifest]]) -> Table:
    """Lay out when each stage ran, how long and on what; (arms, manifest) in running order."""
    rows = tuple(
        (
            str(manifest.get("stage", MISSING)),
            arms,
            _moment(manifest.get("started")),
            format_seconds(manifest.get("seconds")),
            str(manifest.get("device") or MISSING),
            str(manifest.get("digest", MISSING))[:12],
        )
        for arms, manifest in manifests
    )
    return Table(
        head=("Stage", "Arms", "Started", "Took", "Device", "Digest"),
        rows=rows,
        numeric=frozenset({3}),
    )


def table_scores(scores: Sequence[ScoreRecord], legend: Legend) -> Table:
    """Lay out scores, one row each, with interval, sample sizes and direction."""
    rows = tuple(
        (
            legend.row(score.arm),
            legend.name(score.metric),
            score.features or MISSING,
            score.group,
            format_value(score.value, legend[score.metric]),
            format_interval(score.low, score.high, legend[score.metric]),
            format_any(score.n_real),
            format_any(score.n_synthetic),
            format_groups(score.num_groups, score.num_negative_groups),
            format_p(score.p),
            "higher" if score.higher_is_better else "lower",
        )
        for score in scores
    )
    head = (
        "Arm", "Score", "Features", "Group", "Value", "Interval", "n real", "n synthetic", "groups",
        "p", "Better",
    )  # fmt: skip
    return Table(head, rows, frozenset({4, 5, 6, 7, 8, 9}))


def table_pivot(
    scores: Sequence[ScoreRecord],
    legend: Legend,
    first: str,
    n_heads: tuple[str, str] = ("n real", "n synthetic"),
) -> Table:
    """Lay out one row per arm and two columns per metric: value, with its direction, and interval.

    Metrics and arms stay in the order of `scores`.
    """
    by_cell = {(score.arm, score.metric): score for score in scores}
    metrics = {score.metric: score.higher_is_better for score in scores}
    rows = []
    for arm in dict.fromkeys(score.arm for score in scores):
        shown = [by_cell.get((arm, metric)) for metric in metrics]
        cells = [legend.row(arm)]
        for score in shown:
            if score is None:
                cells += [MISSING, MISSING]
            else:
                cells.append(format_value(score.value, legend[score.metric]))
                interval = format_interval(score.low, score.high, legend[score.metric])
                has_p = score.p is not None
                cells.append(f"{interval}; p = {format_p(score.p)}" if has_p else interval)
        cells.append(_span(score.n_real for score in shown if score is not None))
        cells.append(_span(score.n_synthetic for score in shown if score is not None))
        cells.append(_span_groups(score for score in shown if score is not None))
        rows.append(tuple(cells))
    head = [first]
    for metric, higher_is_better in metrics.items():
        head += [f"{legend.name(metric)}\u00a0{'↑' if higher_is_better else '↓'}", "interval"]
    head += [*n_heads, "groups"]
    return Table.of(head, rows)


def table_evidence(evidence: Sequence[Evidence], legend: Legend) -> Table:
    """Lay out the numbers behind a verdict: one row per pair, one column per metric."""
    metrics = list(dict.fromkeys(item.metric for item in evidence))
    by_cell = {(item.what, item.metric): item for item in evidence}
    with_p = any(item.p is not None for item in evidence)
    rows = []
    for what in dict.fromkeys(item.what for item in evidence):
        shown = [by_cell.get((what, metric)) for metric in metrics]
        known = [item for item in shown if item is not None]
        cells = [what]
        for item in shown:
            if item is None:
                cells.append(MISSING)
            else:
                interval = format_interval(item.low, item.high, legend[item.metric])
                unbroken = interval.replace(" ", "\u00a0")
                cells.append(f"{format_value(item.value, legend[item.metric])} ({unbroken})")
        if with_p:
            cells.append(format_any(next((i.p for i in known if i.p is not None), None)))
        cells.append(_span(item.n_real for item in known if item.n_real is not None))
        cells.append(_span(item.n_synthetic for item in known if item.n_synthetic is not None))
        cells.append(_span_groups(known))
        rows.append(tuple(cells))
    head = ["Difference (interval)", *(legend.name(metric) for metric in metrics)]
    head += ["permutation p"] * with_p + ["n real", "n synthetic", "groups"]
    return Table.of(head, rows)


def table_settings(config: Mapping[str, Any]) -> Table:
    """Lay out a resolved section of the configuration under its own keys."""
    rows = tuple((".".join(path), format_any(value)) for path, value in flatten(config).items())
    return Table(head=("", ""), rows=rows)


def table_unequal_settings(arms: Sequence[Arm]) -> Table:
    """Lay out the settings that are not the same in all arms, one column per arm."""
    keys = sorted({key for arm in arms for key in arm.settings})
    rows = tuple(
        (key, *(format_any(arm.settings.get(key)) for arm in arms))
        for key in keys
        if any(arm.settings.get(key) != arms[0].settings.get(key) for arm in arms)
    )
    return Table(head=("Setting", *(arm.name for arm in arms)), rows=rows)


def _side_by_side(columns: Mapping[str, Mapping[str, Any]]) -> Table:
    flat = {name: flatten(facts) for name, facts in columns.items()}
    paths = list(dict.fromkeys(path for facts in flat.values() for path in facts))
    rows = tuple(
        (
            _name(path),
            *(format_any(facts[path]) if path in facts else MISSING for facts in flat.values()),
        )
        for path in paths
    )
    return Table.of(("", *flat), rows)


def _split_notes(manifest: Manifest) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    notes = manifest.get("notes") or {}
    kept = {key: value for key, value in notes.items() if key not in PLACED_NOTES}
    nested = {key: value for key, value in kept.items() if isinstance(value, Mapping) and value}
    return {key: value for key, value in kept.items() if key not in nested and value != {}}, nested


def _name(path: Sequence[str]) -> str:
    return " · ".join((format_key(path[0]), *(part.replace("_", " ") for part in path[1:])))


def _span(values: Iterable[int]) -> str:
    distinct = sorted(set(values))
    return " / ".join(format_any(value) for value in distinct) if distinct else MISSING


def _span_groups(counted: Iterable[ScoreRecord | Evidence]) -> str:
    shown = {
        format_groups(row.num_groups, row.num_negative_groups): row.num_groups
        for row in counted
        if row.num_groups is not None
    }
    return " / ".join(sorted(shown, key=lambda text: shown[text])) or MISSING


def _moment(started: Any) -> str:
    return str(started)[:16].replace("T", " ") if started else MISSING
