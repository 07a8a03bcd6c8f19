"""Ranks above 0 of a launch take part in trainings and write nothing."""

import os
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.errors import MissingArtifactError, PipelineError
from pipeline.run import ranks, runner
from pipeline.run.plan import plan
from pipeline.run.runner import Workplace
from pipeline.settings import RunConfig
from tests.pipeline.conftest import FakeStages

Load = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("given", "rank"),
    [
        ({}, 0),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 1),
        ({"RANK": "1"}, 0),  # left over from something else
        ({"RANK": "3", "WORLD_SIZE": "1"}, 0),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}, 2),
        ({"RANK": "", "WORLD_SIZE": "2"}, 0),
    ],
)
def test_rank_is_read_from_what_launchers_set(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], rank: int
) -> None:
    for name in (*ranks.RANKS, *ranks.SIZES):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert ranks.current() == rank


def test_second_rank_waits_for_the_inputs_and_only_trains(
    load: Load,
    workplace: Workplace,
    fakes: FakeStages,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = load()
    second = replace(workplace, rank=1)
    experiment_dir = workplace.experiment_dir(settings)
    node = next(node for node in plan(settings, ["a4"]) if node.stage == "finetune")
    final = node.folder(experiment_dir)
    partial = final.with_name(f"{final.name}.partial")
    waits: list[int] = []

    def go_on(seconds: float) -> None:
        """While the second rank sleeps, the first does one thing after the other."""
        waits.append(len(fakes.calls))
        assert "finetune" not in fakes.names()
        if len(waits) == 1:
            runner.run(settings, workplace, arms=["a4"], until="caption")
        elif len(waits) == 2:
            partial.mkdir(parents=True)

    monkeypatch.setattr(time, "sleep", go_on)
    runner.run(settings, second, arms=["a4"], until="finetune")
    assert fakes.names() == ["preprocess", "caption", "finetune"]
    assert waits == [0, 2]
    assert not final.exists()
    assert not final.with_name(f"{final.name}.lock").exists()
    assert not any("finetune" in line for line in said)

    runner.run(settings, workplace, arms=["a4"], until="finetune")
    said.clear()
    runner.run(settings, second, arms=["a4"])  # all that it takes part in is done
    assert fakes.names().count("finetune") == 2
    assert fakes.names().count("generate") == 0
    assert said == []


def test_second_rank_of_a_stage_alone_leaves_refusing_to_the_first(
    load: Load, workplace: Workplace, fakes: FakeStages
) -> None:
    settings = load()
    with pytest.raises(MissingArtifactError):
        runner.run_stage(settings, workplace, "finetune")
    runner.run_stage(settings, replace(workplace, rank=1), "preprocess")
    runner.run_stage(settings, replace(workplace, rank=1), "finetune", dry_run=True)
    assert fakes.names() == []


def test_a_rank_whose_launcher_has_ended_stops_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([10, 10, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(PipelineError, match=r"waited for finetune \[a4\], but the process that"):
        ranks.wait_until(lambda: False, "finetune [a4]")
