import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline import files
from pipeline.contracts import SCRATCH, ArtifactWriter
from pipeline.errors import (
    ArtifactError,
    DataError,
    DiskError,
    MissingArtifactError,
    OutOfMemoryError,
    PipelineError,
    StaleArtifactError,
)
from pipeline.run import config, manifest, runner
from pipeline.run.plan import plan, standing
from pipeline.run.runner import Workplace
from pipeline.settings import RunConfig
from tests.pipeline.conftest import FakeStages, Row

Load = Callable[..., RunConfig]


@pytest.fixture
def one(experiment_file: Path) -> RunConfig:
    """An experiment of one arm."""
    data = yaml.safe_load(experiment_file.read_text())
    data["arms"] = [{"name": "a4"}]
    return config.build(data, where="test")


def states(settings: RunConfig, workplace: Workplace) -> dict[str, str]:
    return {item.node.stage: item.state for item in runner.status(settings, workplace)}


def folder_of(settings: RunConfig, workplace: Workplace, stage: str) -> Path:
    node = next(node for node in plan(settings) if node.stage == stage)
    return node.folder(workplace.experiment_dir(settings))


def test_whole_run_then_nothing_to_do(
    one: RunConfig, workplace: Workplace, fakes: FakeStages, said: list[str]
) -> None:
    runner.run(one, workplace)
    assert fakes.names() == [
        "preprocess",
        "caption",
        "finetune",
        "generate",
        "generate",
        "evaluate",
        "classify",
        "report",
    ]
    assert set(states(one, workplace).values()) == {"fresh"}
    runner.run(one, workplace)
    assert len(fakes.calls) == 8
    assert said[-1] == "nothing to do: all 8 artifacts are fresh"


def test_manifest_says_where_an_artifact_came_from(
    one: RunConfig, workplace: Workplace, fakes: FakeStages
) -> None:
    runner.run(one, workplace, until="finetune")
    made = manifest.read(folder_of(one, workplace, "finetune"))
    assert made["stage"] == "finetune"
    assert made["arm_names"] == ["a4"]
    assert made["config"]["lora_rank"] == 4
    assert made["config_digest"] == manifest.digest_of(made["config"])
    assert set(made["inputs"]) == {"preprocess", "caption", "base_models:tiny_a"}
    assert "stages/finetune/stage.py" in made["source_files"]
    assert (made["seed"], made["dtype"], made["device"]) == (7, "float32", "cpu")
    assert made["counts"] == {"written": 1}
    assert made["notes"] == {"visits": 1}
    assert made["resumed"] is False
    assert set(made["files"]) == {"journal.txt", "records.jsonl"}
    assert made["versions"]["torch"].startswith("2.")
    assert made["machine"]["cores"] >= 1
    assert made["peak_rss_mib"] > 10
    assert manifest.verify(folder_of(one, workplace, "finetune"), made, is_deep=True) == []


def test_stages_get_the_inputs_they_declare(
    load: Load, workplace: Workplace, fakes: FakeStages
) -> None:
    runner.run(load(), workplace)
    given = {name: inputs for name, _, inputs, _ in fakes.calls}
    assert [row.text for row in given["caption"].preprocess.records()] == ["preprocess"]
    assert list(given["classify"].generate) == ["a4", "a8", "b4"]
    assert list(given["evaluate"].generate) == ["a4", "a8", "b4", "base/tiny_a", "base/tiny_b"]
    assert given["generate"].finetune is None  # the last to run is a base model
    assert given["report"].caption["a4"].root == given["report"].caption["a8"].root
    assert given["report"].evaluate.record_type is given["caption"].preprocess.record_type


def test_stages_get_their_section_and_context(
    one: RunConfig, workplace: Workplace, fakes: FakeStages, said: list[str]
) -> None:
    runner.run(one, workplace, until="preprocess")
    _, section, _, context = fakes.calls[0]
    assert section == one.preprocess
    assert (context.experiment, context.seed, context.device) == ("trial", 7, "cpu")
    assert context.cache_dir == workplace.data_dir / "cache"
    assert context.cache_dir.is_dir()
    assert "preprocess: half way" in said


