import pytest

from stages.components.tumor_report.mirroring import mirror_words, mirrored_caption


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tumor: yes; location: left frontal lobe", "tumor: yes; location: right frontal lobe"),
        ("Right-sided, LEFTWARD; bright, bilateral", "Left-sided, RIGHTWARD; bright, bilateral"),
        ("left and right", "right and left"),
        ("sellar region, midline; upright", "sellar region, midline; upright"),
    ],
)
def test_sides_are_swapped_and_nothing_else(text: str, expected: str) -> None:
    assert mirror_words(text) == expected
    assert mirror_words(expected) == text


def test_only_planes_with_two_sides_are_mirrored() -> None:
    assert mirrored_caption("left", "axial", None) == "right"
    assert mirrored_caption("left", "unknown", "coronal") == "right"
    for planes in (("sagittal", None), ("unknown", None), ("axial", "sagittal")):
        assert mirrored_caption("left", *planes) is None
