"""Objections that a reviewer raises, each with where the page answers it or why it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.contracts import BASELINE, CROSS_TEST, REFERENCE
from stages.report.artifacts import ReportInputs
from stages.report.claims.evidence import Findings
from stages.report.sections.copies import read_copies
from stages.report.sections.location import has_location

STANDARD_FEATURES = "inception"  # of FID as papers report it
AUGMENTED = "augmentation"  # in the name of a classifier's arm that needs no generator


@dataclass(frozen=True)
class Objection:
    """One objection; `anchor` is the section that answers it, None where this run does not."""

    what: str
    answer: str
    anchor: str | None


def list_objections(inputs: ReportInputs, findings: Findings) -> tuple[Objection, ...]:
    """List the fifteen objections in a fixed order, answered from what this run recorded."""
    evaluate, classify = (
        artifact.manifest["notes"] for artifact in (inputs.evaluate, inputs.classify)
    )
    return (
        *_of_data(inputs, findings),
        _selection(classify),
        _test_captions(findings),
        _standard_features(findings),
        *_of_sizes(findings),
        _class_names(inputs),
        *_of_location(evaluate),
        Objection(
            "One seed may be lucky",
            "Each arm was trained once, from one run seed; intervals do not hold what another "
            "training would give.",
            None,
        ),
        _copies(evaluate),
        _baseline(findings),
        Objection("Is it meant for patients?", "No: the page opens with what it is for.", "use"),
    )


def _of_data(inputs: ReportInputs, findings: Findings) -> tuple[Objection, ...]:
    audit = inputs.preprocess.manifest["notes"].get("leakage_audit") or {}
    has_subjects = all(r.subject_id is not None for r in inputs.preprocess.records())
    shortcuts = sorted(
        {s.arm.removeprefix(BASELINE) for s in findings.scores if s.arm.startswith(BASELINE)}
    )
    return (
        Objection(
            "Duplicates cross the split",
            f"{audit.get('near_duplicate_clusters', 0)} clusters of near-duplicates were found "
            "before the split and stay on one side of it."
            if audit
            else "No audit of duplicates was recorded.",
            "data" if audit else None,
        ),
        Objection(
            "One patient in training and test",
            "Every slice names its subject, and a subject is in one split."
            if has_subjects
            else "The source names no subjects; only near-duplicates are kept together.",
            "data" if has_subjects else None,
        ),
        Objection(
            "The classes come from different scanners or contrasts",
            f"Shortcuts alone ({', '.join(shortcuts)}) are classifiers too, beside the others."
            if shortcuts
            else "No classifier of shortcuts alone was trained.",
            "classifier" if shortcuts else None,
        ),
    )


def _selection(classify: Mapping[str, Any]) -> Objection:
    use = classify.get("test_use")
    return Objection(
        "Chosen on the test set",
        "Looks of classifiers at the test slices are counted. That sampler and guidance were "
        "chosen without them is for the configuration to say."
        if use
        else "How often the test slices were looked at was not recorded.",
        "classifier" if use else None,
    )


def _test_captions(findings: Findings) -> Objection:
    borrowed = [
        arm.name
        for arm in findings.arms
        if arm.settings.get("generate.prompts_from") == "test_captions"
    ]
    return Objection(
        "Prompts repeat test captions",
        f"They do, as in the poster, in {', '.join(borrowed)}."
        if borrowed
        else "They do not: prompts come from a grid, whatever the test slices show.",
        None if borrowed else "methods",
    )


def _standard_features(findings: Findings) -> Objection:
    names = sorted({s.features for s in findings.scores if s.metric == "fid" and s.features})
    is_standard = STANDARD_FEATURES in names
    return Objection(
        "The FID is not the standard one",
        "It is computed on Inception features too."
        if is_standard
        else f"It is not: features are {', '.join(names) or 'none'}, to be compared within this "
        "run only.",
        "scores" if is_standard else None,
    )


def _of_sizes(findings: Findings) -> tuple[Objection, ...]:
    rows = [findings.score(arm.name, "kid") for arm in findings.arms]
    sizes = sorted({score.n_synthetic for score in rows if score is not None})
    return (
        Objection(
            "Too few images",
            f"n = {' / '.join(map(str, sizes))} stands beside every score with its interval; KID "
            "is unbiased at any n, FID is not."
            if sizes
            else "No distance was scored.",
            "scores" if sizes else None,
        ),
        Objection(
            "Arms are compared at unequal n",
            "All arms have the same n."
            if len(sizes) == 1
            else f"Their n differ: {' / '.join(map(str, sizes)) or 'none was scored'}.",
            "scores" if len(sizes) == 1 else None,
        ),
    )


def _class_names(inputs: ReportInputs) -> Objection:
    counted = any(
        artifact.manifest["notes"].get("names_class") for artifact in inputs.caption.values()
    )
    return Objection(
        "Captions give the class away",
        "How many captions name their class is counted, by captioner."
        if counted
        else "How many captions name their class was not counted.",
        "captions" if counted else None,
    )


def _of_location(evaluate: Mapping[str, Any]) -> tuple[Objection, ...]:
    is_judged = has_location(evaluate)
    missing = "Whether tumours lie where prompts ask was not scored."
    readers = evaluate.get("recaption") or {}
    again = f" Reading again by {readers['vlm']} stands beside it." if readers else ""
    return (
        Objection(
            "Left is not left",
            "Sides are those of the image and are marked, and pairs that differ in the side "
            "alone are compared."
            if is_judged
            else missing,
            "location" if is_judged else None,
        ),
        Objection(
            "The captioner judges its own prompts",
            "A network trained on true masks, and no captioner, reads the images; its own error "
            f"stands beside theirs.{again}"
            if is_judged
            else missing,
            "location" if is_judged else None,
        ),
    )


def _copies(evaluate: Mapping[str, Any]) -> Objection:
    searched = read_copies(evaluate) is not None
    return Objection(
        "The generator copies training slices",
        "Every image was held against all training slices; planted copies say how many such a "
        "search finds."
        if searched
        else "This run did not search for copies.",
        "copies" if searched else None,
    )


def _baseline(findings: Findings) -> Objection:
    has_network = any(score.arm.startswith(REFERENCE) for score in findings.scores)
    has_source = any(score.group.startswith(CROSS_TEST) for score in findings.scores)
    has_plain = any(AUGMENTED in score.arm for score in findings.scores)
    there: Sequence[str] = [
        words
        for has, words in (
            (has_network, "another network"),
            (has_source, "another source's slices"),
            (has_plain, "plain augmentation"),
        )
        if has
    ]
    return Objection(
        "Nothing from outside to compare with",
        f"The classifiers stand beside {' and '.join(there)}."
        if there
        else "No other network, no other source's slices and no plain augmentation were tried.",
        "classifier" if there else None,
    )
