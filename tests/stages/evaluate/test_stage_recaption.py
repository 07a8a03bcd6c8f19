"""A captioner that reads the images again, within evaluate."""

import json

import pytest

from pipeline.contracts import PluginConfig
from stages.evaluate import stage as evaluate
from tests.stages.evaluate.parts import CONFIG, run, stand_ins, write_arm, write_slices


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Captions that find every tumour in the real slices, and one in every synthetic image."""
    root = tmp_path_factory.mktemp("recaption")
    slices = write_slices(root / "p", {"train": 12, "test": 12, "val": 2})
    lines = [
        {"file_name": r.original, "text": f"tumor: {'no' if r.label == 'notumor' else 'yes'}"}
        for r in slices.records()
    ]
    names = [f"{label}-{k}" for label in ("notumor", "glioma") for k in range(12)]
    lines += [{"file_name": name, "text": "tumor: yes; orientation: axial"} for name in names]
    path = root / "captions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    vlm = PluginConfig(name="precomputed", settings={"path": str(path)})
    config = CONFIG.model_copy(update={"recaption": vlm, "base_models": {}, "metrics": ("kid",)})
    arms = {"good": write_arm(root / "good", 3, count=12)}
    with stand_ins():
        return run(root, evaluate.EvaluateInputs(slices, arms), config)


def test_rows_stand_among_the_others(scored):
    scores, output = scored
    assert scores["good", "kid", "all"].n_synthetic == 24
    row = scores["good", "recaption_orientation", "all"]
    assert (row.value, row.n_synthetic, row.features) == (0.5, 24, "precomputed")
    assert scores["good", "recaption_type", "all"].value == 0
    assert output.notes["recaption"]["vlm"] == "precomputed"


def test_the_captioner_s_error_is_known_of_what_the_folders_know(scored):
    scores, output = scored
    assert scores["real", "recaption_type", "all"].n_real == 12
    assert ("real", "recaption_orientation", "all") not in scores
    assert output.notes["recaption"]["error_unknown"] == ["orientation"]
