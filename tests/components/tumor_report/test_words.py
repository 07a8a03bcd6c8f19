import doctest

import pytest

from stages.components.tumor_report import words as report_words
from stages.components.tumor_report._values import (
    MAX_VALUE_CHARS,
    find_values,
    is_unstated,
    read_location,
    read_orientation,
    read_side,
    read_type,
    read_value,
)
from stages.components.tumor_report.words import shorten


def test_doctests() -> None:
    assert doctest.testmod(report_words).failed == 0


@pytest.mark.parametrize(
    ("words", "location", "side"),
    [
        ("Lateral ventricle", "ventricle", None),
        ("left hemisphere", "cerebral hemisphere", "left"),
        ("right and left hemispheres", "cerebral hemisphere", "bilateral"),
        ("bifrontal lobes", "frontal lobe", "bilateral"),
        ("sella turcica", "sellar region", None),
        ("suprasellar cistern", "sellar region", None),
        ("pituitary/suprasellar", "sellar region", None),
        ("petrous right temporal", "skull base", "right"),
        ("petrous part of temporal bone", "skull base", None),
        ("temporal lobe/petrous part", "temporal lobe", None),
        ("temporal fossa", "skull base", None),
        ("right cerebello-pontine angle", "cerebellopontine angle", "right"),
        ("posterior fossa, left cerebellum", "posterior fossa", "left"),
        ("left parasagittal", "falx", "left"),
        ("cerebral convexity", "convexity", None),
        ("frontal convexity", "frontal lobe", None),
        ("brain stem/temporal lobe", "brainstem", None),
        ("pons", "brainstem", None),
        ("brain midline", None, "midline"),
        ("brain parenchyma", None, None),
    ],
)
def test_published_places(words: str, location: str | None, side: str | None) -> None:
    assert read_location(words) == (location, side, words)


@pytest.mark.parametrize("words", ["N/A", "none", "brain region", "not specified", " ", "unknown."])
def test_words_that_state_no_place(words: str) -> None:
    assert read_location(words) == (None, None, None)


@pytest.mark.parametrize(
    ("field", "words", "value"),
    [
        ("size", "medium & small", "medium"),
        ("size", "small/medium/large", None),
        ("size", "3 cm", "3 cm"),
        ("shape", "Roundish", "round"),
        ("shape", "round/ovoid", "round"),
        ("shape", "butterfly", "butterfly"),
        ("shape", "lobular", "lobulated"),
        ("shape", "not clearly defined", None),
        ("intensity", "hypodense", "hypointense"),
        ("intensity", "Bright", "hyperintense"),
        ("intensity", "heterogenous", "mixed"),
        ("intensity", "hyperintense with central hypointensity", "mixed"),
        ("intensity", "intermediate", "isointense"),
        ("intensity", "enhanced", "enhanced"),
        ("intensity", "low/isointense/high", None),
    ],
)
def test_published_values(field: str, words: str, value: str | None) -> None:
    assert read_value(field, words) == value


@pytest.mark.parametrize(
    ("words", "plane"),
    [
        ("saggital", "sagittal"),
        ("Sagittal", "sagittal"),
        ("transverse", "axial"),
        ("axial/saggital/coronal", None),
        ("parasagittal", None),
        ("para-sagittal", None),
        ("sagital", "sagittal"),
        ("mid-saggittal", "sagittal"),
        ("oblique", None),
    ],
)
def test_orientations(words: str, plane: str | None) -> None:
    assert read_orientation(words) == plane


def test_both_sides_are_bilateral() -> None:
    assert read_side("right frontal, left temporal") == "bilateral"
    assert read_side("both hemispheres") == "bilateral"
    assert read_side("midline, right of the falx") == "right"
    assert read_side("copyright") is None


def test_values_come_in_order_of_mention_and_once() -> None:
    text = "temporal lobe, frontal lobe and temporal pole"
    assert find_values("location", text) == ["temporal lobe", "frontal lobe"]


def test_long_words_are_cut_between_words() -> None:
    text = "deep " * 40
    assert shorten(text, 22) == "deep deep deep deep"
    assert shorten("x" * 30, 10) == "x" * 10
    words = read_location(text)[2]
    assert words is not None
    assert len(words) <= MAX_VALUE_CHARS


def test_unstated() -> None:
    assert is_unstated("")
    assert is_unstated("Not specified in the image")
    assert not is_unstated("notched")


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ("a high-grade glioma", "glioma"),
        ("Glioblastoma multiforme", "glioma"),
        ("suggestive of meningiomas", "meningioma"),
        ("a pituitary tumor", "pituitary"),
        ("a macroadenoma of the pituitary", "pituitary"),
        ("a mass in the pituitary region", None),
        ("meningioma or glioma", None),
        ("meningeal enhancement", None),
        ("", None),
    ],
)
def test_types_are_named_by_kind_and_not_by_place(words: str, label: str | None) -> None:
    assert read_type(words) == label
