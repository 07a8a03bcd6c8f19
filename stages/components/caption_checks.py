"""How good a set of captions is: what they state, what agrees with the truth, how long they are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.contracts import CaptionRecord, Label, TumorReport

FIELDS = ("tumor", "location", "side", "size", "shape", "intensity", "orientation")
CLASS_WORDS: dict[Label, tuple[str, ...]] = {
    "glioma": ("gliom", "glioblastom", "astrocytom"),
    "meningioma": ("meningiom",),
    "pituitary": ("pituitary", "adenom"),
}


def compute_fill_rates(reports: Sequence[TumorReport]) -> dict[str, float]:
    """Return the share of reports that state each field, among those that state a tumour.

    Orientation and description count among all reports; `tumor` too. An empty list gives zeros.
    """
    with_tumor = [report for report in reports if report.tumor]
    rates: dict[str, float] = {}
    for field in (*FIELDS, "general_description"):
        whole = field in ("tumor", "orientation", "general_description")
        base = reports if whole else with_tumor
        stated = sum(getattr(report, field) not in (None, "unknown") for report in base)
        rates[field] = stated / len(base) if base else 0.0
    return rates


def compute_agreement(
    pairs: Iterable[tuple[TumorReport, TumorReport]],
) -> dict[str, dict[str, float]]:
    """Compare captions with ground truth, field by field.

    Args:
        pairs: (what the caption states, the truth). Only fields that the truth knows count; a
            caption that does not state one is wrong there.

    Returns:
        Per field: accuracy, the share of captions that state it, and n, the slices that count.
        Fields that no truth knows are left out.
    """
    known: dict[str, list[tuple[Any, Any]]] = {field: [] for field in FIELDS}
    for stated, truth in pairs:
        for field in FIELDS:
            actual = getattr(truth, field)
            if actual not in (None, "unknown"):
                known[field].append((getattr(stated, field), actual))
    return {
        field: {
            "accuracy": sum(said == actual for said, actual in values) / len(values),
            "stated": sum(said not in (None, "unknown") for said, _ in values) / len(values),
            "n": len(values),
        }
        for field, values in known.items()
        if values
    }


def compute_presence(records: Iterable[CaptionRecord]) -> dict[str, int]:
    """Count the captions' `tumor` against the slices' labels; `silent` states neither."""
    counts = dict.fromkeys(
        ("true_positive", "false_negative", "true_negative", "false_positive", "silent"), 0
    )
    for record in records:
        if record.report is None:
            continue
        if record.report.tumor is None:
            counts["silent"] += 1
        elif record.label == "notumor":
            counts["false_positive" if record.report.tumor else "true_negative"] += 1
        else:
            counts["true_positive" if record.report.tumor else "false_negative"] += 1
    return counts


def compute_named_classes(records: Iterable[CaptionRecord]) -> dict[str, dict[str, float]]:
    """Return, per class of tumour, the share of captions whose final text names that class.

    A generator can only be asked for a class that its captions name.
    """
    texts: dict[Label, list[str]] = {}
    for record in records:
        if record.status == "ok" and record.label != "notumor":
            texts.setdefault(record.label, []).append(record.text.lower())
    return {
        label: {
            "share": sum(any(word in text for word in CLASS_WORDS[label]) for text in found)
            / len(found),
            "n": len(found),
        }
        for label, found in sorted(texts.items())
    }


def summarise(
    records: Sequence[CaptionRecord],
    truths: Mapping[str, TumorReport | None],
    count_tokens: Callable[[str], int],
    max_tokens: int,
) -> dict[str, Any]:
    """Return what the manifest says about a set of captions (JSON values).

    Args:
        records: every caption, failed ones included.
        truths: ground truth by slice, where there is any.
        count_tokens: as for rendering; counts the raw texts here.
        max_tokens: the text encoder's context.
    """
    good = [record for record in records if record.status == "ok"]
    reports = [record.report for record in good if record.report is not None]
    pairs = [
        (record.report, truth)
        for record in good
        if record.report is not None and (truth := truths.get(record.slice_id)) is not None
    ]
    lengths = [record.num_tokens for record in good]
    return {
        "fill_rate": compute_fill_rates(reports),
        "distinct": {
            "raw": len({record.raw for record in good}),
            "text": len({record.text for record in good}),
            "n": len(good),
        },
        "tokens": {
            "limit": max_tokens,
            "max": max(lengths, default=0),
            "mean": sum(lengths) / len(lengths) if lengths else 0.0,
            "over_before_rendering": sum(count_tokens(record.raw) > max_tokens for record in good),
            "over_after_rendering": sum(length > max_tokens for length in lengths),
        },
        "presence_by_label": compute_presence(good),
        "names_class": compute_named_classes(good),
        "agreement_with_truth": compute_agreement(pairs),
    }
