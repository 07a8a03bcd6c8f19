"""Score synthetic slices against real test slices, between a floor and a ceiling.

With `evaluate.split: val` validation slices take the place of test slices, so that settings can be
chosen without looking at the test split.

Reads: preprocess (real slices), generate (every arm and base/NAME). Writes `records.jsonl`
(`ScoreRecord`) and `bootstrap.npz`, the draws behind the intervals, by
"metric/features/group/arm"; in the notes, differences between arms under paired draws, networks
that are missing, what was found in the search for copies, and how far images do as they were told.

Rows beside the arms: `real`, train against test slices, whose groups are disjoint (the floor);
`noise`, uniform noise (the ceiling); `vae/NAME`, the same test slices passed through a base
model's VAE (the best its LoRA could reach), with their PSNR; `control/KIND`, training slices of one
class or one contrast alone, wrong in a way that a score should see; `gap_closed`, how far an arm
went from its base model to that VAE. Groups: all slices, each class, each orientation that all sets
name.

Whether a tumour is where and what its prompt asks (`location_*`) is read by a judge from every
image, and from every test slice with a known truth; where there is no judge, the notes say why.
Where there is one, `lesion_kid` is the distance of crops around what it marks.

Invariants: every arm has the same number of images per class, and per class and orientation;
neither batch size nor the order of records changes a score by more than 1e-4 relative; real test
slices, and prompts with their seeds, are drawn once for all arms; a network that is missing is
named and replaced by nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.contracts import (
    ALL,
    NOISE,
    REAL,
    VAE,
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
from pipeline.settings import EvaluateConfig
from stages.components.features import extraction, nearest
from stages.components.imaging import pixels
from stages.components.imaging.pixels import GrayImage
from stages.components.statistics import cohorts
from stages.evaluate import copies, lesions, location, panel, ssim
from stages.evaluate.controls import score_controls
from stages.evaluate.recaption import recaption
from stages.evaluate.reconstruction import iter_reconstructions, list_passes, load_vae
from stages.evaluate.samples import FeatureSample, Reader, balance_planes, noise_features
from stages.evaluate.scorer import Scorer

if TYPE_CHECKING:
    from stages.components.judge.network import Judge


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


def methods(
    config: EvaluateConfig, num_draws: Mapping[str, int], counts: Mapping[Label, int]
) -> str:
    """Write the methods sentence of the report."""
    draws = ", ".join(
        f"{count} for {metric}"
        for metric, count in num_draws.items()
        if not metric.startswith("location_")  # told of in a sentence of its own
    )
    return (
        f"Fidelity was scored by {', '.join(config.metrics)} on "
        f"{', '.join(plugin.name for plugin in config.features)} features of "
        f"{sum(counts.values())} images per arm and as many real {config.split} slices, with equal "
        f"numbers per class ({', '.join(f'{label} {count}' for label, count in counts.items())}); "
        f"images were resized by {pixels.RESIZE_KERNEL}. Intervals ({config.confidence:.0%}) come "
        f"from a bootstrap over groups of real slices and over synthetic images ({draws or 'none'} "
        "draws), the same draws of real slices, and of prompts with their seeds, for every arm; "
        "slices of one group (subject) are no pair in kid and no neighbours in prdc, and intervals "
        "of fid and prdc are centred on the estimate, because their bias "
        f"grows in draws. Each p comes from {config.num_permutations} exchanges of an arm's images "
        "with real training slices, in whole groups; it is "
        "one-sided, and not corrected for the number of scores."
    )


def find_judge(
    config: EvaluateConfig,
    inputs: EvaluateInputs,
    output: ArtifactWriter[ScoreRecord],
    context: Context,
) -> "Judge | None":
    """Load or train the judge; where there is none, the notes and the log say why."""
    folder = output.root / location.FOLDER
    judge = location.find_judge(config, inputs.preprocess, inputs.generate, folder, context)
    if not isinstance(judge, str):
        return judge
    output.notes["location"] = {"missing": judge}
    context.progress(f"location: {judge}")
    return None


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
        MissingWeightsError: No feature extractor at all, or a VAE, is on this machine.
    """
    import torch

    torch.set_num_threads(context.num_threads)
    split, slices = config.split, inputs.preprocess
    held_out, train = (cohorts.list_real(slices, name) for name in (split, "train"))
    cohorts.require_disjoint(held_out, train)
    arms = {name: cohorts.list_synthetic(made, slices) for name, made in inputs.generate.items()}
    counts = cohorts.count_per_class({split: held_out, "train": train, **arms}, config.max_images)
    seed_parts = (context.seed, "evaluate")
    chosen = {
        name: cohorts.choose(items, counts, seed_parts)
        for name, items in {split: held_out, REAL: train, **arms}.items()
    }
    planes = balance_planes(chosen)
    extractors, missing = extraction.load_extractors(config.features, context.device)
    scorer = Scorer(config, experiment=context.experiment, seed=context.seed)
    for line in missing:
        scorer.warn(line)
    if split != "test":
        scorer.warn(
            f"arms were scored against {split} slices (evaluate.split): to choose settings by, and "
            "no result of a run whose settings were chosen by them"
        )
    if not planes[split]:
        scorer.warn("no orientation is named by all sets, so there are no scores by orientation")
    reader = Reader(extractors, config.batch_size, context.cache_dir / "features")

    judge = find_judge(config, inputs, output, context) if config.location else None
    if judge is None:
        why = output.notes.get("location", {}).get("missing", "evaluate.location is off")
        scorer.warn(f"lesion crops are not scored, which takes a judge: {why}")
    crops = None if judge is None else lesions.LesionCrops(judge, reader)
    reconstructed: dict[str, dict[str, GrayImage]] = {}
    samples: dict[str, FeatureSample] = {}
    for name, items in chosen.items():
        context.progress(f"features: {name}, {len(items)} images")
        samples[name] = reader.sample(items, extraction.iter_images(items), planes[name])
        if crops is not None:
            crops.add(name, items)
    reference = samples.pop(split)
    for name, plugin in config.base_models.items():
        context.progress(f"features: {VAE}{name}, {len(chosen[split])} images")
        psnr_db: list[float] = []
        vae = load_vae(plugin, context.device)
        images = iter_reconstructions(vae, extraction.iter_images(chosen[split]), psnr_db)
        kept: list[GrayImage] = []
        if crops is not None:
            images = location.keep(images, crops.judge.config.image_size, kept)
            images = crops.watch(f"{VAE}{name}", chosen[split], images)
        seen = reader.sample(chosen[split], images, planes[split])
        reconstructed[name] = dict(zip((i.name for i in chosen[split]), kept, strict=False))
        samples[f"{VAE}{name}"] = replace(seen, is_paired=True)
        scorer.score_psnr(f"{VAE}{name}", reference, psnr_db)
    noise = noise_features(
        extractors,
        len(chosen[split]),
        seed_parts,
        batch_size=config.batch_size,
        luma_sizes=[ssim.SIZE_PX],
        cache_dir=reader.cache_dir,
    )
    names = tuple(f"{NOISE}-{number}" for number in range(len(chosen[split])))
    samples[NOISE] = FeatureSample(noise, reference.labels, names, planes=reference.planes)

    bases = {
        name: base_of(artifact, config.base_models) for name, artifact in inputs.generate.items()
    }
    for group in (ALL, *counts, *reference.planes):
        context.progress(f"scores: {group}")
        scorer.score_group(extractors, group, reference, samples, bases)
    context.progress("controls")
    score_controls(
        scorer,
        reader,
        train=train,
        test=chosen[split],
        reference=reference,
        counts=counts,
        seed_parts=seed_parts,
    )
    if crops is not None:
        context.progress("lesion crops")
        crops.add_control(train, chosen[REAL])
        crops.score(scorer, split, bases)
    if config.memorisation:
        context.progress(f"copies: {sum(map(len, arms.values()))} images, {len(train)} slices")
        output.notes["copies"] = copies.search(
            train=train,
            held_out=chosen[split],
            arms=arms,
            vaes=list_passes(config.base_models, context.device),
            read=lambda images: reader.extract(images, nearest.SIZE_PX),
            network=extractors[0].name,
            scorer=scorer,
            seed_parts=seed_parts,
        )
    location_methods = ""
    if crops is not None:
        location_notes = location.score(
            crops.judge,
            inputs.preprocess,
            inputs.generate,
            reconstructed,
            bases,
            crops.known,
            scorer,
            output.root,
            context.progress,
        )
        output.notes["location"] = location_notes
        location_methods = f" {location.methods(location_notes)} {lesions.METHODS}"
    if config.recaption is not None:
        read = recaption(
            config.recaption,
            preprocess=inputs.preprocess,
            generate=inputs.generate,
            real=[item.name for item in chosen[split]],
            chosen={arm: [item.name for item in chosen[arm]] for arm in arms},
            output=output,
            context=context,
        )
        scorer.add_records(read.records)
        output.notes["recaption"] = read.notes
    scores = scorer.result()
    output.write(scores.records)
    np.savez(output.path("bootstrap.npz"), allow_pickle=False, **scores.draws)
    output.counts.update({f"n_{label}": count for label, count in counts.items()})
    output.notes.update(
        methods=methods(config, scores.num_draws, counts) + location_methods,
        differences=scores.differences,
        num_draws=scores.num_draws,
        scores={key: style.model_dump() for key, style in scores.styles.items()},
        warnings=list(scores.warnings),
        metrics={name: panel.load_metric(name).SPEC.citation for name in config.metrics},
    )


STAGE = Stage("evaluate", run, EvaluateConfig, EvaluateInputs, ScoreRecord)
