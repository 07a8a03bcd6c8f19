import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app, terminal
from pipeline.contracts import ScoreRecord
from pipeline.errors import DataError
from pipeline.run import manifest
from pipeline.run.plan import STAGES
from tests.pipeline.conftest import FakeStages

SCORE = ScoreRecord(
    experiment="trial",
    arm="a4",
    stage="evaluate",
    metric="kid",
    features="efficientnet_lite0",
    group="all",
    value=0.125,
    low=0.1,
    high=None,
    n_real=20,
    n_synthetic=8,
    higher_is_better=False,
)


class Command:
    """Runs `mrisynth` on the fake experiment."""

    def __init__(self, config: Path, data_dir: Path) -> None:
        self.options = ["--config", str(config), "--data-dir", str(data_dir)]
        self.folder = data_dir / "runs" / "trial"

    def __call__(self, command: str, *options: str, bare: bool = False) -> Any:
        words = command.split() + ([] if bare else self.options)
        return CliRunner().invoke(app.app, [*words, *options])


@pytest.fixture
def mrisynth(experiment_file: Path, tmp_path: Path, fakes: FakeStages) -> Command:
    return Command(experiment_file, tmp_path / "data")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "error" if "VERBOSITY" in name else "1")


def test_help_loads_no_model_code() -> None:
    code = (
        "import sys, pipeline.cli.app;"
        "heavy = {'torch', 'numpy', 'pydantic', 'transformers', 'diffusers', 'rich'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        "",
        *STAGES,
        "run",
        "status",
        "verify",
        "check",
        "results",
        "compare",
        "embedded build",
        "clean",
        "export",
    ],
)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app.app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "--help" in result.output


def test_stage_commands_are_the_stages() -> None:
    assert tuple(app.STAGE_HELP) == STAGES


def test_run_names_the_page(mrisynth: Command) -> None:
    result = mrisynth("run")
    assert result.exit_code == 0, result.output
    assert "[1/14] preprocess\n" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("index.html")


def test_quiet_run_says_nothing(mrisynth: Command) -> None:
    assert mrisynth("--quiet run").output == ""
    assert mrisynth("run", "--quiet").output == ""


def test_run_until_and_set(mrisynth: Command, fakes: FakeStages) -> None:
    result = mrisynth("run", "--until", "caption", "--set", "caption.vlm=model", "--arm", "b4")
    assert result.exit_code == 0, result.output
    assert fakes.names() == ["preprocess", "caption"]
    assert fakes.calls[1][1].vlm.name == "model"


def test_dry_run(mrisynth: Command, fakes: FakeStages) -> None:
    result = mrisynth("run", "--dry-run")
    assert result.exit_code == 0
    assert "missing  finetune [a8]: never made" in result.output
    assert fakes.calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--set", "finetune.lora_rnak=3"],
            "finetune.lora_rnak: unknown key; did you mean 'lora_r",
        ),
        (["--arm", "zz"], "UsageError: --arm: no arm named 'zz'"),
        (["--until", "zz"], "UsageError: --until: no stage named 'zz'"),
        (["--engine", "cluster"], "UsageError: --engine: no engine named 'cluster'"),
        (["--config", "nowhere.yaml"], "ConfigError: 1 problem in nowhere.yaml"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_bad_command_or_config_is_exit_2(
    mrisynth: Command, options: list[str], message: str
) -> None:
    result = mrisynth("run", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_failed_run_is_exit_1_without_traceback(mrisynth: Command, fakes: FakeStages) -> None:
    fakes.fail["caption"] = DataError("slice 's3' cannot be read")
    result = mrisynth("run")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "DataError: slice 's3' cannot be read"
    assert "Traceback" not in result.output


def test_verbose_failure_keeps_the_traceback(mrisynth: Command, fakes: FakeStages) -> None:
    fakes.fail["preprocess"] = DataError("slice 's3' cannot be read")
    result = mrisynth("run", "--verbose")
    assert isinstance(result.exception, DataError)


def test_interruption_is_exit_130(mrisynth: Command, fakes: FakeStages) -> None:
    fakes.fail["caption"] = KeyboardInterrupt()
    result = mrisynth("run")
    assert result.exit_code == 130
    assert "interrupted; what is done is kept" in result.stderr


def test_stage_alone(mrisynth: Command, fakes: FakeStages) -> None:
    assert mrisynth("preprocess").exit_code == 0
    result = mrisynth("finetune")
    assert result.exit_code == 1
    assert "MissingArtifactError: finetune needs caption [a4, a8]" in result.stderr
    assert f"mrisynth caption {mrisynth.options[0]} {mrisynth.options[1]}" in result.stderr
    assert mrisynth("finetune", "--upstream").exit_code == 0
    assert fakes.names().count("preprocess") == 1


def test_then_report(mrisynth: Command, fakes: FakeStages) -> None:
    mrisynth("run")
    fakes.calls.clear()
    result = mrisynth("evaluate", "--then-report", "--set", "evaluate.num_bootstrap=3")
    assert result.exit_code == 0, result.output
    assert fakes.names() == ["evaluate", "report"]


def test_status(mrisynth: Command) -> None:
    mrisynth("run", "--until", "preprocess")
    assert mrisynth("status").stdout.splitlines()[:2] == [
        "fresh    preprocess",
        "missing  caption [a4, a8]: never made",
    ]
    rows = json.loads(mrisynth("status", "--json").stdout)
    assert [row["state"] for row in rows].count("fresh") == 1
    assert rows[1]["arms"] == ["a4", "a8"]


def test_verify_finds_damage_and_its_advice_works(mrisynth: Command) -> None:
    mrisynth("run")
    assert mrisynth("verify").stdout == "14 artifacts are as they were made, by size\n"
    (path,) = mrisynth.folder.glob("preprocess/*/records.jsonl")
    path.write_text(path.read_text().replace("preprocess", "processpre"))
    assert mrisynth("verify").exit_code == 0
    result = mrisynth("verify", "--deep")
    assert result.exit_code == 1
    fault, advice, folder = result.stdout.splitlines()
    assert fault == "preprocess: records.jsonl has changed"
    assert advice.startswith("1 of 14 damaged; delete them, then `mrisynth run --config ")
    shutil.rmtree(folder.strip())
    assert "1 of 14 artifacts made" in mrisynth("run").stderr
    assert mrisynth("verify", "--deep").exit_code == 0

    (path.parent / "manifest.json").write_text("{")
    path.unlink()
    assert "preprocess: " in mrisynth("verify").stdout
    assert "stale    preprocess: " in mrisynth("status").stdout
    assert "1 of 14 artifacts made" in mrisynth("run").stderr


def test_clean_waits_for_no_run(mrisynth: Command, tmp_path: Path) -> None:
    clean = ["clean", "--data-dir", str(tmp_path / "data")]
    assert CliRunner().invoke(app.app, clean).exit_code == 0  # there is nothing yet
    mrisynth("run")
    (tmp_path / "data" / "raw").mkdir()
    with manifest.using(tmp_path / "data"):
        result = CliRunner().invoke(app.app, clean)
    assert result.exit_code == 1
    assert "ArtifactError: a run is at work in " in result.stderr
    assert mrisynth.folder.is_dir()
    with manifest.using(tmp_path / "data", is_alone=True):
        assert "somebody is cleaning up" in mrisynth("run", "--set", "seed=9").stderr
    assert CliRunner().invoke(app.app, clean).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".lock", "raw"]


def test_check(mrisynth: Command) -> None:
    result = mrisynth("check")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "ready"
    result = mrisynth("check", "--set", "preprocess.source.settings.root=gone")
    assert result.exit_code == 1
    assert "sources/folder: no folder 'gone'; put the data there" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 problem"


def test_results(mrisynth: Command, fakes: FakeStages) -> None:
    assert "no scores yet" in mrisynth("results").stdout
    assert json.loads(mrisynth("results", "--json").stdout) == []
    fakes.records = {"evaluate": [SCORE], "classify": [SCORE]}
    mrisynth("run")
    rows = json.loads(mrisynth("results", "--json").stdout)
    assert rows == [SCORE.model_dump(mode="json")] * 2
    table = mrisynth("results").stdout
    assert "kid ↓" in table
    assert "0.125" in table


def test_results_shows_headlines_and_the_rest_on_request(
    mrisynth: Command, fakes: FakeStages
) -> None:
    changes: list[dict[str, Any]] = [
        {"arm": "a4"},
        {"arm": "a4", "group": "glioma"},
        {"arm": "a8", "metric": "density"},
        {"arm": "a8", "features": "dinov2"},
        {"arm": "real"},
    ]
    rows = [SCORE.model_copy(update=change) for change in changes]
    fakes.records = {"evaluate": list(rows), "classify": []}
    mrisynth("run")

    def shown(*words: str) -> list[tuple[str, ...]]:
        lines = mrisynth("results", *words).stdout.splitlines()
        return [tuple(line.split()[:2]) for line in lines if line.startswith(("a", "real"))][1:]

    assert shown() == [("a4", "evaluate"), ("real", "evaluate")]
    assert "2 of 5 scores; the others: --all" in mrisynth("results").stdout
    assert len(shown("--all")) == 5
    assert len(json.loads(mrisynth("results", "--json").stdout)) == 5
    assert shown("--metric", "density") == [("a8", "evaluate")]
    assert len(shown("--group", "glioma")) == 1
    assert [arm for arm, _ in shown("--arm", "a4", "--arm", "real", "--all")] == [
        "a4",
        "a4",
        "real",
    ]
    result = mrisynth("results", "--metric", "kdi")
    assert result.exit_code == 2
    assert "no score of this run has 'kdi'; there are density, kid" in result.stderr


def test_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Path, Path, dict[str, Any]]] = []

    def compare_folders(real: Path, synthetic: Path, **options: Any) -> list[ScoreRecord]:
        calls.append((real, synthetic, options))
        return [SCORE]

    monkeypatch.setitem(
        sys.modules, "stages.evaluate.compare", SimpleNamespace(compare_folders=compare_folders)
    )
    out = tmp_path / "new" / "scores.json"
    words = ["compare", "real", "made", "--features", "f", "--seed", "5"]
    result = CliRunner().invoke(app.app, [*words, "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "kid ↓" in result.stdout
    assert json.loads(out.read_text()) == [SCORE.model_dump(mode="json")]
    result = CliRunner().invoke(app.app, [*words, "--json", "-"])
    assert json.loads(result.stdout) == [SCORE.model_dump(mode="json")]
    for place in (tmp_path, out / "below.json"):
        result = CliRunner().invoke(app.app, [*words, "--json", str(place)])
        assert result.exit_code == 2
        assert f"UsageError: cannot write '{place}'" in result.stderr
    assert len(calls) == 2  # what cannot be written is not scored first
    real, synthetic, options = calls[0]
    assert (real, synthetic) == (Path("real"), Path("made"))
    assert (options["features"], options["seed"], options["device"]) == ("f", 5, "cpu")


def test_embedded_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def build(name: str, **options: Any) -> None:
        calls.append((name, options))
        options["progress"]("step 1")

    monkeypatch.setitem(sys.modules, "stages.embedded.build", SimpleNamespace(build=build))
    words = ["embedded", "build", "tiny_sd15", "--data-dir", str(tmp_path)]
    result = CliRunner().invoke(app.app, words)
    assert result.exit_code == 0, result.output
    assert "step 1" in result.stderr
    name, options = calls[0]
    assert name == "tiny_sd15"
    assert options["out_dir"] == Path("data/embedded")
    assert options["cache_dir"] == tmp_path / "cache" / "embedded"


def test_data_folder_from_the_environment(
    mrisynth: Command, experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRISYNTH_DATA", str(tmp_path / "elsewhere"))
    mrisynth(f"run --until preprocess --config {experiment_file}", bare=True)
    assert (tmp_path / "elsewhere" / "runs" / "trial" / "config.yaml").is_file()


def test_threads_follow_the_environment(
    mrisynth: Command, fakes: FakeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    mrisynth("run", "--until", "preprocess")
    assert fakes.calls[0][3].num_threads == 3


@pytest.mark.parametrize(
    ("options", "variable", "folder"),
    [([], "~/kept", "kept"), (["--data-dir=~/given"], "~/kept", "given"), ([], "", "data")],
)
def test_home_and_empty_variables_are_read_as_shells_do(
    mrisynth: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    variable: str,
    folder: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MRISYNTH_DATA", variable)
    monkeypatch.chdir(tmp_path)
    config = mrisynth.options[1]
    words = ["status", "--json", "--config", config, *options]
    rows = json.loads(CliRunner().invoke(app.app, words).stdout)
    assert (tmp_path / folder) == Path(rows[0]["folder"]).absolute().parents[3]


ODD = "refused\x1b]0;title\x07\x1b[2J\r\n2026-01-01T00:00:00+00:00 report done"
SHOWN = r"refused\u001b]0;title\u0007\u001b[2J\u000d\n2026-01-01T00:00:00+00:00 report done"


def test_what_a_server_says_steers_neither_terminal_nor_log(
    mrisynth: Command, fakes: FakeStages
) -> None:
    fakes.fail["caption"] = DataError(ODD)
    result = mrisynth("run")
    assert f"DataError: {SHOWN}\n" in result.stderr
    log = (mrisynth.folder / "run.log").read_text(encoding="utf-8")
    assert log.endswith(f"failed: DataError: {SHOWN}\n")
    assert "\x1b" not in result.output + log


@pytest.mark.parametrize("as_json", [True, False])
def test_tables_and_json_steer_no_terminal(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    score = SCORE.model_copy(update={"arm": "a\x1b[2J\x9b", "group": "[red]x[/red] :smile:"})
    terminal.print_scores([score], as_json)
    shown = capsys.readouterr().out
    assert r"a\u001b[2J\u009b" in shown
    assert "[red]x[/red] :smile:" in shown
    assert not {"\x1b", "\x9b"} & set(shown)


def test_a_terminals_status_line_takes_words_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with terminal.open_workplace(tmp_path) as workplace:
        workplace.say(f"caption: [red]{ODD}[/red]")
        workplace.progress(f"[bold]{ODD}")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())  # rich's own
    assert r"caption: [red]refused\u001b]0;title\u0007" in text.replace("\n", "")
    assert not {"\x1b", "\x07"} & set(text)
