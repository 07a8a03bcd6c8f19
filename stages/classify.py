"""Train the ViT on real or on synthetic slices, and test it once on real ones.

Reads: preprocess (real slices of every split), generate (every arm). Writes `records.jsonl`
(`ScoreRecord`), `predictions.jsonl` (`PredictionRecord`: every test slice under every arm and seed)
and `runs/ARM-SEED.json` (losses, chosen step, predictions).

Arms: `real`, trained on real slices; every generate arm, trained on its synthetic slices alone;
`baseline/NAME`, shortcuts fitted on the slices of `real`. Whoever trains, states are chosen on real
validation slices and the real test slices are judged after that, once.

Invariants: every arm has the same number of training slices per class, the same number of steps
and, for each seed, the same initial weights; a finished (arm, seed) stands in `runs/` and is not
trained again after a kill, with the same bytes at the end.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from pipeline import registry
from pipeline.contracts import (
    LABELS,
    Artifact,
    ArtifactWriter,
    Context,
    Label,
    PredictionRecord,
    ScoreRecord,
    SliceRecord,
    Stage,
    SyntheticRecord,
    write_records,
)
from pipeline.errors import SampleSizeError
from pipeline.seeding import derive_seed, numpy_rng
from pipeline.settings import ClassifyConfig
from stages.components import diagnostics
from stages.components.bootstrap import FloatArray, interval, resample
from stages.components.diagnostics import METRICS, Judged
from stages.components.samples import ALL, Item, choose, list_real, list_synthetic

REAL, BASELINE = "real", "baseline/"
NUM_DRAWS = 1000  # of groups of test slices; each draw is a sum over weights
CONFIDENCE = 0.95


@dataclass(frozen=True)
class ClassifyInputs:
    """Real slices, and what each arm generated."""

    preprocess: Artifact[SliceRecord]
    generate: dict[str, Artifact[SyntheticRecord]]


@dataclass(frozen=True)
class Run:
    """What one training run left behind: its losses and its only look at the test slices."""

    steps: tuple[int, ...]
    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    chosen_step: int
    probability: tuple[float, ...]  # of each test slice, in the order of `slice_id`
    slice_id: tuple[str, ...]


def has_tumor(items: Sequence[Item]) -> NDArray[np.bool_]:
    """Say which items show a tumour, (n,)."""
    return np.asarray([item.label != "notumor" for item in items], dtype=bool)


def match_counts(sets: Mapping[str, Sequence[Item]], num_images: int | None) -> dict[Label, int]:
    """Return how many slices of each class every arm trains on.

    Args:
        sets: The slices of each arm.
        num_images: How many in all, shared equally by the classes that all arms have; None: of
            each class what the smallest arm has.

    Raises:
        SampleSizeError: An arm has too few, or the arms share no class with or without a tumour.
    """
    least = {
        label: min((sum(i.label == label for i in items), name) for name, items in sets.items())
        for label in LABELS
    }
    shared = [label for label in LABELS if least[label][0] > 0]
    if "notumor" not in shared or len(shared) < 2:
        poorest = {label: f"{name} has {count}" for label, (count, name) in least.items()}
        raise SampleSizeError(
            "classify needs slices with and without a tumour in every arm; found in common "
            f"{shared or 'none'} ({', '.join(f'{k}: {v}' for k, v in poorest.items())}). Let "
            "generate.labels name the classes of the real slices, or raise generate.num_images."
        )
    if num_images is None:
        return {label: least[label][0] for label in shared}
    wanted = num_images // len(shared)
    for label in shared:
        count, name = least[label]
        if not 0 < wanted <= count:
            raise SampleSizeError(
                f"classify.num_images is {num_images}, {wanted} of each of {len(shared)} classes, "
                f"but {name!r} holds {count} of {label!r}. Lower it (or leave it out), or raise "
                "generate.num_images."
            )
    return dict.fromkeys(shared, wanted)


def run_path(output: ArtifactWriter[ScoreRecord], arm: str, seed: int) -> Path:
    """Name the file of a training run; any arm's name is safe."""
    return output.path(f"runs/{quote(arm, safe='')}-{seed}.json")


def read_run(path: Path, slice_ids: Sequence[str]) -> Run | None:
    """Read a finished training run of the same test slices; None if there is none."""
    if not path.is_file():
        return None
    row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    found = Run(**fields)
    return found if found.slice_id == tuple(slice_ids) else None


