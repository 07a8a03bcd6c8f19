"""Agreement of captions with what is known about their slices, field by field.

What is known is the ground truth of a slice where its source has one (phantoms, masks), and else
its folder's label, which tells whether there is a tumour and of what type, and no more.

The side is left against right, of the slices in which a tumour is stated: whether there is one has
a score of its own, and the midline is a region (all tumours of the sella lie there, so that it
would count the region twice). It counts only where a mask shows it: nothing else about a JPEG slice
does.

A caption that failed, or that does not state a field, is wrong there, so that silence earns
nothing. Beside each share of right captions stand what two blind captioners would reach: one that
always gives the commonest answer, and one that deals this captioner's own answers out at random
(chance, the expectation within kappa). Intervals come from draws of whole groups of slices
(`proportions.share_interval`; percentiles for kappa).

Source: Cohen, "A coefficient of agreement for nominal scales", 1960.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Label, SliceRecord, TumorReport
from pipeline.seeding import numpy_rng
from stages.components.statistics.bootstrap import MIN_GROUPS, FloatArray, interval, resample
from stages.components.statistics.proportions import difference_interval, share_interval
from stages.components.tumor_report._values import read_type

FIELDS = ("tumor", "type", "location", "side", "size", "shape", "intensity", "orientation")
NUM_DRAWS = 1000
CONFIDENCE = 0.95
LATERAL = ("left", "right")  # what a side can be: the midline is a region
TRUTH, MASK, LABEL = "ground truth", "mask", "folder label"

EstimateJson = dict[str, float | None]  # "value", "low", "high"


@dataclass(frozen=True)
class Comparison:
    """One field of one caption beside what is known; `stated` is None where nothing was stated."""

    stated: str | None
    known: str
    group: str  # slices that resemble each other: a subject, or a cluster of near-duplicates
    reference: str  # where `known` is from


def read_field(report: TumorReport | None, field: str) -> str | None:
    """Return what a report states for one of `FIELDS`; None where it is silent or unknown.

    >>> read_field(TumorReport(tumor=False, side="unknown"), "tumor")
    'no'
    """
    if report is None:
        return None
    if field == "type":
        return read_type(report.general_description or "") if report.tumor else None
    value = getattr(report, field)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if value == "unknown" else value


def read_known(report: TumorReport | None, field: str) -> str | None:
    """Return what is to be found of a field, as `read_field`; of sides left and right alone.

    >>> read_known(TumorReport(tumor=True, side="midline"), "side") is None
    True
    """
    value = read_field(report, field)
    return None if field == "side" and value not in LATERAL else value


def is_counted(report: TumorReport | None, field: str) -> bool:
    """Tell whether an answer counts: of the side, only one in which a tumour is seen."""
    return field != "side" or (report is not None and bool(report.tumor))


def compare_with_label(
    report: TumorReport | None, field: str, label: Label, group: str
) -> Comparison | None:
    """Set a caption beside its folder's label; None where the label does not know the field."""
    stated = read_field(report, field)
    if field == "tumor":
        return Comparison(stated, "no" if label == "notumor" else "yes", group, LABEL)
    if field == "type" and label != "notumor":
        return Comparison(stated, label, group, LABEL)
    return None


def compare_with_slice(
    report: TumorReport | None, field: str, item: SliceRecord
) -> Comparison | None:
    """Set a caption beside what is known of its slice; None where nothing is, or it does not count.

    A slice of a patient with a tumour may show none: then its truth counts, not its label.
    """
    if item.truth is None:
        return compare_with_label(report, field, item.label, item.group_id)
    if (field == "side" and item.mask_path is None) or not is_counted(report, field):
        return None
    known = read_known(item.truth, field)
    if field == "type":
        known = item.label if item.truth.tumor and item.label != "notumor" else None
    if known is None:
        return None
    reference = MASK if field == "side" else TRUTH
    return Comparison(read_field(report, field), known, item.group_id, reference)


def measure_agreement(
    reports: Mapping[str, TumorReport | None], slices: Iterable[SliceRecord], *, seed: int
) -> list[dict[str, Any]]:
    """Score captions against their slices: one row per field that is known of any slice.

    Args:
        reports: what each caption itself states, by slice; None for one that failed.
        slices: the slices; those without an entry in `reports` are left out.
        seed: of the bootstrap.

    Returns:
        JSON objects, see `score_field`.
    """
    captioned = [item for item in slices if item.slice_id in reports]
    rows = []
    for field in FIELDS:
        comparisons = [
            compare_with_slice(reports[item.slice_id], field, item) for item in captioned
        ]
        if pairs := [pair for pair in comparisons if pair is not None]:
            rows.append({"field": field, **score_field(pairs, field, seed=seed)})
    return rows


def score_field(
    pairs: Sequence[Comparison], field: str, *, seed: int, num_draws: int = NUM_DRAWS
) -> dict[str, Any]:
    """Score one field over at least one slice, as a JSON object.

    Returns:
        `reference`, `n` slices, `num_groups`, `stated` (share of captions), `accuracy`,
        `commonest` (the answer) and `majority` (its share), `chance`, `above_majority` (accuracy
        minus majority) and `kappa`; estimates hold value, low and high. Kappa is None where chance
        alone would be right every time.
    """
    values = sorted({pair.known for pair in pairs})
    codes = {value: code for code, value in enumerate(values)}
    known = np.array([codes[pair.known] for pair in pairs])
    stated = np.array([codes.get(pair.stated or "", len(values)) for pair in pairs])
    groups = _number([pair.group for pair in pairs])
    weights = _weights(groups, num_draws, (seed, "caption agreement", field))
    counts = np.zeros((weights.shape[1], len(values), len(values) + 1))
    np.add.at(counts, (groups, known, stated), 1)
    drawn = np.tensordot(weights, counts, axes=1)  # (1 + num_draws, known, stated)
    accuracy, chance, kappa = agreement_of(drawn)
    shares = drawn.sum(axis=2) / drawn.sum(axis=(1, 2))[:, None]
    commonest = int(shares[0].argmax())
    references = sorted({pair.reference for pair in pairs})
    num_groups = int(weights.shape[1])
    return {
        "reference": " or ".join(references),
        "n": len(pairs),
        "num_groups": num_groups,
        "stated": sum(pair.stated is not None for pair in pairs) / len(pairs),
        "accuracy": _estimate(accuracy, share_of=len(pairs), num_groups=num_groups),
        "commonest": values[commonest],
        "majority": float(shares[0, commonest]),
        "chance": float(chance[0]),
        "above_majority": _estimate(accuracy - shares[:, commonest], num_groups=num_groups),
        "kappa": _estimate(kappa),
    }


