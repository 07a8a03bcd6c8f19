"""Real kills at chosen file operations, each followed by the same command: the same bytes."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.contracts import SCRATCH
from pipeline.run import manifest
from stages.finetune.checkpoints import FOLDER, STATES
from tests.stages.finetune import killing

# What is not the same twice: times of the clock.
TIMED = ("train_log.jsonl", "tensorboard/")
CHANGES: dict[str, Any] = {"select_by": "held_out_loss", "early_stop_patience": 9}


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, weights_dir: Path) -> dict[str, str]:
    """Digests of a run that nothing broke."""
    data_dir = tmp_path_factory.mktemp("whole")
    killing.write_inputs(data_dir)
    assert killing.run(data_dir, weights_dir, **CHANGES) == 0
    return digests(data_dir)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    killing.write_inputs(tmp_path)
    return tmp_path


def folder_of(data_dir: Path) -> Path:
    return killing.node_of("finetune").folder(data_dir / "runs" / "e")


def digests(data_dir: Path) -> dict[str, str]:
    """Digests of a published run's files, which are as its manifest lists them."""
    folder = folder_of(data_dir)
    made = manifest.read(folder)
    assert manifest.verify(folder, made) == []
    assert not (folder / SCRATCH).exists()
    assert not folder.with_name(f"{folder.name}.partial").exists()
    return {name: value for name, value in made["files"].items() if not name.startswith(TIMED)}


NAME = killing.node_of("finetune").folder(Path()).name
MOMENTS = {
    "a state is whole": ("os.rename", f"{STATES}/step-000004.safetensors", 1),
    "a checkpoint is whole": ("os.rename", f"{FOLDER}/step-000004", 1),
    "an old state goes": ("os.remove", f"{STATES}/step-000002.safetensors", 1),
    "the last state is whole": ("os.rename", f"{STATES}/step-000005.safetensors", 1),
    "the result is there": ("os.rename", "kohya/lora.safetensors", 1),
    "records are written": ("open", f"{NAME}.partial/records.jsonl", 1),
    "the card is written": ("open", f"{NAME}.partial/README.md", 1),
    "the manifest gets its name": ("os.rename", "manifest.json", 1),
    "scratch goes": ("shutil.rmtree", SCRATCH, 1),
    "the folder gets its name": ("os.rename", NAME, 1),
}
QUICK = {"scratch goes", "records are written"}


@pytest.mark.parametrize(
    "moment",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MOMENTS],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    data_dir: Path, weights_dir: Path, whole: dict[str, str], moment: str
) -> None:
    assert killing.run(data_dir, weights_dir, MOMENTS[moment], **CHANGES) == killing.KILLED
    assert not folder_of(data_dir).exists()
    assert killing.run(data_dir, weights_dir, **CHANGES) == 0
    assert digests(data_dir) == whole


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.slow
@pytest.mark.parametrize("steps", [[4], [4, 2]])
def test_damaged_states_are_gone_back_beyond(
    data_dir: Path, weights_dir: Path, whole: dict[str, str], steps: list[int]
) -> None:
    kill = ("os.rename", f"{STATES}/step-000005.safetensors", 1)
    assert killing.run(data_dir, weights_dir, kill, **CHANGES) == killing.KILLED
    states = folder_of(data_dir).with_suffix(".partial") / STATES
    for step in steps:
        damage(states / f"step-{step:06d}.safetensors")
    assert killing.run(data_dir, weights_dir, **CHANGES) == 0
    assert digests(data_dir) == whole
    lines = [s for s in (data_dir / "lines.txt").read_text().splitlines() if "going back" in s]
    assert len(lines) == len(steps)
    assert "going back beyond step 4" in lines[0] and "cannot be read" in lines[0]


@pytest.mark.slow
def test_advice_for_a_log_that_lost_a_step_works(
    data_dir: Path, weights_dir: Path, whole: dict[str, str]
) -> None:
    kill = MOMENTS["the card is written"]
    assert killing.run(data_dir, weights_dir, kill, **CHANGES) == killing.KILLED
    partial = folder_of(data_dir).with_suffix(".partial")
    lines = (partial / "train_log.jsonl").read_text().splitlines(keepends=True)
    (partial / "train_log.jsonl").write_text("".join(lines[:2] + lines[3:]))
    assert killing.run(data_dir, weights_dir, **CHANGES) == 1
    # "lost step 2 of 5 that are done; delete FOLDER to train from the start"
    shutil.rmtree(partial)
    assert killing.run(data_dir, weights_dir, **CHANGES) == 0
    assert digests(data_dir) == whole
