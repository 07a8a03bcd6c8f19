"""Regimes of training: real slices, synthetic ones, or both, at matched n and steps.

Every regime takes the same number of slices per class and the same number of optimiser steps, but
for `all_real`, the ceiling: every real training slice of those classes, for as many steps. Where
both kinds are used, `mixing: replace` keeps n in all (half of each, the odd one real), and
`mixing: add` takes n real and n synthetic slices for the same number of steps.

A curve in n (`ratios`) asks what synthetic slices add to few real ones: n real slices, the same in
all of its arms, and k n synthetic ones, for as many steps. There n is what the largest k allows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from pipeline.contracts import LABELS, RATIO, REAL, REFERENCE, Label, PluginConfig, Regime
from pipeline.errors import SampleSizeError
from pipeline.settings import ClassifyConfig
from stages.components.statistics.cohorts import Item, choose

ALL_REAL: Regime = "all_real"
ON_REAL: tuple[Regime, ...] = (REAL, "real_with_augmentation", ALL_REAL)
SeedParts = tuple[int | str, ...]


@dataclass(frozen=True)
class Recipe:
    """One arm of the comparison: its name, what it is trained on, and the network."""

    name: str
    regime: Regime
    source: str | None  # the generate arm whose slices it sees; None: real ones only
    model: PluginConfig
    ratio: int | None = None  # synthetic slices for each real one, on the curve in n


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one set of slices."""

    items: tuple[Item, ...]
    num_steps: int
    is_augmented: bool = False


def list_recipes(config: ClassifyConfig, sources: Sequence[str]) -> list[Recipe]:
    """List the arms, those on real slices first; a synthetic arm has the generate arm's name."""
    recipes = []
    for regime in dict.fromkeys(sorted(config.regimes, key=lambda name: name != REAL)):
        if regime in ON_REAL:
            recipes.append(Recipe(regime, regime, None, config.model))
            continue
        for source in sources:
            name = source if regime == "synthetic" else f"{regime}/{source}"
            recipes.append(Recipe(name, regime, source, config.model))
    recipes += [Recipe(REFERENCE + m.name, REAL, None, m) for m in config.references]
    for ratio in dict.fromkeys(sorted(config.ratios)):
        if ratio == 0:
            recipes.append(Recipe(f"{RATIO}0", REAL, None, config.model, ratio))
            continue
        for source in list_ratio_sources(config, sources):
            name = f"{RATIO}{ratio}/{source}"
            recipes.append(Recipe(name, "real_and_synthetic", source, config.model, ratio))
    return recipes


def list_ratio_sources(config: ClassifyConfig, sources: Sequence[str]) -> Sequence[str]:
    """Return the generate arms that have a curve in n."""
    return config.ratio_arms or sources


def list_pairs(recipes: Sequence[Recipe]) -> list[tuple[str, str]]:
    """List the pairs worth a comparison, (arm, reference).

    Everyone against arms that saw no synthetic slice; the others within a regime, between generate
    arms, and within a generate arm, between regimes. On a curve in n all against real slices alone.
    """
    off = [recipe for recipe in recipes if recipe.ratio is None]
    on = [recipe for recipe in recipes if recipe.ratio is not None]
    return [
        (second.name, first.name)
        for first, second in combinations(off, 2)
        if first.source is None or first.source == second.source or first.regime == second.regime
    ] + [(other.name, on[0].name) for other in on[1:]]


