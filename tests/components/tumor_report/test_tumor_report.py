import doctest
import itertools
import json

import pytest

from pipeline.contracts import Label, Side, TumorReport
from pipeline.errors import DataError
from stages.components.tumor_report import schema as tumor_report
from stages.components.tumor_report.parsing import parse
from stages.components.tumor_report.rendering import LABEL_WORDS, describe, render, with_label
from stages.components.tumor_report.schema import json_schema
from stages.components.tumor_report.words import (
    INTENSITIES,
    ORIENTATIONS,
    REGIONS,
    SHAPES,
    SIZES,
    location_words,
)

FULL = TumorReport(
    tumor=True,
    location="frontal lobe",
    side="left",
    size="small",
    shape="round",
    intensity="hyperintense",
    orientation="axial",
    general_description="T1-weighted contrast-enhanced axial brain MRI with a glioma",
)
SIDES: tuple[Side | None, ...] = (None, "left", "right", "midline", "bilateral")


def count_words(text: str) -> int:
    return len(text.split()) + 2


def test_doctests() -> None:
    assert doctest.testmod(tumor_report).failed == 0


def test_structured_text_is_the_posters() -> None:
    assert render(FULL, "structured", count_words) == (
        "tumor: yes; location: left frontal lobe; size: small; shape: round; "
        "intensity: hyperintense; orientation: axial; general description: "
        "T1-weighted contrast-enhanced axial brain MRI with a glioma"
    )


def test_without_tumor_the_plane_is_written() -> None:
    report = TumorReport(tumor=False, orientation="coronal", general_description="Normal brain.")
    text = render(report, "structured", count_words)
    assert text == "tumor: no; orientation: coronal; general description: Normal brain."
    assert parse(text) == report


def test_places_survive_rendering() -> None:
    for location, side in itertools.product((None, *REGIONS), SIDES):
        report = FULL.model_copy(update={"location": location, "side": side})
        assert parse(render(report, "structured", count_words)) == report
        assert parse(report.model_dump_json()) == report


@pytest.mark.parametrize("tumor", [True, None])
def test_closed_values_survive_rendering(tumor: bool | None) -> None:
    columns = (None, *SIZES), (None, *SHAPES), (None, *INTENSITIES), ORIENTATIONS
    for size, shape, intensity, orientation in itertools.product(*columns):
        report = TumorReport(
            tumor=tumor,
            size=size,
            shape=shape,
            intensity=intensity,
            orientation=orientation,
            general_description="glioma. Ends here; or not: it goes on.",
        )
        assert parse(render(report, "structured", count_words)) == report
        assert parse(report.model_dump_json()) == report


def test_json_keeps_unknown_and_free_words_of_a_place() -> None:
    report = FULL.model_copy(update={"side": "unknown", "location_text": "near the pole"})
    assert parse(report.model_dump_json()) == report


def test_a_side_is_written_beside_free_words() -> None:
    report = FULL.model_copy(update={"location": "skull base", "location_text": "sphenoid wing"})
    text = render(report, "structured", count_words)
    assert "location: left sphenoid wing;" in text
    assert parse(text).side == "left"


@pytest.mark.parametrize("words", ["frontal lobe", "Left frontal lobe"])
def test_words_that_repeat_region_and_side_are_dropped(words: str) -> None:
    report = FULL.model_copy(update={"location_text": words})
    assert "location: left frontal lobe;" in render(report, "structured", count_words).lower()
    assert parse(report.model_dump_json()) == FULL


def test_unknown_is_not_written() -> None:
    report = FULL.model_copy(update={"side": "unknown", "orientation": "unknown"})
    text = render(report, "structured", count_words)
    assert "unknown" not in text
    assert "location: frontal lobe;" in text


@pytest.mark.parametrize("limit", range(25, 45))
def test_descriptions_shrink_and_fields_stay(limit: int) -> None:
    report = FULL.model_copy(update={"general_description": "A mass, with oedema, " * 20})
    text = render(report, "structured", count_words, limit)
    assert count_words(text) == limit
    assert not text.endswith(",")
    whole = parse(text)
    assert whole.model_dump(exclude={"general_description"}) == FULL.model_dump(
        exclude={"general_description"}
    )


