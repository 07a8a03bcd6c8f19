"""Re-captioning with a captioner that is right about some fields and wrong about others."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from pipeline import registry
from pipeline.contracts import (
    SCRATCH,
    Artifact,
    ArtifactWriter,
    Context,
    PluginConfig,
    ScoreRecord,
    Section,
    SliceRecord,
    SyntheticRecord,
    TumorReport,
    write_records,
)
from pipeline.errors import DataError
from stages.components.captioning.captioner import Failure
from stages.evaluate import recaption

SIDES = ("left", "right")


class Reader:
    """Reads from brightness whether there is a tumour and where; says "axial" of every slice."""

    batch_size = 4

    def __init__(self, seen):
        self.seen = seen

    def describe(self, slices, image_paths):
        self.seen += slices
        return [self.answer(path) for path in image_paths]

    def answer(self, path):
        with Image.open(path) as image:
            level = image.getpixel((0, 0))[0]
        if level == 255:
            return Failure("too bright")
        report = {"tumor": level > 0, "orientation": "axial"}
        if level > 0:
            report |= {"side": SIDES[level % 2], "location": "falx"}
        return json.dumps(report)


def truth(k):
    """The k-th image: without a tumour where k % 3 is 0; on the left where k is even."""
    if k % 3 == 0:
        return TumorReport(tumor=False, orientation="axial")
    return TumorReport(tumor=True, side=SIDES[k % 2], location="falx", orientation="axial")


def paint(path, level):
    Image.new("RGB", (4, 4), (level, level, level)).save(path)


def write_real(root, count=12, with_truth=True):
    root.mkdir()
    rows = []
    for k in range(count):
        paint(root / f"{k}.png", 0 if k % 3 == 0 else 2 + k)
        rows.append(
            SliceRecord(
                slice_id=f"s{k}", subject_id=None, group_id=f"g{k}", source="phantom",
                split="test", label="notumor" if k % 3 == 0 else "meningioma",
                image_path=f"{k}.png", mask_path="m.png", original=f"{k}",
                original_width_px=4, original_height_px=4, truth=truth(k) if with_truth else None,
            )
        )  # fmt: skip
    write_records(root / "records.jsonl", rows)
    return Artifact(root, "p", SliceRecord, {})


def write_arm(root, shown, count=12):
    """Images that show `shown(k)`, asked to show `truth(k)`."""
    root.mkdir()
    rows = []
    for k in range(count):
        paint(root / f"{k}.png", shown(k))
        rows.append(
            SyntheticRecord(
                image_id=f"i{k}", image_path=f"{k}.png", prompt="", requested=truth(k),
                label="notumor" if k % 3 == 0 else "meningioma", seed=k, adapter_digest=None,
            )
        )  # fmt: skip
    write_records(root / "records.jsonl", rows)
    return Artifact(root, root.name, SyntheticRecord, {})


def faithful(k):
    return 0 if k % 3 == 0 else 2 + k


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Caption real slices and some arms; return scores by (arm, metric), notes, slices seen."""
    seen = []
    plugin = SimpleNamespace(Settings=Section, load=lambda settings: Reader(seen))
    monkeypatch.setattr(registry, "find", lambda package, name: plugin)

    def run(real, arms):
        output = ArtifactWriter(tmp_path / "out", ScoreRecord)
        context = Context("e", 3, "cpu", "float32", 1, tmp_path, lambda line: None)
        names = [r.slice_id for r in real.records()]
        chosen = {arm: [r.image_id for r in a.records()] for arm, a in arms.items()}
        found = recaption.recaption(
            PluginConfig(name="reader"), preprocess=real, generate=arms, real=names, chosen=chosen,
            output=output, context=context,
        )  # fmt: skip
        assert [path.name for path in (tmp_path / "out").iterdir()] == [SCRATCH]
        return {(s.arm, s.metric): s for s in found.records}, found.notes, seen

    return run


