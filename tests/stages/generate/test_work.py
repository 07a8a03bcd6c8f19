"""What goes wrong, is killed, shared out or does not fit into memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.contracts import ArtifactWriter, SyntheticRecord
from pipeline.errors import TrainingError
from stages.generate import orders
from stages.generate.journal import journal_path, read_all
from tests.stages.generate.conftest import seeds_of_calls, share

Run = Callable[..., ArtifactWriter[SyntheticRecord]]


def records(output: ArtifactWriter[SyntheticRecord]) -> list[SyntheticRecord]:
    lines = (output.root / "records.jsonl").read_text().splitlines()
    return [SyntheticRecord.model_validate_json(line) for line in lines]


def pixels(output: ArtifactWriter[SyntheticRecord], record: SyntheticRecord) -> Any:
    with Image.open(output.path(record.image_path)) as image:
        return np.asarray(image).astype(int)


def test_killed_run_resumes_to_the_same_bytes(
    scripted: Run, tmp_path: Path, weights_dir: Path
) -> None:
    whole = scripted(tmp_path / "whole", weights_dir, batch_size=2)
    killed, calls = tmp_path / "killed", tmp_path / "calls"
    with pytest.raises(KeyboardInterrupt):
        scripted(killed, weights_dir, batch_size=2, script={"calls": calls, "killed_at": 3})
    with journal_path(killed, 0, 1).open("a") as out:
        out.write('{"image_id": "grid-00')  # the kill tore a line
    resumed = scripted(killed, weights_dir, batch_size=2, script={"calls": calls})

    assert len(seeds_of_calls(calls)) == 4  # three before the kill, one after
    for path in (whole.root / "images").iterdir():
        assert path.read_bytes() == (resumed.root / "images" / path.name).read_bytes()
    texts = [(o.root / "records.jsonl").read_bytes() for o in (whole, resumed)]
    assert texts[0] == texts[1]


def test_broken_images_are_counted_and_made_again_with_another_seed(
    scripted: Run, tmp_path: Path, weights_dir: Path
) -> None:
    script = {"calls": tmp_path / "calls", "broken": {1: [1]}}
    output = scripted(tmp_path / "a", weights_dir, script=script)
    rows = records(output)
    assert [len(seeds) for seeds in seeds_of_calls(tmp_path / "calls")] == [4, 1, 2]
    assert [row.attempt for row in rows] == [0, 1, 0, 0, 0, 0]
    assert rows[1].seed == orders.seed_of(0, rows[1].image_id, 1)
    assert rows[1].seed != orders.seed_of(0, rows[1].image_id, 0)
    assert output.counts["made_again"] == 1
    assert output.notes["faults"] == {"not finite": 1}


def test_image_that_never_succeeds_stops_the_run(
    scripted: Run, tmp_path: Path, weights_dir: Path
) -> None:
    script = {"broken": {1: [0, 1, 2, 3], 2: [0, 1, 2, 3]}}
    with pytest.raises(TrainingError, match=r"'grid-00000' .*failed 2 times.*'not finite': 8"):
        scripted(tmp_path / "a", weights_dir, max_attempts=2, script=script)


def test_image_that_never_succeeds_is_left_out_and_counted(
    scripted: Run, tmp_path: Path, weights_dir: Path
) -> None:
    # The second batch holds two images; of the first there is no attempt without a fault.
    script = {"calls": tmp_path / "calls", "broken": {2: [0], 3: [0], 4: [0]}}
    output = scripted(tmp_path / "a", weights_dir, max_failed_fraction=0.2, script=script)
    tried = [seeds[0] for seeds in seeds_of_calls(tmp_path / "calls")[1:]]
    # twice again, each with a seed of its own
    assert tried == [orders.seed_of(0, "grid-00004", attempt) for attempt in range(3)]
    assert len(records(output)) == output.counts["written"] == 5
    assert output.counts["failed"] == 1
    assert output.notes["failed"] == ["grid-00004"]
    assert output.notes["faults"] == {"not finite": 3}
    with pytest.raises(TrainingError, match=r"'grid-00004'.*max_failed_fraction 0\.1;"):
        scripted(tmp_path / "b", weights_dir, max_failed_fraction=0.1, script=script)


def test_run_killed_within_a_batch_resumes_to_the_same_bytes(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", weights_dir)
    original, saved = Image.Image.save, []

    def die(image: Image.Image, path: Path, **given: Any) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        original(image, path, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", weights_dir)
    assert list(read_all(tmp_path / "killed")) == ["grid-00000", "grid-00001"]
    lines: list[str] = []
    resumed = run(tmp_path / "killed", weights_dir, lines=lines)
    assert lines[0] == "generate: 2 images were there"
    assert same_images(whole, resumed)
    assert records(whole) == records(resumed)


def test_an_image_that_a_power_cut_emptied_is_made_again(
    run: Run, tmp_path: Path, weights_dir: Path
) -> None:
    def die(line: str) -> None:
        if line == "generate: 3 of 3 batches":
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole", weights_dir, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", weights_dir, batch_size=2, progress=die)
    (tmp_path / "cut" / records(whole)[1].image_path).write_bytes(b"")
    journal = journal_path(tmp_path / "cut", 0, 1)
    journal.write_bytes(b"\0" * 40 + b"\n" + journal.read_bytes())
    lines: list[str] = []
    resumed = run(tmp_path / "cut", weights_dir, batch_size=2, lines=lines)
    assert lines[0] == "generate: 5 images were there"
    assert same_images(whole, resumed)
    assert records(whole) == records(resumed)


def test_a_kill_before_the_manifest_makes_no_image_again(
    scripted: Run, tmp_path: Path, weights_dir: Path
) -> None:
    script, lines = {"calls": tmp_path / "calls"}, []
    rows = records(scripted(tmp_path / "a", weights_dir, script=script))
    calls = seeds_of_calls(tmp_path / "calls")
    again = scripted(tmp_path / "a", weights_dir, script=script, lines=lines)
    assert lines == [f"generate: {len(rows)} images were there"]
    assert seeds_of_calls(tmp_path / "calls") == calls
    assert records(again) == rows


def same_images(a: ArtifactWriter[SyntheticRecord], b: ArtifactWriter[SyntheticRecord]) -> bool:
    paths = sorted(path.name for path in (a.root / "images").iterdir())
    assert paths == sorted(path.name for path in (b.root / "images").iterdir())
    return all(
        (a.root / "images" / name).read_bytes() == (b.root / "images" / name).read_bytes()
        for name in paths
    )


def test_shares_change_no_byte(run: Run, tmp_path: Path, weights_dir: Path) -> None:
    def shared(name: str, num_shards: int, batch_size: int) -> ArtifactWriter[SyntheticRecord]:
        lines: list[str] = []
        for shard in reversed(range(num_shards)):
            share(tmp_path / name, weights_dir, shard, num_shards, batch_size=batch_size)
        output = run(tmp_path / name, weights_dir, batch_size=batch_size, lines=lines)
        assert lines == ["generate: 6 images were there"]
        return output

    whole = run(tmp_path / "whole", weights_dir, batch_size=2)
    some = shared("some", num_shards=2, batch_size=2)
    assert same_images(whole, some)
    assert records(whole) == records(some)
    more = shared("more", num_shards=5, batch_size=4)
    for a, b in zip(records(whole), records(more), strict=True):
        assert np.abs(pixels(whole, a) - pixels(more, b)).max() <= 1


def test_share_takes_its_batches_only(tmp_path: Path, weights_dir: Path) -> None:
    share(tmp_path / "a", weights_dir, 1, 2, batch_size=2)
    assert sorted(read_all(tmp_path / "a")) == ["grid-00002", "grid-00003"]


@pytest.mark.slow
def test_processes_change_no_byte(run: Run, tmp_path: Path, weights_dir: Path) -> None:
    whole = run(tmp_path / "whole", weights_dir, batch_size=3)
    shared = run(tmp_path / "shared", weights_dir, batch_size=3, num_shards=2)
    assert same_images(whole, shared)
    assert shared.notes["batch_size"] == 3


def test_automatic_batch_size_is_halved_until_it_fits(
    scripted: Run, tmp_path: Path, weights_dir: Path
) -> None:
    whole, lines = scripted(tmp_path / "whole", weights_dir), []
    output = scripted(
        tmp_path / "a", weights_dir, lines=lines, batch_size="auto", script={"most_at_once": 1}
    )
    said = [line for line in lines if "do not fit" in line]
    assert [line.split("; ")[1] for line in said] == ["going on with 3", "going on with 1"]
    assert output.notes["batch_size"] == 1
    for a, b in zip(records(whole), records(output), strict=True):
        assert a == b
        assert np.abs(pixels(whole, a) - pixels(output, b)).max() <= 1


def test_batch_size_asked_for_is_kept_or_refused(
    scripted: Run, tmp_path: Path, weights_dir: Path
) -> None:
    with pytest.raises(TrainingError, match=r"batch_size 4 .*out of memory with 4.*auto"):
        scripted(tmp_path / "a", weights_dir, script={"most_at_once": 3})
