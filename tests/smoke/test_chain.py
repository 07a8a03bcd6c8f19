"""All seven stages through the command line: tiny phantoms, random weights, seconds of training.

What the numbers are does not matter here; `make smoke` runs the same on the trained models.
"""

import json
import platform
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.run.plan import STAGES
from tests.fabricate.chain import write_chain

pytestmark = [pytest.mark.smoke, pytest.mark.slow]


def run(*words: str) -> Any:
    result = CliRunner().invoke(app.app, list(words))
    assert result.exit_code == 0, result.output
    return result


# What speaks of this machine: the manifest of each artifact, and what the run keeps beside them.
KEPT_HERE = {"manifest.json", "config.yaml", "run.log"}
HOST, USER = "host-of-this-test", "user-of-this-test"


@pytest.fixture
def _named_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give machine and user names that nothing else holds by chance."""
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr(platform, "node", lambda: HOST)
    for name in ("USER", "LOGNAME"):
        monkeypatch.setenv(name, USER)


def names_of_this_machine(folder: Path, words: Sequence[str]) -> list[str]:
    """List the files that may be passed on and hold one of the words."""
    return [
        f"{path.relative_to(folder)}: {word}"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in KEPT_HERE
        for word in words
        if word.encode() in path.read_bytes() or word in path.name
    ]


@pytest.mark.usefixtures("_named_machine")
def test_chain(tmp_path: Path) -> None:
    config = write_chain(tmp_path, ("tiny_sd15", "tiny_sdxl"))
    options = ["--config", str(config), "--data-dir", str(tmp_path / "data")]

    made = run("run", *options).stderr
    assert "12 of 12 artifacts made" in made
    assert made.splitlines()[-1].endswith("report.html")
    states = json.loads(run("status", "--json", *options).stdout)
    assert {row["stage"] for row in states} == set(STAGES)
    assert {row["state"] for row in states} == {"fresh"}
    assert "nothing to do: all 12 artifacts are fresh" in run("run", *options).stderr

    folder = tmp_path / "data" / "runs" / "chain"
    assert names_of_this_machine(folder, (HOST, USER, str(tmp_path), str(Path.cwd()))) == []

    scores = json.loads(run("results", "--json", *options).stdout)
    kids = {row["arm"] for row in scores if row["metric"] == "kid" and row["group"] == "all"}
    assert kids >= {
        "arm_tiny_sd15",
        "arm_tiny_sdxl",
        "base/tiny_sd15",
        "base/tiny_sdxl",
        "vae/tiny_sd15",
        "vae/tiny_sdxl",
        "real",
        "noise",
    }
    assert {row["stage"] for row in scores} == {"caption", "evaluate", "classify"}

    other = ["--set", "evaluate.num_bootstrap=5"]
    lines = run("evaluate", "--then-report", *options, *other).stderr
    done = [line.partition(" done in ")[0] for line in lines.splitlines() if " done in " in line]
    assert done == ["[1/1] evaluate", "[1/1] report"]
