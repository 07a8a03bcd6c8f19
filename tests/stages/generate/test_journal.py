import os
from pathlib import Path

import pytest

from pipeline.contracts import SCRATCH, SyntheticRecord, TumorReport
from stages.generate import journal
from stages.generate.journal import ImageOutcome

RECORD = SyntheticRecord(
    image_id="a",
    image_path="images/a.png",
    prompt="tumor: no",
    requested=TumorReport(tumor=False),
    label="notumor",
    seed=3,
    attempt=1,
    adapter_digest=None,
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / RECORD.image_path
    path.parent.mkdir()
    path.write_bytes(b"pixels")
    return path


def test_what_is_appended_is_read_from_all_journals(tmp_path: Path, image: Path) -> None:
    assert journal.read_all(tmp_path) == {}
    made = ImageOutcome("a", RECORD, ("black",))
    failed = ImageOutcome("b", None, ("constant", "black"))
    journal.append(journal.journal_path(tmp_path, 0, 1), made)
    journal.append(journal.journal_path(tmp_path, 1, 3), failed)
    assert journal.read_all(tmp_path) == {"a": made, "b": failed}
    assert journal.count_faults([made, failed]) == {"black": 2, "constant": 1}
    names = sorted(path.name for path in (tmp_path / SCRATCH).iterdir())
    assert names == ["generate.journal.2-of-3.jsonl", "generate.journal.jsonl"]


def test_torn_line_is_cut_off_and_a_second_one_of_an_image_wins(
    tmp_path: Path, image: Path
) -> None:
    path = journal.journal_path(tmp_path, 0, 1)
    journal.append(path, ImageOutcome("a", None, ("black",)))
    journal.append(path, ImageOutcome("a", RECORD, ()))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"image_id": "b", "rec')
    assert journal.read_all(tmp_path) == {"a": ImageOutcome("a", RECORD, ())}
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"pix", b"pixelz", None])
def test_an_image_that_is_not_the_one_written_is_made_again(
    tmp_path: Path, image: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = journal.journal_path(tmp_path, 0, 1)
    journal.append(path, ImageOutcome("a", RECORD, ()))
    journal.append(path, ImageOutcome("b", None, ("black",)))
    image.unlink() if content is None else image.write_bytes(content)
    assert journal.read_all(tmp_path) == {"b": ImageOutcome("b", None, ("black",))}
    assert str(path) in caplog.text
    assert "images/a.png is not the file that was written" in caplog.text


def test_a_wrong_line_in_the_middle_costs_that_line(
    tmp_path: Path, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = journal.journal_path(tmp_path, 0, 1)
    with path.open("wb") as out:
        out.write(b"\x00" * 30 + b"\n")
    journal.append(path, ImageOutcome("a", RECORD, ()))
    assert journal.read_all(tmp_path) == {"a": ImageOutcome("a", RECORD, ())}
    assert "1 of 2 entries are lost" in caplog.text


def test_images_are_synced_before_their_rows(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(
        os, "fsync", lambda h: synced.append(Path(os.readlink(f"/proc/self/fd/{h}")))
    )
    path = journal.journal_path(tmp_path, 0, 1)
    outcomes = [ImageOutcome("a", RECORD, ()), ImageOutcome("b", None, ("black",))]
    for outcome in outcomes:
        journal.append(path, outcome)
    journal.sync(path, outcomes)
    assert set(synced[:2]) == {image, image.parent}
    assert set(synced[2:]) == {path, tmp_path / SCRATCH}
