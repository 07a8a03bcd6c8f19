"""Location scores: what a judge reads in the images of a run, beside what their prompts ask for.

Rows: every arm and base model, on all its images but the counterfactual ones; `real`, the judge on
slices whose truth is known and that did not train it (`CHECKED_ON`: all splits for a judge from
elsewhere), which is its own accuracy; `vae/NAME`, the judge on test slices passed through a base
model's VAE, which is the best that any image of it could be read. Whether an arm learned to follow
is its difference from its base model without LoRA: both were asked the same and share their draws.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import registry
from pipeline.contracts import (
    ALL,
    CHANCE,
    REAL,
    UNKNOWN,
    VAE,
    Artifact,
    Context,
    SliceRecord,
    Split,
    SyntheticRecord,
)
from pipeline.seeding import numpy_rng
from pipeline.settings import EvaluateConfig
from stages.components.features.extraction import read_rgb, to_luma
from stages.components.imaging.pixels import GrayImage, RgbImage
from stages.components.judge import agreement
from stages.components.judge.reading import Reading, dice, read_core, read_images
from stages.components.statistics import cohorts
from stages.components.statistics.bootstrap import FloatArray, mean_over_groups
from stages.components.statistics.estimates import Estimate, make_estimate
from stages.components.tumor_report.agreement import read_field
from stages.evaluate.differences import all_differences, difference
from stages.evaluate.patches import save_patches
from stages.evaluate.scorer import Scorer

if TYPE_CHECKING:
    from stages.components.judge.network import Judge

SPECS = {
    name: agreement.spec_of(name, f"share of images whose {words} is the one asked for, to a judge")
    for name, words in {
        "presence": "presence of a tumour",
        "side": "side, left or right, of those in which a tumour is seen,",
        "region": "region",
        "size": "size",
        "shape": "shape",
        "intensity": "intensity",
        "orientation": "plane",
    }.items()
} | {
    "sensitivity": agreement.spec_of("sensitivity", "presence, of images asked to show a tumour"),
    "specificity": agreement.spec_of("specificity", "presence, of images asked to show none"),
    "side_flip": agreement.spec_of(
        "side_flip",
        "share of pairs whose tumour, seen in both, moves with the prompt's side",
        title="Tumour moves with the prompt",
    ),
    "dice": agreement.spec_of(
        "dice",
        "mean overlap of the judge's tumour with the true one, where any is",
        title="Dice of the judge",
        is_share=False,
    ),
}
CONFUSED = ("presence", "side")  # fields whose confusion matrix is kept
PRESENCE = ("presence", *agreement.ONE_SIDED)  # scores that images without a tumour have a part in
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
        known: files that were judged already.
        scorer: gets scores and differences.
        folder: evaluate's artifact, where what the judge marked is kept.
        progress: takes one line at a time.
    """
    words_of = {"region": judge.config.regions, "shape": judge.config.shapes}
    table = _Table(scorer, [name for name in agreement.FIELDS if words_of.get(name, True)])
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


