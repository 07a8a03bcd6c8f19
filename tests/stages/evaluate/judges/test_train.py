"""Judges as plug-ins: who refuses what, and one that is trained on a run's own masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.contracts import Artifact, Context, SliceRecord, TumorReport, write_records
from pipeline.errors import ConfigError, MissingWeightsError
from pipeline.run import config
from stages.components.judge.network import Judge, JudgeConfig, JudgeNet
from stages.evaluate.judges import embedded, train
from tests.components.judge.parts import SIZE, TINY, make_data


def write_slices(root, counts, source="brats"):
    """Write heads with and without blobs as preprocess does, masks beside them."""
    records = []
    for number, (split, count) in enumerate(counts.items()):
        data = make_data(count, seed=number)
        for row, (image, lesion) in enumerate(zip(data.images, data.lesions, strict=True)):
            name, shown = f"{split}-{row}", bool(lesion.any())
            Image.fromarray(image).convert("RGB").save(root / f"{name}.png")
            Image.fromarray(lesion.astype(np.uint8) * 2).save(root / f"{name}.mask.png")
            records.append(
                SliceRecord(
                    slice_id=name,
                    subject_id=name,
                    group_id=name,
                    source=source,
                    split=split,
                    label="glioma" if shown else "notumor",
                    orientation="axial",
                    image_path=f"{name}.png",
                    mask_path=f"{name}.mask.png" if shown else None,
                    original=name,
                    original_width_px=SIZE,
                    original_height_px=SIZE,
                    truth=TumorReport(
                        tumor=shown,
                        orientation="axial",
                        side="left" if shown else None,
                        location="falx" if shown else None,
                    ),
                )
            )
    write_records(root / "records.jsonl", records)
    return Artifact(root, "p", SliceRecord, {}), records


def test_the_embedded_judge_knows_phantoms_only(tmp_path):
    _, records = write_slices(tmp_path, {"train": 3})
    settings = embedded.Settings(model=str(tmp_path / "gone"))
    refusal = embedded.refuse(settings, records)
    assert refusal is not None
    assert "found slices of brats; set evaluate.judge: train" in refusal


def test_the_embedded_judge_says_what_it_lacks(tmp_path):
    _, records = write_slices(tmp_path, {"train": 3}, source="phantom")
    folder = tmp_path / "judge"
    settings = embedded.Settings(model=str(folder))
    assert f"is missing ({folder})" in str(embedded.refuse(settings, records))
    assert embedded.input_digest(settings) == f"{folder}@absent"
    torch.manual_seed(0)
    Judge(JudgeNet(TINY), TINY).save(folder)
    assert embedded.refuse(settings, records) is None
    assert embedded.input_digest(settings) != f"{folder}@absent"
    (folder / "model.safetensors").unlink()
    assert "is missing (*.safetensors)" in str(embedded.refuse(settings, records))
    artifact = Artifact(tmp_path, "p", SliceRecord, {})
    with pytest.raises(MissingWeightsError, match=r"model\.safetensors"):
        embedded.obtain(settings, artifact, tmp_path, context(tmp_path, print))


def context(tmp_path, progress):
    return Context("test", 3, "cpu", "float32", 1, tmp_path / "cache", progress)


def test_too_few_masks_train_no_judge(tmp_path):
    _, records = write_slices(tmp_path, {"train": 12, "test": 60})
    refusal = train.refuse(train.Settings(), records)
    assert refusal is not None
    assert "at least 20 training slices with a tumour in their mask, found 8" in refusal
    bare = [record.model_copy(update={"truth": None}) for record in records]
    assert "found 0" in str(train.refuse(train.Settings(), bare))


def test_a_judge_is_trained_on_the_runs_own_masks_and_kept(tmp_path):
    artifact, records = write_slices(tmp_path, {"train": 33, "val": 6, "test": 3})
    settings = train.Settings(image_size=SIZE, steps=2, batch_size=4)
    assert train.refuse(settings, records) is None
    folder, lines = tmp_path / "judge", []

    def obtain():
        return train.obtain(settings, artifact, folder, context(tmp_path, lines.append))

    judge = obtain()
    assert judge.config.regions == ("falx",)
    assert judge.config.image_size == SIZE
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    told = len(lines)
    again = obtain()
    assert len(lines) == told  # kept, not trained again
    images = torch.zeros(1, 3, SIZE, SIZE)
    assert torch.equal(judge.segment(images), again.segment(images))


def test_slices_are_read_with_their_masks(tmp_path):
    artifact, records = write_slices(tmp_path, {"train": 6})
    found = train.read_data(artifact, records, JudgeConfig(image_size=SIZE, regions=("falx",)))
    drawn = make_data(6)
    assert np.array_equal(found.images, drawn.images)
    assert np.array_equal(found.lesions, drawn.lesions)
    assert found.orientation.tolist() == [0] * 6
    assert found.region.tolist() == [-1, 0, 0, -1, 0, 0]
    assert found.side.tolist() == [-1, 0, 0, -1, 0, 0]
    assert found.shape.tolist() == [-1] * 6  # a judge of no shapes
    small = JudgeConfig(image_size=SIZE // 2)
    assert train.read_data(artifact, records, small).lesions.shape == (6, 16, 16)


def build(judge):
    raw = {
        "experiment": "judged",
        "base_model": "tiny_sd15",
        "preprocess": {"source": "phantom", "image_size": 128},
        "caption": {"vlm": "truth"},
        "finetune": {"resolution": 128},
        "generate": {"image_size": 128},
        "classify": {"image_size": 128},
        "evaluate": {} if judge is None else {"judge": judge},
        "arms": [{"name": "one"}],
    }
    return config.build(raw, where="test").evaluate.judge


def test_a_configuration_names_the_judge():
    assert build(None).name == "embedded"
    assert build(None).settings == {"model": "data/embedded/judge"}
    trained = build({"name": "train", "settings": {"steps": 7}})
    assert (trained.settings["steps"], trained.settings["image_size"]) == (7, 128)
    assert build("train").settings["steps"] == 2500


def test_an_unknown_judge_and_an_odd_size_are_named():
    with pytest.raises(ConfigError, match=r"evaluate\.judge: no judge named 'oracle'"):
        build("oracle")
    with pytest.raises(ConfigError, match=r"judge\.settings\.image_size: .*16.*found 120"):
        build({"name": "train", "settings": {"image_size": 120}})
