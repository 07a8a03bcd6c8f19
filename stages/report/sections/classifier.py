"""Section of classifiers: scores by kind and group, between arms, calibration."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.contracts import (
    ALL,
    AT_CUT,
    AUROC_WITHIN_CONTRAST,
    CROSS_TEST,
    RATIO,
    ScoreRecord,
)
from stages.report.arms import Manifest
from stages.report.claims.evidence import Findings, read_differences
from stages.report.numbers import PLAIN, PROPORTIONS, Legend, format_any, format_value
from stages.report.tables import (
    Panel,
    Table,
    table_evidence,
    table_nested,
    table_pivot,
    table_scores,
)

RANKING = ("auroc", AUROC_WITHIN_CONTRAST, "auprc", "ece", "brier")
CURVE = ("accuracy", "sensitivity", "specificity", *RANKING[:3])
ELSEWHERE = (*PROPORTIONS, *RANKING[:3], "class_accuracy", "class_auroc")
N_HEADS = ("n test", "n synthetic, trained on")
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Tumour or not, from a probability of 0.5", PROPORTIONS),
    (
        "Tumour or not, at the operating point set on validation slices",
        tuple(metric + AT_CUT for metric in PROPORTIONS),
    ),
    ("Tumour or not: ranking and calibration", RANKING),
)


@dataclass(frozen=True)
class ClassifierSection:
    """Tables of the classifiers in the order of the page; `by_group` and below may be folded."""

    words: str
    scores: tuple[Panel, ...]
    details: tuple[Panel, ...]
    not_run: tuple[str, ...]


def lay_out_classifiers(
    scores: Sequence[ScoreRecord], manifest: Manifest, legend: Legend
) -> ClassifierSection:
    """Lay out classify's scores and notes; what it did not record has no table."""
    notes = manifest["notes"]
    findings = Findings(arms=(), scores=tuple(scores), differences=read_differences(notes) or ())
    on_curve = [s for s in scores if s.arm.startswith(RATIO)]
    scores = [score for score in scores if not score.arm.startswith(RATIO)]
    overall = [score for score in scores if score.group == ALL]
    panels = []
    for title, metrics in KINDS:
        shown = [score for score in overall if score.metric in metrics]
        if shown:
            panels.append((title, table_pivot(shown, legend, "Trained on", N_HEADS)))
    classes = [score for score in overall if score.metric.startswith("class_")]
    if classes:
        panels.append(("Which class it is", table_pivot(classes, legend, "Trained on", N_HEADS)))
    if on_curve:
        panels.append(_table_curve(on_curve, notes["ratios"], legend))
    gaps = [score for score in scores if score.group.startswith("protected:")]
    if gaps:
        attribute = gaps[0].group.removeprefix("protected:")
        title = f"Largest gaps between groups of {attribute}, {_name_cut(notes)}"
        panels.append((title, table_pivot(gaps, legend, "Trained on", N_HEADS)))
    for group in dict.fromkeys(s.group for s in scores if s.group.startswith(CROSS_TEST)):
        shown = [score for score in scores if score.group == group and score.metric in ELSEWHERE]
        title = f"Tested on another source: {group.removeprefix(CROSS_TEST)}"
        panels.append((title, table_pivot(shown, legend, "Trained on", N_HEADS)))
    return ClassifierSection(
        words=describe_test_use(notes.get("test_use")) + describe_cross_test(notes),
        scores=tuple(panels),
        details=tuple(_list_details(scores, notes, findings, legend)),
        not_run=tuple(list_not_run(manifest["config"])),
    )


def _table_curve(
    scores: Sequence[ScoreRecord], num_real: Mapping[str, int], legend: Legend
) -> Panel:
    """Lay out the curve in n, of binary and four-class tasks alike."""
    named = [
        score.model_copy(update={"arm": _name_ratio(score.arm)})
        for score in scores
        if score.group == ALL and score.metric in (*CURVE, "class_accuracy", "class_auroc")
    ]
    counts = ", ".join(f"{label} {count}" for label, count in num_real.items())
    title = f"What synthetic slices add to few real ones ({counts}), at as many steps"
    return title, table_pivot(named, legend, "Trained on", N_HEADS)


def _name_ratio(arm: str) -> str:
    ratio, _, source = arm.removeprefix(RATIO).partition("/")
    return f"real, and {ratio} × as many of {source}" if source else "real alone"


def list_not_run(config: Mapping[str, Any]) -> Iterator[str]:
    """Say which tests of classifiers were not run, and the line of the config that would."""
    wanted = (
        ("Test on slices of another source", "cross_test", "cross_test: {NAME: {source: ...}}"),
        (
            "Fairness between groups of a protected attribute",
            "protected",
            "protected: {attribute: sex, table: FILE.csv, sha256: ...}",
        ),
        ("Real slices with more and more synthetic ones", "ratios", "ratios: [0, 1, 2, 4]"),
    )
    for what, key, line in wanted:
        if not config.get(key):
            yield f"{what}: not run. In the configuration, under classify: {line}"
    if "real_with_augmentation" not in config.get("regimes", ()):
        yield (
            "Classical augmentation, the baseline that needs no generator: not run. In the "
            "configuration, under classify: regimes: [real, synthetic, real_with_augmentation]"
        )