def measure_presence(
    reports: Mapping[str, TumorReport | None], slices: Iterable[SliceRecord], *, seed: int
) -> dict[str, Any]:
    """Score whether captions tell slices with a tumour from slices without, as a JSON object.

    Returns:
        `sensitivity`, the share of slices with a tumour whose caption says so, and `specificity`,
        the share of slices without whose caption denies one, as estimates (None without such
        slices); how many slices and groups there are of either kind; counts of the four outcomes
        and of captions that say neither.
    """
    comparisons = [
        pair
        for item in slices
        if item.slice_id in reports
        and (pair := compare_with_slice(reports[item.slice_id], "tumor", item)) is not None
    ]
    return score_presence(comparisons, seed=seed)


def score_presence(
    pairs: Sequence[Comparison], *, seed: int, num_draws: int = NUM_DRAWS
) -> dict[str, Any]:
    """Score the field `tumor` as a test for tumours; see `measure_presence`."""
    groups = _number([pair.group for pair in pairs])
    weights = _weights(groups, num_draws, (seed, "caption presence"))
    scores: dict[str, Any] = {"reference": " or ".join(sorted({pair.reference for pair in pairs}))}
    for name, known in (("sensitivity", "yes"), ("specificity", "no")):
        counts = np.zeros((weights.shape[1], 2))
        for pair, group in zip(pairs, groups, strict=True):
            if pair.known == known:
                counts[group] += (pair.stated == known, 1)
        right, total = np.moveaxis(weights @ counts, 1, 0)
        kind = "with_tumor" if known == "yes" else "without_tumor"
        count, num_groups = int(total[0]), int((counts[:, 1] > 0).sum())
        scores[f"n_{kind}"], scores[f"groups_{kind}"] = count, num_groups
        with np.errstate(invalid="ignore", divide="ignore"):
            scores[name] = _estimate(right / total, share_of=count, num_groups=num_groups)
    outcomes = {
        "true_positive": ("yes", "yes"),
        "false_negative": ("yes", "no"),
        "false_positive": ("no", "yes"),
        "true_negative": ("no", "no"),
        "silent_with_tumor": ("yes", None),
        "silent_without_tumor": ("no", None),
    }
    for name, outcome in outcomes.items():
        scores[name] = sum((pair.known, pair.stated) == outcome for pair in pairs)
    return scores


def agreement_of(counts: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (accuracy, chance, kappa) of tables of counts.

    Args:
        counts: float64 (draws, known, stated); what is stated beyond the known values agrees
            with none of them.

    Returns:
        Three arrays (draws,); kappa is NaN where chance is 1, all are in an empty table.
    """
    size = counts.shape[1]
    total = counts.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = np.trace(counts[:, :, :size], axis1=1, axis2=2) / total
        known, stated = counts.sum(axis=2) / total[:, None], counts.sum(axis=1) / total[:, None]
        chance = (known * stated[:, :size]).sum(axis=1)
        kappa = np.where(chance < 1, (accuracy - chance) / (1 - chance), np.nan)
    return accuracy, chance, kappa


def _number(groups: Sequence[str]) -> NDArray[np.intp]:
    """Number groups in order of first appearance, as `bootstrap.resample` does."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups], dtype=np.intp)


def _weights(
    groups: NDArray[np.intp], num_draws: int, seed_parts: tuple[int | str, ...]
) -> FloatArray:
    """Draw how often each group counts, (1 + draws, num_groups); a lone slice has no draws."""
    if len(groups) < 2:
        return np.ones((1, len(groups)))
    rows = np.zeros((len(groups), 1))
    return resample(rows, groups.tolist(), num_draws=num_draws, rng=numpy_rng(*seed_parts)).weights


def _estimate(
    values: FloatArray, *, share_of: int | None = None, num_groups: int | None = None
) -> EstimateJson:
    """Return the first of (1 + num_draws,) values, with its interval from the others.

    Draws in which a value is not defined (NaN) are left out.

    Args:
        values: a share of `share_of` slices, else a difference of two of `num_groups`, else a
            number of any other kind.
        share_of: slices.
        num_groups: of them; an interval of fewer than `MIN_GROUPS` is not given.
    """
    draws = values[1:][~np.isnan(values[1:])]
    low: float | None
    high: float | None
    if num_groups is None:
        low, high = interval(draws, confidence=CONFIDENCE)
    elif num_groups < MIN_GROUPS:
        low, high = None, None
    elif share_of is None:
        low, high = difference_interval(values, num_groups=num_groups, confidence=CONFIDENCE)
    else:
        low, high = share_interval(
            values, count=share_of, num_groups=num_groups, confidence=CONFIDENCE
        )
    return {"value": None if np.isnan(values[0]) else float(values[0]), "low": low, "high": high}
