"""A small training through the runner, in a process that dies at a chosen file operation."""

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline import registry
from pipeline.contracts import SCHEMA_VERSION, PluginConfig
from pipeline.run import manifest, runner
from pipeline.run.plan import Node
from pipeline.run.runner import Workplace
from pipeline.settings import FinetuneConfig
from tests.fabricate.pipelines import tiny_settings
from tests.stages.finetune.conftest import SPLITS, build_inputs

SETTINGS: Any = SimpleNamespace(experiment="e", seed=0, device="cpu", dtype="float32")
KILLED = -signal.SIGKILL


def write_inputs(data_dir: Path) -> None:
    """Publish slices and captions where the runner looks for them."""
    made = data_dir / "made"
    made.mkdir(parents=True)
    build_inputs(made, SPLITS)
    for node, folder in zip(node_of("finetune").upstream(), (made, made / "caption"), strict=True):
        final = node.folder(data_dir / "runs" / "e")
        partial = final.with_name("partial")
        shutil.copytree(folder, partial)
        fields = {key: kinds[0]() for key, kinds in manifest.KINDS.items()}
        about = {"schema_version": SCHEMA_VERSION, "stage": node.stage, "digest": node.digest}
        manifest.publish(partial, final, fields | about)


def node_of(stage: str, config: Any = None) -> Node:
    """Make a node of one stage, without a plan."""
    inputs = {name: node_of(name) for name in ("preprocess", "caption") if stage == "finetune"}
    recipe: dict[str, Any] = {"config": {}, "inputs": {}, "source": ""}
    return Node(stage, (), config, inputs, recipe, {}, manifest.digest_of(stage))


def train(
    data_dir: Path, weights_dir: Path, kill: tuple[str, str, int] | None, changes: dict[str, Any]
) -> None:
    """Train and publish; die at the nth operation of a kind on a path that ends so."""
    settings = tiny_settings(registry.find(registry.BASE_MODELS, "sd15"), weights_dir)
    config = FinetuneConfig(
        base_model=PluginConfig(name="sd15", settings=settings.model_dump()),
        **{
            "resolution": 32,
            "lora_rank": 4,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "max_steps": 5,
            "checkpoint_every": 2,
            **changes,
        },
    )
    if kill is not None:
        sys.addaudithook(killer(*kill))
    log = (data_dir / "lines.txt").open("a", buffering=1)
    workplace = Workplace(data_dir, 1, print, lambda line: print(line, file=log))
    runner.make(node_of("finetune", config), SETTINGS, workplace)


def killer(event: str, ending: str, number: int) -> Callable[[str, tuple[Any, ...]], None]:
    """Make an audit hook that kills this process before the nth event on a path that ends so."""
    seen = 0

    def hook(name: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if name == event and any(str(arg).endswith(ending) for arg in args[:2]):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def run(
    data_dir: Path,
    weights_dir: Path,
    kill: tuple[str, str, int] | None = None,
    **changes: Any,
) -> int:
    """Train in a process of its own; return its exit code, `KILLED` where the kill came."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "stages.finetune.stage", "peft"])
    process = context.Process(target=train, args=(data_dir, weights_dir, kill, changes))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode
