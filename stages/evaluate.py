"""Score synthetic slices against real test slices, between a floor and a ceiling.

Reads: preprocess (real slices), generate (every arm and base/NAME). Writes `records.jsonl`
(`ScoreRecord`) and `bootstrap.npz`, the draws behind the intervals, by
"metric/features/group/arm"; in the notes, differences between arms under paired draws.

Rows beside the arms: `real`, train against test slices, whose groups are disjoint (the floor);
`noise`, uniform noise (the ceiling); `vae/NAME`, the same test slices passed through a base
model's VAE (the best its LoRA could reach), with their PSNR; `gap_closed`, how far an arm went from
its base model to that VAE.

Invariants: every arm has the same number of images per class; neither batch size nor the order of
records changes a score by more than 1e-4 relative; real test slices are drawn once for all arms.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    Context,
    Label,
    PluginConfig,
    ScoreRecord,
    SliceRecord,
    Stage,
    SyntheticRecord,
)
from pipeline.seeding import numpy_rng
from pipeline.settings import EvaluateConfig
from stages.components import imaging, scoring
from stages.components.bootstrap import FloatArray, weighted_mean
from stages.components.folders import list_images, read_folder
from stages.components.imaging import RgbImage
from stages.components.reconstruction import PSNR, iter_reconstructions, load_vae
from stages.components.samples import (
    ALL,
    Item,
    Sample,
    choose,
    count_per_class,
    iter_images,
    list_real,
    list_synthetic,
    noise_features,
    require_disjoint,
)
from stages.components.scoring import Estimate, FeatureExtractor, Panel

FLOOR, CEILING, BASE, VAE = "real", "noise", "base/", "vae/"


@dataclass(frozen=True)
class EvaluateInputs:
    """Real slices, and what each arm and each base model (base/NAME) generated."""

    preprocess: Artifact[SliceRecord]
    generate: dict[str, Artifact[SyntheticRecord]]


def base_of(generated: Artifact[SyntheticRecord], bases: Mapping[str, PluginConfig]) -> str | None:
    """Name the base model that an arm was made from, as base/NAME and vae/NAME call it."""
    used = (generated.manifest.get("config") or {}).get("base_model")
    for name, plugin in bases.items():
        if used is not None and PluginConfig.model_validate(used) == plugin:
            return name
    return None


class Scorer:
    """Turns samples into estimates, records, draws and notes."""

    def __init__(self, config: EvaluateConfig, *, experiment: str, seed: int) -> None:
        self.config = config
        self.experiment = experiment
        self.seed = seed
        self.records: list[ScoreRecord] = []
        self.draws: dict[str, FloatArray] = {}
        self.differences: dict[str, list[dict[str, Any]]] = {}
        self.num_draws: dict[str, int] = {}
        self.warnings: list[str] = []

    def add(self, arm: str, group: str, features: str | None, estimate: Estimate) -> None:
        """Keep an estimate as a record and its draws."""
        spec = estimate.spec
        self.records.append(
            ScoreRecord(
                experiment=self.experiment,
                arm=arm,
                stage="evaluate",
                metric=spec.key,
                features=features,
                group=group,
                value=estimate.value,
                low=estimate.low,
                high=estimate.high,
                n_real=estimate.n_real,
                n_synthetic=estimate.n_synthetic,
                higher_is_better=spec.higher_is_better,
            )
        )
        if len(estimate.draws):
            self.draws["/".join([spec.key, features or "pixels", group, arm])] = estimate.draws
            self.num_draws[spec.key] = len(estimate.draws)

    def panel(self, features: FloatArray, groups: Sequence[str], *names: str) -> Panel:
        """Draw a reference sample; equal for all that is scored against it."""
        return Panel.of(
            features,
            groups,
            num_draws=self.config.num_bootstrap,
            confidence=self.config.confidence,
            seed_parts=(self.seed, "evaluate", *names),
        )

    def score_features(
        self,
        extractor: FeatureExtractor,
        group: str,
        test: Sample,
        samples: Mapping[str, Sample],
        bases: Mapping[str, str | None],
    ) -> None:
        """Score every sample against the test slices of one class, or of all."""
        rows = test.rows(group)
        if len(rows) < 2:
            self.warnings.append(f"{group}: {len(rows)} images in common, so it has no scores")
            return
        real = test.features[extractor.name][rows]
        panel = self.panel(real, [test.groups[row] for row in rows], group)
        for name in self.config.metrics:
            metric = scoring.load_metric(name)
            advice = metric.SPEC.advise(n=len(rows), num_features=extractor.num_features)
            if advice and advice not in self.warnings:
                self.warnings.append(advice)
            found: dict[str, Estimate] = {}
            for arm, sample in samples.items():
                own = sample.rows(group)
                found[arm] = panel.score(
                    metric,
                    sample.features[extractor.name][own],
                    [sample.groups[row] for row in own],
                    name=arm,
                    paired=sample.is_paired,
                )
                self.add(arm, group, extractor.name, found[arm])
            if name == "kid":
                self.score_gaps(extractor.name, group, found, bases)
            if group == ALL:
                self.compare_arms(extractor.name, found, [arm for arm in bases if arm in found])

    def score_gaps(
        self,
        features: str,
        group: str,
        found: Mapping[str, Estimate],
        bases: Mapping[str, str | None],
    ) -> None:
        """Add `gap_closed` for every arm whose base model and VAE were scored."""
        for arm, base in bases.items():
            ends = (found.get(f"{BASE}{base}"), found.get(f"{VAE}{base}"))
            if arm.startswith(BASE) or ends[0] is None or ends[1] is None:
                continue
            gap = scoring.gap_closed(
                arm=found[arm], base=ends[0], vae=ends[1], confidence=self.config.confidence
            )
            if gap is None:
                self.warnings.append(
                    f"gap_closed of {arm} ({features}, {group}): {BASE}{base} is as near to real "
                    f"slices as {VAE}{base}, so there is no gap"
                )
            else:
                self.add(arm, group, features, gap)

    def compare_arms(
        self, features: str, found: Mapping[str, Estimate], arms: Sequence[str]
    ) -> None:
        """Keep the differences of all pairs of arms, where there are draws to judge them by."""
        if not all(len(found[arm].draws) for arm in arms):
            return
        pairs = scoring.all_differences(found, arms, confidence=self.config.confidence)
        for pair, row in pairs.items():
            self.differences.setdefault(pair, []).append({**row, "features": features})

    def score_psnr(self, arm: str, test: Sample, psnr_db: Sequence[float]) -> None:
        """Add the mean PSNR of a VAE on the test slices, overall and per class."""
        values = np.asarray(psnr_db)
        for group in (ALL, *dict.fromkeys(test.labels)):
            rows = test.rows(group)
            if len(rows) < 2:
                continue
            panel = self.panel(values[rows, None], [test.groups[row] for row in rows], group)
            means = weighted_mean(values[rows], panel.real)
            estimate = scoring.make_estimate(
                PSNR,
                means,
                confidence=self.config.confidence,
                n_real=len(rows),
                n_synthetic=len(rows),
            )
            self.add(arm, group, None, estimate)


def methods(config: EvaluateConfig, scorer: Scorer, counts: Mapping[Label, int]) -> str:
    """Write the methods sentence of the report."""
    draws = ", ".join(f"{count} for {metric}" for metric, count in scorer.num_draws.items())
    return (
        f"Fidelity was scored by {', '.join(config.metrics)} on "
        f"{', '.join(plugin.name for plugin in config.features)} features of "
        f"{sum(counts.values())} images per arm and as many real test slices, with equal numbers "
        f"per class ({', '.join(f'{label} {count}' for label, count in counts.items())}); images "
        f"were resized by {imaging.RESIZE_KERNEL}. Intervals ({config.confidence:.0%}) come from a "
        f"bootstrap over groups of real slices and over synthetic images ({draws or 'none'} "
        "draws), the same real draws for every arm; pairs of two copies of one group are left out "
        "of kid, and intervals of fid are centred on the estimate, because its bias grows in draws."
    )


def run(
    config: EvaluateConfig,
    inputs: EvaluateInputs,
    output: ArtifactWriter[ScoreRecord],
    context: Context,
) -> None:
    """Choose images, extract features, score; only this function loads networks and writes.

    Raises:
        SampleSizeError: Too few images in common.
        SplitLeakError: A group is in both train and test.
        MissingWeightsError: A feature extractor or a VAE is not on this machine.
    """
    import torch

    torch.set_num_threads(context.num_threads)
    test, train = (list_real(inputs.preprocess, split) for split in ("test", "train"))
    require_disjoint(test, train)
    arms = {name: list_synthetic(artifact) for name, artifact in inputs.generate.items()}
    counts = count_per_class({"test": test, "train": train, **arms}, config.max_images)
    seed_parts = (context.seed, "evaluate")
    chosen = choose(test, counts, (*seed_parts, "test"))
    extractors = [scoring.load_extractor(plugin, context.device) for plugin in config.features]
    scorer = Scorer(config, experiment=context.experiment, seed=context.seed)

    def sample(items: Sequence[Item], images: Iterator[RgbImage], paired: bool = False) -> Sample:
        features = scoring.extract(extractors, images, batch_size=config.batch_size)
        labels, groups = tuple(i.label for i in items), tuple(i.group for i in items)
        return Sample(features, labels, groups, paired)

    reference = sample(chosen, iter_images(chosen))
    samples: dict[str, Sample] = {}
    for name, items in {FLOOR: train, **arms}.items():
        context.progress(f"features: {name}, {len(chosen)} images")
        own = choose(items, counts, (*seed_parts, name))
        samples[name] = sample(own, iter_images(own))
    for name, plugin in config.base_models.items():
        context.progress(f"features: {VAE}{name}, {len(chosen)} images")
        psnr_db: list[float] = []
        vae = load_vae(plugin, context.device)
        images = iter_reconstructions(vae, iter_images(chosen), psnr_db)
        samples[f"{VAE}{name}"] = sample(chosen, images, paired=True)
        scorer.score_psnr(f"{VAE}{name}", reference, psnr_db)
    noise = noise_features(extractors, len(chosen), seed_parts, batch_size=config.batch_size)
    names = tuple(f"noise-{number}" for number in range(len(chosen)))
    samples[CEILING] = Sample(noise, reference.labels, names)

    bases = {
        name: base_of(artifact, config.base_models) for name, artifact in inputs.generate.items()
    }
    for extractor in extractors:
        for group in (ALL, *counts):
            context.progress(f"scores: {extractor.name}, {group}")
            scorer.score_features(extractor, group, reference, samples, bases)
    output.write(scorer.records)
    np.savez(output.path("bootstrap.npz"), allow_pickle=False, **scorer.draws)
    output.counts.update({f"n_{label}": count for label, count in counts.items()})
    output.notes.update(
        methods=methods(config, scorer, counts),
        differences=scorer.differences,
        num_draws=scorer.num_draws,
        warnings=scorer.warnings,
        metrics={name: scoring.load_metric(name).SPEC.citation for name in config.metrics},
    )


def compare_folders(
    real: Path,
    synthetic: Path,
    *,
    features: str,
    seed: int,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> list[ScoreRecord]:
    """Score any two folders of images as `run` does, with all the images that they hold.

    Rows: `synthetic` against real; `real`, one random half of the real folder against the other (a
    floor that knows no subjects, so it may be too low); `noise` against real. Nothing says which
    images belong together, so intervals take each as its own group.

    Args:
        real: Folder of the reference, searched with its subfolders.
        synthetic: Folder to be scored.
        features: Name of a feature extractor.
        seed: Of the halves, the noise and the bootstrap.
        device: Where the network runs.
        progress: Gets a line now and then.

    Raises:
        UnknownPluginError: No extractor of that name.
        MissingWeightsError: Its weights are not on this machine.
        DataError: A folder is missing or holds no image.
        SkippedTooManyError: Too many images cannot be read.
        SampleSizeError: Fewer than 4 real or 2 synthetic images.
    """
    config = EvaluateConfig(features=(PluginConfig(name=features),))
    for folder in (real, synthetic):
        list_images(folder)
    extractor = scoring.load_extractor(config.features[0], device)
    rows = read_folder(real, extractor, least=4, progress=progress)
    made = read_folder(synthetic, extractor, least=2, progress=progress)
    seed_parts = (seed, "compare")
    noise = noise_features([extractor], len(made), seed_parts, batch_size=32)[extractor.name]
    order = numpy_rng(*seed_parts, "halves").permutation(len(rows))
    half = len(rows) // 2
    halves = rows[order[:half]], rows[order[half : 2 * half]]
    scorer = Scorer(config, experiment="compare", seed=seed)
    for arm, reference, scored in (
        ("synthetic", rows, made),
        (FLOOR, *halves),
        (CEILING, rows, noise),
    ):
        progress(f"scores: {arm}")
        panel = scorer.panel(reference, [str(row) for row in range(len(reference))], ALL)
        groups = [f"{arm}-{row}" for row in range(len(scored))]
        for name in config.metrics:
            estimate = panel.score(scoring.load_metric(name), scored, groups, name=arm)
            scorer.add(arm, ALL, extractor.name, estimate)
    return scorer.records


STAGE = Stage("evaluate", run, EvaluateConfig, EvaluateInputs, ScoreRecord)
