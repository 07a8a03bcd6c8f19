import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.contracts import SliceRecord
from pipeline.errors import DataError
from stages.components.captioning.captioner import Failure
from stages.components.captioning.vlms import precomputed


def write(path: Path, rows: Sequence[object]) -> precomputed.Settings:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return precomputed.Settings(path=path)


def slice_of(original: str) -> SliceRecord:
    return SliceRecord(
        slice_id="s",
        subject_id=None,
        group_id="g",
        source="kaggle",
        split="train",
        label="glioma",
        image_path="s.png",
        original=original,
        original_width_px=1,
        original_height_px=1,
    )


def answers(settings: precomputed.Settings, *originals: str) -> list[str | Failure]:
    captioner = precomputed.load(settings)
    return list(captioner.describe([slice_of(name) for name in originals], []))


def test_captions_match_by_relative_path_or_by_a_stem_that_is_unique(tmp_path: Path) -> None:
    settings = write(
        tmp_path / "captions.jsonl",
        [
            {"file_name": "Training/glioma/Tr-gl_0010.jpg", "text": "one", "model": "x"},
            {"file_name": "a/0001.jpg", "text": "two"},
            {"file_name": "b/0001.jpg", "text": "three"},
            {"file_name": "b/0001.jpg", "text": "three"},
        ],
    )
    missing = Failure("no caption in captions.jsonl")
    found = answers(
        settings,
        "Training/glioma/Tr-gl_0010.jpg",
        "glioma\\Tr-gl_0010.png",
        "b/0001.jpeg",
        "c/0001.jpg",
        "other.jpg",
        "",
    )
    assert found == ["one", "one", "three", missing, missing, missing]


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('\n{"file_name": "a.jpg", "text": ""}\n  \n', encoding="utf-8")
    assert answers(precomputed.Settings(path=path), "a.jpg") == [""]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tumor: yes", r"line 2: expected an object with 'file_name' and 'text', found 'tumor: y"),
        ('{"file_name": "a.jpg"}', r"line 2: expected an object .*found '{\"file_name\""),
        ("[]", r"line 2: expected an object"),
        ('{"file_name": "a.jpg", "text": null}', r"line 2: .*must be strings, found 'a.jpg' and N"),
        ('{"file_name": "x.jpg", "text": "other"}', r"line 2: a second, different caption for 'x"),
    ],
)
def test_bad_lines_are_errors(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"file_name": "x.jpg", "text": "t"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        precomputed.load(precomputed.Settings(path=path))


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    settings = precomputed.Settings(path=tmp_path / "none.jsonl")
    [problem] = precomputed.check(settings)
    assert "none.jsonl" in problem
    assert "choose another caption.vlm" in problem
    for function in (precomputed.load, precomputed.input_digest):
        with pytest.raises(DataError, match=r"no file '.*none\.jsonl'"):
            function(settings)


def test_digest_follows_the_content(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", [{"file_name": "a", "text": "t"}])
    two = write(tmp_path / "2.jsonl", [{"file_name": "a", "text": "u"}])
    assert precomputed.check(one) == []
    assert precomputed.input_digest(one) != precomputed.input_digest(two)


def test_an_empty_file_has_no_captions() -> None:
    assert answers(precomputed.Settings(path=Path(os.devnull)), "a.jpg") == [
        Failure("no caption in null")
    ]
