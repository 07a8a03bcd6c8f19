"""Images with the same seed and the other side, and copies that are not let out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    Context,
    SliceRecord,
    SyntheticRecord,
    write_records,
)
from pipeline.errors import ConfigError
from stages.components.diffusion import sampling
from stages.components.statistics import cohorts
from stages.components.tumor_report.mirroring import mirror_words
from stages.generate import journal, orders, shares
from stages.generate.stage import GenerateInputs
from stages.generate.withholding import nearest_slice

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
    return run(tmp_path_factory.mktemp("whole") / "a", weights_dir, **ASKED)


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
    run: Run,
    whole: ArtifactWriter[SyntheticRecord],
    tmp_path: Path,
    weights_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = sampling.Sampler.draw, []

    def die(self: sampling.Sampler, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(sampling.Sampler, "draw", die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", weights_dir, **ASKED)
    assert len(journal.read_all(tmp_path / "killed")) == 3  # the first batch's originals
    assert files(run(tmp_path / "killed", weights_dir, **ASKED)) == files(whole)


def test_shares_keep_pairs_together(
    run: Run,
    whole: ArtifactWriter[SyntheticRecord],
    tmp_path: Path,
    weights_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one_after_the_other(share: Any, num_shards: int, context: Context) -> list[Any]:
        return [
            share(shard, num_shards, shares.shard_context(context, shard, num_shards))
            for shard in reversed(range(num_shards))
        ]

    monkeypatch.setattr(shares, "run_shares", one_after_the_other)
    assert files(run(tmp_path / "a", weights_dir, **ASKED, num_shards=2)) == files(whole)


def test_a_counterfactual_follows_its_original_to_another_seed_and_gets_none_of_its_own(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = sampling.Sampler.draw, []

    def darken(self: sampling.Sampler, prompts: Any, seeds: Any, reports: Any) -> Any:
        images, faults = original(self, prompts, seeds)
        calls.append(list(seeds))
        if len(calls) == 1:  # the originals of the first batch
            faults = ["black"] * len(faults)
        if len(calls) == 3:  # their counterfactuals
            faults[0] = "constant"
        return images, faults

    monkeypatch.setattr(sampling.Sampler, "draw", darken)
    asked = ASKED | {"max_failed_fraction": 0.2}
    output = run(tmp_path / "a", weights_dir, **asked)
    rows = records(output)
    pairs = [row for row in rows if row.counterfactual_of]
    failed = output.notes["failed"]
    assert len(failed) == output.counts["failed"] == 1
    assert failed[0].endswith("-other-side")
    assert all(row.attempt == 1 for row in rows[:3])
    for row in pairs:
        (other,) = [o for o in rows if o.image_id == row.counterfactual_of]
        assert (row.seed, row.attempt) == (other.seed, other.attempt)
    assert calls[2][0] == orders.seed_of(0, failed[0].removesuffix("-other-side"), 1)
    assert output.notes["faults"] == {"black": 3, "constant": 1}
    assert output.counts["counterfactuals"] == len(pairs) == 1


def test_a_counterfactual_without_its_original_is_left_out(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sampling.Sampler.draw

    def darken(self: sampling.Sampler, prompts: Any, seeds: Any, reports: Any) -> Any:
        images, faults = original(self, prompts, seeds)
        return images, ["black"] * len(faults)

    monkeypatch.setattr(sampling.Sampler, "draw", darken)
    asked = ASKED | {"max_failed_fraction": 1.0, "max_attempts": 1}
    output = run(tmp_path / "a", weights_dir, **asked)
    assert output.counts["failed"] == 7
    assert output.notes["faults"] == {"black": 5}  # counterfactuals were never tried


def test_more_counterfactuals_than_sides_are_refused(
    run: Run, tmp_path: Path, weights_dir: Path
) -> None:
    with pytest.raises(ConfigError, match=r"counterfactuals: expected at most 0, .* found 2"):
        run(tmp_path / "a", weights_dir, **(ASKED | {"labels": ("notumor",)}))


class Watch:
    """Calls copies what it was told to."""

    def __init__(self, verdicts: list[list[bool]]) -> None:
        self.verdicts = verdicts
        self.seen: list[Any] = []

    def find_copies(self, images: Any) -> Any:
        self.seen.append(images.shape)
        return np.asarray(self.verdicts.pop(0))


def test_copies_are_made_again_and_counted(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch([[False, True, False], [True], [True], [False] * 2])
    slices = Artifact(tmp_path, "slices", SliceRecord, {})
    given: list[Any] = []

    def build(settings: Any, preprocess: Any, **more: Any) -> Watch:
        given.append((preprocess, more["device"]))
        return watch

    monkeypatch.setattr(nearest_slice, "build", build)
    asked = ASKED | {"counterfactuals": 0, "max_failed_fraction": 0.2, "withhold_copies": True}
    output = run(tmp_path / "a", weights_dir, GenerateInputs(None, None, slices), **asked)
    assert given == [(slices, "cpu")]
    assert watch.seen == [(3, 32, 32, 3), (1, 32, 32, 3), (1, 32, 32, 3), (2, 32, 32, 3)]
    assert output.counts["copies_withheld"] == 3
    assert output.notes["faults"] == {"copy": 3}
    assert output.notes["failed"] == ["grid-00001"]  # a copy with every seed: left out
    assert not (output.root / "images/grid-00001.png").exists()

    watch.verdicts += [[False, True, False], [False], [False] * 2]
    again = run(tmp_path / "b", weights_dir, GenerateInputs(None, None, slices), **asked)
    assert again.counts["copies_withheld"] == 1
    row = records(again)[1]
    assert (row.attempt, row.seed) == (1, orders.seed_of(0, "grid-00001", 1))
