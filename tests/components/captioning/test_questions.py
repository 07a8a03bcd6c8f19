import json
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.contracts import LABELS, SliceRecord, TumorReport
from stages.components.captioning.captioner import Failure
from stages.components.captioning.questions import Answer, bounded_schema, prompt_for, read_answer
from stages.components.tumor_report.parsing import parse
from stages.components.tumor_report.rendering import LABEL_WORDS


def make_slice(label: str) -> SliceRecord:
    return SliceRecord(
        slice_id="s-secret",
        subject_id="p-secret",
        group_id="g-secret",
        source="clinic-secret",
        split="train",
        label=label,
        image_path="secret.png",
        original="secret.jpg",
        original_width_px=1,
        original_height_px=1,
        truth=TumorReport(tumor=True, general_description="secret"),
    )


def test_blind_prompt_is_the_same_for_every_slice() -> None:
    prompts = {prompt_for("blind", make_slice(label)) for label in LABELS}
    assert len(prompts) == 1
    (prompt,) = prompts
    for words in ("glioma", "meningioma", "pituitary", "secret"):
        assert words not in prompt


@pytest.mark.parametrize("label", LABELS)
def test_poster_prompt_states_the_class_and_nothing_else_of_the_slice(label: str) -> None:
    prompt = prompt_for("poster", make_slice(label))
    assert f"diagnosis: {LABEL_WORDS[label]}." in prompt
    assert "secret" not in prompt
    assert not any(
        words in prompt for other, words in LABEL_WORDS.items() if other not in (label, "notumor")
    )


def test_prompts_name_every_value_and_field_of_the_schema() -> None:
    for name, rule in bounded_schema()["properties"].items():
        for style in ("blind", "poster"):
            prompt = prompt_for(style, make_slice("glioma"))
            assert f"- {name}: " in prompt
            assert all(value in prompt for value in rule.get("enum", []) if value is not None)


def rules(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from schema["properties"].values()


def test_everything_in_the_schema_is_bounded() -> None:
    schema = bounded_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == list(schema["properties"])
    for rule in rules(schema):
        assert rule["type"] == "boolean" or "enum" in rule or rule["maxLength"] <= 300
        if "enum" in rule:
            assert rule["type"] == ["string", "null"] or None not in rule["enum"]


GOOD = {
    "tumor": True,
    "location": "falx",
    "side": "left",
    "size": "small",
    "shape": "round",
    "intensity": "mixed",
    "orientation": "axial",
    "general_description": "Axial brain MRI with a tumor",
}


def test_an_answer_that_fits_is_taken_without_other_keys() -> None:
    answer = read_answer(json.dumps({"image_id": "a1", **GOOD}))
    assert answer.fits
    assert json.loads(answer.taken) == GOOD
    assert parse(answer.taken).location == "falx"
    assert read_answer(f"```json\n{json.dumps(GOOD)}\n```") == answer


@pytest.mark.parametrize(
    "change",
    [
        {"size": "tiny"},
        {"tumor": "yes"},
        {"general_description": "x" * 301},
        {"general_description": None},
        {"shape": ["round"]},
    ],
    ids=str,
)
def test_other_values_are_left_to_the_parser(change: dict[str, Any]) -> None:
    answer = read_answer(json.dumps(GOOD | change))
    assert not answer.fits
    assert json.loads(answer.taken) == GOOD | change


def test_missing_keys_are_left_to_the_parser() -> None:
    assert read_answer('{"tumor": false}') == Answer('{"tumor": false}', fits=False)


def test_prose_is_left_to_the_parser() -> None:
    assert read_answer(" No tumor is seen. ") == Answer("No tumor is seen.", fits=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty answer"),
        (" \n ", "empty answer"),
        ('{"tumor": false, "location"', "broken JSON"),
        ('{"tumor": false}}', "broken JSON"),
        ('{"age": 3, "a b": 1}', "keys outside the schema: a_b, age"),
        ("{}", "keys outside the schema: none"),
        ("<think>Left or right?", "empty answer"),
        ("<think>No tumor.</think>", "empty answer"),
        ('{"tumor": ' * 3000 + "}" * 3000, "broken JSON"),
    ],
)
def test_what_is_never_taken(text: str, reason: str) -> None:
    assert read_answer(text) == Answer(Failure(reason), fits=False)


def test_thoughts_are_no_answer() -> None:
    said = f"<think>A tumor? {{No}}.</think>{json.dumps(GOOD)}"
    assert read_answer(said) == read_answer(json.dumps(GOOD))
    assert read_answer("A tumor?</think>None.") == Answer("None.", fits=False)


@pytest.mark.parametrize(
    "text", ['{"tumor": true, "location": "\\ud800"}', "a tumour \ud800 there"]
)
def test_half_a_surrogate_pair_can_be_written_to_a_file(text: str) -> None:
    taken = read_answer(text).taken
    assert isinstance(taken, str)
    assert "?" in taken
    assert taken.encode("utf-8")
