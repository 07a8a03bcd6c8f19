"""Positive controls: real slices that are wrong in one known way, to show what a score can see.

Rows `control/KIND`: training slices of one class, or of one contrast, and of no other. Against all
test slices, those without a tumour say what a generator that never draws one would get; against the
test slices of another class, what a generator that draws the wrong class would. A contrast alone
is scored against all test slices, with their mix of classes. A control that lies no farther from
the test slices than the floor is a fault that the score cannot see.

Only pair metrics whose bias does not depend on n are taken (kid): a kind may have fewer slices than
its reference. It never has more.
"""

from collections.abc import Mapping, Sequence
from typing import cast

from pipeline.contracts import ALL, CONTROL, UNKNOWN, Label
from stages.components.features import extraction
from stages.components.statistics import cohorts
from stages.components.statistics.cohorts import Item, SeedParts
from stages.evaluate.metric import Metric
from stages.evaluate.samples import FeatureSample, Reader
from stages.evaluate.scorer import Scorer

LEAST_N = 8  # slices of a kind


def choose_classes(
    train: Sequence[Item], counts: Mapping[Label, int], seed_parts: SeedParts
) -> dict[str, list[Item]]:
    """Choose training slices of each class alone, as many as there are test slices at most.

    Empty where there is one class only: nothing then is wrong with it.
    """
    total = sum(counts.values())
    chosen = {
        f"{CONTROL}{label}": cohorts.choose(train, {label: total}, seed_parts) for label in counts
    }
    return _large_enough(chosen) if len(counts) > 1 else {}


def choose_contrasts(
    train: Sequence[Item],
    test: Sequence[Item],
    counts: Mapping[Label, int],
    seed_parts: SeedParts,
) -> dict[str, list[Item]]:
    """Choose training slices of each contrast alone, their classes mixed as the test slices' are.

    Empty where the test slices are of one contrast, or none of it is known.
    """
    known = sorted({item.modality for item in test} - {UNKNOWN})
    if len(known) < 2:
        return {}
    chosen = {}
    for contrast in known:
        alone = [item for item in train if item.modality == contrast]
        share = min(1.0, *(sum(i.label == label for i in alone) / n for label, n in counts.items()))
        mixed = {label: int(share * n) for label, n in counts.items()}
        chosen[f"{CONTROL}{contrast}"] = cohorts.choose(alone, mixed, seed_parts)
    return _large_enough(chosen)


def _large_enough(chosen: Mapping[str, list[Item]]) -> dict[str, list[Item]]:
    return {name: items for name, items in chosen.items() if len(items) >= LEAST_N}


def score_controls(
    scorer: Scorer,
    reader: Reader,
    *,
    train: Sequence[Item],
    test: Sequence[Item],
    reference: FeatureSample,
    counts: Mapping[Label, int],
    seed_parts: SeedParts,
) -> None:
    """Add the distances of all controls.

    Args:
        scorer: Gets them.
        reader: Reads images.
        train: All training slices.
        test: The test slices that arms are scored against, with their features in `reference`.
        reference: See `test`.
        counts: Test slices of each class.
        seed_parts: Of the choice.
    """
    classes = choose_classes(train, counts, seed_parts)
    contrasts = choose_contrasts(train, test, counts, seed_parts)
    samples = {
        name: reader.sample(items, extraction.iter_images(items), {})
        for name, items in (classes | contrasts).items()
    }
    for group in (ALL, *counts):
        against = reference.take(reference.rows(group))
        shown = {
            name: sample.take(range(min(len(sample.labels), len(against.labels))))
            for name, sample in samples.items()
            if (group == ALL or name in classes) and name != f"{CONTROL}{group}"
        }
        n = len(against.labels)
        for network, metric in scorer.list_metrics(reader.extractors, group, n):
            if metric.SPEC.kind == "pair" and not metric.SPEC.is_biased:
                pair = cast(Metric, metric)
                scorer.score_pairs(pair, network, group, against, shown, {})
