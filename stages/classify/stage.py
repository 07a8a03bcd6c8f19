"""Train classifiers on real slices, synthetic ones or both, and test each once on real ones.

Reads: preprocess (real slices of every split), generate (every arm), cross_test (slices of other
sources). Writes `records.jsonl` (`ScoreRecord`), `predictions.jsonl` (`PredictionRecord`: every
test slice under every arm and seed), `runs/TASK/ARM-SEED.json` (losses, chosen state, predictions),
the same of other sources in `cross_test/NAME/` and `runs/TASK/cross_test/NAME/`, and, where
explanations are asked for, `explanations/ARM.npz` (maps) and `weights/ARM-0.safetensors`.

Arms: `real`; every generate arm under its own name, trained on its synthetic slices alone;
`real_and_synthetic/NAME`, `synthetic_then_real/NAME`, `real_with_augmentation`; `all_real`, on all
real training slices, the ceiling; `reference/NAME`, another network on the slices of `real`;
`baseline/NAME`, shortcuts fitted on the slices of `real`; `ratio/K/NAME`, few real slices and K
times as many synthetic ones, `ratio/0` without. Whoever trains, states and operating points are
chosen on real validation slices; where these have too few groups of a kind, the last state is
tested and the cut is 0.5. The real test slices are predicted after that, just once; the notes prove
it (`test_use`).

Invariants: every arm but `all_real` and `ratio/...` has the same number of training slices per
class, all the same number of steps and, for each seed, the same initial weights; no group of test
slices is trained or chosen on; a finished (task, arm, seed) stands in `runs/` and is not trained
again after a kill, with the same bytes at the end. Explanations look at test slices again, after
the scores, and nothing is chosen by them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from pipeline.contracts import (
    BASELINE,
    REAL,
    Artifact,
    ArtifactWriter,
    Context,
    PredictionRecord,
    ScoreRecord,
    SliceRecord,
    Stage,
    SyntheticRecord,
    Task,
    write_records,
)
from pipeline.errors import SampleSizeError
from pipeline.settings import ClassifyConfig
from stages.classify import cross_test, explain, fairness, methods, regimes
from stages.classify.arms import Exam, ask, fit_baselines, to_predictions, train_arm
from stages.classify.cross_test import Elsewhere
from stages.classify.data import Data
from stages.classify.held_out import HeldOut, Rows
from stages.classify.scores import Tester, describe, list_differences, list_predictions
from stages.components.statistics import cohorts
from stages.components.statistics.bootstrap import FloatArray
from stages.components.statistics.cohorts import Item

Runs: TypeAlias = Sequence[FloatArray | Rows]  # of each seed, (slice, class)


@dataclass(frozen=True)
class ClassifyInputs:
    """Real slices, what each arm generated, and slices of other sources to be tested on."""

    preprocess: Artifact[SliceRecord]
    generate: dict[str, Artifact[SyntheticRecord]]
    cross_test: dict[str, Artifact[SliceRecord]] = field(default_factory=dict)


def gather(config: ClassifyConfig, inputs: ClassifyInputs) -> Data:
    """List all slices and match the numbers of the arms.

    Raises:
        SampleSizeError: An arm has too few slices, or no test slices exist.
        SplitLeakError: Test slices share a group with those that train or choose.
    """
    splits = {
        split: cohorts.list_real(inputs.preprocess, split) for split in ("train", "val", "test")
    }
    val, test = (sorted(splits[s], key=lambda item: item.name) for s in ("val", "test"))
    sets: dict[str, list[Item]] = {REAL: splits["train"]}
    real = inputs.preprocess
    sets |= {name: cohorts.list_synthetic(made, real) for name, made in inputs.generate.items()}
    if len(test) < 2:
        raise SampleSizeError(
            f"classify needs at least 2 test slices, found {len(test)} in "
            f"{inputs.preprocess.root}; raise preprocess.test_fraction"
        )
    cohorts.require_disjoint(test, [*splits["train"], *val])
    counts = regimes.match_counts(sets, config.num_images)
    return Data(
        sets=sets,
        val=tuple(val),
        test=tuple(test),
        counts=counts,
        ratio_counts=regimes.match_ratio_counts(sets, counts, config, list(inputs.generate)),
        records={record.slice_id: record for record in inputs.preprocess.records()},
        image_size=config.image_size,
    )


def score_task(
    task: Task,
    data: Data,
    config: ClassifyConfig,
    sources: Sequence[str],
    elsewhere: Mapping[str, Elsewhere],
    output: ArtifactWriter[ScoreRecord],
    context: Context,
) -> tuple[Tester, dict[str, Any]]:
    """Train every arm of one task and let it predict, here and elsewhere.

    Returns the scores' maker and the task's notes; those of `elsewhere` are filled on the way.
    """
    seed_parts = (context.seed, "classify")
    held_out = HeldOut(data.images(data.test), [item.name for item in data.test])
    exam = Exam(task, data, held_out, {name: e.held_out for name, e in elsewhere.items()})
    records = data.records_of(data.test)
    tester = Tester(data.test, records, experiment=context.experiment, seed=context.seed)

    def keep(
        arm: str, val: Runs, test: Runs, others: Mapping[str, Runs], *, num_synthetic: int
    ) -> None:
        """Hand an arm's probabilities to the testers; operating points come from here."""
        places = [(tester, data.test, test)]
        places += [(e.tester, e.data.test, others[name]) for name, e in elsewhere.items()]
        for place, items, probability in places:
            predictions = to_predictions(
                task, data, items, np.asarray(val), np.asarray(probability), config
            )
            place.add(arm, predictions, num_synthetic=num_synthetic)

    recipes = regimes.list_recipes(config, sources)
    selection = {}
    for recipe in recipes:
        phases = regimes.list_phases(
            recipe,
            data.sets,
            data.counts,
            ratio_counts=data.ratio_counts,
            mixing=config.mixing,
            max_steps=config.max_steps,
            seed_parts=seed_parts,
        )
        runs, others = train_arm(recipe, phases, exam, config, output, context)
        keep(
            recipe.name,
            [run.val_probability for run in runs],
            [run.probability for run in runs],
            {name: [run.probability for run in there] for name, there in others.items()},
            num_synthetic=sum(i.prompt is not None for phase in phases for i in phase.items),
        )
        selection[recipe.name] = [
            {"step": r.chosen_step, "val_loss": r.val_loss[r.steps.index(r.chosen_step)]}
            for r in runs
        ]
    train = cohorts.choose(data.sets[REAL], data.counts, (*seed_parts, REAL))
    pairs = regimes.list_pairs(recipes)
    for name, predict in fit_baselines(config.baselines, task, data, train).items():
        keep(
            BASELINE + name,
            [ask(predict, data, data.val)],
            [ask(predict, data, data.test)],
            {place: [ask(predict, e.data, e.data.test)] for place, e in elsewhere.items()},
            num_synthetic=0,
        )
        pairs.append((BASELINE + name, REAL))
    described = {arm: describe(predictions) for arm, predictions in tester.predictions.items()}
    notes: dict[str, Any] = {
        "differences": list_differences(tester, pairs),
        "selection": selection,
        **{
            key: {arm: facts[key] for arm, facts in described.items()}
            for key in ("confusion", "seeds", "calibration")
        },
        "test_use": {**held_out.proof(), "groups_shared_with_training": 0},
    }
    if task == "binary":
        notes["operating_points"] = {arm: list(p.cuts or ()) for arm, p in tester.at_cut.items()}
    return tester, notes