def test_what_was_asked_for_and_shown_is_right_and_what_was_not_is_wrong(read, tmp_path):
    real = write_real(tmp_path / "p")
    arms = {
        "good": write_arm(tmp_path / "good", faithful),
        "swapped": write_arm(tmp_path / "swapped", lambda k: k and faithful(k) + (k % 3 > 0)),
        "empty": write_arm(tmp_path / "empty", lambda k: 0),
    }
    scores, notes, _ = read(real, arms)
    for field in ("tumor", "side", "location"):
        row = scores["good", f"recaption_{field}"]
        assert (row.value, row.n_real, row.features, row.group) == (1, 0, "reader", "all")
        assert row.higher_is_better and row.stage == "evaluate"
    assert scores["swapped", "recaption_tumor"].value == 1
    assert scores["swapped", "recaption_side"].value == 0
    assert scores["empty", "recaption_tumor"].value == pytest.approx(1 / 3)
    assert scores["empty", "recaption_location"].value == 0  # silence is wrong
    assert ("empty", "recaption_side") not in scores  # of no image with a tumour
    assert scores["good", "recaption_side"].num_groups == 8
    assert scores["good", "recaption_tumor"].n_synthetic == 12
    assert scores["good", "recaption_side"].n_synthetic == 8
    assert scores["good", "recaption_type"].value == 0  # the reader names no class
    assert (notes["vlm"], notes["failed"], notes["n"]) == ("reader", 0, 48)


def test_the_captioner_s_own_error_stands_beside(read, tmp_path):
    real = write_real(tmp_path / "p")
    paint(real.root / "1.png", 2)  # the truth says right, the slice shows left
    scores, notes, _ = read(real, {"good": write_arm(tmp_path / "good", faithful)})
    row = scores["real", "recaption_side"]
    assert row.value == pytest.approx(7 / 8)
    assert (row.n_real, row.n_synthetic) == (8, 0)
    assert notes["error_unknown"] == []
    assert notes["fields"]["real"]["side"]["reference"] == "mask"
    assert notes["fields"]["good"]["side"]["reference"] == "prompt"


def test_fields_that_no_real_slice_knows_have_no_error_and_that_is_said(read, tmp_path):
    real = write_real(tmp_path / "p", with_truth=False)
    scores, notes, _ = read(real, {"good": write_arm(tmp_path / "good", faithful)})
    assert scores["real", "recaption_tumor"].value == 1  # the folder's label knows that much
    assert ("real", "recaption_side") not in scores
    assert ("good", "recaption_side") in scores
    assert notes["error_unknown"] == ["location", "side", "orientation"]


def test_the_captioner_sees_no_truth_and_each_image_once(read, tmp_path):
    arms = {"good": write_arm(tmp_path / "good", faithful)}
    _, _, seen = read(write_real(tmp_path / "p"), arms)
    assert len(seen) == len({item.slice_id for item in seen}) == 24
    assert all(item.truth is None and item.mask_path is None for item in seen)


def test_what_cannot_be_captioned_is_counted_and_wrong(read, tmp_path):
    arms = {"bright": write_arm(tmp_path / "bright", lambda k: 255)}
    scores, notes, _ = read(write_real(tmp_path / "p"), arms)
    assert notes["failed"] == 12
    assert scores["bright", "recaption_tumor"].value == 0


def test_captions_of_the_truth_are_refused(tmp_path):
    real = write_real(tmp_path / "p")
    output = ArtifactWriter(tmp_path / "out", ScoreRecord)
    context = Context("e", 3, "cpu", "float32", 1, tmp_path, lambda line: None)
    with pytest.raises(DataError, match=r"slice 'real/s0' .* has no ground truth"):
        recaption.recaption(
            PluginConfig(name="truth"), preprocess=real, generate={},
            real=["s0"], chosen={}, output=output, context=context,
        )  # fmt: skip
