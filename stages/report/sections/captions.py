"""Section of captions: what each caption artifact recorded about itself, with words."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.contracts import ScoreStyle
from stages.report.arms import Manifest
from stages.report.numbers import (
    MISSING,
    PLAIN,
    SHARE,
    format_any,
    format_interval,
    format_key,
    format_value,
)
from stages.report.tables import Table

FIELD_NAMES = {
    "tumor": "tumour present",
    "type": "tumour type",
    "general_description": "description",
}
POSTER_COLUMNS = ("tumor", "location", "size", "shape", "intensity", "orientation")


@dataclass(frozen=True)
class CaptionTable:
    """A table of the section, with what a reader must know to read it."""

    title: str
    words: str
    table: Table


def list_caption_tables(manifests: Mapping[str, Manifest]) -> tuple[CaptionTable, ...]:
    """Lay out what caption artifacts recorded, by captioner; tables without a row are left out."""
    notes = {name: manifest.get("notes") or {} for name, manifest in manifests.items()}
    candidates = (
        CaptionTable(
            "Right, field by field",
            "Share of slices whose caption gives the value that is known, with its 95 % interval "
            "over groups of slices (subjects, or clusters of near-duplicates). A caption that "
            "failed or leaves a field out is wrong there. “Commonest answer” is what a captioner "
            "would reach by always giving the commonest value, “chance” by dealing its own "
            "answers out at random; kappa is 0 at chance and 1 when all is right. A captioner has "
            "learned a field where “above commonest” stays above 0 over its whole interval. The "
            "type is that of slices with a tumour, as the caption’s words name it. The side is "
            "left against right (of the image), of slices whose caption states a tumour and whose "
            "mask shows where it is; the midline is a region.",
            _table_agreement(notes),
        ),
        CaptionTable(
            "Tumour or not",
            "Sensitivity: slices with a tumour whose caption says so. Specificity: slices without "
            "one whose caption says so. A silent caption says neither.",
            _table_presence(notes),
        ),
        CaptionTable(
            "In the poster’s form",
            "Share of right captions, in the columns in which the poster judged 20 + 20 generated "
            "images by eye; here it is the captions themselves that are judged, on every slice.",
            _table_poster(notes),
        ),
        CaptionTable(
            "What captions state",
            "Share of captions that state each field (%). Location, side, size, shape, intensity "
            "and type are counted among captions that state a tumour, the others among all.",
            _table_fill_rates(notes),
        ),
        CaptionTable(
            "Length and variety",
            "Tokens of the base model’s text encoder, of the captioner’s own answer (JSON with its "
            "marks, where it answers so) and of the text made from it. What is beyond the limit "
            "would be cut off unseen; rendering shortens the description instead, and never a "
            "field. A generator can only learn what distinct captions tell apart.",
            _table_lengths(manifests),
        ),
        CaptionTable(
            "Captions that name the class",
            "Share of final captions whose text names the class of their slice’s tumour (%), "
            "whether the captioner named it or the configuration put it there. A generator can "
            "only be asked for a class that its captions name.",
            _table_named_classes(notes),
        ),
    )
    return tuple(it for it in candidates if it.table.rows)


def list_silent(manifests: Mapping[str, Manifest]) -> tuple[str, ...]:
    """Name the caption artifacts that recorded no agreement with anything known."""
    return tuple(
        f"The captions by {name} have no recorded agreement with what is known of their slices."
        for name, manifest in manifests.items()
        if not (manifest.get("notes") or {}).get("agreement")
    )


def _table_agreement(notes: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = tuple(
        (
            name,
            _name(row["field"]),
            row["reference"],
            format_any(row["n"]),
            format_any(row["num_groups"]),
            format_value(row["stated"], SHARE),
            _estimate(row["accuracy"], SHARE),
            f"{format_value(row['majority'], SHARE)} ({row['commonest']})",
            format_value(row["chance"], SHARE),
            _estimate(row["above_majority"], SHARE),
            _estimate(row["kappa"], PLAIN),
        )
        for name, recorded in notes.items()
        for row in recorded.get("agreement") or ()
    )
    head = (
        "Captions by", "Field", "Compared with", "Slices", "Groups", "Stated (%)", "Right (%)",
        "Commonest answer (%)", "Chance (%)", "Above commonest (points)", "Kappa",
    )  # fmt: skip
    return Table(head, rows, frozenset(range(3, 11)))


def _table_presence(notes: Mapping[str, Mapping[str, Any]]) -> Table:
    counts = (
        "n_with_tumor", "groups_with_tumor", "true_positive", "false_negative", "silent_with_tumor",
        "n_without_tumor", "groups_without_tumor", "true_negative", "false_positive",
        "silent_without_tumor",
    )  # fmt: skip
    rows = tuple(
        (
            name,
            recorded["presence"]["reference"],
            _estimate(recorded["presence"]["sensitivity"], SHARE),
            _estimate(recorded["presence"]["specificity"], SHARE),
            *(format_any(recorded["presence"][count]) for count in counts),
        )
        for name, recorded in notes.items()
        if recorded.get("presence")
    )
    head = (
        "Captions by", "Compared with", "Sensitivity (%)", "Specificity (%)", "With tumour",
        "groups", "said yes", "said no", "silent", "Without", "groups", "said no", "said yes",
        "silent",
    )  # fmt: skip
    return Table(head, rows, frozenset(range(2, 14)))


def _table_poster(notes: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for name, recorded in notes.items():
        right = {row["field"]: row["accuracy"]["value"] for row in recorded.get("agreement") or ()}
        if right:
            rows.append((name, *(format_any(_rounded(right.get(it))) for it in POSTER_COLUMNS)))
    return Table.of(("Captions by", *POSTER_COLUMNS), rows)


def _table_fill_rates(notes: Mapping[str, Mapping[str, Any]]) -> Table:
    fields = _keys(recorded.get("fill_rate") or {} for recorded in notes.values())
    rows = tuple(
        (name, *(format_value(recorded["fill_rate"].get(field), SHARE) for field in fields))
        for name, recorded in notes.items()
        if recorded.get("fill_rate")
    )
    return Table.of(("Captions by", *(_name(field) for field in fields)), rows)


def _table_lengths(manifests: Mapping[str, Manifest]) -> Table:
    rows = []
    for name, manifest in manifests.items():
        notes, counts = manifest.get("notes") or {}, manifest.get("counts") or {}
        if not (notes.get("tokens") and notes.get("distinct")):
            continue
        cells = [name, format_any(notes["distinct"]["n"]), format_any(counts.get("failed"))]
        cells += [format_any(notes["distinct"][key]) for key in ("raw", "text")]
        for key in ("before", "after"):
            lengths = notes["tokens"][key]
            share = format_value(lengths["share_over"], SHARE)
            cells += [f"{lengths['mean']:.1f}", format_any(lengths["max"])]
            cells.append(f"{format_any(lengths['over'])} ({share} %)")
        rows.append((*cells, format_any(notes["tokens"]["limit"])))
    head = (
        "Captions by", "Captions", "failed", "Distinct as written", "distinct when rendered",
        "Tokens as written, mean", "max", "over the limit", "Tokens rendered, mean", "max",
        "over the limit", "Limit",
    )  # fmt: skip
    return Table.of(head, rows)


def _table_named_classes(notes: Mapping[str, Mapping[str, Any]]) -> Table:
    labels = _keys(recorded.get("names_class") or {} for recorded in notes.values())
    rows = []
    for name, recorded in notes.items():
        if shares := recorded.get("names_class"):
            cells = [
                f"{format_value(shares[label]['share'], SHARE)} of {format_any(shares[label]['n'])}"
                if label in shares
                else MISSING
                for label in labels
            ]
            rows.append((name, *cells))
    return Table.of(("Captions by", *labels), rows)


def _estimate(estimate: Mapping[str, float | None], style: ScoreStyle) -> str:
    value = format_value(estimate["value"], style)
    if estimate["low"] is None:
        return value
    interval = format_interval(estimate["low"], estimate["high"], style).replace(" ", "\u00a0")
    return f"{value} ({interval})"


def _keys(columns: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for column in columns for key in column))


def _name(field: str) -> str:
    return FIELD_NAMES.get(field, format_key(field).lower())


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
