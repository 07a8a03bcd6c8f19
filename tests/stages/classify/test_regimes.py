from pathlib import Path

import pytest

from pipeline.contracts import PluginConfig
from pipeline.errors import SampleSizeError
from pipeline.settings import ClassifyConfig
from stages.classify import regimes
from stages.components.statistics.cohorts import Item

ALL_REGIMES = (
    "synthetic",
    "real",
    "real_and_synthetic",
    "synthetic_then_real",
    "real_with_augmentation",
    "all_real",
)
CONFIG = ClassifyConfig(
    regimes=ALL_REGIMES, references=(PluginConfig(name="efficientnet_lite0"),), max_steps=9
)


def items(name, count=6):
    return [
        Item(f"{name}-{label}-{k}", Path("x.png"), label, f"{name}{k}")
        for label in ("notumor", "glioma")
        for k in range(count)
    ]


SETS = {"real": items("real", 8), "a": items("a"), "b": items("b", 5)}
COUNTS = {"notumor": 5, "glioma": 5}


def phases(name, mixing="replace"):
    recipe = next(r for r in regimes.list_recipes(CONFIG, ["a", "b"]) if r.name == name)
    return lay_out(recipe, mixing=mixing)


def lay_out(recipe, counts=None, ratio_counts=None, mixing="replace"):
    return regimes.list_phases(
        recipe, SETS, counts or COUNTS, ratio_counts=ratio_counts or {}, mixing=mixing,
        max_steps=9, seed_parts=(0, "classify"),
    )  # fmt: skip


def kinds(phase):
    """(real, synthetic) slices of a phase."""
    real = sum(item.name.startswith("real") for item in phase.items)
    return real, len(phase.items) - real


def test_arms_are_named_after_regime_and_source_real_first():
    assert [recipe.name for recipe in regimes.list_recipes(CONFIG, ["a", "b"])] == [
        "real",
        "a",
        "b",
        "real_and_synthetic/a",
        "real_and_synthetic/b",
        "synthetic_then_real/a",
        "synthetic_then_real/b",
        "real_with_augmentation",
        "all_real",
        "reference/efficientnet_lite0",
    ]


def test_every_arm_has_the_same_number_of_slices_and_steps():
    for recipe in regimes.list_recipes(CONFIG, ["a", "b"]):
        found = phases(recipe.name)
        assert sum(phase.num_steps for phase in found) == 9, recipe.name
        if recipe.name == "all_real":
            continue
        assert sum(len(phase.items) for phase in found) == 10, recipe.name
        for label in COUNTS:
            assert sum(i.label == label for phase in found for i in phase.items) == 5


def test_the_ceiling_has_every_real_slice_of_the_classes_compared():
    (phase,) = phases("all_real")
    assert kinds(phase) == (16, 0)
    assert {item.name for item in phases("real")[0].items} < {item.name for item in phase.items}
    recipe = next(r for r in regimes.list_recipes(CONFIG, ["a"]) if r.name == "all_real")
    (only,) = lay_out(recipe, {"glioma": 5})
    assert {item.label for item in only.items} == {"glioma"}


def test_half_of_a_mixture_is_synthetic_and_the_odd_one_real():
    (mixed,) = phases("real_and_synthetic/a")
    assert kinds(mixed) == (6, 4)
    first, second = phases("synthetic_then_real/a")
    assert (kinds(first), first.num_steps) == ((0, 4), 4)
    assert (kinds(second), second.num_steps) == ((6, 0), 5)


def test_slices_can_be_added_instead():
    (mixed,) = phases("real_and_synthetic/b", mixing="add")
    assert kinds(mixed) == (10, 10)
    assert [kinds(phase) for phase in phases("synthetic_then_real/b", "add")] == [(0, 10), (10, 0)]


def test_a_mixture_has_the_slices_of_the_arms_it_mixes():
    names = {item.name for phase in phases("real_and_synthetic/a") for item in phase.items}
    both = {i.name for name in ("real", "a") for phase in phases(name) for i in phase.items}
    assert names <= both


