"""Section of the summary: three sentences and a table of sides, made by fixed rules from scores."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.contracts import ALL, BASE, GAP_CLOSED, REAL, VAE, ScoreRecord
from stages.report.artifacts import ReportInputs
from stages.report.claims.evidence import Findings
from stages.report.numbers import SHARE, Legend, format_any, format_interval, format_value
from stages.report.sections.location import PREFIX
from stages.report.tables import Table

SIDE, FLIP = f"{PREFIX}side", f"{PREFIX}side_flip"


@dataclass(frozen=True)
class Summary:
    """What a reader who reads no further should know."""

    sentences: tuple[str, ...]
    sides: Table | None


def lay_out_summary(inputs: ReportInputs, findings: Findings, legend: Legend) -> Summary:
    """Write the summary; what the run did not score is said not to be there."""
    return Summary(
        (
            describe_work(inputs, findings, legend),
            describe_distance(findings, legend),
            f"{describe_sides(findings)} {describe_classifiers(findings, legend)}",
        ),
        table_sides(inputs, findings, legend),
    )


def describe_work(inputs: ReportInputs, findings: Findings, legend: Legend) -> str:
    """Say what was trained on what, and what it is scored against."""
    num_train = sum(record.split == "train" for record in inputs.preprocess.records())
    bases = " and ".join(sorted({arm.base_model or "" for arm in findings.arms}))
    captioners = ", ".join(dict.fromkeys(arm.vlm for arm in findings.arms if arm.vlm))
    words = (
        f"{_count(len(findings.arms), 'adapter')} of {bases} learned from {num_train:,} "
        f"{legend.slices} with captions by {captioners or 'nobody'}"
    )
    kid = findings.score(findings.arms[0].name, "kid") if findings.arms else None
    if kid is None:
        return f"{words}; no distance to held-out ones was scored."
    return (
        f"{words}; {kid.n_synthetic:,} synthetic slices of each are held against {kid.n_real:,} "
        "held-out ones."
    )


def describe_distance(findings: Findings, legend: Legend) -> str:
    """Say which arm is nearest, and what its base model and its VAE alone would have."""
    rows = _of_arms(findings, "kid")
    if not rows:
        return "How near they come was not scored."
    best = min(rows, key=lambda score: score.value)
    style = legend["kid"]
    words = (
        f"The nearest, {best.arm}, has a KID of {format_value(best.value, style)} "
        f"({format_interval(best.low, best.high, style)})"
    )
    base = next(arm.base_model for arm in findings.arms if arm.name == best.arm)
    beside = [
        f"{what} {format_value(score.value, style)}"
        for what, name in (
            ("its base model without LoRA", f"{BASE}{base}"),
            ("its VAE alone", f"{VAE}{base}"),
            (f"{legend.slices} among themselves", REAL),
        )
        if (score := findings.score(name, "kid")) is not None
    ]
    words += f"; {', '.join(beside)}" if beside else ""
    gap = findings.score(best.arm, GAP_CLOSED)
    if gap is not None:
        words += (
            f": {format_value(gap.value, legend[GAP_CLOSED])} of the way from its base model to "
            "what its VAE allows"
        )
    return f"{words}."


def describe_sides(findings: Findings) -> str:
    """Say how often tumours lie where prompts ask."""
    rows = _of_arms(findings, SIDE)
    if not rows:
        return "Whether tumours lie where prompts ask was not scored."
    words = f"Asked for left or right, tumours lie there in {_span(rows)} % of the arms' slices"
    bases = [score for score in findings.scores if score.metric == SIDE and score.group == ALL]
    bases = [score for score in bases if score.arm.startswith(BASE)]
    return f"{words}, without LoRA in {_span(bases)} %." if bases else f"{words}."


def describe_classifiers(findings: Findings, legend: Legend) -> str:
    """Say what a classifier learns from synthetic slices, beside one of the source's slices."""
    rows, real = _of_arms(findings, "accuracy"), findings.score(REAL, "accuracy")
    if not rows or real is None:
        return "What a classifier learns from them was not scored."
    return (
        f"A classifier that saw synthetic slices alone tells tumours on held-out {legend.slices} "
        f"with {_span(rows)} % accuracy, one that saw {legend.slices} with "
        f"{format_value(real.value, SHARE)} %."
    )


def table_sides(inputs: ReportInputs, findings: Findings, legend: Legend) -> Table | None:
    """Lay out left and right by arm, then by base model, then the judge's own; None without."""
    recorded = inputs.evaluate.manifest["notes"].get("location") or {}
    names = [arm.name for arm in findings.arms]
    names += [name for name in inputs.generate if name.startswith(BASE)]
    rows = []
    for name in (*names, REAL):
        score = findings.score(name, SIDE)
        if score is None:
            continue
        flip = findings.score(name, FLIP)
        chance = recorded["fields"][name]["side"]["chance"]
        rows.append(
            (
                f"the judge, on {legend.slices}" if name == REAL else legend.row(name),
                _with_interval(score),
                format_value(chance, SHARE),
                format_value(None if flip is None else flip.value, SHARE),
                format_any(score.n_synthetic or score.n_real),
            )
        )
    if not rows:
        return None
    head = ("Left or right", "as asked (%)", "chance (%)", "moves with prompt (%)", "n")
    return Table.of(head, rows)


def _of_arms(findings: Findings, metric: str) -> list[ScoreRecord]:
    rows = (findings.score(arm.name, metric) for arm in findings.arms)
    return [score for score in rows if score is not None]


def _with_interval(score: ScoreRecord) -> str:
    ends = format_interval(score.low, score.high, SHARE)
    return f"{format_value(score.value, SHARE)} ({ends})".replace(" ", "\u00a0")


def _span(scores: Sequence[ScoreRecord]) -> str:
    ends = sorted({format_value(score.value, SHARE) for score in scores}, key=float)
    return ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"


def _count(count: int, what: str) -> str:
    return f"One {what}" if count == 1 else f"{count} {what}s"
