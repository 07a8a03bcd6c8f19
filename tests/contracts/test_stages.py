"""Every stage declares what the runner hands it; every experiment in configs/ can be planned."""

import dataclasses
from pathlib import Path
from types import NoneType
from typing import get_args, get_origin, get_type_hints

import pytest

from pipeline import settings
from pipeline.contracts import Artifact, Record, Stage
from pipeline.run import config, plan, runner
from pipeline.run.plan import STAGES, Node

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MADE_BY = {"cross_test": "preprocess"}  # ports without the name of the stage behind them

EXPERIMENT = {
    "experiment": "contract",
    "base_model": "tiny_sd15",
    "preprocess": {"source": "phantom", "image_size": 128},
    "caption": {"vlm": "truth"},
    "finetune": {"resolution": 128},
    "generate": {"image_size": 128},
    "evaluate": {},
    "classify": {"image_size": 128},
    "report": {},
    "arms": [{"name": "one"}, {"name": "two", "base_model": "tiny_sdxl"}],
}


@pytest.fixture(scope="module")
def nodes() -> dict[str, Node]:
    """One node of each stage, the last planned."""
    return {node.stage: node for node in plan.plan(config.build(dict(EXPERIMENT), where="test"))}


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest) -> Stage:
    return runner.load_stage(request.param)


def test_declaration(stage: Stage) -> None:
    assert stage.config is getattr(settings, f"{stage.name.capitalize()}Config")
    assert issubclass(stage.record_type, Record)
    assert dataclasses.is_dataclass(stage.inputs)


def test_ports_are_those_of_the_plan(stage: Stage, nodes: dict[str, Node]) -> None:
    hints = get_type_hints(stage.inputs)
    planned = nodes[stage.name].inputs
    assert set(hints) == set(planned)
    for name, value in planned.items():
        if value is None:
            assert NoneType in get_args(hints[name]), name
        elif isinstance(value, Node):
            kinds = [hints[name], *get_args(hints[name])]
            assert any(get_origin(kind) is Artifact for kind in kinds), name
        else:
            assert get_origin(hints[name]) is dict, name


def test_ports_carry_the_records_that_the_stage_behind_them_writes(stage: Stage) -> None:
    for name, hint in get_type_hints(stage.inputs).items():
        options = [hint, *get_args(hint)]
        (artifact,) = [kind for kind in options if get_origin(kind) is Artifact]
        assert get_args(artifact)[0] is runner.load_stage(MADE_BY.get(name, name)).record_type


def test_there_are_experiments() -> None:
    names = {path.name for path in CONFIGS}
    assert {"mini.yaml", "smoke.yaml", "kaggle-mini.yaml", "poster.yaml"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_experiment_is_valid_and_survives_its_own_dump(path: Path, tmp_path: Path) -> None:
    loaded = config.load(path)
    assert plan.plan(loaded)[-1].stage == "report"
    dumped = tmp_path / "config.yaml"
    dumped.write_text(config.dump(loaded))
    assert config.load(dumped) == loaded


def test_experiments_write_to_different_folders() -> None:
    names = [config.load(path).experiment for path in CONFIGS]
    assert len(names) == len(set(names))
