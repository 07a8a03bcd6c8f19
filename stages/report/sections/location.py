"""Section of location: fields of the prompt by arm, the judge's own error beside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.contracts import REAL, VAE, ScoreRecord
from stages.report.arms import Arm
from stages.report.claims.evidence import Findings, read_differences
from stages.report.numbers import (
    MISSING,
    PLAIN,
    SHARE,
    Legend,
    format_any,
    format_groups,
    format_interval,
    format_value,
)
from stages.report.tables import Panel, Table

PREFIX = "location_"
# The poster's columns, and the score in each; its location is a place and a side.
COLUMNS = (
    ("tumor", "presence"),
    ("location: left or right", "side"),
    ("location: region", "region"),
    ("size", "size"),
    ("shape", "shape"),
    ("intensity", "intensity"),
    ("orientation", "orientation"),
)
DICE = "dice"
JUDGE_FIELDS = ("sensitivity", "specificity", DICE)
CORRECTED = "_corrected"  # ends a share that is corrected for the judge's error
WORDS = (
    "Share of images (%) in which a judge finds what the prompt asked for, with its interval over "
    "groups (prompts with their seeds, or subjects of {slices}); “chance” is what the same "
    "answers would reach if they were dealt out at random among the prompts. Where the judge finds "
    "no tumour, all but the plane is wrong. The side is left against right of the image, where the "
    "prompt asks for one and the judge sees a tumour: the midline is a region, and sagittal slices "
    "have no side. The row of {slices} is the judge’s own "
    "accuracy on slices whose truth is known and that did not train it; no arm can be read more "
    "surely than that, and one above it only does as the judge expects. Rows of a VAE are "
    "test slices passed through it; presence is corrected (Rogan and Gladen) by what the judge "
    "misses and invents in these, as if it erred as often in an arm’s images."
)
MISSING_WORDS = "Whether images do as their prompts ask was not scored: {}."
NOT_RECORDED = "This run did not look whether images do as their prompts ask."


@dataclass(frozen=True)
class LocationSection:
    """What the page says of location; without a judge, `words` says why and there is no table."""

    words: str
    table: Table | None
    panels: tuple[Panel, ...]
    details: tuple[Panel, ...]


def is_location(score: ScoreRecord) -> bool:
    """Tell whether a score is one of this section."""
    return score.metric.startswith(PREFIX)


def has_location(notes: Mapping[str, Any]) -> bool:
    """Tell whether evaluate judged where tumours lie."""
    return "judge" in (notes.get("location") or {})


def lay_out_location(
    scores: Sequence[ScoreRecord], notes: Mapping[str, Any], arms: Sequence[Arm], legend: Legend
) -> LocationSection:
    """Lay out the scores over all images, in the order given, and the notes of evaluate."""
    recorded = notes.get("location") or {}
    if not has_location(notes):
        reason = recorded.get("missing")
        words = NOT_RECORDED if reason is None else MISSING_WORDS.format(reason)
        return LocationSection(words, None, (), ())
    by_cell = {(s.arm, s.metric.removeprefix(PREFIX)): s for s in scores if is_location(s)}
    names = list(dict.fromkeys(arm for arm, _ in by_cell))
    panels = [(f"The judge itself, on {legend.slices}", _table_judge(by_cell, names, legend))]
    seen = _table_presence(by_cell, names)
    sides = _table_sides(
        by_cell, recorded, Findings(tuple(arms), (), read_differences(notes) or ())
    )
    if seen.rows:
        panels.insert(
            0, ("Is there a tumour where one is asked for, and none where none is?", seen)
        )
    if sides.rows:
        panels.insert(0, ("Left or right, beside the same model without LoRA", sides))
    if recorded["flips"]:
        table = _table_flips(by_cell, recorded, legend)
        panels.append(("Does the tumour move with the prompt?", table))
    details = [
        (f"{_name(arm, legend)}: {field} found (columns) for each that was asked for (rows)", table)
        for arm in names
        for field, counts in recorded["confusion"].get(arm, {}).items()
        for table in [_table_confusion(counts)]
    ]
    return LocationSection(
        words=WORDS.format(slices=legend.slices),
        table=_table_arms(by_cell, names, recorded["fields"], legend),
        panels=tuple(panels),
        details=tuple(details),
    )


def _name(arm: str, legend: Legend) -> str:
    return f"{legend.row(arm)}: the judge itself" if arm == REAL else legend.row(arm)


def _table_arms(
    by_cell: Mapping[tuple[str, str], ScoreRecord],
    arms: Sequence[str],
    fields: Mapping[str, Mapping[str, Mapping[str, Any]]],
    legend: Legend,
) -> Table:
    """Lay out one row per arm in the poster's columns."""
    rows = []
    for arm in arms:
        cells = [_name(arm, legend)]
        for _, field in COLUMNS:
            score = by_cell.get((arm, field))
            if score is None:
                cells.append(MISSING)
                continue
            facts = fields[arm][field]
            chance = format_value(facts["chance"], SHARE)
            cells.append(f"{_share(score)}; chance {chance}; {_count(facts['n'], score)}")
        rows.append(tuple(cells))
    return Table.of(("", *(name for name, _ in COLUMNS)), rows)


