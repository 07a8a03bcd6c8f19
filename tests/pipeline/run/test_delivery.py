"""What is sent once a run is through, with fake stages: when, how often, what a failure leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.contracts import ALL, COPIED_SHARE, REAL, ScoreRecord
from pipeline.errors import ConfigError, RemoteError
from pipeline.run import delivery, runner
from pipeline.run.config import dump
from pipeline.run.plan import plan, standing
from pipeline.run.runner import Workplace
from pipeline.settings import RunConfig
from tests.pipeline.conftest import FakeStages

Load = Callable[..., RunConfig]
PUSH = "finetune.push_to_hub=someone/mri"


def share(arm: str, value: float, low: float | None) -> ScoreRecord:
    return ScoreRecord(
        experiment="trial",
        arm=arm,
        stage="evaluate",
        metric=COPIED_SHARE,
        features=None,
        group=ALL,
        value=value,
        low=low,
        high=None,
        n_real=9,
        n_synthetic=8,
        higher_is_better=False,
    )


@pytest.fixture
def sent(fakes: FakeStages) -> list[str]:
    """Collect what is sent; the first attempt to send `fail` fails. No image is a copy."""
    done: list[str] = []

    def deliver(config: Any, folder: Path) -> str:
        assert (folder / "manifest.json").is_file()
        if fakes.fail.pop("deliver", None):
            raise RemoteError("the hub is away")
        done.append(f"{config.push_to_hub} {folder.name}")
        return f"https://hub/{config.push_to_hub}"

    fakes.deliver = deliver
    arms = [share(name, 0.0, 0.0) for name in ("a4", "a8", "b4")]
    fakes.records["evaluate"] = [share(REAL, 0.01, None), *arms]
    return done


def test_artifact_is_sent_once_and_another_time_to_another_place(
    load: Load, workplace: Workplace, sent: list[str], said: list[str], fakes: FakeStages
) -> None:
    one = load(PUSH)
    runner.run(one, workplace, arms=["a4"])
    assert [line.split()[0] for line in sent] == ["someone/mri"]
    assert any(line.endswith("finetune [a4] sent: https://hub/someone/mri") for line in said)
    runner.run(one, workplace, arms=["a4"])
    assert len(sent) == 1
    assert said[-1] == "nothing to do: all 8 artifacts are fresh"
    made = len(fakes.calls)
    other = load("finetune.push_to_hub=else/mri")
    runner.run(other, workplace, arms=["a4"], dry_run=True)
    assert "fresh    finetune [a4], to be sent to else/mri" in said
    runner.run(other, workplace, arms=["a4"])
    assert sent[1].startswith("else/mri")
    assert len(fakes.calls) == made  # nothing was made again


@pytest.mark.parametrize("until", ["finetune", "generate"])
def test_nothing_leaves_before_copies_were_searched_for(
    load: Load, workplace: Workplace, sent: list[str], said: list[str], until: str
) -> None:
    settings = load(PUSH)
    runner.run(settings, workplace, arms=["a4"], until=until)
    runner.run_stage(settings, workplace, "finetune", arms=["a4"])
    assert sent == []
    lines = [
        line for line in said if "finetune [a4]: not sent to someone/mri: evaluate has" in line
    ]
    assert len(lines) == 2
    runner.run(settings, workplace, arms=["a4"])  # as the line says
    assert len(sent) == 1


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([share(REAL, 0.01, None)], "evaluate has no copied_share of a4"),
        ([share("a4", 0.0, 0.0)], "evaluate has no copied_share of a4"),
        (
            [share(REAL, 0.01, None), share("a4", 0.3, 0.1)],
            "30.0% of the images of a4 are called copies of training slices, and 1.0% of held-out",
        ),
        ([share(REAL, 0.01, None), share("a4", 0.3, None)], "30.0% of the images of a4"),
    ],
)
def test_copies_hold_an_adapter_back_and_end_no_run(
    load: Load,
    workplace: Workplace,
    sent: list[str],
    said: list[str],
    fakes: FakeStages,
    rows: list[Any],
    reason: str,
) -> None:
    fakes.records["evaluate"] = rows
    runner.run(load(PUSH), workplace, arms=["a4"])
    assert sent == []
    assert any(reason in line for line in said)
    assert fakes.names()[-1] == "report"


def test_a_share_of_copies_within_chance_is_let_through(
    load: Load, workplace: Workplace, sent: list[str], fakes: FakeStages
) -> None:
    fakes.records["evaluate"] = [share(REAL, 0.01, None), share("a4", 0.02, 0.005)]
    runner.run(load(PUSH), workplace, arms=["a4"])
    assert len(sent) == 1


def test_what_could_not_be_sent_is_tried_again_when_all_else_is_done(
    load: Load, workplace: Workplace, sent: list[str], fakes: FakeStages
) -> None:
    settings = load(PUSH)
    fakes.fail["deliver"] = RemoteError("the hub is away")
    with pytest.raises(RemoteError, match="the hub is away"):
        runner.run(settings, workplace)
    assert len(sent) == 2  # the other two arms
    folder = workplace.experiment_dir(settings)
    assert {standing(node, folder).state for node in plan(settings)} == {"fresh"}
    assert [delivery.is_owed(node, folder) for node in plan(settings)].count(True) == 1
    made = len(fakes.calls)
    runner.run(settings, workplace)
    assert len(sent) == 3 and len(fakes.calls) == made


def test_destination_is_no_part_of_the_digest_and_has_a_form(load: Load) -> None:
    plain, pushed = (
        {node.stage: node.digest for node in plan(settings, ["a4"])}
        for settings in (load(), load(PUSH, "finetune.allow_upload=true"))
    )
    assert plain == pushed
    assert "push_to_hub" not in dump(load(PUSH))
    assert "allow_upload" not in dump(load("finetune.allow_upload=true"))
    with pytest.raises(ConfigError, match=r"finetune.push_to_hub.*found 'mri'"):
        load("finetune.push_to_hub=mri")
