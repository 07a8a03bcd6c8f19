"""The judge of phantoms: its subjects, its shards, and a folder with a card that says how good."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.contracts import LABELS, TumorReport
from stages.components.judge.network import Judge
from stages.embedded import judge_build
from stages.embedded.corpora import heads, truth
from stages.preprocess.sources.phantom import SEED_LIMIT
from tests.components.judge.parts import SHORT, SIZE, make_data
from tests.stages.embedded.parts import write_truth

SPLITS: tuple[truth.Split, ...] = ("train", "val", "test")


def test_no_split_shares_a_head_with_another_or_with_anything_embedded() -> None:
    plans = [truth.plan(Path(), split, 300, 128) for split in SPLITS]
    seeds = {order.seed for plan in plans for order in plan}
    assert len(seeds) == 900
    assert min(seeds) >= SEED_LIMIT
    offsets = heads.SPLIT_OFFSETS.values()
    others = {heads.SEED_BASE + offset + n for offset in offsets for n in range(600)}
    assert not others & seeds
    assert plans[2][1].path.name == "truth-128-test-00001-glioma.npz"


def test_labels_contrasts_and_skulls_meet_in_every_way() -> None:
    orders = truth.plan(Path(), "train", 240, 128)
    met = {(order.label, order.modalities, order.is_stripped) for order in orders}
    assert len(met) == len(LABELS) * len(truth.MODALITIES) * 2
    assert sum(order.label == "notumor" for order in orders) == 60
    assert sum(order.is_stripped for order in orders) == 160
    held_out = [truth.label_of("test", index) for index in range(8)]
    assert sorted(held_out) == sorted([*LABELS, *LABELS])


@pytest.mark.slow
def test_a_missing_shard_is_no_smaller_corpus(tmp_path: Path) -> None:
    made = truth.read(tmp_path, "val", 1, 128)
    next(tmp_path.rglob("*truth-128-val-00000*")).unlink()
    again = truth.read(tmp_path, "val", 1, 128)
    assert len(made.images) and np.array_equal(again.images, made.images)


def fabricate(cache_dir: Path, split: truth.Split, subjects: int, seed: int) -> None:
    """Write two heads of each subject, with blobs in the place of tumours."""
    data = make_data(2 * subjects + 1, seed=seed)
    reports = [
        TumorReport(
            tumor=bool(shown),
            orientation="axial",
            location="falx" if shown else None,
            side=("left", "right")[side] if shown else None,
        )
        for shown, side in zip(data.has_tumor, data.side, strict=True)
    ]
    # Without the first, some whole heads show no tumour.
    write_truth(cache_dir, split, data.images[1:], data.lesions[1:], reports[1:], each=2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Build the judge on fabricated shards, with a few steps of training."""
    folder = tmp_path_factory.mktemp("embedded")
    lines: list[str] = []
    for seed, split in enumerate(SPLITS):
        fabricate(folder / "cache", split, 12, seed)
    made = judge_build.build(
        out_dir=folder / "out",
        cache_dir=folder / "cache",
        device="cpu",
        progress=lines.append,
        image_size=SIZE,
        subjects=dict.fromkeys(SPLITS, 12),
        settings=replace(SHORT, steps=4, warmup_steps=1),
    )
    return made, lines


def test_the_folder_holds_a_judge_and_its_card(built: tuple[Path, list[str]]) -> None:
    folder, lines = built
    assert folder.name == "judge"
    found = sorted(path.name for path in folder.iterdir())
    assert found == ["README.md", "config.json", "model.safetensors", "training.json"]
    assert Judge.load(folder).config.regions == ("falx",)
    assert not (folder.parent / "judge.partial").exists()
    assert lines[-1] == f"judge: written to {folder}"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "mrisynth embedded build judge" in card
    assert "ICBM" in card
    assert "research" in card
    assert "24 slices of 12 phantoms" in card


def test_its_own_accuracy_is_stated_with_n(built: tuple[Path, list[str]]) -> None:
    facts = json.loads((built[0] / "training.json").read_text(encoding="utf-8"))
    rows: dict[tuple[str, str], dict[str, Any]] = {
        (row["slices"], row["field"]): row for row in facts["held_out"]
    }
    fields = {"sensitivity", "specificity", "presence", "side", "region", "orientation", "Dice"}
    assert {field for kind, field in rows if kind == "all"} == fields  # no size in these reports
    assert rows["all", "presence"]["n"] == 24
    assert rows["all", "sensitivity"]["n"] == rows["all", "Dice"]["n"] == 16
    assert rows["brain alone", "presence"]["n"] == 2 * rows["whole head", "presence"]["n"] == 16
    for field in fields:
        row = rows["all", field]
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1, field
    card = (built[0] / "README.md").read_text(encoding="utf-8")
    assert "| whole head | specificity | " in card
    assert facts["subjects"] == dict.fromkeys(SPLITS, 12)


@pytest.fixture
def corpus(tmp_path: Path) -> truth.TruthCorpus:
    fabricate(tmp_path, "val", 4, seed=0)
    return truth.read(tmp_path, "val", 4, SIZE)


def test_a_kind_without_slices_has_a_dash(corpus: truth.TruthCorpus) -> None:
    empty = judge_build.mean_overlap([], [], corpus)
    assert (empty["value"], empty["n"]) == (None, 0)


def test_brains_are_the_slices_of_stripped_subjects(corpus: truth.TruthCorpus) -> None:
    brains = corpus.brains()
    kept = [0, 1, 2, 3, 6, 7]  # every third is a whole head
    assert brains.stripped.all() and brains.subjects == [corpus.subjects[row] for row in kept]
    assert np.array_equal(brains.images, corpus.images[kept])
    assert brains.reports == [corpus.reports[row] for row in kept]


@pytest.mark.slow
def test_a_shard_comes_back_as_it_was_made(tmp_path: Path) -> None:
    order, *_ = truth.plan(tmp_path, "train", 1, 64)
    truth.make_shard(order)
    found = truth.read(tmp_path, "train", 1, 64)
    count = len(found.images)
    assert 10 <= count <= 16  # two contrasts of eight planes
    assert found.images.shape == found.lesions.shape == (count, 64, 64)
    assert set(found.labels) == {"meningioma"}
    assert all(report.tumor for report in found.reports)
    assert found.lesions.any(axis=(1, 2)).all()
    assert found.stripped.all()
    assert {report.orientation for report in found.reports} == {"axial", "coronal", "sagittal"}
