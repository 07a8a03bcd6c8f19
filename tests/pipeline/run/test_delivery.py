"""What is sent after publication, with fake stages: when, how often, and what a failure leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, RemoteError
from pipeline.run import delivery, runner
from pipeline.run.config import dump
from pipeline.run.plan import plan, standing
from pipeline.run.runner import Workplace
from pipeline.settings import RunConfig
from tests.pipeline.conftest import FakeStages

Load = Callable[..., RunConfig]
PUSH = "finetune.push_to_hub=someone/mri"


@pytest.fixture
def sent(fakes: FakeStages) -> list[str]:
    """Collect what is sent; the first attempt to send `fail` fails."""
    done: list[str] = []

    def deliver(config: Any, folder: Path) -> str:
        assert (folder / "manifest.json").is_file()
        if fakes.fail.pop("deliver", None):
            raise RemoteError("the hub is away")
        done.append(f"{config.push_to_hub} {folder.name}")
        return f"https://hub/{config.push_to_hub}"

    fakes.deliver = deliver
    return done


def test_artifact_is_sent_once_and_another_time_to_another_place(
    load: Load, workplace: Workplace, sent: list[str], said: list[str], fakes: FakeStages
) -> None:
    one = load(PUSH)
    runner.run(one, workplace, arms=["a4"], until="finetune")
    assert [line.split()[0] for line in sent] == ["someone/mri"]
    assert any(line.endswith("finetune [a4] sent: https://hub/someone/mri") for line in said)
    runner.run(one, workplace, arms=["a4"], until="finetune")
    assert len(sent) == 1
    assert said[-1] == "nothing to do: all 3 artifacts are fresh"
    other = load("finetune.push_to_hub=else/mri")
    runner.run(other, workplace, arms=["a4"], until="finetune", dry_run=True)
    assert "fresh    finetune [a4], to be sent to else/mri" in said
    runner.run(other, workplace, arms=["a4"], until="finetune")
    assert sent[1].startswith("else/mri")
    assert fakes.names() == ["preprocess", "caption", "finetune"]  # nothing was trained again


def test_what_could_not_be_sent_is_tried_again(
    load: Load, workplace: Workplace, sent: list[str], fakes: FakeStages
) -> None:
    settings = load(PUSH)
    fakes.fail["deliver"] = RemoteError("the hub is away")
    with pytest.raises(RemoteError, match="the hub is away"):
        runner.run(settings, workplace, arms=["a4"], until="finetune")
    node = next(node for node in plan(settings, ["a4"]) if node.stage == "finetune")
    folder = workplace.experiment_dir(settings)
    assert standing(node, folder).state == "fresh"
    assert delivery.is_owed(node, folder)
    runner.run(settings, workplace, arms=["a4"], until="finetune")
    assert len(sent) == 1 and not delivery.is_owed(node, folder)
    assert fakes.names().count("finetune") == 1


def test_destination_is_no_part_of_the_digest_and_has_a_form(load: Load) -> None:
    plain, pushed = (
        {node.stage: node.digest for node in plan(settings, ["a4"])}
        for settings in (load(), load(PUSH))
    )
    assert plain == pushed
    assert "push_to_hub" not in dump(load(PUSH))
    with pytest.raises(ConfigError, match=r"finetune.push_to_hub.*found 'mri'"):
        load("finetune.push_to_hub=mri")
