"""Keys and broken JSON; the published spellings are in test_tumor_report."""

import doctest

import pytest

from stages.components.tumor_report import _entries as entries
from stages.components.tumor_report._entries import read_fields
from stages.components.tumor_report.parsing import parse


def test_doctests() -> None:
    assert doctest.testmod(entries).failed == 0


@pytest.mark.parametrize(
    "text",
    [
        '{"tumor": false, "location": null, "general_description": "Axial brain',
        '{"tumor": false, "orientation": "axial", "size": "sma',
        '{"tumor": false, "orientation": "axial",',
        "{'tumor': False, 'size': None, 'orientation': 'axial'}",
        '{"report": {"tumor": false, "orientation": "axial"}}',
        '{"tumor": no, "orientation": axial}',
        '{"has_tumor": "no", "general-description": "axial"}',
        '{"tumor": false, "orientation": "axial"}, {"tumor": true}',
    ],
)
def test_broken_json_never_turns_into_its_opposite(text: str) -> None:
    """As prose, each of these would assert a tumor, since the word stands in it."""
    report = parse(text)
    assert report.tumor is False
    assert report.orientation == "axial"
    assert (report.size, report.location) == (None, None)


def test_a_cut_value_counts_for_the_description_only() -> None:
    found = read_fields('{"tumor": true, "shape": "round", "intensity": "hyper')
    assert found == {"tumor": "true", "shape": "round"}
    assert read_fields('{"description": "a \\"well\\" seen, mas') == {
        "description": 'a "well" seen, mas'
    }


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("tumor_present", "tumor"),
        ("Tumour presence", "tumor"),
        ("tumor-location", "location"),
        ("laterality", "side"),
        ("tumor size", "size"),
        ("signal_intensity", "intensity"),
        ("plane", "orientation"),
        ("general description", "description"),
        ("general-description", "description"),
        ("generaldescription", "description"),
    ],
)
def test_keys_in_every_spelling(key: str, field: str) -> None:
    assert read_fields(f"{key}: x") == {field: " x"}
    assert read_fields(f'{{"{key}": "x"}}') == {field: "x"}


def test_prose_has_no_fields() -> None:
    assert read_fields("The MRI shows a tumor.") is None
    assert read_fields('{"confidence": 0.5}') == {}  # nor is it prose
