import json
import os
import time
from collections import Counter, defaultdict
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import registry
from pipeline.contracts import (
    LABELS,
    SCRATCH,
    ArtifactWriter,
    Context,
    PluginConfig,
    SliceRecord,
)
from pipeline.errors import DataError, SkippedTooManyError
from pipeline.run import manifest
from pipeline.settings import PreprocessConfig
from stages.components.imaging.head import head_box
from stages.preprocess import preparation, stage
from stages.preprocess.preparation import WORKERS_PAY_FROM
from stages.preprocess.stage import STAGE, PreprocessInputs

KAGGLE = Path(__file__).resolve().parents[4] / "shared" / "data" / "kaggle-224"


def draw(seed, height=100, width=80):
    """A head of its own: a bright rim and smooth random texture on black."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    radius = np.hypot((rows - height / 2) / (height * 0.42), (columns - width / 2) / (width * 0.4))
    texture = sum(
        rng.normal()
        * np.cos(rng.uniform(0.05, 0.35) * rows + rng.uniform(0.05, 0.35) * columns + k)
        for k in range(8)
    )
    image = np.where(radius < 1, 110 + 22 * texture, 0)
    image[(radius < 1) & (radius > 0.9)] = 220
    return image.clip(0, 255).astype(np.uint8)


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def make_folder(root, per_class=6):
    """A Kaggle folder without copies: `per_class` for training and half as many for the test."""
    for number, label in enumerate(LABELS):
        for k in range(per_class):
            put(root / "Training" / label / f"Tr-{k}.png", draw(1000 * number + k))
        for k in range(per_class // 2):
            put(root / "Testing" / label / f"Te-{k}.png", draw(1000 * number + 500 + k))
    return root


def preprocess(
    root, out, seed=0, num_threads=1, name="image_folder", cache=None, lines=None, **changes
):
    settings = changes.pop("settings", {"root": str(root)})
    config = PreprocessConfig(
        source=PluginConfig(name=name, settings=settings), **{"image_size": 64, **changes}
    )
    writer = ArtifactWriter(out, SliceRecord)
    out.mkdir(exist_ok=True)
    say = ([] if lines is None else lines).append
    context = Context(
        experiment="test", seed=seed, device="cpu", dtype="float32", num_threads=num_threads,
        cache_dir=cache or out.parent / "cache", progress=say,
    )  # fmt: skip
    STAGE.run(config, PreprocessInputs(), writer, context)
    rows = (out / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [SliceRecord.model_validate_json(row) for row in rows], writer


def test_slices_are_square_rgb_png_cropped_to_the_head(tmp_path):
    records, writer = preprocess(make_folder(tmp_path / "in"), tmp_path / "out")
    assert len(records) == 36 == writer.counts["written"] == writer.counts["read"]
    for record in records:
        with Image.open(writer.root / record.image_path) as opened:
            image = np.asarray(opened)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert (image == image[..., :1]).all()
        box = head_box(image[..., 0])
        assert box.bottom - box.top >= 56  # the head fills its slice, but for the margin
        width = (box.right - box.left) / (box.bottom - box.top)
        assert width == pytest.approx(64 / 84, abs=0.06)  # as drawn: never squashed
        assert (record.original_width_px, record.original_height_px) == (80, 100)
        assert record.image_path == f"images/{record.split}/{record.slice_id}.png"
        assert record.truth is None and record.mask_path is None
    assert (writer.root / "skipped.jsonl").read_text() == ""


def test_the_notes_count_splits_classes_and_copies(tmp_path):
    records, writer = preprocess(make_folder(tmp_path / "in"), tmp_path / "out")
    found = Counter(record.split for record in records)
    assert found["test"] == 12 and found["val"] == 4 and found["train"] == 20
    assert writer.notes["slices"]["test"]["glioma"] == {"unknown": 3}
    assert writer.notes["groups"] == {"train": 20, "val": 4, "test": 12}
    assert writer.notes["groups_per_class"]["test"] == dict.fromkeys(LABELS, 3)
    (warning,) = writer.notes["warnings"]
    assert "test split has 3 groups (subjects) without a tumour, fewer than 20" in warning
    audit = writer.notes["leakage_audit"]
    assert audit["identical_pixels"] == audit["near_duplicate_pairs"] == 0
    assert "64 px (Pillow Lanczos" in writer.notes["methods"]
    json.dumps(writer.notes)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    root = make_folder(tmp_path / "in")

    def read(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder): path.read_bytes() for path in files}

    first, _ = preprocess(root, tmp_path / "a")
    preprocess(root, tmp_path / "b")
    assert read(tmp_path / "a") == read(tmp_path / "b")
    other, _ = preprocess(root, tmp_path / "c", seed=1)
    assert [r.split for r in sorted(first, key=lambda r: r.slice_id)] != [
        r.split for r in sorted(other, key=lambda r: r.slice_id)
    ]


@pytest.mark.slow
def test_workers_change_nothing(tmp_path):
    root = make_folder(tmp_path / "in", per_class=WORKERS_PAY_FROM // 4)
    alone, _ = preprocess(root, tmp_path / "a")
    assert len(alone) > WORKERS_PAY_FROM
    together, _ = preprocess(root, tmp_path / "b", num_threads=2)
    assert alone == together


def make_leaky_folder(tmp_path):
    """Copies of training slices in the test split: as they are, brighter, and mirrored."""
    root = make_folder(tmp_path / "in")
    original = draw(1000)
    put(root / "Testing" / "glioma" / "leak-same.png", original)
    brighter = np.clip(draw(1001) * 1.15 + 3 * (draw(1001) > 0), 0, 255).astype(np.uint8)
    put(root / "Testing" / "glioma" / "leak-brighter.png", brighter)
    put(root / "Testing" / "glioma" / "leak-mirrored.png", draw(1002)[:, ::-1])
    put(root / "Training" / "glioma" / "twin.png", original)
    return root


def test_leaked_test_files_are_dropped_and_counted(tmp_path):
    records, writer = preprocess(make_leaky_folder(tmp_path), tmp_path / "out")
    test = {record.original for record in records if record.split == "test"}
    assert len(test) == 12 and not any("leak" in name for name in test)
    audit = writer.notes["leakage_audit"]
    assert audit["dropped_as_leaked_from"] == {"test": {"glioma": 3}}
    assert audit["groups_across_published_splits"] == 3
    assert audit["identical_pixels"] == audit["identical_files"] == 2
    assert audit["near_duplicate_pairs_mirrored"] == 1
    assert audit["dropped_identical_within_a_split"] == 1  # the twin
    homes = defaultdict(set)
    for record in records:
        homes[record.group_id].add(record.split)
    assert all(len(splits) == 1 for splits in homes.values())


def test_leaks_can_be_taken_from_training_instead(tmp_path):
    records, writer = preprocess(
        make_leaky_folder(tmp_path), tmp_path / "out", leaked_files="drop_train"
    )
    assert sum(record.split == "test" for record in records) == 15
    assert writer.notes["leakage_audit"]["dropped_as_leaked_from"] == {"train": {"glioma": 4}}


def test_identical_pixels_with_two_labels_are_left_out(tmp_path):
    root = make_folder(tmp_path / "in")
    put(root / "Training" / "pituitary" / "wrong.png", draw(1000))
    records, writer = preprocess(root, tmp_path / "out")
    audit = writer.notes["leakage_audit"]
    assert audit["dropped_identical_with_two_labels"] == 2
    assert audit["clusters_with_conflicting_labels"] == 1
    assert not {"Training/pituitary/wrong.png", "Training/glioma/Tr-0.png"} & {
        record.original for record in records
    }


def test_training_can_be_limited_per_class(tmp_path):
    records, writer = preprocess(make_folder(tmp_path / "in"), tmp_path / "out", max_per_class=2)
    found = Counter((r.split, r.label) for r in records)
    assert all(found["train", label] == 2 and found["test", label] == 3 for label in LABELS)
    assert writer.notes["leakage_audit"]["dropped_beyond_max_per_class"] == 12


def test_bad_images_are_skipped_with_their_reason_up_to_a_share(tmp_path):
    root = make_folder(tmp_path / "in")
    (root / "Training" / "glioma" / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    put(root / "Training" / "glioma" / "black.png", np.zeros((60, 50), np.uint8))
    records, writer = preprocess(root, tmp_path / "out", max_skipped_fraction=0.06)
    assert len(records) == 36 and writer.counts["skipped"] == 2 and writer.counts["read"] == 38
    rows = [json.loads(x) for x in (writer.root / "skipped.jsonl").read_text().splitlines()]
    assert {row["original"] for row in rows} == {
        "Training/glioma/cut.jpg", "Training/glioma/black.png"
    }  # fmt: skip
    assert any("no head found in an image of 50x60 px" in row["reason"] for row in rows)
    assert sum(writer.notes["skipped_reasons"].values()) == 2
    with pytest.raises(SkippedTooManyError, match=r"2 of 38 scans cannot be used.*0\.02.*no head"):
        preprocess(root, tmp_path / "again")


def test_a_source_without_scans_is_an_error(tmp_path, add_file):
    add_file(registry.SOURCES, "drawings")
    with pytest.raises(DataError, match="yields no scans"):
        preprocess(None, tmp_path / "out", name="drawings", settings={"num_people": 0})


def contents(writer):
    return {name: (writer.root / name).read_bytes() for name in manifest.list_files(writer.root)}


@pytest.mark.parametrize(
    ("module", "name", "num_prepared"),
    [(preparation, "prepare_scan", 9), (os, "replace", 37), (stage, "write_records", 37)],
)
def test_a_killed_run_prepares_what_is_left(tmp_path, monkeypatch, module, name, num_prepared):
    root = make_folder(tmp_path / "in")
    put(root / "Training" / "glioma" / "black.png", np.zeros((60, 50), np.uint8))
    whole = contents(preprocess(root, tmp_path / "whole", max_skipped_fraction=0.5)[1])
    original, calls = getattr(module, name), []

    def die(*args):
        calls.append(args)
        if module is stage or len(calls) == 10:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, die)
        with pytest.raises(KeyboardInterrupt):
            preprocess(root, tmp_path / "out", max_skipped_fraction=0.5)
    lines = (tmp_path / "out" / SCRATCH / "prepared.jsonl").read_text().splitlines()
    assert len(lines) == num_prepared
    scans = []
    prepare = preparation.prepare_scan
    monkeypatch.setattr(preparation, "prepare_scan", lambda job: scans.append(job) or prepare(job))
    resumed = contents(preprocess(root, tmp_path / "out", max_skipped_fraction=0.5)[1])
    assert len(scans) == 37 - num_prepared
    assert resumed == whole


def test_a_staged_image_that_a_power_cut_emptied_is_prepared_again(tmp_path, caplog):
    root = make_folder(tmp_path / "in")
    records, writer = preprocess(root, tmp_path / "out")
    whole = contents(writer)
    (writer.root / records[0].image_path).write_bytes(b"")
    assert contents(preprocess(root, tmp_path / "out")[1]) == whole
    assert "1 of 36 entries are lost" in caplog.text


def test_progress_is_shown_while_scans_are_made_and_while_they_are_prepared(tmp_path, monkeypatch):
    lines, told = [], []
    scans = ["first", "second"]
    minutes = count(step=60)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(minutes)))
    for _ in stage.announce(iter(scans), 2, told.append):
        lines.append(list(told))
    assert lines == [  # each before the next one is made
        ["preprocess: 1 of 2 scans there"],
        ["preprocess: 1 of 2 scans there", "preprocess: 2 of 2 scans there"],
    ]
    preprocess(make_folder(tmp_path / "in"), tmp_path / "out", lines=(all_lines := []))
    there, prepared = (
        all_lines.index("preprocess: 36 scans there"),
        all_lines.index("preprocess: 36 scans prepared"),
    )
    assert there < prepared
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    preprocess(tmp_path / "in", tmp_path / "again", lines=(few := []))
    assert few == ["36 slices of 36 scans; 0 clusters of copies"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    settings = {"num_subjects": 12, "spacing_mm": 4.0, "num_workers": 1}
    return preprocess(
        None, folder / "out", name="phantom", settings=settings, slices_per_scan=3, image_size=64
    )


def test_phantoms_keep_subjects_whole_and_state_the_truth(phantoms):
    records, writer = phantoms
    homes = defaultdict(set)
    for record in records:
        homes[record.subject_id].add(record.split)
        assert record.group_id == record.subject_id
        assert record.slice_id == Path(record.image_path).stem
        truth = record.truth
        assert truth.tumor == (record.label != "notumor")
        assert truth.orientation == record.orientation != "unknown"
        if truth.tumor:
            assert truth.location and truth.side and truth.size and truth.shape and truth.intensity
            assert (truth.side == "unknown") == (record.orientation == "sagittal")
    assert len(homes) == 12 and all(len(splits) == 1 for splits in homes.values())
    assert writer.notes["leakage_audit"]["subjects_joined_by_copies"] == 0
    for label in LABELS:
        assert {r.split for r in records if r.label == label} == {"train", "val", "test"}


def test_phantom_masks_lie_on_the_tumor(phantoms):
    records, writer = phantoms
    for record in records:
        with Image.open(writer.root / record.mask_path) as opened:
            mask = np.asarray(opened)
        assert mask.shape == (64, 64) and set(np.unique(mask)) <= {0, 1, 2, 3}
        assert mask.any() == record.truth.tumor
        if record.truth.side in ("left", "right"):
            columns = np.nonzero(mask >= 2)[1]
            assert (columns.mean() < 32) == (record.truth.side == "left")


@pytest.mark.slow
@pytest.mark.skipif(not KAGGLE.is_dir(), reason=f"no Kaggle slices at {KAGGLE}")
def test_real_slices_are_cropped_and_their_leaks_found(tmp_path):
    root = tmp_path / "in"
    for split in ("Training", "Testing"):
        for label in LABELS:
            names = sorted((KAGGLE / split / label).iterdir())
            folder = root / split / label
            folder.mkdir(parents=True)
            for path in names[:: len(names) // 25]:
                (folder / path.name).symlink_to(path)
    records, writer = preprocess(root, tmp_path / "out")
    assert writer.counts["skipped"] == 0 and len(records) > 150
    fills = []
    for record in records:
        with Image.open(writer.root / record.image_path) as opened:
            box = head_box(np.asarray(opened.convert("L")))
        fills.append(max(box.bottom - box.top, box.right - box.left) / 64)
    assert np.quantile(fills, 0.02) > 0.85
    homes = defaultdict(set)
    for record in records:
        homes[record.group_id].add(record.split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert writer.notes["leakage_audit"]["dropped_as_leaked"] > 0
