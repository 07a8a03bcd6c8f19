import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import registry
from pipeline.errors import DataError
from stages.caption.survey import NOT_A_CAPTION, print_survey, survey_file

GOOD = "tumor: yes; location: left falx; size: small; general description: " + "a mass " * 50
LONG = "tumor: yes; location: " + "a b " * 20 + "; size: " + "c " * 40
LINES: list[Any] = [
    {"file_name": "glioma/1.jpg", "text": GOOD},
    {"file_name": "notumor/2.jpg", "text": '{"tumor": false, "orientation": "saggital"}'},
    {"file_name": "glioma/3.jpg", "text": "I cannot help with that."},
    {"file_name": "glioma/4.jpg", "text": "Nothing to see: a scan."},
    {"file_name": "glioma/5.jpg", "text": "  "},
    {"file_name": "glioma/6.jpg", "text": None},
    {"file_name": 7, "text": "tumor: no"},
    {"file_name": "glioma/8.jpg", "text": LONG},
    ["no", "object"],
]


@pytest.fixture(autouse=True)
def words_are_tokens(add_file: Callable[..., Path]) -> None:
    """Count words: the real tokenizers have their own tests."""
    add_file(registry.BASE_MODELS, "words")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "captions.jsonl"
    rows = [json.dumps(line).encode() for line in LINES]
    file.write_bytes(b"\n".join([*rows, b"", b"{cut", b'"\xff\xfe"']) + b"\n")
    return file


def test_every_line_is_parsed_or_counted_with_its_reason(path: Path) -> None:
    found = survey_file(path, "words")
    assert (found["lines"], found["parsed"], found["failed"]) == (11, 2, 9)
    assert found["reasons"] == {
        NOT_A_CAPTION: 5,
        "the caption states neither a tumor nor a place, size or orientation": 2,
        "the caption is empty": 1,
        "the fields alone take 86 of 77 tokens": 1,
    }
    assert [failure["line"] for failure in found["failures"]] == [3, 4, 5, 6, 7, 8, 9, 11, 12]
    assert found["failures"][0]["file_name"] == "glioma/3.jpg"
    assert "I cannot help with that." in found["failures"][0]["reason"]
    assert found["failures"][4]["file_name"] is None


def test_fill_rates_and_lengths_are_of_the_parsed(path: Path) -> None:
    found = survey_file(path, "words")
    assert found["fill_rate"]["location"] == 1  # of the one that states a tumor
    assert found["fill_rate"]["shape"] == 0
    assert found["fill_rate"]["orientation"] == 0.5
    assert found["num_with_tumor"] == 1
    assert found["tokens"]["before"]["share_over"] == 0.5
    assert found["tokens"]["before"]["max"] == 111
    assert (found["tokens"]["after"]["max"], found["tokens"]["after"]["over"]) == (77, 0)
    assert found["distinct"] == {"raw": 2, "text": 2}
    json.dumps(found, allow_nan=False)


def test_it_prints_what_it_found(path: Path) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    print_survey(survey_file(path, "words"), console)
    text = console.export_text()
    for words in (
        "captions.jsonl: 11 lines",
        "parsed 2 (18.18%), failed 9",
        "5: the line is no object",
        "line 3 (glioma/3.jpg): the caption states neither",
        "and 4 more; --json lists them",
        "1 state a tumor",
        "over 77",
        "1 (50.0%)",
        "0 (0.0%)",
        "as the tokenizers of words count",
        "distinct captions: 2 as written, 2 rendered",
    ):
        assert words in text, words


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file '.*nowhere\.jsonl'; expected JSON Lines"):
        survey_file(tmp_path / "nowhere.jsonl", "tiny_sdxl")


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"empty\.jsonl holds no line"):
        survey_file(tmp_path / "empty.jsonl", "tiny_sdxl")
