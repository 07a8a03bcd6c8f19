"""`mrisynth captions`: parsing and printing are tested with their components."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.contracts import SCHEMA_VERSION, CaptionRecord, write_records
from pipeline.run import manifest


@pytest.fixture
def captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "error" if "VERBOSITY" in name else "1")

    path = tmp_path / "mine.jsonl"
    rows = [
        {"file_name": "glioma/1.jpg", "text": "tumor: yes; size: large"},
        {"file_name": "notumor/2.jpg", "text": "nothing"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("command", ["captions", "captions parse", "captions compare"])
def test_help_loads_no_model_code(command: str) -> None:
    code = (
        "import sys\nfrom pipeline.cli.app import app\n"
        f"try:\n    app({[*command.split(), '--help']!r})\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert "Usage" in done.stdout


def test_parse(captions: Path) -> None:
    result = CliRunner().invoke(app.app, ["captions", "parse", str(captions)])
    assert result.exit_code == 0, result.output
    assert "parsed 1 (50.00%), failed 1" in result.output
    result = CliRunner().invoke(app.app, ["captions", "parse", str(captions), "--json"])
    found = json.loads(result.stdout)
    assert (found["lines"], found["parsed"], found["tokenizer"]) == (2, 1, "tiny_sdxl")


def test_compare(captions: Path) -> None:
    words = ["captions", "compare", str(captions), str(captions)]
    result = CliRunner().invoke(app.app, words)
    assert result.exit_code == 0, result.output
    assert "mine (1) / mine (2)" in result.output
    found = json.loads(CliRunner().invoke(app.app, [*words, "--json"]).stdout)
    assert len(found["sets"]) == 2
    assert {row["field"] for row in found["pairs"]} >= {"tumor", "side", "type"}


def test_compare_takes_artifacts(captions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    record = CaptionRecord(
        file_name="images/train/1.png",
        text="tumor: yes",
        slice_id="1",
        label="glioma",
        split="train",
        status="ok",
        report=None,
        raw="tumor: yes; size: large",
        num_tokens=4,
    )
    write_records(folder / "records.jsonl", [record])
    found: dict[str, Any] = {key: kinds[0]() for key, kinds in manifest.KINDS.items()}
    vlm = {"name": "truth", "settings": {}}
    found |= {"schema_version": SCHEMA_VERSION, "stage": "caption", "config": {"vlm": vlm}}
    manifest.write(folder, found | {"notes": {"agreement": []}, "files": {}})
    words = ["captions", "compare", str(folder), str(captions), "--json"]
    pairs = json.loads(CliRunner().invoke(app.app, words).stdout)["pairs"]
    size = next(row for row in pairs if row["field"] == "size")
    assert (size["first"], size["second"]) == ("truth", "mine")
    assert (size["n"], size["agreement"]) == (1, 1)


@pytest.mark.parametrize(
    ("command", "message", "code"),
    [
        ("parse nowhere.jsonl", "DataError: no file 'nowhere.jsonl'", 1),
        ("compare nowhere.jsonl", "DataError: no file or folder 'nowhere.jsonl'", 1),
        ("compare {tmp}", "IncompleteArtifactError", 1),
        ("compare", "Missing argument", 2),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path, captions: Path, command: str, message: str, code: int
) -> None:
    words = ["captions", *command.format(tmp=tmp_path).split()]
    result = CliRunner().invoke(app.app, words)
    assert result.exit_code == code
    assert message in result.stderr
