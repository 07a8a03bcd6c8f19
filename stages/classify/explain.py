"""Explain what each arm's first run sees in test slices, and score the explanations.

Explained are test slices with a tumour, drawn by seed and the same for all arms, and some that the
run got wrong (by the probability of 0.5). All maps say what speaks for a tumour. Scores are of
the drawn slices alone: those that it got wrong are no sample of anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from pipeline import registry
from pipeline.contracts import ALL, Artifact, ArtifactWriter, Context, ScoreRecord, SliceRecord
from pipeline.seeding import derive_seed, numpy_rng
from pipeline.settings import ClassifyConfig
from stages.classify import attribution, training
from stages.classify.arms import load_network, weights_path
from stages.classify.data import Data
from stages.classify.diagnostics import Predictions
from stages.classify.maps import Maps
from stages.classify.regimes import Recipe
from stages.classify.scores import CONFIDENCE, NUM_DRAWS, Tester
from stages.components.imaging import pixels
from stages.components.imaging.head import head_mask
from stages.components.statistics.bootstrap import FloatArray, interval, resample, weighted_mean
from stages.components.statistics.cohorts import Item
from stages.components.statistics.proportions import THRESHOLD, BoolArray, Interval

TUMOR = 1  # the class that is explained
BATCH = 16
NUM_MOVES = 999  # of all lesions, behind each p: none below 0.001
KEPT_PX = 128  # side of the maps in the artifact; larger ones are averaged
SHARE, AREA = "lesion_share", "deletion_area"
BY_CHANCE = "_by_chance"


@dataclass(frozen=True)
class Slices:
    """Test slices to be explained, by their rows: pixels, heads, and lesions where known."""

    rows: tuple[int, ...]
    images: NDArray[np.uint8]  # (n, height, width)
    heads: NDArray[np.bool_]  # (n, height, width); a slice without a visible head counts whole
    lesions: tuple[BoolArray | None, ...]

    def first(self, count: int) -> "Slices":
        """Keep the first ones."""
        part = (self.images[:count], self.heads[:count], self.lesions[:count])
        return Slices(self.rows[:count], *part)


@dataclass(frozen=True)
class Explained:
    """Scores of the explanations, and what the manifest says of them (JSON values)."""

    scores: list[ScoreRecord]
    notes: dict[str, Any]


def methods(config: ClassifyConfig) -> str:
    """Write what the methods sentence says of explanations."""
    cited = "; ".join(
        f"{name}: {registry.find(registry.EXPLANATIONS, name).CITATION}" for name in config.explain
    )
    return (
        f" What speaks for a tumour was mapped by {', '.join(config.explain)} ({cited}) in up to "
        f"{config.num_explained} test slices with a tumour, drawn by seed, and as many judged "
        "wrongly, for each arm's first run, after all scores. The share of attribution inside the "
        f"lesion stands beside the mean of {NUM_MOVES} random moves of all lesions within their "
        f"heads; deletion covers the head in {attribution.NUM_STEPS} steps."
    )


def explain_arms(
    recipes: Sequence[Recipe],
    data: Data,
    tester: Tester,
    preprocess: Artifact[SliceRecord],
    config: ClassifyConfig,
    output: ArtifactWriter[ScoreRecord],
    context: Context,
) -> Explained:
    """Explain every arm's first run by every method, write the maps, and score them."""
    seed = derive_seed(context.seed, "classify", "explain")
    drawn = draw_rows(data, preprocess, config.num_explained, seed)
    scores: list[ScoreRecord] = []
    arms: dict[str, Any] = {}
    for recipe in recipes:
        predictions = tester.predictions[recipe.name]
        assert isinstance(predictions, Predictions)  # of the task "binary"
        probability = predictions.probability[0]
        is_wrong = (probability >= THRESHOLD) != predictions.is_tumor
        order = numpy_rng(seed, "wrong").permutation(len(probability))
        wrong = [int(row) for row in order if is_wrong[row]][: config.num_explained]
        slices = read_slices([*drawn, *(r for r in wrong if r not in drawn)], data, preprocess)
        context.progress(f"classify: explain {recipe.name}, {len(slices.rows)} slices")
        network = load_network(recipe, config, weights_path(recipe, output), context.device)
        maps, skipped = map_slices(network, slices, config.explain, seed, context.device)
        rows = _Rows(recipe.name, tester, [data.test[row] for row in drawn], seed)
        facts = _score(network, slices.first(len(drawn)), maps, rows, context.device)
        scores += rows.records
        name = f"explanations/{quote(recipe.name, safe='')}.npz"
        kept = {method: _keep(attribution_maps) for method, attribution_maps in maps.items()}
        np.savez_compressed(output.path(name), allow_pickle=False, **kept)
        ids = [data.test[row].name for row in slices.rows]
        arms[recipe.name] = {
            "maps": name,
            "slices": {i: float(probability[row]) for i, row in zip(ids, slices.rows, strict=True)},
            "drawn": ids[: len(drawn)],
            "wrong": [data.test[row].name for row in wrong],
            "num_wrong": int(is_wrong.sum()),
            "scores": facts,
            "skipped": skipped,
        }
    return Explained(scores, {"num_steps": attribution.NUM_STEPS, "arms": arms})


