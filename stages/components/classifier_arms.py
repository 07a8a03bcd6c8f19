"""Train the arms of a comparison, fit the shortcuts beside them, and hand over what they judged."""

from collections.abc import Sequence
from functools import partial
from urllib.parse import quote

from pipeline import registry
from pipeline.contracts import ArtifactWriter, Context, ScoreRecord, Task
from pipeline.seeding import derive_seed
from pipeline.settings import ClassifyConfig
from stages.components import classification, diagnostics
from stages.components.bootstrap import FloatArray
from stages.components.class_diagnostics import ClassJudged
from stages.components.classification import LabelledImages, TrainingPhase, TrainingPlan
from stages.components.classifier_data import Data
from stages.components.diagnostics import Judged
from stages.components.held_out import HeldOut, Run, write_run
from stages.components.regimes import Phase, Recipe
from stages.components.samples import Item


def train_arm(
    recipe: Recipe,
    phases: Sequence[Phase],
    task: Task,
    data: Data,
    held_out: HeldOut,
    config: ClassifyConfig,
    output: ArtifactWriter[ScoreRecord],
    context: Context,
) -> list[Run]:
    """Train an arm once for each seed, unless that was done before; each judges the test once.

    Raises:
        TrainingError: The loss is not finite, or a set lacks a class.
    """
    plugin = registry.find(registry.CLASSIFIERS, recipe.model.name)
    settings = plugin.Settings.model_validate(recipe.model.settings)
    plan = TrainingPlan(**{f: getattr(config, f) for f in TrainingPlan.__dataclass_fields__})
    num_classes = 2 if task == "binary" else len(data.counts)
    ready: list[TrainingPhase] = []
    runs = []
    for seed in range(config.num_seeds):
        key = f"{recipe.name}, seed {seed}"
        path = output.path(f"runs/{task}/{quote(recipe.name, safe='')}-{seed}.json")
        run = held_out.remember(key, path)
        if run is None:
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
            trained = classification.train(
                lambda: plugin.build(settings, config.image_size, num_classes),
                phases=ready,
                val=val,
                plan=plan,
                seed=derive_seed(context.seed, "classify", seed),
                device=context.device,
                progress=partial(_say, context, prefix),
            )
            run = held_out.judge(key, trained, context.device)
            write_run(path, run)
        runs.append(run)
    return runs


def _say(context: Context, prefix: str, line: str) -> None:
    context.progress(prefix + line)


def fit_baselines(
    names: Sequence[str], task: Task, data: Data, train: Sequence[Item]
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Fit each shortcut baseline on real training slices.

    Returns its probabilities of the validation and of the test slices, (n, class).
    """
    found = {}
    for name in names:
        plugin = registry.find(registry.CLASSIFIERS, name)
        predict = plugin.fit(
            records=data.records_of(train),
            images=data.images(train),
            targets=data.targets(task, train),
        )
        val, test = (predict(data.records_of(s), data.images(s)) for s in (data.val, data.test))
        found[name] = (val, test)
    return found


def to_judged(
    task: Task, data: Data, val: FloatArray, test: FloatArray, target_sensitivity: float | None
) -> Judged | ClassJudged:
    """Turn probabilities (runs, n, class) into what is scored, with operating points."""
    targets = data.targets(task, data.test)
    if task == "four_class":
        return ClassJudged(test, targets, tuple(data.counts))
    truth = data.targets(task, data.val).astype(bool)
    cuts = [diagnostics.choose_cut(run[:, 1], truth, target_sensitivity) for run in val]
    known = tuple(cut for cut in cuts if cut is not None)
    return Judged(test[:, :, 1], targets.astype(bool), known if len(known) == len(cuts) else None)
