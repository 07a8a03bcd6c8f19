"""Train the arms of a comparison, fit the shortcuts beside them, hand over what they predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline import registry
from pipeline.contracts import ArtifactWriter, Context, ScoreRecord, Task
from pipeline.files import write_whole
from pipeline.seeding import derive_seed
from pipeline.settings import ClassifyConfig
from stages.classify import training
from stages.classify.baseline import Predictor
from stages.classify.class_diagnostics import ClassPredictions
from stages.classify.data import Data
from stages.classify.diagnostics import Predictions
from stages.classify.held_out import HeldOut, TrainingRun, write_run
from stages.classify.regimes import Phase, Recipe
from stages.classify.training import LabelledImages, TrainingPhase, TrainingPlan
from stages.components.statistics import proportions
from stages.components.statistics.bootstrap import FloatArray
from stages.components.statistics.cohorts import Item


@dataclass(frozen=True)
class Exam:
    """One task: its slices, and the test slices that every chosen state predicts once."""

    task: Task
    data: Data
    held_out: HeldOut
    elsewhere: Mapping[str, HeldOut]  # of other sources, by name

    @property
    def num_classes(self) -> int:
        """How many classes a network tells apart."""
        return 2 if self.task == "binary" else len(self.data.counts)


def file_of(recipe: Recipe, seed: int) -> str:
    """Name the files of a training run, without folder and suffix."""
    return f"{quote(recipe.name, safe='')}-{seed}"


def weights_path(recipe: Recipe, output: ArtifactWriter[ScoreRecord]) -> Path:
    """Return where the first run of an arm keeps its weights, if explanations need them."""
    return output.path(f"weights/{file_of(recipe, 0)}.safetensors")


def build(recipe: Recipe, image_size: int, num_classes: int) -> nn.Module:
    """Build an arm's network; new weights are drawn from torch's generator as it stands."""
    plugin = registry.find(registry.CLASSIFIERS, recipe.model.name)
    settings = plugin.Settings.model_validate(recipe.model.settings)
    network = plugin.build(settings, image_size, num_classes)
    assert isinstance(network, nn.Module)
    return network


def load_network(recipe: Recipe, config: ClassifyConfig, path: Path, device: str) -> nn.Module:
    """Load the chosen state of an arm's first run on tumour or not, in eval mode.

    Torch's generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        network = build(recipe, config.image_size, 2)
    network.load_state_dict(load_file(path))
    return network.to(device).eval()


def train_arm(
    recipe: Recipe,
    phases: Sequence[Phase],
    exam: Exam,
    config: ClassifyConfig,
    output: ArtifactWriter[ScoreRecord],
    context: Context,
) -> tuple[list[TrainingRun], dict[str, list[TrainingRun]]]:
    """Train an arm once a seed, unless that was done before; each predicts each test set once.

    Returns:
        The runs by seed: on the test slices, and on those of each other source.

    Raises:
        TrainingError: The loss is not finite, or a set lacks a class.
    """
    task, data = exam.task, exam.data
    plan = TrainingPlan(**{f: getattr(config, f) for f in TrainingPlan.__dataclass_fields__})
    ready: list[TrainingPhase] = []
    runs: list[TrainingRun] = []
    elsewhere: dict[str, list[TrainingRun]] = {name: [] for name in exam.elsewhere}
    for seed in range(config.num_seeds):
        key = f"{recipe.name}, seed {seed}"
        path = output.path(f"runs/{task}/{file_of(recipe, seed)}.json")
        others = {
            name: output.path(f"runs/{task}/cross_test/{name}/{file_of(recipe, seed)}.json")
            for name in exam.elsewhere
        }
        run = exam.held_out.remember(key, path)  # written last, so all else is there too
        others_runs: dict[str, TrainingRun | None] = {}
        if run is not None:
            others_runs = {
                name: exam.elsewhere[name].remember(key, others[name]) for name in others
            }
        else:
            if not ready:
                val = LabelledImages(data.images(data.val), data.targets(task, data.val))
                ready = [
                    TrainingPhase(
                        LabelledImages(data.images(p.items), data.targets(task, p.items)),
                        p.num_steps,
                        p.is_augmented,
                    )
                    for p in phases
                ]
            prefix = f"classify {task} {key}: "
            trained = training.train(
                lambda: build(recipe, config.image_size, exam.num_classes),
                phases=ready,
                val=val,
                plan=plan,
                is_chosen=data.can_choose(task),
                seed=derive_seed(context.seed, "classify", seed),
                device=context.device,
                progress=partial(_say, context, prefix),
            )
            for name, place in others.items():
                other = exam.elsewhere[name].predict(key, trained, context.device)
                write_run(place, other)
                others_runs[name] = other
            if config.explain and task == "binary" and seed == 0 and recipe.ratio is None:
                state = {k: v.cpu().contiguous() for k, v in trained.network.state_dict().items()}
                write_whole(weights_path(recipe, output), partial(save_file, state))
            run = exam.held_out.predict(key, trained, context.device)
            write_run(path, run)
        runs.append(run)
        for name, seen in others_runs.items():
            assert seen is not None, (name, key)
            elsewhere[name].append(seen)
    return runs, elsewhere


def _say(context: Context, prefix: str, line: str) -> None:
    context.progress(prefix + line)


def fit_baselines(
    names: Sequence[str], task: Task, data: Data, train: Sequence[Item]
) -> dict[str, Predictor]:
    """Fit each shortcut baseline on real training slices."""
    return {
        name: registry.find(registry.CLASSIFIERS, name).fit(
            records=data.records_of(train),
            images=data.images(train),
            targets=data.targets(task, train),
        )
        for name in names
    }


def ask(predict: Predictor, data: Data, items: Sequence[Item]) -> FloatArray:
    """Return a baseline's probabilities of slices, (n, class)."""
    return predict(data.records_of(items), data.images(items))


def to_predictions(
    task: Task,
    data: Data,
    items: Sequence[Item],
    val: FloatArray,
    test: FloatArray,
    config: ClassifyConfig,
) -> Predictions | ClassPredictions:
    """Turn probabilities (runs, n, class) into what is scored, with operating points.

    `test` is of `items`, the test slices here or elsewhere; operating points are set on the
    validation slices here in any case, if they are enough to choose by.
    """
    targets = data.targets(task, items)
    if task == "four_class":
        return ClassPredictions(test, targets, tuple(data.counts))
    contrasts = np.asarray([record.modality for record in data.records_of(items)])
    if not data.can_choose(task):
        return Predictions(test[:, :, 1], targets.astype(bool), contrasts=contrasts)
    truth, target = data.targets(task, data.val).astype(bool), config.target_sensitivity
    cuts = tuple(
        cut for run in val if (cut := proportions.choose_cut(run[:, 1], truth, target)) is not None
    )
    return Predictions(test[:, :, 1], targets.astype(bool), cuts, contrasts)