def test_config_and_log_are_kept(one: RunConfig, workplace: Workplace, fakes: FakeStages) -> None:
    runner.run(one, workplace, until="caption")
    folder = workplace.experiment_dir(one)
    assert config.load(folder / "config.yaml") == one
    lines = (folder / "run.log").read_text().splitlines()
    assert lines[0].endswith("[1/2] preprocess")
    assert lines[1].endswith("preprocess: half way")


def test_damage_that_was_mended_is_said_and_logged(
    one: RunConfig, workplace: Workplace, fakes: FakeStages, said: list[str]
) -> None:
    entry = workplace.data_dir / "cache" / "texts" / "0.json"
    entry.parent.mkdir(parents=True)
    entry.touch()

    def progress(line: str) -> None:
        if entry.exists():
            files.read_entry(entry, lambda path: json.loads(path.read_text()))
        said.append(line)

    runner.run(one, dataclasses.replace(workplace, progress=progress), until="preprocess")
    (line,) = [line for line in said if str(entry) in line]
    assert line.startswith(f"{entry}: a damaged entry of a cache, made again")
    assert line in (workplace.experiment_dir(one) / "run.log").read_text()


def test_what_a_killed_write_left_is_not_published(
    one: RunConfig, workplace: Workplace, fakes: FakeStages
) -> None:
    fakes.fail["preprocess"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runner.run(one, workplace, until="preprocess")
    (partial,) = workplace.experiment_dir(one).glob("preprocess/*.partial")
    files.temporary_name(partial / "records.jsonl").write_text("half")
    fakes.fail.clear()
    runner.run(one, workplace, until="preprocess")
    made = manifest.read(folder_of(one, workplace, "preprocess"))
    assert set(made["files"]) == {"journal.txt", "records.jsonl"}


class TestScratch:
    """What a stage needs to go on stays until the manifest is there, and is never published."""

    def test_is_neither_listed_nor_published(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages
    ) -> None:
        fakes.fail["preprocess"] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            runner.run(one, workplace, until="preprocess")
        (partial,) = workplace.experiment_dir(one).glob("preprocess/*.partial")
        ArtifactWriter(partial, Row).scratch("states/1").touch()
        fakes.fail.clear()
        runner.run(one, workplace, until="preprocess")
        final = folder_of(one, workplace, "preprocess")
        assert not (final / SCRATCH).exists()
        assert manifest.verify(final, manifest.read(final)) == []

    @pytest.fixture
    def killed(self, one: RunConfig, workplace: Workplace, fakes: FakeStages) -> Path:
        """Leave what a kill between manifest and rename leaves; forget that the stage ran."""
        runner.run(one, workplace, until="preprocess")
        final = folder_of(one, workplace, "preprocess")
        partial = final.rename(final.with_name(f"{final.name}.partial"))
        ArtifactWriter(partial, Row).scratch("states/1").touch()
        fakes.calls.clear()
        return partial

    def test_a_finished_partial_is_put_in_its_place(
        self,
        one: RunConfig,
        workplace: Workplace,
        fakes: FakeStages,
        said: list[str],
        killed: Path,
    ) -> None:
        assert states(one, workplace)["preprocess"] == "partial"
        runner.run(one, workplace, until="preprocess")
        assert fakes.calls == []
        assert states(one, workplace)["preprocess"] == "fresh"
        assert "preprocess: an earlier run finished it; put in its place" in said
        assert not killed.exists()
        assert not (folder_of(one, workplace, "preprocess") / SCRATCH).exists()

    @pytest.mark.parametrize(
        ("damage", "why"),
        [
            (lambda folder: (folder / "records.jsonl").write_text(""), "records.jsonl has 0 bytes"),
            (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
            (
                lambda folder: manifest.write(folder, manifest.read(folder) | {"digest": "0" * 64}),
                "its digest is 000000000000",
            ),
        ],
    )
    def test_one_that_does_not_fit_goes_on(
        self,
        one: RunConfig,
        workplace: Workplace,
        fakes: FakeStages,
        said: list[str],
        killed: Path,
        damage: Callable[[Path], object],
        why: str,
    ) -> None:
        damage(killed)
        runner.run(one, workplace, until="preprocess")
        assert fakes.names() == ["preprocess"]
        (line,) = [line for line in said if "is made again" in line]
        assert why in line
        final = folder_of(one, workplace, "preprocess")
        assert manifest.verify(final, manifest.read(final)) == []


class TestDisk:
    @pytest.mark.parametrize(
        ("error", "fault"),
        [
            (OSError(errno.ENOSPC, "No space left on device", "a.png"), "the disk is full"),
            (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
            (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
            (OSError(errno.EROFS, "Read-only file system", "a"), "may not be used"),
            (PermissionError(errno.EACCES, "Permission denied", "a"), "may not be used"),
        ],
    )
    def test_faults_are_one_line(
        self,
        one: RunConfig,
        workplace: Workplace,
        fakes: FakeStages,
        error: Exception,
        fault: str,
    ) -> None:
        fakes.fail["caption"] = error
        with pytest.raises(DiskError, match=rf"^caption \[a4\]: .*{fault}.*run the same command"):
            runner.run(one, workplace)
        fakes.fail.clear()
        runner.run(one, workplace, until="caption")
        assert states(one, workplace)["caption"] == "fresh"

    def test_a_log_that_cannot_be_written_ends_no_run(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages, said: list[str]
    ) -> None:
        (workplace.experiment_dir(one) / "run.log").mkdir(parents=True)
        runner.run(one, workplace, until="preprocess")
        assert fakes.names() == ["preprocess"]
        assert any(line.startswith("not logged: ") for line in said)


def test_changed_setting_reruns_what_depends_on_it(
    load: Load, workplace: Workplace, fakes: FakeStages
) -> None:
    runner.run(load(), workplace)
    fakes.calls.clear()
    runner.run(load("evaluate.num_bootstrap=3"), workplace)
    assert fakes.names() == ["evaluate", "report"]
    fakes.calls.clear()
    runner.run(load(), workplace)
    assert fakes.names() == []  # the earlier artifacts are still there


def test_dry_run_touches_nothing(
    one: RunConfig, workplace: Workplace, fakes: FakeStages, said: list[str]
) -> None:
    runner.run(one, workplace, dry_run=True)
    assert fakes.calls == []
    assert not workplace.data_dir.exists()
    assert said[0] == "missing  preprocess: never made"


class TestFailure:
    def test_leaves_a_partial_that_the_next_run_goes_on_with(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages
    ) -> None:
        fakes.fail["caption"] = DataError("slice 's3' cannot be read")
        with pytest.raises(DataError, match="'s3'"):
            runner.run(one, workplace)
        assert states(one, workplace) == {
            "preprocess": "fresh",
            "caption": "partial",
            "finetune": "missing",
            "generate": "missing",
            "evaluate": "missing",
            "classify": "missing",
            "report": "missing",
        }
        fakes.fail.clear()
        runner.run(one, workplace, until="caption")
        made = manifest.read(folder_of(one, workplace, "caption"))
        assert made["notes"] == {"visits": 2}
        assert made["resumed"] is True
        assert not list(workplace.experiment_dir(one).glob("caption/*.partial"))
        log = (workplace.experiment_dir(one) / "run.log").read_text()
        assert "failed: DataError: slice 's3' cannot be read" in log

    def test_interruption_says_how_to_go_on(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages, said: list[str]
    ) -> None:
        fakes.fail["preprocess"] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            runner.run(one, workplace)
        assert said[-1].startswith("interrupted; what is done is kept")
        assert states(one, workplace)["preprocess"] == "partial"

    def test_stage_without_records(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages
    ) -> None:
        fakes.silent.add("preprocess")
        with pytest.raises(PipelineError, match=r"preprocess ended without writing records.jsonl"):
            runner.run(one, workplace)

    def test_problems_are_listed_before_anything_runs(
        self, load: Load, workplace: Workplace, fakes: FakeStages
    ) -> None:
        settings = load("preprocess.source.settings.root=gone")
        with pytest.raises(
            PipelineError,
            match=r"1 problem, so nothing was started\n  sources/folder: no folder 'gone'",
        ):
            runner.run(settings, workplace)
        assert fakes.calls == []

    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("less")])
    def test_damaged_artifact_is_stale_and_its_advice_works(
        self,
        one: RunConfig,
        workplace: Workplace,
        fakes: FakeStages,
        damage: Callable[[Path], object],
    ) -> None:
        runner.run(one, workplace)
        fakes.calls.clear()
        before = manifest.read(folder_of(one, workplace, "preprocess"))["files"]
        damage(folder_of(one, workplace, "preprocess") / "records.jsonl")
        assert states(one, workplace)["preprocess"] == "stale"
        (folder_of(one, workplace, "caption") / "manifest.json").unlink()  # so it is to be made
        with pytest.raises(StaleArtifactError, match=r"damaged: records.jsonl .*Run `mrisynth p"):
            runner.run_stage(one, workplace, "caption")
        runner.run_stage(one, workplace, "preprocess")
        runner.run_stage(one, workplace, "caption")
        assert fakes.names() == ["preprocess", "caption"]
        assert manifest.read(folder_of(one, workplace, "preprocess"))["files"] == before
        assert set(states(one, workplace).values()) == {"fresh"}

    def test_damage_that_only_a_digest_shows_is_found_when_a_stage_stumbles_over_it(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages
    ) -> None:
        runner.run(one, workplace, until="preprocess")
        folder = folder_of(one, workplace, "preprocess")
        rows = folder / "records.jsonl"
        rows.write_text(rows.read_text().replace("preprocess", "processpre"))
        fakes.fail["caption"] = ValueError("not what it should be")
        with pytest.raises(
            ArtifactError,
            match=r"^caption .*ValueError.*: its input preprocess is damaged: records.jsonl has "
            f"changed. Delete {folder}, then run",
        ):
            runner.run(one, workplace)
        fakes.fail.clear()
        shutil.rmtree(folder)
        runner.run(one, workplace)
        assert set(states(one, workplace).values()) == {"fresh"}

    @pytest.mark.parametrize(
        "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
    )
    def test_lack_of_memory_is_one_clear_line(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages, error: Exception
    ) -> None:
        fakes.fail["caption"] = error
        with pytest.raises(
            OutOfMemoryError, match=r"^caption \[a4\]: memory ran out .*run the same"
        ):
            runner.run(one, workplace)

    def test_folder_that_is_removed_during_a_run_is_one_clear_line(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages
    ) -> None:
        """Whoever empties the data folder by hand asks no lock."""

        def remove(line: str) -> None:
            if line.startswith("caption"):
                shutil.rmtree(workplace.data_dir)

        with pytest.raises(ArtifactError, match=r"^caption \[a4\]: .*went while it was being used"):
            runner.run(one, dataclasses.replace(workplace, progress=remove))

    def test_folder_that_lost_its_manifest_is_made_again(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages
    ) -> None:
        runner.run(one, workplace, until="preprocess")
        (folder_of(one, workplace, "preprocess") / "manifest.json").unlink()
        found = runner.status(one, workplace)[0]
        assert found.state == "stale"
        assert "has no manifest.json" in found.reason
        runner.run(one, workplace, until="preprocess")
        assert fakes.names() == ["preprocess", "preprocess"]

    def test_artifact_being_made_elsewhere(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages
    ) -> None:
        final = folder_of(one, workplace, "preprocess")
        with (
            manifest.locked(final.with_name(f"{final.name}.lock")),
            pytest.raises(ArtifactError, match="another run"),
        ):
            runner.run(one, workplace)
        assert fakes.calls == []


class TestStageAlone:
    def test_runs_on_fresh_inputs(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages
    ) -> None:
        runner.run(one, workplace, until="preprocess")
        runner.run_stage(one, workplace, "caption")
        assert fakes.names() == ["preprocess", "caption"]

    def test_missing_input_names_the_command(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages
    ) -> None:
        with pytest.raises(
            MissingArtifactError,
            match=r"caption needs preprocess, which is missing \(never made\)\. "
            r"Run `mrisynth preprocess --config c.yaml` first, "
            r"or `mrisynth caption --config c.yaml --upstream`",
        ):
            runner.run_stage(one, workplace, "caption", config_path="c.yaml")
        assert fakes.calls == []

    def test_stale_input_says_why(
        self, load: Load, workplace: Workplace, fakes: FakeStages
    ) -> None:
        runner.run(load(), workplace)
        with pytest.raises(
            StaleArtifactError,
            match=r"caption needs preprocess, which is stale: crop_margin 0.04 -> 0.1",
        ):
            runner.run_stage(load("preprocess.crop_margin=0.1"), workplace, "caption")

    def test_upstream_makes_inputs_too(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages
    ) -> None:
        runner.run_stage(one, workplace, "finetune", upstream=True)
        assert fakes.names() == ["preprocess", "caption", "finetune"]

    def test_fresh_stage_asks_for_no_inputs(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages, said: list[str]
    ) -> None:
        runner.run(one, workplace, until="caption")
        (folder_of(one, workplace, "preprocess") / "manifest.json").unlink()
        runner.run_stage(one, workplace, "caption")
        assert said[-1] == "nothing to do: all 1 artifacts are fresh"

    def test_report_is_renewed_only_on_fresh_inputs(
        self, load: Load, workplace: Workplace, fakes: FakeStages, said: list[str]
    ) -> None:
        runner.run(load(), workplace)
        fakes.calls.clear()
        changed = load("evaluate.num_bootstrap=3")
        assert runner.renew_report(changed, workplace) is False
        assert said[-1] == "report: left as it is, since evaluate is not fresh"
        runner.run_stage(changed, workplace, "evaluate")
        assert runner.renew_report(changed, workplace) is True
        assert fakes.names() == ["evaluate", "report"]


class TestStatus:
    @pytest.mark.parametrize(
        ("override", "reason"),
        [
            ("arms.a8.finetune.lora_rank=16", "lora_rank 8 -> 16"),
            ("seed=9", "seed 7 -> 9"),
            ("dtype=bfloat16", "dtype float32 -> bfloat16"),
            ("caption.style=sentence", "input caption "),
            ("arms.a8.base_model=tiny_b", "base_model.name 'tiny_a' -> 'tiny_b'"),
        ],
    )
    def test_stale_says_why(
        self, load: Load, workplace: Workplace, fakes: FakeStages, override: str, reason: str
    ) -> None:
        runner.run(load(), workplace, until="finetune")
        nodes = plan(load(override))
        node = next(
            item for item in nodes if item.arm_names == ("a8",) and item.stage == "finetune"
        )
        found = standing(node, workplace.experiment_dir(load()))
        assert found.state == "stale"
        assert reason in found.reason

    def test_many_changed_inputs_are_listed_by_name(
        self, load: Load, workplace: Workplace, fakes: FakeStages
    ) -> None:
        runner.run(load(), workplace)
        report = runner.status(load("finetune.max_steps=30"), workplace)[-1]
        assert report.reason.startswith("inputs changed: classify, evaluate, finetune/a4, ")

    def test_changed_code_is_named(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages
    ) -> None:
        runner.run(one, workplace, until="preprocess")
        folder = folder_of(one, workplace, "preprocess")
        made = manifest.read(folder)
        old = dict(made, digest="0" * 64, source_digest="0")
        old["source_files"] = dict(made["source_files"], **{"stages/preprocess/stage.py": "0"})
        manifest.write(folder, old)
        folder.rename(folder.with_name("0" * 12))
        found = runner.status(one, workplace)[0]
        assert (found.state, found.reason) == ("stale", "code changed: stages/preprocess/stage.py")

    def test_unreadable_artifacts_are_not_compared_with(
        self, one: RunConfig, workplace: Workplace, fakes: FakeStages
    ) -> None:
        folder = workplace.experiment_dir(one) / "preprocess" / "0123"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{")
        assert states(one, workplace)["preprocess"] == "missing"
