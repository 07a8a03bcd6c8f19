"""Comparison of sets of captions (`captions compare`): who is right, who agrees."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.contracts import LABELS, Artifact, CaptionRecord, Label, TumorReport
from pipeline.errors import DataError
from stages.caption.quality import compute_fill_rates, read_own_report
from stages.components.captioning.caption_files import read_captions
from stages.components.captioning.names import read_captioner
from stages.components.tumor_report.agreement import (
    FIELDS,
    agreement_of,
    compare_with_label,
    read_field,
    score_field,
)
from stages.components.tumor_report.parsing import parse

POSTER_COLUMNS = ("tumor", "location", "size", "shape", "intensity", "orientation")
COLUMNS = (*POSTER_COLUMNS, "side", "type")
MISSING = "–"


@dataclass(frozen=True)
class CaptionSet:
    """Captions of one captioner: what each states, by slice (None: it could not be read)."""

    name: str
    source: str
    reports: Mapping[str, TumorReport | None]
    agreement: Sequence[Mapping[str, Any]]  # rows as the caption stage records them


def read_artifact(artifact: Artifact[CaptionRecord]) -> CaptionSet:
    """Read a caption artifact; its agreement with the truth is what the stage recorded.

    Raises:
        DataError: Another stage wrote it.
    """
    if artifact.manifest["stage"] != "caption":
        raise DataError(
            f"{artifact.root} is an artifact of {artifact.manifest['stage']!r}; "
            "expected one of 'caption', or a JSON Lines file"
        )
    records = list(artifact.records())
    captioner = read_captioner(artifact.manifest)
    return CaptionSet(
        name="captions" if captioner is None else captioner.name,
        source=str(artifact.root),
        reports={record.slice_id: read_own_report(record) for record in records},
        agreement=artifact.manifest["notes"].get("agreement") or [],
    )


def read_file(path: Path) -> CaptionSet:
    """Read a JSON Lines file of `{"file_name", "text"}` objects.

    Slices go by the stem of their file name where stems differ, else by the whole name. A folder
    named after a class is a label, the one thing that such a file knows; without groups, accuracy
    against it has no interval.

    Raises:
        DataError: The file is missing or empty, or a line is no caption.
    """
    if not path.is_file():
        raise DataError(
            f"no file or folder {str(path)!r}; expected a caption artifact, or JSON Lines of "
            '{"file_name", "text"} objects'
        )
    names = {
        PurePosixPath(name.replace("\\", "/")): text for name, text in read_captions(path).items()
    }
    if not names:
        raise DataError(f"{path} holds no line; expected one caption a line")
    are_distinct = len({name.stem for name in names}) == len(names)
    keys = {name: name.stem if are_distinct else str(name.with_suffix("")) for name in names}
    reports = {keys[name]: _try_parse(text) for name, text in names.items()}
    labels = {keys[name]: _label_of(name) for name in names}
    agreement = []
    for field in FIELDS:
        comparisons = [
            compare_with_label(reports[key], field, label, key)
            for key, label in labels.items()
            if label
        ]
        if pairs := [pair for pair in comparisons if pair is not None]:
            row = score_field(pairs, field, seed=0, num_draws=0)
            agreement.append({"field": field, **row})
    return CaptionSet(path.stem, str(path), reports, agreement)


def compare(sets: Iterable[CaptionSet]) -> dict[str, Any]:
    """Lay several sets of captions beside each other, as a JSON object.

    Returns:
        `sets`: per set its name, source, captions, failed, `agreement` with what is known of its
        slices (rows of `score_field`) and `fill_rate`; `pairs`: per pair and field the number of
        slices where both state it (n), the share where they say the same, and Cohen's kappa.

    Raises:
        DataError: Two sets have no slice in common.
    """
    named = _distinct_names(list(sets))
    return {
        "sets": [
            {
                "name": item.name,
                "source": item.source,
                "captions": len(item.reports),
                "failed": sum(report is None for report in item.reports.values()),
                "agreement": list(item.agreement),
                "fill_rate": compute_fill_rates([r for r in item.reports.values() if r]),
            }
            for item in named
        ],
        "pairs": [row for pair in combinations(named, 2) for row in compare_pair(*pair)],
    }


def compare_pair(first: CaptionSet, second: CaptionSet) -> list[dict[str, Any]]:
    """Measure how far two sets agree, field by field, where both state the field.

    Raises:
        DataError: They have no slice in common.
    """
    common = [key for key in first.reports if key in second.reports]
    if not common:
        examples = [repr(next(iter(item.reports), None)) for item in (first, second)]
        raise DataError(
            f"{first.source} and {second.source} have no slice in common: the first of one is "
            f"{examples[0]}, of the other {examples[1]}; compare captions of the same slices"
        )
    rows = []
    for field in COLUMNS:
        both = [
            (read_field(first.reports[key], field), read_field(second.reports[key], field))
            for key in common
        ]
        stated = Counter((a, b) for a, b in both if a is not None and b is not None)
        values = sorted({value for pair in stated for value in pair})
        codes = {value: code for code, value in enumerate(values)}
        counts = np.zeros((1, len(values), len(values)))
        for (a, b), number in stated.items():
            counts[0, codes[a], codes[b]] = number
        accuracy = kappa = None
        if values:
            shares, _, kappas = agreement_of(counts)
            accuracy = float(shares[0])
            kappa = None if np.isnan(kappas[0]) else float(kappas[0])
        rows.append(
            {
                "first": first.name,
                "second": second.name,
                "field": field,
                "n": stated.total(),
                "agreement": accuracy,
                "kappa": kappa,
            }
        )
    return rows


def print_comparison(result: Mapping[str, Any], console: Console) -> None:
    """Print what `compare` found: two tables in the poster's form, and kappa pair by pair."""
    for item in result["sets"]:
        console.print(
            f"{item['name']}: {item['captions']:,} captions, {item['failed']:,} not readable; "
            f"{item['source']}",
            soft_wrap=True,
        )
    known = {
        item["name"]: {row["field"]: row for row in item["agreement"]} for item in result["sets"]
    }
    references = {row["reference"] for rows in known.values() for row in rows.values()}
    right = _table()
    for name, rows in known.items():
        cells = [rows[field]["accuracy"]["value"] if field in rows else None for field in COLUMNS]
        right.add_row(name, *map(_share, cells))
        majority = [rows[field]["majority"] if field in rows else None for field in COLUMNS]
        right.add_row("  always the commonest answer", *map(_share, majority), style="dim")
    against = " or ".join(sorted(references)) or "nothing known"
    _print_table(console, f"Share right, against {against}", right)
    stated = _table()
    for item in result["sets"]:
        stated.add_row(item["name"], *(_share(item["fill_rate"].get(field)) for field in COLUMNS))
    title = "Share of captions that state each field (traits: of those that state a tumor)"
    _print_table(console, title, stated)
    if result["pairs"]:
        kappas = _table()
        for pair in dict.fromkeys((row["first"], row["second"]) for row in result["pairs"]):
            rows = {r["field"]: r for r in result["pairs"] if (r["first"], r["second"]) == pair}
            kappas.add_row(
                " / ".join(pair),
                *(f"{_share(rows[it]['kappa'])} ({rows[it]['n']:,})" for it in COLUMNS),
            )
        title = "Cohen's kappa between captioners (and the slices where both state the field)"
        _print_table(console, title, kappas)