class _Table:
    """Adds the rows of one run to a scorer, and gathers what the notes keep."""

    def __init__(self, scorer: Scorer, fields: Sequence[str]) -> None:
        self.scorer = scorer
        self.fields: dict[str, dict[str, dict[str, Any]]] = {}
        self.confusion: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
        self.flips: dict[str, dict[str, Any]] = {}
        self.estimates: dict[str, dict[str, Estimate]] = {name: {} for name in fields}
        self.n_real: dict[str, int] = {}

    def add_real(
        self,
        arm: str,
        slices: Sequence[SliceRecord],
        readings: Sequence[Reading],
        masks: Mapping[str, Any],
    ) -> None:
        """Score the judge itself on real slices, or on them through a VAE."""
        answers = [
            agreement.JudgedImage(
                s.slice_id, s.group_id, s.label, s.orientation, s.truth, reading.report
            )
            for s, reading in zip(slices, readings, strict=True)
            if s.truth is not None
        ]
        self._add(arm, answers)
        overlaps = [
            (dice(reading.patch, masks[s.slice_id]), s.group_id)
            for s, reading in zip(slices, readings, strict=True)
            if masks[s.slice_id].any()
        ]
        if len(overlaps) >= agreement.LEAST_N:
            means, num_groups = mean_over_groups(
                [value for value, _ in overlaps],
                [group for _, group in overlaps],
                num_draws=self.scorer.config.num_bootstrap,
                rng=numpy_rng(*self._seed("dice")),
            )
            self._keep(arm, ALL, "dice", means, len(overlaps), len(overlaps), num_groups)

    def add_arm(
        self,
        arm: str,
        records: Sequence[SyntheticRecord],
        readings: Sequence[Reading],
        units: Mapping[str, str],
    ) -> None:
        """Score an arm's images; counterfactual ones only in pairs with their originals."""
        originals: dict[str, agreement.JudgedImage] = {}
        turned: list[agreement.JudgedImage] = []
        for record, reading in zip(records, readings, strict=True):
            plane = record.requested.orientation or UNKNOWN
            name = record.counterfactual_of or record.image_id
            unit = units[record.image_id]
            answer = agreement.JudgedImage(
                name, unit, record.label, plane, record.requested, reading.report
            )
            if record.counterfactual_of is None:
                originals[name] = answer
            else:
                turned.append(answer)
        self._add(arm, list(originals.values()))
        pairs = agreement.list_flips(originals, turned)
        measured = agreement.measure(
            pairs, num_draws=self.scorer.config.num_bootstrap, seed_parts=self._seed("flip")
        )
        if measured is not None:
            self._keep(
                arm,
                ALL,
                "side_flip",
                measured.share,
                self.n_real.get("side", 0),
                measured.n,
                measured.num_groups,
            )
            self.flips[arm] = {"n": measured.n, "chance": agreement.chance_of_flips(pairs)}

    def compare(self, arms: Sequence[str]) -> None:
        """Keep the differences between arms, which share their prompts and so their draws."""
        for estimates in self.estimates.values():
            shown = [arm for arm in arms if arm in estimates and len(estimates[arm].draws)]
            pairs = all_differences(estimates, shown, confidence=self.scorer.config.confidence)
            for pair, row in pairs.items():
                self.scorer.add_difference(pair, row, features=None)

    def _add(self, arm: str, answers: Sequence[agreement.JudgedImage]) -> None:
        """Score every field over all images, each class and each orientation."""
        is_real = arm == REAL or arm.startswith(VAE)
        labels = sorted({answer.label for answer in answers})
        planes = sorted({answer.plane for answer in answers} - {UNKNOWN})
        for field in (*self.estimates, *agreement.ONE_SIDED):
            for group in (ALL, *labels, *planes) if field in agreement.FIELDS else (ALL,):
                members = [a for a in answers if group in (ALL, a.label, a.plane)]
                rows = agreement.list_rows(members, field)
                measured = agreement.measure(
                    rows,
                    num_draws=self.scorer.config.num_bootstrap,
                    seed_parts=self._seed(field, group),
                )
                if measured is None:
                    continue
                if group == ALL and arm == REAL:
                    self.n_real[field] = measured.n
                n_real = measured.n if is_real else self.n_real.get(field, 0)
                denied = {row.group for row in rows if row.requested == "no"}
                kept = self._keep(
                    arm,
                    group,
                    field,
                    measured.share,
                    n_real,
                    measured.n,
                    measured.num_groups,
                    len(denied) if field in PRESENCE else None,
                )
                if group == ALL and field in agreement.FIELDS:
                    self._note(arm, field, measured, kept)
                if group == ALL and field in CONFUSED:
                    self.confusion.setdefault(arm, {})[field] = agreement.count_pairs(rows)

    def _note(self, arm: str, field: str, measured: agreement.Measured, kept: Estimate) -> None:
        """Keep what a share is compared with: chance, and for arms the difference from it."""
        self.fields.setdefault(arm, {})[field] = {
            "chance": float(measured.chance[0]),
            "commonest": measured.commonest,
            "majority": measured.majority,
            "n": measured.n,
            "num_groups": measured.num_groups,
        }
        self.estimates[field][arm] = kept
        if len(kept.draws):
            value, draws = float(measured.chance[0]), measured.chance[1:]
            by_chance = replace(kept, value=value, low=None, high=None, draws=draws)
            row = difference(kept, by_chance, confidence=self.scorer.config.confidence)
            self.scorer.add_difference(f"{arm} - {CHANCE}", row, features=None)

    def _keep(
        self,
        arm: str,
        group: str,
        name: str,
        values: FloatArray,
        n_real: int,
        n_synthetic: int,
        num_groups: int,
        num_negative_groups: int | None = None,
    ) -> Estimate:
        made = make_estimate(
            SPECS[name],
            values,
            num_groups=num_groups,
            confidence=self.scorer.config.confidence,
            n_real=n_real,
            n_synthetic=n_synthetic,
        )
        kept = replace(made, num_negative_groups=num_negative_groups)
        self.scorer.add(arm, group, None, kept)
        return kept

    def _seed(self, *parts: str) -> tuple[int | str, ...]:
        return (self.scorer.seed, "evaluate", "location", *parts)


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
