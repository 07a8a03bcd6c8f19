"""What cannot be trained or judged is refused, with the value that is wrong."""

import re
from pathlib import Path

import pytest

from pipeline.contracts import write_records
from pipeline.errors import ConfigError, DataError, SampleSizeError, SplitLeakError, TrainingError
from pipeline.run import checks, plan
from pipeline.run.config import load
from pipeline.settings import ProtectedConfig
from stages.classify import stage as classify
from tests.stages.classify.parts import CONFIG, SHORT, run, write_arm, write_slices

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def test_test_slices_that_trained_are_refused(tmp_path, inputs):
    slices = write_slices(tmp_path / "p", {"train": 2, "val": 2, "test": 2})
    rows = [row.model_copy(update={"group_id": "g"}) for row in slices.records()]
    write_records(slices.root / "records.jsonl", rows)
    with pytest.raises(SplitLeakError, match="group 'g' is in both"):
        run(tmp_path / "out", classify.ClassifyInputs(slices, {}))


@pytest.mark.parametrize(("kept", "found"), [(0, "none 0"), (8, "none 4")])
def test_validation_of_few_groups_chooses_nothing_and_says_so(tmp_path, kept, found):
    slices = write_slices(tmp_path / "p", {"train": 4, "val": 10, "test": 4})
    left_out = {f"val-notumor-{k}" for k in range(kept, 10)}  # two slices a group
    rows = [row for row in slices.records() if row.slice_id not in left_out]
    write_records(slices.root / "records.jsonl", rows)
    config = SHORT.model_copy(update={"baselines": ()})
    scores, output = run(tmp_path / "out", classify.ClassifyInputs(slices, {}), config)
    (line,) = output.notes["warnings"]
    assert f"too few groups (subjects) to choose by ({found}, tumour 10; 5 of each" in line
    assert output.notes["operating_points"] == {}
    assert ("real", "accuracy_at_operating_point", "all") not in scores
    assert ("real", "accuracy", "all") in scores
    assert output.notes["selection"]["real"][0]["step"] == SHORT.max_steps
    (look,) = output.notes["test_use"]["binary"]["looks"].values()
    assert look["chosen_on"] == "nothing: the last step"
    assert "left in the last state" in output.notes["methods"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("classify.model.settings.patch_size=12", "model.settings.patch_size: .*128 px., found 12"),
        ("classify.model.settings.num_heads=3", "model.settings.embed_dim: .* num_heads 3, found"),
        (
            "classify.references=[{name: vit, settings: {patch_size: 7}}]",
            r"references\.0\..*found 7",
        ),
        ("classify.references=[vit, vit]", "classify.references: 'vit' stands twice"),
        ("classify.model=metadata_only", "expected a network, found the baseline 'metadata_only'"),
        (
            "classify.ratio_arms=[x]",
            "classify.ratio_arms: expected arms of sdxl-truth, .* found 'x'",
        ),
        ("classify.ratio_arms=[sdxl-truth]", "classify.ratio_arms: expected ratios with them"),
        ("classify.ratios=[1, 2]", r"classify.ratios: expected 0 among them, .* found \[1, 2\]"),
        ("classify.ratios=[-1]", r"classify.ratios.0: .* found -1"),
        ("classify.regimes=[synthetic]", r"expected 'real' among them, .* found \['synthetic'\]"),
    ],
)
def test_what_cannot_be_trained_stops_at_the_config(override, message):
    with pytest.raises(ConfigError, match=message):
        load(CONFIGS / "mini.yaml", [override])


def test_check_names_a_table_that_is_absent_or_another(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("subject_id,sex")
    settings = load(CONFIGS / "mini.yaml")
    for path, found in (
        (table, "table.csv has [0-9a-f]{64}"),
        (tmp_path / "gone", "no file '.*gone'"),
    ):
        protected = ProtectedConfig(attribute="sex", table=str(path), sha256="0" * 64)
        section = settings.classify.model_copy(update={"protected": protected})
        asked = plan.Node("classify", (), section, {}, {}, {}, "digest")
        lines = checks.problems([asked], settings, tmp_path)
        assert any(re.search(f"classify.protected.*{found}", line) for line in lines)


def test_a_table_that_is_absent_stops_before_training(tmp_path, inputs):
    protected = ProtectedConfig(attribute="sex", table=str(tmp_path / "gone"), sha256="0" * 64)
    with pytest.raises(DataError, match=r"no file '.*gone'"):
        run(tmp_path / "out", inputs, SHORT.model_copy(update={"protected": protected}))


def test_more_slices_than_an_arm_has_are_refused(tmp_path, inputs):
    config = CONFIG.model_copy(update={"num_images": 60})
    message = "num_images is 60, 20 of each of 3 classes, but 'good' holds 12 of 'notumor'"
    with pytest.raises(SampleSizeError, match=message):
        run(tmp_path / "out", inputs, config)


def test_arms_without_a_tumour_are_refused(tmp_path, inputs):
    arm = write_arm(tmp_path / "arm", labels=("notumor",))
    few = classify.ClassifyInputs(inputs.preprocess, {"arm": arm})
    with pytest.raises(SampleSizeError, match=r"found in common \['notumor'\] .*glioma: arm has 0"):
        run(tmp_path / "out", few)


def test_no_test_slices_are_refused(tmp_path):
    slices = write_slices(tmp_path / "p", {"train": 2, "val": 2})
    with pytest.raises(SampleSizeError, match="at least 2 test slices, found 0"):
        run(tmp_path / "out", classify.ClassifyInputs(slices, {}))


def test_no_validation_slices_are_refused(tmp_path):
    slices = write_slices(tmp_path / "p", {"train": 4, "test": 4})
    with pytest.raises(TrainingError, match="val has 0 slices"):
        run(tmp_path / "out", classify.ClassifyInputs(slices, {}))
