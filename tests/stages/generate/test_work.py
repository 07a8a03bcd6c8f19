"""What goes wrong, is killed, shared out or does not fit into memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.contracts import ArtifactWriter, Context, SyntheticRecord
from pipeline.errors import TrainingError
from stages.components.diffusion import sampling
from stages.components.imaging.pixels import save_png
from stages.generate import journal as image_journal
from stages.generate import maker, orders, shares
from stages.generate.journal import journal_path, read_all

Run = Callable[..., ArtifactWriter[SyntheticRecord]]


def records(output: ArtifactWriter[SyntheticRecord]) -> list[SyntheticRecord]:
    lines = (output.root / "records.jsonl").read_text().splitlines()
    return [SyntheticRecord.model_validate_json(line) for line in lines]


def pixels(output: ArtifactWriter[SyntheticRecord], record: SyntheticRecord) -> Any:
    with Image.open(output.path(record.image_path)) as image:
        return np.asarray(image).astype(int)


def test_killed_run_resumes_to_the_same_bytes(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", weights_dir, batch_size=2)
    original, batches = sampling.Sampler.draw, []

    def die(self: sampling.Sampler, prompts: Any, seeds: Any, reports: Any) -> Any:
        batches.append(prompts)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return original(self, prompts, seeds)

    with monkeypatch.context() as patch:
        patch.setattr(sampling.Sampler, "draw", die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", weights_dir, batch_size=2)
    with journal_path(tmp_path / "killed", 0, 1).open("a") as out:
        out.write('{"image_id": "grid-00')  # the kill tore a line
    with monkeypatch.context() as patch:
        patch.setattr(
            sampling.Sampler, "draw", lambda s, p, k, r: (batches.append(p), original(s, p, k))[1]
        )
        resumed = run(tmp_path / "killed", weights_dir, batch_size=2)

    assert len(batches) == 4  # three before the kill, one after
    for path in (whole.root / "images").iterdir():
        assert path.read_bytes() == (resumed.root / "images" / path.name).read_bytes()
    texts = [(o.root / "records.jsonl").read_bytes() for o in (whole, resumed)]
    assert texts[0] == texts[1]


def test_black_images_are_counted_and_made_again_with_another_seed(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = sampling.Sampler.draw, []

    def darken(self: sampling.Sampler, prompts: Any, seeds: Any, reports: Any) -> Any:
        images, faults = original(self, prompts, seeds)
        calls.append(len(prompts))
        if len(calls) == 1:
            images[1] = 0
            faults[1] = sampling.find_fault(images[1])
        return images, faults

    monkeypatch.setattr(sampling.Sampler, "draw", darken)
    output = run(tmp_path / "a", weights_dir)
    rows = records(output)
    assert calls == [4, 1, 2]
    assert [row.attempt for row in rows] == [0, 1, 0, 0, 0, 0]
    assert rows[1].seed == orders.seed_of(0, rows[1].image_id, 1)
    assert rows[1].seed != orders.seed_of(0, rows[1].image_id, 0)
    assert output.counts["made_again"] == 1
    assert output.notes["faults"] == {"black": 1}


def test_image_that_never_succeeds_stops_the_run(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "find_fault", lambda image: "constant")
    with pytest.raises(TrainingError, match=r"'grid-00000' .*failed 2 times.*'constant': 8"):
        run(tmp_path / "a", weights_dir, max_attempts=2)


def test_image_that_never_succeeds_is_left_out_and_counted(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, tried = sampling.Sampler.draw, []
    bad = [orders.seed_of(0, "grid-00004", attempt) for attempt in range(5)]

    def darken(self: sampling.Sampler, prompts: Any, seeds: Any, reports: Any) -> Any:
        images, faults = original(self, prompts, seeds)
        tried.extend(seed for seed in seeds if seed in bad)
        return images, [
            "black" if seed in bad else f for seed, f in zip(seeds, faults, strict=True)
        ]

    monkeypatch.setattr(sampling.Sampler, "draw", darken)
    output = run(tmp_path / "a", weights_dir, max_failed_fraction=0.2)
    assert tried == bad[:3]  # twice again, each with a seed of its own
    assert len(records(output)) == output.counts["written"] == 5
    assert output.counts["failed"] == 1
    assert output.notes["failed"] == ["grid-00004"]
    assert output.notes["faults"] == {"black": 3}
    with pytest.raises(TrainingError, match=r"'grid-00004'.*max_failed_fraction 0\.1;"):
        run(tmp_path / "b", weights_dir, max_failed_fraction=0.1)


def test_run_killed_within_a_batch_resumes_to_the_same_bytes(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", weights_dir)
    original, saved = save_png, []

    def die(path: Path, *rest: Any) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        original(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(maker, "save_png", die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", weights_dir)
    assert list(read_all(tmp_path / "killed")) == ["grid-00000", "grid-00001"]
    lines: list[str] = []
    resumed = run(tmp_path / "killed", weights_dir, lines=lines)
    assert lines[0] == "generate: 2 images were there"
    assert same_images(whole, resumed)
    assert records(whole) == records(resumed)


def test_an_image_that_a_power_cut_emptied_is_made_again(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", weights_dir, batch_size=2)
    with monkeypatch.context() as patch:  # the journal outlives the stage until it is published
        patch.setattr(image_journal, "remove_all", lambda root: None)
        cut = run(tmp_path / "cut", weights_dir, batch_size=2)
    path = cut.path(records(cut)[1].image_path)
    path.write_bytes(b"")
    (journal,) = cut.root.glob(image_journal.PATTERN)
    journal.write_bytes(b"\0" * 40 + b"\n" + journal.read_bytes())
    lines: list[str] = []
    resumed = run(tmp_path / "cut", weights_dir, batch_size=2, lines=lines)
    assert lines[0] == "generate: 5 images were there"
    assert same_images(whole, resumed)
    assert records(whole) == records(resumed)


def same_images(a: ArtifactWriter[SyntheticRecord], b: ArtifactWriter[SyntheticRecord]) -> bool:
    paths = sorted(path.name for path in (a.root / "images").iterdir())
    assert paths == sorted(path.name for path in (b.root / "images").iterdir())
    return all(
        (a.root / "images" / name).read_bytes() == (b.root / "images" / name).read_bytes()
        for name in paths
    )


def one_after_the_other(share: Any, num_shards: int, context: Context) -> list[Any]:
    return [
        share(shard, num_shards, shares.shard_context(context, shard, num_shards))
        for shard in reversed(range(num_shards))
    ]


def test_shares_change_no_byte(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", weights_dir, batch_size=2)
    monkeypatch.setattr(shares, "run_shares", one_after_the_other)
    shared = run(tmp_path / "shared", weights_dir, batch_size=2, num_shards=2)
    assert same_images(whole, shared)
    assert records(whole) == records(shared)
    more = run(tmp_path / "more", weights_dir, batch_size=4, num_shards=5)
    for a, b in zip(records(whole), records(more), strict=True):
        assert np.abs(pixels(whole, a) - pixels(more, b)).max() <= 1


def test_share_takes_its_batches_only(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[list[str]] = []

    def first_only(share: Any, num_shards: int, context: Context) -> list[Any]:
        root = tmp_path / "a"
        share(1, num_shards, context)
        left.append(sorted(image_journal.read_all(root)))
        return [share(0, num_shards, context)]

    monkeypatch.setattr(shares, "run_shares", first_only)
    run(tmp_path / "a", weights_dir, batch_size=2, num_shards=2)
    assert left == [["grid-00002", "grid-00003"]]


@pytest.mark.slow
def test_processes_change_no_byte(run: Run, tmp_path: Path, weights_dir: Path) -> None:
    whole = run(tmp_path / "whole", weights_dir, batch_size=3)
    shared = run(tmp_path / "shared", weights_dir, batch_size=3, num_shards=2)
    assert same_images(whole, shared)
    assert shared.notes["batch_size"] == 3


def starve(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    """Let the sampler run out of memory beyond `largest` images at once."""
    original = sampling.Sampler.draw

    def draw(self: sampling.Sampler, prompts: Any, seeds: Any, reports: Any) -> Any:
        if len(prompts) > largest:
            raise torch.OutOfMemoryError(f"out of memory with {len(prompts)}")
        return original(self, prompts, seeds)

    monkeypatch.setattr(sampling.Sampler, "draw", draw)


def test_automatic_batch_size_is_halved_until_it_fits(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, lines = run(tmp_path / "whole", weights_dir), []
    starve(monkeypatch, 1)
    output = run(tmp_path / "a", weights_dir, lines=lines, batch_size="auto")
    said = [line for line in lines if "do not fit" in line]
    assert [line.split("; ")[1] for line in said] == ["going on with 3", "going on with 1"]
    assert output.notes["batch_size"] == 1
    for a, b in zip(records(whole), records(output), strict=True):
        assert a == b
        assert np.abs(pixels(whole, a) - pixels(output, b)).max() <= 1


def test_batch_size_asked_for_is_kept_or_refused(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starve(monkeypatch, 3)
    with pytest.raises(TrainingError, match=r"batch_size 4 .*out of memory with 4.*auto"):
        run(tmp_path / "a", weights_dir)