def write_run(path: Path, run: Run) -> None:
    """Write a finished training run; the file is whole or absent."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(run), sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def prefixed(progress: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    """Put a prefix before every line."""
    return lambda line: progress(prefix + line)


class Tester:
    """Test slices with their draws, and the scores of everything that judged them."""

    def __init__(self, test: Sequence[Item], *, experiment: str, seed: int) -> None:
        self.test = test
        self.experiment = experiment
        self.is_tumor = has_tumor(test)
        drawn = resample(
            np.zeros((len(test), 1)),
            [item.group for item in test],
            num_draws=NUM_DRAWS,
            rng=numpy_rng(seed, "classify", "bootstrap"),
        )
        self.weights: FloatArray = drawn.row_weights
        self.judged: dict[str, Judged] = {}

    def add(self, arm: str, probability: FloatArray) -> None:
        """Keep an arm's probabilities (runs, n)."""
        self.judged[arm] = Judged(probability, self.is_tumor)

    def draws(self, arm: str, metric: str) -> FloatArray:
        """Return a metric of an arm in each draw, the sample itself first."""
        return diagnostics.metric_draws(self.judged[arm], metric, self.weights)

    def score(self, arm: str, num_synthetic: int) -> list[ScoreRecord]:
        """Score an arm overall, and its share of right answers per class."""
        judged = self.judged[arm]
        records = []
        for metric in METRICS:
            values = self.draws(arm, metric)
            if not np.isfinite(values[0]):
                continue  # no slice of that kind in the test split
            if metric == "auroc":
                draws = values[1:]
                low, high = interval(draws[np.isfinite(draws)], confidence=CONFIDENCE)
                rows = np.ones_like(self.is_tumor)
            else:
                rows = judged.rows(metric)
                count = int(rows.sum())
                low, high = diagnostics.wilson(values[0] * count, count, confidence=CONFIDENCE)
            records.append(
                self._record(arm, metric, ALL, float(values[0]), low, high, rows, num_synthetic)
            )
        for label in LABELS:
            rows = np.asarray([item.label == label for item in self.test], dtype=bool)
            if not rows.any():
                continue
            right, count = float(judged.is_right[rows].sum()), int(rows.sum())
            low, high = diagnostics.wilson(right, count, confidence=CONFIDENCE)
            share = right / count
            records.append(
                self._record(arm, "accuracy", label, share, low, high, rows, num_synthetic)
            )
        return records

    def _record(
        self,
        arm: str,
        metric: str,
        group: str,
        value: float,
        low: float | None,
        high: float | None,
        rows: NDArray[np.bool_],
        num_synthetic: int,
    ) -> ScoreRecord:
        return ScoreRecord(
            experiment=self.experiment,
            arm=arm,
            stage="classify",
            metric=metric,
            features=None,
            group=group,
            value=value,
            low=low,
            high=high,
            n_real=int(rows.sum()),
            n_synthetic=num_synthetic,
            higher_is_better=True,
        )

    def differences(self, arm: str, reference: str) -> list[dict[str, Any]]:
        """Return `arm - reference` for every metric, by paired draws of the test slices."""
        rows: list[dict[str, Any]] = []
        for metric in METRICS:
            values = self.draws(arm, metric) - self.draws(reference, metric)
            low, high = interval(values[1:][np.isfinite(values[1:])], confidence=CONFIDENCE)
            if not np.isfinite(values[0]) or low is None:
                continue
            row = {"metric": metric, "value": float(values[0]), "low": low, "high": high}
            if metric == "accuracy":
                row["mcnemar"] = diagnostics.mcnemar(self.judged[arm], self.judged[reference])
            rows.append(row)
        return rows


def fit_baselines(
    names: Sequence[str],
    records: Mapping[str, SliceRecord],
    images: Callable[[Sequence[Item]], NDArray[np.uint8]],
    train: Sequence[Item],
    test: Sequence[Item],
) -> dict[str, FloatArray]:
    """Fit each shortcut baseline on real training slices; its probabilities of the test slices."""
    found: dict[str, FloatArray] = {}
    for name in names:
        plugin = registry.find(registry.CLASSIFIERS, name)
        predict = plugin.fit(
            records=[records[item.name] for item in train],
            images=images(train),
            is_tumor=has_tumor(train),
        )
        found[name] = predict([records[item.name] for item in test], images(test))
    return found


def methods(config: ClassifyConfig, counts: Mapping[Label, int], tester: Tester) -> str:
    """Write the methods sentence of the report."""
    shares = ", ".join(f"{label} {count}" for label, count in counts.items())
    return (
        f"A {config.model.name} classifier (tumour or not, {config.image_size} px, one grey "
        f"channel) was trained for {config.max_steps} steps of {config.batch_size} slices on "
        f"{sum(counts.values())} real or synthetic slices ({shares}; the same for every arm), "
        f"{config.num_seeds} time(s) with different seeds, chosen by loss on real validation "
        f"slices and tested once on {len(tester.test)} real test slices. Intervals are Wilson's "
        f"for proportions and, for AUROC and differences, from {NUM_DRAWS} draws of groups of test "
        "slices, paired between arms. Shortcut baselines were fitted on the slices of the real arm."
    )


