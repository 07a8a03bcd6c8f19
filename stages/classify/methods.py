"""What classify says of itself: the methods sentence, and warnings."""

from pipeline.contracts import REAL
from pipeline.settings import ClassifyConfig
from stages.classify import explain, regimes
from stages.classify.data import LEAST_GROUPS_TO_CHOOSE, Data
from stages.classify.scores import NUM_DRAWS
from stages.components.statistics import proportions


def describe(config: ClassifyConfig, data: Data) -> str:
    """Write the methods sentence of the report."""
    shares = ", ".join(f"{label} {count}" for label, count in data.counts.items())
    num_real = sum(item.label in data.counts for item in data.sets[REAL])
    names = {"binary": "tumour or not", "four_class": f"{len(data.counts)} classes"}
    point = (
        "Youden's index"
        if config.target_sensitivity is None
        else f"a sensitivity of {config.target_sensitivity:g}"
    )
    can_choose = all(data.within(task).can_choose(task) for task in config.tasks)
    least = f"{LEAST_GROUPS_TO_CHOOSE} validation groups of each kind"
    chosen = (
        "chosen by loss on real validation slices"
        if can_choose
        else f"left in the last state where there were fewer than {least}"
    )
    point = (
        f"the operating point was set on validation slices by {point}"
        if can_choose
        else "no operating point was set"
    )
    return (
        f"A {config.model.name} classifier ({' and '.join(names[task] for task in config.tasks)}, "
        f"{config.image_size} px, one grey channel) was trained for {config.max_steps} steps of "
        f"{config.batch_size} slices on {sum(data.counts.values())} real or synthetic slices "
        f"({shares}; the same for every arm), {config.num_seeds} time(s) with different seeds, "
        f"{chosen} and tested once on "
        f"{len(data.test)} real test slices. A slice counts as a tumour from a probability of "
        f"{proportions.THRESHOLD:g}; {point}. "
        f"Intervals are from {NUM_DRAWS} draws of groups of test slices, paired between arms: "
        "Wilson's on the effective number of slices for proportions, that of t for differences of "
        "proportions, percentiles for all else. Accuracies of two arms are compared by flipping "
        "the signs of whole groups' differences. Shortcut baselines were fitted on the slices of "
        "the real arm."
        + (
            f" Arms on both kinds of slices have {'half' if config.mixing == 'replace' else 'all'} "
            "of that number of each kind."
            if set(config.regimes) & {"real_and_synthetic", "synthetic_then_real"}
            else ""
        )
        + (
            f" The arm {regimes.ALL_REAL} alone saw all {num_real} real training slices of "
            "these classes, for as many steps."
            if regimes.ALL_REAL in config.regimes
            else ""
        )
        + (
            " On the curve in n a few real slices of each class, always the same, were trained on "
            f"with {', '.join(str(ratio) for ratio in sorted(config.ratios))} times as many "
            "synthetic ones, for as many steps."
            if config.ratios
            else ""
        )
        + (
            f" The same states judged the test slices of {', '.join(config.cross_test)}, once, at "
            "the same operating points."
            if config.cross_test
            else ""
        )
        + (explain.methods(config) if config.explain else "")
    )


def warn_of_validation(config: ClassifyConfig, data: Data) -> list[str]:
    """Say where validation is too small to choose by, and what is done instead."""
    warnings = []
    for task in config.tasks:
        part = data.within(task)
        if part.can_choose(task):
            continue
        counts = ", ".join(f"{kind} {count}" for kind, count in part.count_val_groups(task).items())
        warnings.append(
            f"{task.replace('_', ' ')}: validation has too few groups (subjects) to choose by "
            f"({counts}; {LEAST_GROUPS_TO_CHOOSE} of each kind are needed), so every training is "
            f"tested in its last state and the cut stays at {proportions.THRESHOLD:g}: there is no "
            "operating point"
        )
    return warnings
