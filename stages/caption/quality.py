"""Quality of a set of captions: what they state, how long they are, what they agree with."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median
from typing import Any

from pipeline.contracts import CaptionRecord, Label, SliceRecord, TumorReport
from stages.components.captioning.asking import find_sameness
from stages.components.tumor_report.agreement import (
    FIELDS,
    measure_agreement,
    measure_presence,
    read_field,
)
from stages.components.tumor_report.parsing import parse

WHOLE_FIELDS = ("tumor", "orientation", "general_description")  # stated without a tumour too
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
        base = reports if field in WHOLE_FIELDS else with_tumor
        stated = sum(read_field(report, field) is not None for report in base)
        rates[field] = stated / len(base) if base else 0.0
    return rates


def measure_tokens(before: Sequence[int], after: Sequence[int], limit: int) -> dict[str, Any]:
    """Describe the lengths of texts in tokens, before and after rendering, as a JSON object.

    What is over the limit before would have been cut off by the text encoder, unseen.
    """
    return {"limit": limit, "before": _lengths(before, limit), "after": _lengths(after, limit)}


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
            "share": sum(any(word in text for word in CLASS_WORDS[label]) for text in written)
            / len(written),
            "n": len(written),
        }
        for label, written in sorted(texts.items())
    }


def read_own_report(record: CaptionRecord) -> TumorReport | None:
    """Return what the captioner itself stated; None for a caption that failed.

    Not `record.report`: with `caption.include_label` that names the class, whoever wrote it.
    """
    return parse(record.raw) if record.status == "ok" else None


def summarise(
    records: Sequence[CaptionRecord],
    slices: Sequence[SliceRecord],
    count_tokens: Callable[[str], int],
    max_tokens: int,
    *,
    seed: int,
) -> dict[str, Any]:
    """Return what the manifest says about a set of captions (JSON values).

    Args:
        records: every caption, failed ones included.
        slices: their slices, with what is known of them.
        count_tokens: as for rendering; counts the raw texts here.
        max_tokens: the text encoder's context.
        seed: of the bootstrap behind the intervals.
    """
    good = [record for record in records if record.status == "ok"]
    stated = {record.slice_id: read_own_report(record) for record in records}
    before = [count_tokens(record.raw) for record in good]
    sameness = find_sameness(record.raw for record in good)
    return {
        "warnings": [sameness] if sameness else [],
        "fill_rate": compute_fill_rates(
            [report for report in stated.values() if report is not None]
        ),
        "distinct": {
            "raw": len({record.raw for record in good}),
            "text": len({record.text for record in good}),
            "n": len(good),
        },
        "tokens": measure_tokens(before, [record.num_tokens for record in good], max_tokens),
        "names_class": compute_named_classes(good),
        "presence": measure_presence(stated, slices, seed=seed),
        "agreement": measure_agreement(stated, slices, seed=seed),
    }


def _lengths(counts: Sequence[int], limit: int) -> dict[str, Any]:
    over = sum(count > limit for count in counts)
    return {
        "mean": fmean(counts) if counts else 0.0,
        "median": float(median(counts)) if counts else 0.0,
        "max": max(counts, default=0),
        "over": over,
        "share_over": over / len(counts) if counts else 0.0,
    }