def match_counts(sets: Mapping[str, Sequence[Item]], num_images: int | None) -> dict[Label, int]:
    """Return how many slices of each class every arm trains on.

    Args:
        sets: The slices of each arm.
        num_images: How many in all, shared equally by the classes that all arms have; None: of
            each class what the smallest arm has.

    Raises:
        SampleSizeError: An arm has too few, or the arms share no class with or without a tumour.
    """
    least = {
        label: min((sum(i.label == label for i in items), name) for name, items in sets.items())
        for label in LABELS
    }
    shared = [label for label in LABELS if least[label][0] > 0]
    if "notumor" not in shared or len(shared) < 2:
        poorest = {label: f"{name} has {count}" for label, (count, name) in least.items()}
        raise SampleSizeError(
            "classify needs slices with and without a tumour in every arm; found in common "
            f"{shared or 'none'} ({', '.join(f'{k}: {v}' for k, v in poorest.items())}). Let "
            "generate.labels name the classes of the real slices, or raise generate.num_images."
        )
    if num_images is None:
        return {label: least[label][0] for label in shared}
    wanted = num_images // len(shared)
    for label in shared:
        count, name = least[label]
        if not 0 < wanted <= count:
            raise SampleSizeError(
                f"classify.num_images is {num_images}, {wanted} of each of {len(shared)} classes, "
                f"but {name!r} holds {count} of {label!r}. Lower it (or leave it out), or raise "
                "generate.num_images."
            )
    return dict.fromkeys(shared, wanted)


def match_ratio_counts(
    sets: Mapping[str, Sequence[Item]],
    counts: Mapping[Label, int],
    config: ClassifyConfig,
    sources: Sequence[str],
) -> dict[Label, int]:
    """Return how many real slices of each class the curve in n trains on; empty where it has none.

    Raises:
        SampleSizeError: An arm has fewer synthetic slices of a class than the largest ratio.
    """
    if not config.ratios:
        return {}
    largest = max(config.ratios)
    common = {label: sum(item.label == label for item in sets[REAL]) for label in counts}
    for source in list_ratio_sources(config, sources) if largest else ():
        for label in counts:
            held = sum(item.label == label for item in sets[source])
            if held < largest:
                raise SampleSizeError(
                    f"classify.ratios asks for {largest} synthetic slices of a class for each real "
                    f"one, but {source!r} holds {held} of {label!r}. Lower it, or raise "
                    "generate.num_images."
                )
            common[label] = min(common[label], held // largest)
    return common


def list_phases(
    recipe: Recipe,
    sets: Mapping[str, Sequence[Item]],
    counts: Mapping[Label, int],
    *,
    ratio_counts: Mapping[Label, int],
    mixing: Literal["replace", "add"],
    max_steps: int,
    seed_parts: SeedParts,
) -> list[Phase]:
    """Choose an arm's slices and lay out its training.

    A smaller share of a set is always part of the larger one, so that arms differ in nothing else.

    Args:
        recipe: The arm.
        sets: All slices by generate arm, the real ones under "real".
        counts: How many slices of each class.
        ratio_counts: How many real slices of each class on the curve in n.
        mixing: What n means where both kinds are used.
        max_steps: Optimiser steps in all.
        seed_parts: What the choice depends on.
    """

    def take(name: str, wanted: Mapping[Label, int]) -> tuple[Item, ...]:
        return tuple(choose(sets[name], wanted, (*seed_parts, name)))

    if recipe.ratio is not None:
        items = take(REAL, ratio_counts)
        if recipe.source is not None:
            items += take(recipe.source, {k: recipe.ratio * n for k, n in ratio_counts.items()})
        return [Phase(items, max_steps)]
    if recipe.regime == ALL_REAL:
        return [Phase(take(REAL, dict.fromkeys(counts, len(sets[REAL]))), max_steps)]
    if recipe.source is None:
        items = take(REAL, counts)
        return [Phase(items, max_steps, recipe.regime == "real_with_augmentation")]
    if recipe.regime == "synthetic":
        return [Phase(take(recipe.source, counts), max_steps)]
    halves = mixing == "replace"
    real = take(REAL, {k: (n + 1) // 2 if halves else n for k, n in counts.items()})
    synthetic = take(recipe.source, {k: n // 2 if halves else n for k, n in counts.items()})
    if recipe.regime == "real_and_synthetic":
        return [Phase((*real, *synthetic), max_steps)]
    first = max_steps // 2
    return [Phase(synthetic, first), Phase(real, max_steps - first)]