def draw_rows(data: Data, preprocess: Artifact[SliceRecord], count: int, seed: int) -> list[int]:
    """Draw test slices with a tumour: one that the mask shows, where the source has masks."""
    records = data.records_of(data.test)
    has_masks = any(record.mask_path is not None for record in records)
    drawn: list[int] = []
    for row in numpy_rng(seed, "drawn").permutation(len(records)):
        if len(drawn) == count:
            break
        record = records[row]
        lesion = read_lesion(record, preprocess)
        if record.label != "notumor" and (lesion is not None or not has_masks):
            drawn.append(int(row))
    return drawn


def read_lesion(record: SliceRecord, preprocess: Artifact[SliceRecord]) -> BoolArray | None:
    """Read a slice's mask as one region, oedema included; None without one, or if it is empty."""
    if record.mask_path is None:
        return None
    lesion: BoolArray = pixels.read_image(preprocess.path(record.mask_path)) > 0
    return lesion if lesion.any() else None


def read_slices(rows: Sequence[int], data: Data, preprocess: Artifact[SliceRecord]) -> Slices:
    """Read slices with their heads and lesions; masks have the size of the slices."""
    items = [data.test[row] for row in rows]
    images = data.images(items)
    masks = [head_mask(image) for image in images]
    heads = [np.ones(images.shape[1:], np.bool_) if head is None else head for head in masks]
    lesions = tuple(read_lesion(record, preprocess) for record in data.records_of(items))
    stacked = np.stack(heads) if heads else np.zeros(images.shape, np.bool_)
    return Slices(tuple(rows), images, stacked, lesions)


def map_slices(
    network: nn.Module, slices: Slices, names: Sequence[str], seed: int, device: str
) -> tuple[dict[str, Maps], dict[str, str]]:
    """Explain slices by every method that the network allows; say why it does not the others."""
    maps: dict[str, Maps] = {}
    skipped: dict[str, str] = {}
    for name in names:
        plugin = registry.find(registry.EXPLANATIONS, name)
        obstacle = plugin.find_obstacle(network)
        if obstacle is not None:
            skipped[name] = obstacle
            continue
        parts = [
            plugin.explain(
                network,
                training.to_input(slices.images[start : start + BATCH], device),
                target=TUMOR,
                seed=seed,
            )
            for start in range(0, len(slices.rows), BATCH)
        ]
        maps[name] = np.concatenate(parts) if parts else np.zeros(slices.images.shape)
    return maps, skipped


