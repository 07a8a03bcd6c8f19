"""Images with the same seed and the other side, and copies that are not let out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    SliceRecord,
    SyntheticRecord,
    write_records,
)
from pipeline.errors import ConfigError
from stages.components.statistics import cohorts
from stages.components.tumor_report.mirroring import mirror_words
from stages.generate import journal, orders
from stages.generate.stage import GenerateInputs
from tests.conftest import AddFile
from tests.fabricate import plugins
from tests.stages.generate.conftest import seeds_of_calls, share

Run = Callable[..., ArtifactWriter[SyntheticRecord]]
ASKED: dict[str, Any] = {
    "num_images": 5,
    "labels": ("glioma",),
    "counterfactuals": 2,
    "batch_size": 3,
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
}


def records(output: ArtifactWriter[SyntheticRecord]) -> list[SyntheticRecord]:
    lines = (output.root / "records.jsonl").read_text().splitlines()
    return [SyntheticRecord.model_validate_json(line) for line in lines]


def files(output: ArtifactWriter[SyntheticRecord]) -> dict[str, bytes]:
    paths = [*sorted(output.root.rglob("*.png")), output.root / "records.jsonl"]
    return {path.relative_to(output.root).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(
    run: Run, tmp_path_factory: pytest.TempPathFactory, weights_dir: Path
) -> ArtifactWriter[SyntheticRecord]:
    root = tmp_path_factory.mktemp("whole")
    with plugins.added(registry.BASE_MODELS, "scripted", root):
        return run(root / "a", weights_dir, model="scripted", **ASKED)


def test_counterfactuals_have_the_seed_and_the_other_side(
    whole: ArtifactWriter[SyntheticRecord],
) -> None:
    rows = records(whole)
    originals = {row.image_id: row for row in rows[:5]}
    assert [row.counterfactual_of for row in rows[:5]] == [None] * 5
    assert whole.counts["written"] == 7
    assert whole.counts["counterfactuals"] == 2
    for row in rows[5:]:
        assert row.counterfactual_of is not None
        other = originals[row.counterfactual_of]
        assert (row.seed, row.attempt, row.label) == (other.seed, other.attempt, other.label)
        assert row.prompt == mirror_words(other.prompt) != other.prompt
        assert {row.requested.side, other.requested.side} == {"left", "right"}
        assert row.image_path == f"counterfactuals/{other.image_id}-other-side.png"
        with Image.open(whole.path(row.image_path)) as image:
            text, pixels = image.text, np.asarray(image)  # type: ignore[attr-defined]
        assert text["counterfactual_of"] == other.image_id
        assert (text["seed"], text["prompt"]) == (str(row.seed), row.prompt)
        with Image.open(whole.path(other.image_path)) as image:
            assert "counterfactual_of" not in image.text  # type: ignore[attr-defined]
            assert (np.asarray(image) != pixels).any()


def test_an_arms_sample_leaves_them_out(
    whole: ArtifactWriter[SyntheticRecord], tmp_path: Path
) -> None:
    write_records(tmp_path / "records.jsonl", [])
    real = Artifact(tmp_path, "p", SliceRecord, {})
    items = cohorts.list_synthetic(Artifact(whole.root, "d", SyntheticRecord, {}), real)
    assert [item.name for item in items] == [row.image_id for row in records(whole)[:5]]


def test_a_run_killed_between_the_two_resumes_to_the_same_bytes(
    scripted: Run, whole: ArtifactWriter[SyntheticRecord], tmp_path: Path, weights_dir: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        scripted(tmp_path / "killed", weights_dir, script={"killed_at": 2}, **ASKED)
    assert len(journal.read_all(tmp_path / "killed")) == 3  # the first batch's originals
    assert files(scripted(tmp_path / "killed", weights_dir, **ASKED)) == files(whole)


def test_shares_keep_pairs_together(
    scripted: Run, whole: ArtifactWriter[SyntheticRecord], tmp_path: Path, weights_dir: Path
) -> None:
    for shard in (1, 0):
        share(tmp_path / "a", weights_dir, shard, 2, model="scripted", **ASKED)
    assert len(journal.read_all(tmp_path / "a")) == 7
    assert files(scripted(tmp_path / "a", weights_dir, **ASKED)) == files(whole)


def test_a_counterfactual_follows_its_original_to_another_seed_and_gets_none_of_its_own(
    scripted: Run, tmp_path: Path, weights_dir: Path
) -> None:
    # Calls: the originals of the first batch, the same again, their counterfactuals, ...
    script = {"calls": tmp_path / "calls", "broken": {1: [0, 1, 2], 3: [0]}}
    output = scripted(tmp_path / "a", weights_dir, script=script, **ASKED, max_failed_fraction=0.2)
    rows = records(output)
    pairs = [row for row in rows if row.counterfactual_of]
    failed = output.notes["failed"]
    assert len(failed) == output.counts["failed"] == 1
    assert failed[0].endswith("-other-side")
    assert all(row.attempt == 1 for row in rows[:3])
    for row in pairs:
        (other,) = [o for o in rows if o.image_id == row.counterfactual_of]
        assert (row.seed, row.attempt) == (other.seed, other.attempt)
    seeds = seeds_of_calls(tmp_path / "calls")[2]
    assert seeds[0] == orders.seed_of(0, failed[0].removesuffix("-other-side"), 1)
    assert output.notes["faults"] == {"not finite": 4}
    assert output.counts["counterfactuals"] == len(pairs) == 1


def test_a_counterfactual_without_its_original_is_left_out(
    scripted: Run, tmp_path: Path, weights_dir: Path
) -> None:
    script = {"broken": {1: [0, 1, 2], 2: [0, 1]}}
    asked = ASKED | {"max_failed_fraction": 1.0, "max_attempts": 1}
    output = scripted(tmp_path / "a", weights_dir, script=script, **asked)
    assert output.counts["failed"] == 7
    assert output.notes["faults"] == {"not finite": 5}  # counterfactuals were never tried


def test_more_counterfactuals_than_sides_are_refused(
    run: Run, tmp_path: Path, weights_dir: Path
) -> None:
    with pytest.raises(ConfigError, match=r"counterfactuals: expected at most 0, .* found 2"):
        run(tmp_path / "a", weights_dir, **(ASKED | {"labels": ("notumor",)}))


WATCH = '''
"""A rule for copies that knows beforehand which rows of which call are some; it notes its calls."""

import json
from pathlib import Path

import numpy as np

from pipeline.contracts import Section


class Settings(Section):
    calls: Path
    copies: dict[int, list[int]]


class Watch:
    def __init__(self, settings, **given):
        self.settings, self.given, self.num_calls = settings, given, 0

    def find_copies(self, images):
        self.num_calls += 1
        with self.settings.calls.open("a") as out:
            out.write(json.dumps([*self.given.values(), *images.shape]) + "\\n")
        return np.isin(np.arange(len(images)), self.settings.copies.get(self.num_calls, []))


def build(settings, preprocess, *, device, **more):
    return Watch(settings, slices=preprocess.digest, device=device)
'''


def test_copies_are_made_again_and_counted(
    run: Run, add_file: AddFile, tmp_path: Path, weights_dir: Path
) -> None:
    add_file(registry.WITHHOLDING, "foreseen", WATCH)
    calls, slices = tmp_path / "calls", Artifact(tmp_path, "slices", SliceRecord, {})

    def withhold(name: str, copies: dict[int, list[int]]) -> ArtifactWriter[SyntheticRecord]:
        rule = {"name": "foreseen", "settings": {"calls": calls, "copies": copies}}
        asked = ASKED | {"counterfactuals": 0, "max_failed_fraction": 0.2, "withhold_copies": rule}
        return run(tmp_path / name, weights_dir, GenerateInputs(None, None, slices), **asked)

    output = withhold("a", {1: [1], 2: [0], 3: [0]})
    seen = [json.loads(line) for line in calls.read_text().splitlines()]
    assert seen == [["slices", "cpu", count, 32, 32, 3] for count in (3, 1, 1, 2)]
    assert output.counts["copies_withheld"] == 3
    assert output.notes["faults"] == {"copy": 3}
    assert output.notes["failed"] == ["grid-00001"]  # a copy with every seed: left out
    assert not (output.root / "images/grid-00001.png").exists()

    again = withhold("b", {1: [1]})
    assert again.counts["copies_withheld"] == 1
    row = records(again)[1]
    assert (row.attempt, row.seed) == (1, orders.seed_of(0, "grid-00001", 1))