def run(
    config: ClassifyConfig,
    inputs: ClassifyInputs,
    output: ArtifactWriter[ScoreRecord],
    context: Context,
) -> None:
    """Train every (task, arm, seed), predict the test slices, score; only this function publishes.

    Raises:
        DataError: The table of a protected attribute cannot be used.
        SampleSizeError: An arm has too few slices, or no test slices exist, here or elsewhere.
        SplitLeakError: Test slices share a group or, from elsewhere, the pixels of those that train
            or choose.
        TrainingError: The loss is not finite, or there are no validation slices.
    """
    torch.set_num_threads(context.num_threads)
    data = gather(config, inputs)
    others = cross_test.gather(inputs.cross_test, data)
    scored_elsewhere: dict[str, dict[Task, Elsewhere]] = {name: {} for name in others}
    protected = config.protected
    values = fairness.read_attribute(protected, data.records_of(data.test)) if protected else ()
    scores: list[ScoreRecord] = []
    listed: list[PredictionRecord] = []
    differences: dict[str, list[dict[str, Any]]] = {}
    test_use = {}
    for task in config.tasks:
        task_data, sources = data.within(task), list(inputs.generate)
        elsewhere = cross_test.prepare(
            others, task, experiment=context.experiment, seed=context.seed
        )
        tester, notes = score_task(task, task_data, config, sources, elsewhere, output, context)
        scores += [record for arm in tester.predictions for record in tester.score(arm)]
        for name, other in elsewhere.items():
            scores += cross_test.score(name, other)
            scored_elsewhere[name][task] = other
        listed += list_predictions(task, data.counts, tester)
        for pair, rows in notes.pop("differences").items():
            differences.setdefault(pair, []).extend(rows)
        test_use[task] = notes.pop("test_use")
        if task == "binary":
            output.notes.update(notes)
            if protected:
                gaps = {
                    arm: tester.score_fairness(arm, protected.attribute, values)
                    for arm in tester.predictions
                }
                scores += [record for records, _ in gaps.values() for record in records]
                rates = {arm: table for arm, (_, table) in gaps.items()}
                output.notes["fairness"] = {
                    "attribute": protected.attribute,
                    "rates": rates,
                    "is_at_operating_point": bool(tester.at_cut),
                }
            if config.explain:
                recipes = [r for r in regimes.list_recipes(config, sources) if r.ratio is None]
                explained = explain.explain_arms(
                    recipes, task_data, tester, inputs.preprocess, config, output, context
                )
                scores += explained.scores
                output.notes["explanations"] = explained.notes
        else:
            output.notes[task] = notes
    output.write(scores)
    write_records(output.path("predictions.jsonl"), listed)
    output.counts.update({f"n_train_{label}": count for label, count in data.counts.items()})
    output.counts.update(n_val=len(data.val), n_test=len(data.test))
    for name, by_task in scored_elsewhere.items():
        elsewhere_listed = [
            r for task, e in by_task.items() for r in list_predictions(task, data.counts, e.tester)
        ]
        write_records(output.path(f"cross_test/{name}/predictions.jsonl"), elsewhere_listed)
        output.counts[f"n_test_{name}"] = len(others[name].test)
        output.notes.setdefault("cross_test", {})[name] = cross_test.describe(
            inputs.cross_test[name], by_task
        )
    output.notes.update(
        methods=methods.describe(config, data),
        warnings=methods.warn_of_validation(config, data),
        ratios=dict(data.ratio_counts),
        differences=differences,
        test_use=test_use,
    )


STAGE = Stage("classify", run, ClassifyConfig, ClassifyInputs, ScoreRecord)
