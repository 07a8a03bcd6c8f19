import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.contracts import Artifact, CaptionRecord, write_records
from pipeline.errors import DataError
from stages.caption.comparison import (
    compare,
    compare_pair,
    print_comparison,
    read_artifact,
    read_file,
)

LEFT = "tumor: yes; location: left frontal lobe; size: small; orientation: axial"
RIGHT = "tumor: yes; location: right frontal lobe; size: small; description: a glioma, axial"
NONE = "tumor: no; orientation: coronal"


def write(path: Path, texts: dict[str, str]) -> Path:
    rows = [json.dumps({"file_name": name, "text": text}) for name, text in texts.items()]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def first(tmp_path: Path) -> Path:
    names = [f"Training/glioma/g{index}.jpg" for index in range(4)]
    texts = dict(zip(names, [LEFT, LEFT, RIGHT, NONE], strict=True))
    return write(tmp_path / "first.jsonl", {**texts, "Training/notumor/n0.jpg": NONE})


@pytest.fixture
def second(tmp_path: Path) -> Path:
    names = [f"elsewhere/glioma/g{index}.png" for index in range(4)]
    texts = dict(zip(names, [LEFT, RIGHT, RIGHT, "no idea"], strict=True))
    return write(tmp_path / "second.jsonl", {**texts, "elsewhere/notumor/n0.png": NONE})


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact[CaptionRecord]:
    root = tmp_path / "caption"
    root.mkdir()
    records = [
        CaptionRecord(
            file_name=f"images/train/{name}.png",
            text="x",
            slice_id=name,
            label="glioma",
            split="train",
            status="ok" if raw else "failed",
            report=None,
            raw=raw,
            num_tokens=3,
        )
        for name, raw in (("g0", LEFT), ("g1", LEFT), ("g2", ""))
    ]
    write_records(root / "records.jsonl", records)
    row: dict[str, Any] = {
        "field": "side",
        "reference": "mask",
        "majority": 0.5,
        "accuracy": {"value": 0.825, "low": 0.7, "high": 0.9},
    }
    manifest = {
        "stage": "caption",
        "config": {"vlm": {"name": "ovis2", "settings": {}}},
        "notes": {"agreement": [row]},
    }
    return Artifact(root, "0" * 64, CaptionRecord, manifest)


def show(found: dict[str, Any]) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    print_comparison(found, console)
    return console.export_text()


def test_files_are_scored_against_their_folders(first: Path, second: Path) -> None:
    found = compare([read_file(first), read_file(second)])
    rows = {row["field"]: row for row in found["sets"][0]["agreement"]}
    assert set(rows) == {"tumor", "type"}
    assert rows["tumor"]["accuracy"] == {"value": 0.8, "low": None, "high": None}
    assert rows["tumor"]["majority"] == 0.8
    assert rows["type"]["accuracy"]["value"] == 0.25
    assert rows["type"]["reference"] == "folder label"
    assert [item["failed"] for item in found["sets"]] == [0, 1]
    assert found["sets"][0]["fill_rate"]["side"] == 1


def test_kappa_of_a_pair_is_over_what_both_state(first: Path, second: Path) -> None:
    rows = {row["field"]: row for row in compare_pair(read_file(first), read_file(second))}
    assert (rows["tumor"]["n"], rows["tumor"]["kappa"]) == (4, 1)
    assert (rows["orientation"]["n"], rows["orientation"]["kappa"]) == (4, 1)
    # left left right / left right right: 2/3 agree, 4/9 expected
    assert rows["side"]["n"] == 3
    assert rows["side"]["agreement"] == pytest.approx(2 / 3)
    assert rows["side"]["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    assert (rows["size"]["agreement"], rows["size"]["kappa"]) == (1, None)  # always "small"
    assert (rows["shape"]["n"], rows["shape"]["agreement"], rows["shape"]["kappa"]) == (
        0,
        None,
        None,
    )


def test_the_tables_have_the_posters_form(first: Path, second: Path) -> None:
    text = show(compare([read_file(first), read_file(second)]))
    head = next(line for line in text.splitlines() if "tumor" in line and "location" in line)
    assert head.split()[:6] == ["tumor", "location", "size", "shape", "intensity", "orientation"]
    rows = [line.split() for line in text.splitlines() if line.startswith("first ")]
    assert rows[0] == ["first", ".80", "–", "–", "–", "–", "–", "–", ".25"]
    assert rows[1][:3] == ["first", "1", "1"]
    assert "Share right, against folder label" in text
    assert "first / second" in text
    assert ".40 (3)" in text


def test_an_artifact_brings_its_recorded_agreement(
    artifact: Artifact[CaptionRecord], first: Path
) -> None:
    found = compare([read_artifact(artifact), read_file(first)])
    assert found["sets"][0]["name"] == "ovis2"
    assert found["sets"][0]["failed"] == 1
    side = next(row for row in found["pairs"] if row["field"] == "side")
    assert (side["n"], side["agreement"]) == (2, 1)
    text = show(found)
    assert "Share right, against folder label or mask" in text
    assert ".82" in text
    assert "always the commonest answer" in text


def test_one_set_alone_has_no_pairs(artifact: Artifact[CaptionRecord]) -> None:
    found = compare([read_artifact(artifact)])
    assert found["pairs"] == []
    assert "kappa" not in show(found)


def test_sets_of_one_name_are_numbered(first: Path) -> None:
    found = compare([read_file(first), read_file(first)])
    assert [item["name"] for item in found["sets"]] == ["first (1)", "first (2)"]
    assert found["pairs"][0]["second"] == "first (2)"
    assert found["pairs"][0]["kappa"] == 1


def test_equal_stems_need_the_whole_name(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"a/1.jpg": LEFT, "b/1.jpg": NONE})
    assert set(read_file(path).reports) == {"a/1", "b/1"}
    assert read_file(path).agreement == []


def test_sets_without_a_common_slice_are_an_error(first: Path, tmp_path: Path) -> None:
    other = read_file(write(tmp_path / "other.jsonl", {"z.jpg": LEFT}))
    with pytest.raises(DataError, match=r"no slice in common: the first of one is 'g0', .* 'z'"):
        compare([read_file(first), other])


def test_another_stages_artifact_is_an_error(artifact: Artifact[CaptionRecord]) -> None:
    wrong = Artifact(artifact.root, "", CaptionRecord, {**artifact.manifest, "stage": "generate"})
    with pytest.raises(DataError, match="is an artifact of 'generate'; expected one of 'caption'"):
        read_artifact(wrong)


def test_missing_and_empty_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder '.*nowhere'"):
        read_file(tmp_path / "nowhere")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl holds no line"):
        read_file(tmp_path / "empty.jsonl")