def test_no_room_for_a_description_drops_its_key() -> None:
    bare = FULL.model_copy(update={"general_description": None})
    fields = render(bare, "structured", len, 1000)
    assert render(FULL, "structured", len, len(fields)) == fields
    assert "description" not in fields


def test_a_description_may_stand_alone() -> None:
    report = TumorReport(general_description="a brain")
    assert render(report, "structured", count_words) == "general description: a brain"


def test_a_long_place_gives_way_to_its_region() -> None:
    report = FULL.model_copy(update={"location_text": "left frontal lobe, in the depth of it"})
    fields = "tumor: yes; location: left frontal lobe; size: small; shape: round; "
    assert render(report, "structured", count_words, 17).startswith(fields)
    assert "in the depth" in render(report, "structured", count_words)


def test_fields_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(DataError, match=r"fields alone take 16 of 10 tokens: 'tumor: yes; loc"):
        render(FULL, "structured", count_words, 10)


def test_sentences_read_back() -> None:
    report = FULL.model_copy(update={"general_description": "Seen on FLAIR."})
    text = render(report, "sentence", count_words)
    assert text == (
        "Axial brain MRI showing a small, round, hyperintense tumor located in the left frontal "
        "lobe. Seen on FLAIR."
    )
    assert parse(text) == report.model_copy(update={"general_description": text})
    without = TumorReport(tumor=False, orientation="sagittal")
    assert render(without, "sentence", count_words) == "Sagittal brain MRI showing no tumor."
    assert render(TumorReport(), "sentence", count_words) == "Brain MRI."
    finding = TumorReport(size="large", location="falx")  # nobody said that it is a tumor
    assert render(finding, "sentence", count_words) == (
        "Brain MRI showing a large finding located in the falx."
    )
    oval = TumorReport(tumor=True, shape="oval")
    assert render(oval, "sentence", count_words) == "Brain MRI showing an oval tumor."


def test_closed_values_survive_a_sentence() -> None:
    columns = (None, *REGIONS), (None, "left", "midline", "bilateral"), (None, *INTENSITIES)
    for location, side, intensity in itertools.product(*columns):
        report = FULL.model_copy(
            update={"location": location, "side": side, "intensity": intensity, "size": None}
        )
        text = render(report.model_copy(update={"general_description": None}), "sentence", len, 999)
        assert parse(text) == report.model_copy(update={"general_description": text})


@pytest.mark.parametrize("label", LABEL_WORDS)
def test_label_only(label: Label) -> None:
    assert (
        render(FULL, "label_only", count_words, label=label) == f"brain MRI, {LABEL_WORDS[label]}"
    )


def test_label_only_needs_a_label() -> None:
    with pytest.raises(DataError, match="'label_only' needs the label of the slice, found None"):
        render(FULL, "label_only", count_words)


def test_label_stands_before_the_description() -> None:
    assert with_label(FULL, "glioma").general_description == (
        "glioma. T1-weighted contrast-enhanced axial brain MRI with a glioma"
    )
    assert with_label(TumorReport(), "notumor").general_description == "no tumor."


def test_description_of_the_truth() -> None:
    assert describe("notumor", "flair", "coronal") == "FLAIR coronal brain MRI without a tumor"
    assert describe("pituitary", "unknown", "unknown") == "brain MRI with a pituitary tumor"


def test_place_words() -> None:
    assert location_words("falx", "unknown") == "falx"
    assert location_words(None, None) == ""


def test_schema_is_closed_and_bounded() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == list(schema["properties"])
    assert schema["properties"]["general_description"]["maxLength"] == 300
    assert set(schema["properties"]) == set(TumorReport.model_fields) - {"location_text"}
    for part in schema["properties"].values():
        assert "enum" in part or part["type"] == "boolean" or "maxLength" in part
    json.dumps(schema)