def describe_test_use(recorded: Mapping[str, Any] | None) -> str:
    """Say how often the test slices were looked at, as the manifest has it."""
    if not recorded:
        return "This run does not record how often the test slices were looked at."
    sentences = []
    for task, use in recorded.items():
        looks = use["looks"].values()
        is_last = any(str(look.get("chosen_on")).startswith("nothing") for look in looks)
        sentences.append(
            f"{task.replace('_', ' ')}: {len(looks)} trained states judged "
            f"{use['num_slices']:,} test slices (SHA-256 {use['sha256'][:12]}), at most "
            f"{max((look['looks'] for look in looks), default=0)} time each, "
            + ("as training left them" if is_last else "chosen by their loss on validation slices")
        )
    return (
        f"{'; '.join(sentences)}. Each state is named in the manifest by the SHA-256 of its "
        "weights; test slices share no group with slices that trained or chose."
    )


def describe_cross_test(notes: Mapping[str, Any]) -> str:
    """Say what was tested on other sources; "" where nothing was."""
    sentences = []
    for name, tested in (notes.get("cross_test") or {}).items():
        looks = sum(len(use["looks"]) for use in tested["test_use"].values())
        sizes = {use["num_slices"] for use in tested["test_use"].values()}
        sentences.append(
            f" On the test slices of {name} (source {tested['source']}, n = "
            f"{' / '.join(f'{size:,}' for size in sorted(sizes))}), {looks} states were tested "
            "once each, trained, chosen and set on this run's own source."
        )
    return "".join(sentences)


def _list_details(
    scores: Sequence[ScoreRecord],
    notes: Mapping[str, Any],
    findings: Findings,
    legend: Legend,
) -> Sequence[Panel]:
    panels: list[Panel] = []
    if findings.differences:
        pairs = list(dict.fromkeys((item.first, item.second) for item in findings.differences))
        metrics = list(dict.fromkeys(item.metric for item in findings.differences))
        for kind, names in (
            ("tumour or not", [m for m in metrics if not m.startswith("class_")]),
            ("which class", [m for m in metrics if m.startswith("class_")]),
        ):
            evidence = findings.evidence(pairs, names)
            if evidence:
                title = f"Differences between arms, {kind}, paired on the test slices"
                panels.append((title, table_evidence(evidence, legend)))
    groups = [
        s for s in scores if s.group != ALL and not s.group.startswith(("protected:", CROSS_TEST))
    ]
    if groups:
        panels.append(("By class, orientation, contrast and source", table_scores(groups, legend)))
    classes = notes.get("four_class") or {}
    for title, points in (
        ("Calibration of the probability of a tumour", notes.get("calibration")),
        ("Calibration of the named class", classes.get("calibration")),
    ):
        if points:
            off_curve = {arm: curve for arm, curve in points.items() if not arm.startswith(RATIO)}
            panels.append((title, _table_calibration(off_curve)))
    fairness = notes.get("fairness")
    if fairness:
        title = f"Rates within groups of {fairness['attribute']}, {_name_cut(notes)}"
        panels.append((title, table_nested(fairness["rates"])))
    for arm, counts in (classes.get("confusion") or {}).items():
        if arm.startswith(RATIO):
            continue
        panels.append((f"Classes named for each true class (rows), {arm}", table_nested(counts)))
    return panels


def _name_cut(notes: Mapping[str, Any]) -> str:
    is_set = (notes.get("fairness") or {}).get("is_at_operating_point", True)
    return "at the operating point" if is_set else "from a probability of 0.5"


def _table_calibration(points: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    rows = tuple(
        (
            arm,
            format_value(point["said"], PLAIN),
            format_value(point["true"], PLAIN),
            format_any(point["n"]),
        )
        for arm, curve in points.items()
        for point in curve
    )
    return Table.of(("Trained on", "said on average", "true share", "n"), rows)


@dataclass(frozen=True)
class Confusion:
    """Counts of one classifier on the test slices."""

    name: str
    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int


def read_confusions(manifest: Manifest, order: Iterable[str]) -> tuple[Confusion, ...]:
    """Read `notes["confusion"]` (arm -> counts of the four outcomes) in the order of the arms."""
    recorded = manifest["notes"].get("confusion") or {}
    outcomes = ("true_positive", "false_negative", "false_positive", "true_negative")
    return tuple(
        Confusion(name, *(recorded[name][outcome] for outcome in outcomes))
        for name in order
        if name in recorded and not name.startswith(RATIO)
    )