class _Rows:
    """Collects the rows of one arm's explanations."""

    def __init__(self, arm: str, tester: Tester, items: Sequence[Item], seed: int) -> None:
        self.arm = arm
        self.tester = tester
        self.items = items
        self.seed = seed
        self.records: list[ScoreRecord] = []

    def add_mean(
        self, metric: str, method: str, values: FloatArray, rows: Sequence[int], p: float | None
    ) -> None:
        """Add a mean over slices, with its interval from draws of their groups."""
        ends = _ends(values, [self.items[row].group for row in rows], self.seed)
        self.add(metric, method, float(values.mean()), ends, rows, p)

    def add(
        self,
        metric: str,
        method: str,
        value: float,
        ends: Interval,
        rows: Sequence[int],
        p: float | None,
    ) -> None:
        """Add a row."""
        is_error = not metric.startswith(SHARE)
        row = (metric, ALL, value, ends, [self.items[row] for row in rows])
        self.records.append(
            self.tester.record(self.arm, *row, is_error=is_error, features=method, p=p)
        )


def _score(
    network: nn.Module, slices: Slices, maps: dict[str, Maps], rows: _Rows, device: str
) -> dict[str, Any]:
    """Score the maps of the drawn slices; return JSON values by method, rows go to `rows`."""
    count = len(slices.rows)
    if count == 0:
        return {}
    images = training.to_input(slices.images, device)

    def follow(order: Maps) -> FloatArray:
        return attribution.follow_deletion(network, images, order, slices.heads, TUMOR)

    size = (slices.images.shape[1], slices.images.shape[2])
    rng = numpy_rng(rows.seed, "blotches")
    blotches = [
        attribution.draw_blotches(count, size, rng) for _ in range(attribution.NUM_BLOTCHES)
    ]
    at_random: FloatArray = np.mean([follow(order) for order in blotches], axis=0)
    facts: dict[str, Any] = {}
    for method, attributions in maps.items():
        scored = attributions[:count]
        curves = follow(scored)
        every = range(count)
        rows.add_mean(AREA, method, attribution.area_under(curves), every, None)
        rows.add_mean(AREA + BY_CHANCE, method, attribution.area_under(at_random), every, None)
        facts[method] = {
            "curve": curves.mean(axis=0).tolist(),
            "curve_by_chance": at_random.mean(axis=0).tolist(),
            **_score_lesions(scored, slices, method, rows),
        }
    return facts


def _score_lesions(maps: Maps, slices: Slices, method: str, rows: _Rows) -> dict[str, float]:
    """Score how much attribution lies in the lesions; nothing where no lesion is known."""
    known = [
        (row, lesion, slices.heads[row])
        for row, lesion in enumerate(slices.lesions)
        if lesion is not None and (lesion & slices.heads[row]).any()
    ]
    if not known:
        return {}
    places = [attribution.moved_shares(maps[row], lesion, head) for row, lesion, head in known]
    rng = numpy_rng(rows.seed, "moves", method)
    means, p = attribution.chance_of_moves(places, num_draws=NUM_MOVES, rng=rng)
    shares_inside = np.asarray([shares[0] for shares in places])
    seen = [row for row, _, _ in known]
    rows.add_mean(SHARE, method, shares_inside, seen, p)
    spread = interval(means, confidence=CONFIDENCE)
    rows.add(SHARE + BY_CHANCE, method, float(means.mean()), spread, seen, None)
    areas = [attribution.area_share(lesion, head) for _, lesion, head in known]
    return {"area_share": float(np.mean(areas))}


def _ends(values: FloatArray, groups: Sequence[str], seed: int) -> Interval:
    """Return the interval of a mean over slices, from draws of their groups."""
    if len(values) < 2:
        return None, None
    rng = numpy_rng(seed, "bootstrap")
    drawn = resample(values[:, None], groups, num_draws=NUM_DRAWS, rng=rng)
    return interval(weighted_mean(values, drawn)[1:], confidence=CONFIDENCE)


def _keep(maps: Maps) -> NDArray[np.float16]:
    """Shrink maps to at most `KEPT_PX` and scale each to a largest value of 1 (0 stays 0)."""
    large = torch.from_numpy(maps)[:, None]
    size = (min(maps.shape[1], KEPT_PX), min(maps.shape[2], KEPT_PX))
    small = F.adaptive_avg_pool2d(large, size)[:, 0].numpy() if len(maps) else maps
    largest = small.max(axis=(1, 2), keepdims=True, initial=0.0)
    scaled: Maps = np.divide(small, largest, out=np.zeros_like(small), where=largest > 0)
    return scaled.astype(np.float16)
