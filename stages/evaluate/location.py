"""Location scores: what a judge reads in the images of a run, beside what their prompts ask for.

Rows: every arm and base model, on all its images but the counterfactual ones; `real`, the judge on
slices whose truth is known and that did not train it (`CHECKED_ON`: all splits for a judge from
elsewhere), which is its own accuracy; `vae/NAME`, the judge on test slices passed through a base
model's VAE, which is the best that any image of it could be read. Whether an arm learned to follow
is its difference from its base model without LoRA: both were asked the same and share their draws.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import registry
from pipeline.contracts import (
    REAL,
    VAE,
    Artifact,
    Context,
    SliceRecord,
    Split,
    SyntheticRecord,
)
from pipeline.settings import EvaluateConfig
from stages.components.features.extraction import read_rgb, to_luma
from stages.components.imaging.pixels import GrayImage, RgbImage
from stages.components.judge import agreement
from stages.components.judge.reading import Reading, read_core, read_images
from stages.components.statistics import cohorts
from stages.components.tumor_report.agreement import read_field
from stages.evaluate.location_table import LocationTable
from stages.evaluate.patches import save_patches
from stages.evaluate.presence import add_corrected
from stages.evaluate.scorer import Scorer

if TYPE_CHECKING:
    from stages.components.judge.network import Judge

FOLDER = "judge"  # of evaluate's artifact, where the judge was trained for it


def find_judge(
    config: EvaluateConfig,
    preprocess: Artifact[SliceRecord],
    generate: Mapping[str, Artifact[SyntheticRecord]],
    folder: Path,
    context: Context,
) -> "Judge | str":
    """Load or train the judge of a run, or say in one line why there is none.

    Raises:
        TrainingError: Its training failed.
        MissingWeightsError: Its weights are damaged.
    """
    stated = (
        read_field(record.requested, name)
        for artifact in generate.values()
        for record in artifact.records()
        for name in agreement.FIELDS.values()
    )
    if all(value is None for value in stated):
        return "no prompt states a field that could be looked for in its image"
    slices = list(preprocess.records())
    plugin = registry.find(registry.JUDGES, config.judge.name)
    if not list_known(slices, plugin.CHECKED_ON):
        return (
            "the test slices of this source have no masks, so no judge can be checked on them, and "
            "whether tumours lie where prompts ask is not scored"
        )
    settings = plugin.Settings.model_validate(config.judge.settings)
    reason: str | None = plugin.refuse(settings, slices)
    if reason is not None:
        return reason
    judge: Judge = plugin.obtain(settings, preprocess, folder, context)
    return judge


def list_known(slices: Iterable[SliceRecord], splits: Sequence[Split]) -> list[SliceRecord]:
    """List the slices of some splits whose truth is known, by name."""
    known = [item for item in slices if item.split in splits and item.truth is not None]
    return sorted(known, key=lambda item: item.slice_id)


def keep(images: Iterable[RgbImage], size: int, kept: list[GrayImage]) -> Iterator[RgbImage]:
    """Pass images on, and keep their brightness as the judge sees it, uint8 (size, size)."""
    for image in images:
        kept.append(to_luma(image, size))
        yield image


def read_files(judge: "Judge", paths: Iterable[Path], known: dict[Path, Reading]) -> list[Reading]:
    """Judge image files, padded to a square and resized to the judge's size.

    `known`: readings of files that were judged before; gets those of the others.

    Raises:
        DataError: One of them is missing or damaged.
    """
    paths, size = list(paths), judge.config.image_size
    new = [path for path in dict.fromkeys(paths) if path not in known]
    readings = read_images(judge, (to_luma(read_rgb(path), size) for path in new))
    known.update(zip(new, readings, strict=True))
    return [known[path] for path in paths]


def score(
    judge: "Judge",
    preprocess: Artifact[SliceRecord],
    generate: Mapping[str, Artifact[SyntheticRecord]],
    reconstructed: Mapping[str, Mapping[str, GrayImage]],
    bases: Mapping[str, str | None],
    known: dict[Path, Reading],
    scorer: Scorer,
    folder: Path,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Judge every image of a run, add the scores, and return the notes.

    Args:
        judge: who judges.
        preprocess: real slices.
        generate: arms and base models.
        reconstructed: base model -> slice -> that slice through its VAE, at the judge's size.
        bases: arm, or base model, -> the base model that it was made from.
        known: files that were judged already.
        scorer: gets scores and differences.
        folder: evaluate's artifact, where what the judge marked is kept.
        progress: takes one line at a time.
    """
    words_of = {"region": judge.config.regions, "shape": judge.config.shapes}
    table = LocationTable(scorer, [name for name in agreement.FIELDS if words_of.get(name, True)])
    plugin = registry.find(registry.JUDGES, scorer.config.judge.name)
    real = list_known(preprocess.records(), plugin.CHECKED_ON)
    masks = {
        item.slice_id: read_core(
            None if item.mask_path is None else preprocess.path(item.mask_path),
            judge.config.image_size,
        )
        for item in real
    }
    progress(f"location: {len(real)} real slices")
    readings = read_files(judge, (preprocess.path(item.image_path) for item in real), known)
    table.add_real(REAL, real, readings, masks)
    patches = {REAL: save_patches(folder, REAL, [item.slice_id for item in real], readings)}
    for name, images in reconstructed.items():
        shown = [item for item in real if item.slice_id in images]
        seen = read_images(judge, (images[item.slice_id] for item in shown))
        table.add_real(f"{VAE}{name}", shown, seen, masks)
    for arm, artifact in generate.items():
        records = sorted(artifact.records(), key=lambda record: record.image_id)
        progress(f"location: {arm}, {len(records)} images")
        readings = read_files(judge, (artifact.path(r.image_path) for r in records), known)
        table.add_arm(arm, records, readings, cohorts.find_units(artifact, preprocess))
        patches[arm] = save_patches(folder, arm, [r.image_id for r in records], readings)
        if artifact.manifest["config"].get("guidance") is not None:
            scorer.warn(
                f"{arm}: a judge steered its sampling, and what pleases one judge pleases its "
                "like, so its location scores flatter it"
            )
        for field, words in words_of.items():
            requests = {read_field(r.requested, agreement.FIELDS[field]) for r in records}
            unseen = requests - {None, *words}
            if unseen and words:
                scorer.warn(
                    f"{arm}: the judge never saw {', '.join(sorted(map(str, unseen)))}, so an "
                    f"image asked for it is wrong in location_{field}"
                )
    table.compare(list(generate))
    add_corrected(scorer, table.one_sided, bases)
    return {
        "judge": {
            "name": scorer.config.judge.name,
            "image_size": judge.config.image_size,
            "least_confidence": judge.config.least_confidence,
            "regions": list(judge.config.regions),
            "shapes": list(judge.config.shapes),
            "num_real": len(real),
        },
        "fields": table.fields,
        "confusion": table.confusion,
        "flips": table.flips,
        "patches": patches,
    }


def methods(notes: Mapping[str, Any]) -> str:
    """Write the methods sentence of the report from the notes."""
    judge = notes["judge"]
    return (
        f"Every image was read by a judge ({judge['name']}), a small U-Net trained on true masks "
        f"at {judge['image_size']} px: there is a tumour if it is at least "
        f"{judge['least_confidence']:.0%} sure of the surest pixels. Size and "
        "intensity are taken from the largest patch as from a true mask; plane, and region, side "
        "and shape of the patch, are named by the network. Its own accuracy is that on "
        f"{judge['num_real']} real slices that did not train it. Sides are left against right, of "
        "the images in which a tumour is seen. Intervals of shares are Wilson's on the effective "
        "sample size, that by which the share varies over draws of groups (prompts with their "
        "seeds, the same draws for every arm, or subjects of real slices), with t's quantile; they "
        "say nothing of another training of the same arm."
    )