def test_only_one_regime_is_augmented():
    augmented = [
        recipe.name
        for recipe in regimes.list_recipes(CONFIG, ["a", "b"])
        if any(phase.is_augmented for phase in phases(recipe.name))
    ]
    assert augmented == ["real_with_augmentation"]


def test_pairs_are_within_a_regime_within_a_source_or_against_real():
    pairs = regimes.list_pairs(regimes.list_recipes(CONFIG, ["a", "b"]))
    for pair in (
        ("a", "real"),
        ("b", "a"),
        ("real_and_synthetic/a", "a"),
        ("synthetic_then_real/a", "real_and_synthetic/a"),
        ("real_with_augmentation", "real"),
        ("all_real", "real"),
        ("reference/efficientnet_lite0", "real"),
    ):
        assert pair in pairs
    assert ("real_and_synthetic/a", "b") not in pairs
    assert len(pairs) == len(set(pairs))


def test_a_class_that_an_arm_lacks_is_left_out():
    sets = {**SETS, "real": [*SETS["real"], Item("p", Path("p.png"), "pituitary", "p")]}
    assert regimes.match_counts(sets, None) == COUNTS


def test_too_many_slices_are_refused():
    with pytest.raises(SampleSizeError, match=r"num_images is 14, 7 of each .* 'b' holds 5"):
        regimes.match_counts(SETS, 14)


def test_arms_without_a_tumour_are_refused():
    healthy = [item for item in SETS["a"] if item.label == "notumor"]
    with pytest.raises(SampleSizeError, match=r"found in common \['notumor'\] .*glioma: a has 0"):
        regimes.match_counts({**SETS, "a": healthy}, None)


CURVE = CONFIG.model_copy(update={"regimes": ("real",), "references": (), "ratios": (0, 1, 2)})


def test_the_curve_in_n_adds_synthetic_slices_to_the_same_real_ones():
    counts = regimes.match_ratio_counts(SETS, COUNTS, CURVE, ["a", "b"])
    assert counts == {"notumor": 2, "glioma": 2}  # the poorest arm has five of each, two for each
    recipes = [r for r in regimes.list_recipes(CURVE, ["a", "b"]) if r.ratio is not None]
    laid_out = {r.name: lay_out(r, ratio_counts=counts) for r in recipes}
    assert {name: kinds(*found) for name, found in laid_out.items()} == {
        "ratio/0": (4, 0), "ratio/1/a": (4, 4), "ratio/1/b": (4, 4), "ratio/2/a": (4, 8),
        "ratio/2/b": (4, 8),
    }  # fmt: skip
    assert {phase.num_steps for found in laid_out.values() for phase in found} == {9}
    real, once, twice = (set(laid_out[name][0].items) for name in ("ratio/0", "ratio/1/a",
                                                                   "ratio/2/a"))  # fmt: skip
    assert real < once < twice


def test_the_curve_in_n_is_compared_with_real_slices_alone():
    config = CURVE.model_copy(update={"ratio_arms": ("b",), "regimes": ("real", "synthetic")})
    recipes = regimes.list_recipes(config, ["a", "b"])
    assert [r.name for r in recipes if r.ratio] == ["ratio/1/b", "ratio/2/b"]
    pairs = [pair for pair in regimes.list_pairs(recipes) if "ratio" in str(pair)]
    assert pairs == [("ratio/1/b", "ratio/0"), ("ratio/2/b", "ratio/0")]


def test_a_ratio_beyond_what_an_arm_has_is_refused():
    config = CURVE.model_copy(update={"ratios": (0, 6)})
    with pytest.raises(SampleSizeError, match=r"asks for 6 synthetic .* but 'b' holds 5 of 'not"):
        regimes.match_ratio_counts(SETS, COUNTS, config, ["a", "b"])
    assert regimes.match_ratio_counts(SETS, COUNTS, CONFIG, ["a", "b"]) == {}
