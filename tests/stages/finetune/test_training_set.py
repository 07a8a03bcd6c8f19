from pathlib import Path

import pytest
import torch

from pipeline.contracts import Artifact, CaptionRecord, SliceRecord, Split, write_records
from pipeline.errors import TrainingError
from stages.finetune import training_set
from stages.finetune.encodings import LatentCache
from stages.finetune.training_set import CaptionedSlice, TrainingSet


def slices(root: Path, names: list[str]) -> Artifact[SliceRecord]:
    root.mkdir()
    rows = [
        SliceRecord(
            slice_id=name,
            subject_id=None,
            group_id=name,
            source="s",
            split="train",
            label="glioma",
            image_path=f"images/{name}.png",
            original=name,
            original_width_px=1,
            original_height_px=1,
        )
        for name in names
    ]
    write_records(root / "records.jsonl", rows)
    return Artifact(root, "d", SliceRecord, {})


def captions(root: Path, rows: list[tuple[str, Split, bool]]) -> Artifact[CaptionRecord]:
    root.mkdir()
    records = [
        CaptionRecord(
            file_name=name,
            text=f"text of {name}" if ok else "",
            slice_id=name,
            label="glioma",
            split=split,
            status="ok" if ok else "failed",
            report=None,
            raw="",
            num_tokens=1,
        )
        for name, split, ok in rows
    ]
    write_records(root / "records.jsonl", records)
    return Artifact(root, "d", CaptionRecord, {})


def plain_set(count: int) -> TrainingSet:
    samples = [CaptionedSlice(f"s{n}", Path("p"), f"t{n}") for n in range(count)]
    moments = torch.zeros(count, 2, 3, 4, 4)
    cache = LatentCache(moments, moments, torch.zeros(count, 2, 2, dtype=torch.int64))
    return TrainingSet(samples, cache, None)


def test_failed_captions_and_other_splits_are_left_out(tmp_path: Path) -> None:
    made = slices(tmp_path / "slices", ["a", "b", "c"])
    told = captions(
        tmp_path / "told", [("a", "train", True), ("b", "train", False), ("c", "val", True)]
    )
    (sample,) = training_set.read_samples(made, told, "train")
    assert (sample.slice_id, sample.text) == ("a", "text of a")
    assert sample.path == made.root / "images/a.png"


def test_split_without_captions_is_named(tmp_path: Path) -> None:
    made = slices(tmp_path / "slices", ["a"])
    told = captions(tmp_path / "told", [("a", "train", True)])
    with pytest.raises(TrainingError, match=r"told has no usable caption of split 'val'"):
        training_set.read_samples(made, told, "val")


def test_caption_of_an_unknown_slice_is_named(tmp_path: Path) -> None:
    made = slices(tmp_path / "slices", ["a"])
    told = captions(tmp_path / "told", [("z", "train", True)])
    with pytest.raises(TrainingError, match=r"'z' in .*told has no slice in .*slices"):
        training_set.read_samples(made, told, "train")


def test_held_out_slices_are_picked_by_seed() -> None:
    samples = plain_set(20).samples
    first = training_set.pick_held_out(samples, 5, seed=1)
    assert first == training_set.pick_held_out(samples, 5, seed=1)
    assert first != training_set.pick_held_out(samples, 5, seed=2)
    assert len(set(first)) == 5
    assert training_set.pick_held_out(samples, 50, seed=1) == samples


def test_a_step_is_the_same_however_it_is_split() -> None:
    data = plain_set(10)
    batch = training_set.draw_step(
        data, seed=0, step=3, effective_batch=8, num_timesteps=1000, caption_dropout=0.1
    )
    parts = training_set.split_batch(batch, 3)
    assert [len(part.rows) for part in parts] == [3, 3, 2]
    assert [row for part in parts for row in part.rows] == batch.rows
    assert parts[1].draws[0] is batch.draws[3]
    assert batch.draws[0].noise.shape == (3, 4, 4)


def test_stratified_timesteps_fill_every_share_and_change_nothing_else() -> None:
    data = plain_set(10)
    settings = {"seed": 3, "effective_batch": 8, "num_timesteps": 1000, "caption_dropout": 0.1}
    places = []
    for step in range(1, 201):
        plain = training_set.draw_step(data, step=step, **settings)
        batch = training_set.draw_step(data, step=step, is_stratified=True, **settings)
        levels = [draw.timestep for draw in batch.draws]
        assert sorted(level // 125 for level in levels) == list(range(8))
        assert batch.rows == plain.rows
        assert all(
            torch.equal(a.noise, b.noise) and a.drops_caption == b.drops_caption
            for a, b in zip(batch.draws, plain.draws, strict=True)
        )
        places.append(levels[0])
    assert 0 <= min(places) < 50
    assert 950 <= max(places) < 1000  # the first of a batch is anywhere
    again = training_set.draw_step(data, step=7, is_stratified=True, **settings)
    assert again.draws[0].timestep == places[6]


def test_held_out_draws_are_fixed_whole_slices_with_their_captions() -> None:
    data = plain_set(4)
    first, again = (training_set.draw_held_out(data, seed=0, num_timesteps=1000) for _ in range(2))
    assert [d.timestep for d in first.draws] == [125, 375, 625, 875]
    assert not any(d.drops_caption or d.crop for d in first.draws)
    assert all(torch.equal(a.noise, b.noise) for a, b in zip(first.draws, again.draws, strict=True))