@pytest.mark.parametrize(
    "text",
    [
        "Tumor: yes; location: right frontal lobe; size: large; shape: irregular; intensity: mixed;"
        " orientation: axial; general description: A mass.",
        "tumor: yes; if yes—location: right frontal lobe; size: large; shape: irregular; "
        "intensity: mixed; orientation: axial; general description: A mass.",
        "tumor: yes; location: right frontal lobe; size: large; irregular; mixed; "
        "orientation: axial; general_description: A mass.",
        "tumor: yes; location: right frontal lobe; size: large; shape; irregular; intensity; mixed;"
        " orientation: axial; description: A mass.",
        "tumor: yes; location: right frontal lobe; size: large; irregular; mixed intensity; "
        "orientation: axial; General-Description: A mass.",
        "**Tumor:** yes\n- **Location:** right frontal lobe\n- **Size:** large\n"
        "* Shape: irregular\n* Signal intensity: mixed\nPlane: axial\n\n"
        "General Description: A mass.",
        "Here is the caption:\ntumor: yes, location: right frontal lobe, size: large, "
        "shape: irregular, intensity: mixed, orientation: axial, general description: A mass.",
        "general description: A mass.; tumor: yes; location: frontal lobe; side: right; "
        "size: large; shape: irregular; intensity: heterogeneous; orientation: axial",
        'Sure: ```json\n{"tumor": true, "location": "frontal lobe", "side": "right", '
        '"size": "large", "shape": "irregular", "intensity": "mixed", "orientation": "axial", '
        '"general_description": "A mass.", "confidence": 0.4}\n```',
        '{"Tumor": "yes", "location": ["right frontal lobe"], "size": "large", '
        '"shape": "irregular", "intensity": "mixed", "orientation": "axial", '
        '"general description": "A mass."}',
    ],
)
def test_spellings(text: str) -> None:
    report = parse(text)
    expected = TumorReport(
        tumor=True,
        location="frontal lobe",
        side="right",
        size="large",
        shape="irregular",
        intensity="mixed",
        orientation="axial",
        general_description="A mass.",
    )
    assert (
        report.model_copy(
            update={"general_description": (report.general_description or "").rstrip(";")}
        )
        == expected
    )


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("tumor: no; Axial T2-weighted MRI shows a normal brain.", None),
        (
            "tumor: no; general_description: Axial view; some fluid: none.",
            "Axial view; some fluid: none.",
        ),
        ("tumor: no; general description: axial; a; b", "axial; a; b"),
    ],
)
def test_descriptions_without_key_or_with_semicolons(text: str, description: str | None) -> None:
    report = parse(text)
    assert report.tumor is False
    assert report.orientation == "axial"
    assert report.general_description == (description or text.removeprefix("tumor: no; "))


def test_a_key_without_value_states_nothing() -> None:
    text = "tumor: yes; location: pituitary; size: large; shape; intensity; orientation: coronal"
    report = parse(text)
    assert (report.shape, report.intensity) == (None, None)
    assert (report.size, report.orientation) == ("large", "coronal")


def test_values_that_say_nothing_are_not_stated() -> None:
    report = parse("tumor: no; location: N/A; size: none; shape: n/a; intensity: unknown")
    assert report == TumorReport(tumor=False)
    assert parse("tumor: none; orientation: unknown") == TumorReport(
        tumor=False, orientation="unknown"
    )
    echo = "tumor: yes/no; location: brain region; size: small/medium/large; orientation: axial"
    assert parse(echo) == TumorReport(orientation="axial")


@pytest.mark.parametrize("text", ["", " \n"])
def test_empty_captions_are_an_error(text: str) -> None:
    with pytest.raises(DataError, match="the caption is empty"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "I cannot help with this image.",
        '{"tumor": null, "size": "n/a"}',
        "tumor: perhaps",
        "[1, 2]",
    ],
)
def test_captions_that_state_nothing_are_an_error(text: str) -> None:
    with pytest.raises(DataError, match=r"states neither a tumor nor") as caught:
        parse(text)
    assert repr(text) in str(caught.value)


def test_broken_json_is_read_as_text() -> None:
    assert parse('{"tumor": yes}\ntumor: yes; size: small').size == "small"
    assert parse("} the MRI shows a tumor {").tumor is True
    assert parse('["tumor"] {} tumor\ntumor: no').tumor is False