def _table_presence(by_cell: Mapping[tuple[str, str], ScoreRecord], arms: Sequence[str]) -> Table:
    """Lay out presence as it is read, and corrected for the judge's error through the VAE."""
    fields = [f"{name}{end}" for name in JUDGE_FIELDS[:2] for end in ("", CORRECTED)]
    rows = []
    for arm in arms:
        shown = [by_cell.get((arm, field)) for field in fields]
        if any((arm, name + CORRECTED) in by_cell for name in JUDGE_FIELDS[:2]):
            cells = [
                MISSING if score is None else f"{_share(score)}; {_count(score.n_synthetic, score)}"
                for score in shown
            ]
            rows.append((arm, *cells))
    head = ("", "seen where asked for (%)", "corrected", "none where none is (%)", "corrected")
    return Table.of(head, rows)


def _table_sides(
    by_cell: Mapping[tuple[str, str], ScoreRecord],
    recorded: Mapping[str, Any],
    findings: Findings,
) -> Table:
    """Lay out each arm's share of right sides beside that of its base model without LoRA."""
    rows = []
    for arm in findings.arms:
        pair = arm.name, arm.without_lora
        shares = [by_cell.get((name, "side")) for name in pair]
        difference = findings.difference(*pair, PREFIX + "side")
        if shares[0] is None or shares[1] is None or difference is None:
            continue
        facts = [recorded["fields"][name]["side"] for name in pair]
        interval = format_interval(difference.low, difference.high, SHARE)
        rows.append(
            (
                arm.name,
                f"{_share(shares[0])}; {_count(facts[0]['n'], shares[0])}",
                f"{_share(shares[1])}; {_count(facts[1]['n'], shares[1])}",
                f"{format_value(difference.value, SHARE)} ({interval})",
                format_value(facts[0]["chance"], SHARE),
            )
        )
    head = ("", "as asked (%)", "without LoRA (%)", "difference (points)", "chance (%)")
    return Table.of(head, rows)


def _table_judge(
    by_cell: Mapping[tuple[str, str], ScoreRecord], arms: Sequence[str], legend: Legend
) -> Table:
    """Lay out how well the judge sees and marks tumours whose truth is known."""
    rows = []
    for arm in arms:
        readings = [by_cell.get((arm, name)) for name in JUDGE_FIELDS]
        if arm == REAL or arm.startswith(VAE):
            cells = [
                MISSING if score is None else f"{_share(score)}; {_count(score.n_real, score)}"
                for score in readings
            ]
            rows.append((_name(arm, legend), *cells))
    head = ("", "sees a tumour that is there", "sees none where none is", "overlap (Dice)")
    return Table.of(head, rows)


def _table_flips(
    by_cell: Mapping[tuple[str, str], ScoreRecord], recorded: Mapping[str, Any], legend: Legend
) -> Table:
    rows = []
    for arm, facts in recorded["flips"].items():
        score = by_cell[arm, "side_flip"]
        chance = format_value(facts["chance"], SHARE)
        rows.append((legend.row(arm), _share(score), chance, format_any(facts["n"])))
    return Table.of(("", "moves (%)", "chance (%)", "pairs"), rows)


def _table_confusion(counts: Mapping[str, Mapping[str, int]]) -> Table:
    columns = list(dict.fromkeys(name for row in counts.values() for name in row))
    rows = tuple(
        (wanted, *(format_any(row.get(name, 0)) for name in columns))
        for wanted, row in counts.items()
    )
    return Table.of(("", *columns), rows)


def _count(n: int, score: ScoreRecord) -> str:
    groups = format_groups(score.num_groups, score.num_negative_groups)
    return f"n = {format_any(n)}, groups {groups}"


def _share(score: ScoreRecord) -> str:
    style = PLAIN if score.metric == PREFIX + DICE else SHARE
    ends = format_interval(score.low, score.high, style)
    value = format_value(score.value, style)
    return value if ends == MISSING else f"{value} ({ends})"
