"""Phantom subjects: determinism, ranges, orientation, and tumours that match their labels."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.components.phantoms.anatomy import make_grid, sample_brain, sample_warp
from stages.components.phantoms.brain import build_brain
from stages.components.phantoms.head import build_head
from stages.components.phantoms.sites import LOCATIONS
from stages.components.phantoms.subject import (
    LABELS,
    MODALITIES,
    PhantomSubject,
    build_subject,
)

SPACING_MM = 3.0
SEEDS = (0, 1, 2)
TUMOURS = LABELS[1:]
CASES = [(seed, label) for seed in SEEDS for label in TUMOURS]


@functools.cache
def subject(seed: int, label: str) -> PhantomSubject:
    """Build each subject of this file once."""
    return build_subject(seed, label, spacing_mm=SPACING_MM)


def world(subject: PhantomSubject, where: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the centroid in RAS mm of the voxels in `where`."""
    centre = np.append(np.argwhere(where).mean(axis=0), 1.0)
    moved: NDArray[np.float64] = (subject.affine @ centre)[:3]
    return moved


def test_one_seed_repeats_and_two_differ() -> None:
    again = build_subject(0, "glioma", spacing_mm=SPACING_MM)
    for modality in MODALITIES:
        assert np.array_equal(subject(0, "glioma").volumes[modality], again.volumes[modality])
    assert np.array_equal(subject(0, "glioma").mask, again.mask)
    other = subject(1, "glioma").volumes["t1"]
    assert np.abs(again.volumes["t1"] - other).mean() > 0.01


def test_a_volume_does_not_depend_on_which_others_are_asked_for() -> None:
    alone = build_subject(0, "meningioma", modalities=("flair",), spacing_mm=SPACING_MM)
    assert list(alone.volumes) == ["flair"]
    expected = subject(0, "meningioma").volumes["flair"]
    assert np.array_equal(alone.volumes["flair"], expected)


@pytest.mark.parametrize("label", TUMOURS)
def test_stripping_the_skull_leaves_the_tumour_and_its_truth(label: str) -> None:
    made = [
        build_subject(
            3, label, modalities=("t1ce",), spacing_mm=SPACING_MM, skull_stripped=stripped
        )
        for stripped in (False, True)
    ]
    assert np.array_equal(made[0].mask, made[1].mask) and made[0].location == made[1].location
    whole, brain = (subject.volumes["t1ce"] for subject in made)
    core = made[0].mask >= 2
    assert np.median(brain[core]) > 0.8 * np.median(whole[core])
    assert (brain > 0.2).sum() < 0.8 * (whole > 0.2).sum()


@pytest.mark.parametrize("label", LABELS)
def test_dtypes_ranges_and_shapes(label: str) -> None:
    made = subject(0, label)
    assert tuple(made.volumes) == MODALITIES
    for volume in made.volumes.values():
        assert volume.dtype == np.float32
        assert volume.shape == made.mask.shape
        assert volume.min() >= 0
        assert volume.max() <= 1
        assert volume.max() > 0.3
    assert made.mask.dtype == np.uint8
    assert made.affine.dtype == np.float64
    assert np.allclose(np.diag(made.affine), [SPACING_MM, SPACING_MM, SPACING_MM, 1])


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_tumour_there_is_no_truth(seed: int) -> None:
    made = subject(seed, "notumor")
    assert not made.mask.any()
    assert (made.location, made.side, made.shape, made.diameter_mm) == (None,) * 4


@pytest.mark.parametrize(("seed", "label"), CASES)
def test_tumour_truth_is_complete(seed: int, label: str) -> None:
    made = subject(seed, label)
    assert (made.mask >= 2).any()
    assert made.location in LOCATIONS
    assert made.shape in ("round", "oval", "irregular", "lobulated")
    assert made.diameter_mm is not None
    assert 4 < made.diameter_mm < 60


@pytest.mark.parametrize(("seed", "label"), CASES)
def test_side_is_the_side_of_the_centroid(seed: int, label: str) -> None:
    made = subject(seed, label)
    x = world(made, made.mask >= 2)[0]
    # The warp moves the head by up to about 10 mm against the MNI midline.
    bounds = {"left": (-90, 5), "right": (-5, 90), "midline": (-12, 12)}
    assert made.side is not None
    low, high = bounds[made.side]
    assert low < x < high


@pytest.mark.parametrize(("seed", "label"), CASES)
def test_the_head_is_the_same_away_from_the_lesion(seed: int, label: str) -> None:
    with_tumour, without = subject(seed, label), subject(seed, "notumor")
    centre = np.argwhere(with_tumour.mask).mean(axis=0).reshape(3, 1, 1, 1)
    away = np.sqrt(((np.indices(with_tumour.mask.shape) - centre) ** 2).sum(axis=0))
    changed = np.abs(with_tumour.volumes["t2"] - without.volumes["t2"])
    assert np.quantile(changed[away > 100 / SPACING_MM], 0.999) < 1e-3
    assert changed[with_tumour.mask >= 2].mean() > 0.02


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("label", ["meningioma", "pituitary"])
def test_enhancing_tumour_brightens_after_contrast(seed: int, label: str) -> None:
    made, without = subject(seed, label), subject(seed, "notumor")
    enhancing = made.mask == 2
    gain = made.volumes["t1ce"][enhancing].mean() / made.volumes["t1"][enhancing].mean()
    skull_to_skull = without.volumes["t1ce"].mean() / without.volumes["t1"].mean()
    assert gain > 1.15 * skull_to_skull


@functools.cache
def tissue_centres(seed: int) -> dict[str, NDArray[np.float64]]:
    """Return the centroid in RAS mm of all that is painted with each tissue."""
    grid = make_grid(SPACING_MM)
    warp = sample_warp(np.random.default_rng(seed), grid)
    brain = sample_brain(np.random.default_rng(seed), warp, warp)
    layers = build_head(np.random.default_rng(seed), warp, brain.hull_mm)
    layers += build_brain(np.random.default_rng(seed), warp, brain)
    centres: dict[str, NDArray[np.float64]] = {}
    for layer in layers:
        corner = np.array([part.start for part in layer.box])
        weights = layer.alpha.astype(np.float64)
        if weights.sum() > 0:
            index = [np.sum(g * weights) / weights.sum() for g in np.indices(weights.shape)]
            centres[layer.tissue] = (grid.affine() @ [*(np.array(index) + corner), 1.0])[:3]
    return centres


@pytest.mark.parametrize("seed", SEEDS)
def test_axes_are_ras(seed: int) -> None:
    centres = tissue_centres(seed)
    brain = centres["grey"]
    eye, tongue, cord = centres["lens"], centres["tongue"], centres["nerve"]
    assert eye[0] > 15  # the eye painted last is the right one
    assert eye[1] > brain[1] + 50
    assert eye[2] < brain[2]
    assert tongue[1] > brain[1] + 30
    assert tongue[2] < brain[2] - 60
    assert cord[2] < brain[2] - 60
    assert cord[1] < tongue[1] - 50


def test_head_stands_out_from_air() -> None:
    made = subject(0, "notumor")
    for volume in made.volumes.values():
        corners = volume[:4, :4, -4:]
        assert volume[volume.shape[0] // 2, volume.shape[1] // 2].max() > 4 * corners.mean()


def test_unknown_label_is_refused() -> None:
    with pytest.raises(ValueError, match="'metastasis'"):
        build_subject(0, "metastasis")


def test_unknown_modality_is_refused() -> None:
    with pytest.raises(ValueError, match="'swi'"):
        build_subject(0, "notumor", modalities=("swi",))


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        build_subject(-1, "notumor")