def _print_table(console: Console, title: str, table: Table) -> None:
    console.print()
    console.print(title)
    console.print(table)


def _table() -> Table:
    table = Table("", box=None, pad_edge=False)
    for field in COLUMNS:
        table.add_column(field, justify="right", no_wrap=True)
    return table


def _share(value: float | None) -> str:
    """Write a share as the poster does: 1, .82, 0."""
    if value is None:
        return MISSING
    text = f"{value:.2f}".replace("-0.00", "0.00")
    return {"1.00": "1", "0.00": "0"}.get(text, text.replace("0.", ".", 1))


def _distinct_names(sets: Sequence[CaptionSet]) -> list[CaptionSet]:
    """Number the sets whose name another one has too."""
    uses = Counter(item.name for item in sets)
    seen: Counter[str] = Counter()
    named = []
    for item in sets:
        seen[item.name] += 1
        name = f"{item.name} ({seen[item.name]})" if uses[item.name] > 1 else item.name
        named.append(CaptionSet(name, item.source, item.reports, item.agreement))
    return named


def _try_parse(text: str) -> TumorReport | None:
    try:
        return parse(text)
    except DataError:
        return None


def _label_of(name: PurePosixPath) -> Label | None:
    return next((label for label in LABELS if label in name.parent.parts), None)