def run(
    config: ClassifyConfig,
    inputs: ClassifyInputs,
    output: ArtifactWriter[ScoreRecord],
    context: Context,
) -> None:
    """Train every (arm, seed), judge the test slices, score; only this function writes.

    Raises:
        SampleSizeError: An arm has too few slices, or no test slices exist.
        TrainingError: The loss is not finite, or there are no validation slices.
    """
    import torch

    from stages.components import classification
    from stages.components.classification import LabelledImages, TrainingPlan

    torch.set_num_threads(context.num_threads)
    records = {record.slice_id: record for record in inputs.preprocess.records()}
    splits = {split: list_real(inputs.preprocess, split) for split in ("train", "val", "test")}
    val, test = (sorted(splits[s], key=lambda item: item.name) for s in ("val", "test"))
    sets = {REAL: splits["train"]}
    sets |= {name: list_synthetic(artifact) for name, artifact in inputs.generate.items()}
    if len(test) < 2:
        raise SampleSizeError(
            f"classify needs at least 2 test slices, found {len(test)} in "
            f"{inputs.preprocess.root}; raise preprocess.test_fraction"
        )
    counts = match_counts(sets, config.num_images)
    chosen = {
        name: choose(items, counts, (context.seed, "classify", name))
        for name, items in sets.items()
    }
    plugin = registry.find(registry.CLASSIFIERS, config.model.name)
    settings = plugin.Settings.model_validate(config.model.settings)
    tester = Tester(test, experiment=context.experiment, seed=context.seed)

    def images(items: Sequence[Item]) -> NDArray[np.uint8]:
        return classification.read_images([item.path for item in items], config.image_size)

    plan = TrainingPlan(**{f: getattr(config, f) for f in TrainingPlan.__dataclass_fields__})
    real_val = LabelledImages(images(val), has_tumor(val))
    test_images = images(test)
    slice_ids = tuple(item.name for item in test)
    selection: dict[str, list[dict[str, float]]] = {}
    for arm, items in chosen.items():
        train_set: LabelledImages | None = None
        runs: list[Run] = []
        for seed in range(config.num_seeds):
            path = run_path(output, arm, seed)
            done = read_run(path, slice_ids)
            if done is None:
                if train_set is None:
                    train_set = LabelledImages(images(items), has_tumor(items))
                network, curve = classification.train(
                    lambda: plugin.build(settings, config.image_size),
                    train=train_set,
                    val=real_val,
                    plan=plan,
                    seed=derive_seed(context.seed, "classify", seed),
                    device=context.device,
                    progress=prefixed(context.progress, f"classify {arm}, seed {seed}: "),
                )
                done = Run(
                    **asdict(curve),
                    chosen_step=curve.chosen_step,
                    probability=tuple(
                        classification.predict(network, test_images, context.device).tolist()
                    ),
                    slice_id=slice_ids,
                )
                write_run(path, done)
            runs.append(done)
        tester.add(arm, np.asarray([run.probability for run in runs]))
        selection[arm] = [{"step": run.chosen_step, "val_loss": min(run.val_loss)} for run in runs]
    baselines = fit_baselines(config.baselines, records, images, chosen[REAL], test)
    for name, probability in baselines.items():
        tester.add(f"{BASELINE}{name}", probability[None])
    num_synthetic = dict.fromkeys(inputs.generate, sum(counts.values()))
    output.write(
        record for arm in tester.judged for record in tester.score(arm, num_synthetic.get(arm, 0))
    )
    write_records(output.path("predictions.jsonl"), predictions(tester))
    output.counts.update({f"n_train_{label}": count for label, count in counts.items()})
    output.counts.update(n_val=len(val), n_test=len(test))
    output.notes.update(
        methods=methods(config, counts, tester),
        differences={
            f"{arm} - {REAL}": tester.differences(arm, REAL) for arm in tester.judged if arm != REAL
        },
        confusion={arm: diagnostics.confusion(judged) for arm, judged in tester.judged.items()},
        selection=selection,
        seeds={arm: diagnostics.summarise_runs(judged) for arm, judged in tester.judged.items()},
    )


def predictions(tester: Tester) -> list[PredictionRecord]:
    """List every test slice's probability under every arm and seed."""
    return [
        PredictionRecord(
            arm=arm, seed=seed, slice_id=item.name, label=item.label, probability=float(p)
        )
        for arm, judged in tester.judged.items()
        for seed, row in enumerate(judged.probability)
        for item, p in zip(tester.test, row, strict=True)
    ]


STAGE = Stage("classify", run, ClassifyConfig, ClassifyInputs, ScoreRecord)
