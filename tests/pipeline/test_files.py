"""Files that are whole or absent, journals, and entries of caches."""

import json
import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import files
from pipeline.files import JournalFile


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which files and folders were synced, in order."""
    real, paths = os.fsync, []

    def fsync(handle: int) -> None:
        paths.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, synced: list[Path]) -> None:
    path = tmp_path / "new" / "a.json"
    files.write_text(path, "ü")
    assert path.read_bytes() == "ü".encode()
    assert [p.parent for p in synced] == [path.parent, tmp_path]
    assert files.LEFTOVER.fullmatch(synced[0].name)
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_halfway_leaves_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_text(path, "before")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_whole(path, fail)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_containers_with_one_process_number_do_not_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "a"

    def other_one_first(partial: Path) -> None:
        partial.write_text("mine")
        files.write_text(path, "other")
        assert partial.read_text() == "mine"

    files.write_whole(path, other_one_first)
    assert path.read_text() == "mine"


def test_leftovers_of_killed_processes_go_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / ".partial", tmp_path / "a.partial", tmp_path / "images" / "a.png"]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    files.temporary_name(kept[0]).touch()
    files.temporary_name(kept[-1]).touch()
    folder = files.temporary_name(tmp_path / "step")
    folder.mkdir()
    (folder / "state").touch()
    files.remove_leftovers(tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, synced: list[Path]) -> None:
    partial = tmp_path / "a.partial"
    (partial / "images").mkdir(parents=True)
    (partial / "images" / "0.png").write_bytes(b"image")
    files.publish_folder(partial, tmp_path / "a")
    assert set(synced[:-1]) == {partial, partial / "images", partial / "images" / "0.png"}
    assert synced[-1] == tmp_path
    assert (tmp_path / "a" / "images" / "0.png").read_bytes() == b"image"


def test_a_journal_takes_out_what_is_torn_or_wrong_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = JournalFile(tmp_path / "j.jsonl", lambda row: row["a"])
    assert journal.read() == []
    journal.append([{"a": 1}])
    with journal.path.open("ab") as file:  # a power cut leaves zeros, a kill half a line
        file.write(b'\x00\x00\x00{"a"\n[1]\n{"b": 1}\n\xff\n' + b"[" * 100_000 + b"\n")
    journal.append([{"a": "ü"}])
    with journal.path.open("ab") as file:
        file.write(b'{"a": 3')
    assert journal.read() == [1, "ü"]
    assert caplog.messages[0].startswith(f"{journal.path}: 5 of 7 entries are lost")
    assert journal.path.read_text() == '{"a": 1}\n{"a": "ü"}\n'
    assert journal.read() == [1, "ü"]
    assert len(caplog.messages) == 1


def test_a_torn_last_line_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = JournalFile(tmp_path / "j.jsonl")
    journal.append([{"a": 1}])
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + whole[:-1])
    assert journal.read() == [{"a": 1}]
    assert journal.path.read_bytes() == whole
    assert caplog.messages == []


def test_a_journal_is_synced_with_its_folder(tmp_path: Path, synced: list[Path]) -> None:
    journal = JournalFile(tmp_path / "j.jsonl")
    journal.sync()
    journal.append([{"a": 1}])
    assert synced == []
    journal.sync()
    assert set(synced) == {journal.path, tmp_path}


def _append(path: Path, count: int) -> None:
    for number in range(count):
        JournalFile(path).append([{"text": "x" * 200, "number": number}])


def test_lines_of_two_processes_do_not_mix(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append, args=(tmp_path / "j", 200)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(JournalFile(tmp_path / "j").read()) == 400


def test_a_file_is_known_again_by_size_and_content(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"image")
    known = json.loads(json.dumps(files.fingerprint(path)))
    assert files.is_unchanged(path, known)
    for damage in (b"", b"imag", b"imago"):
        path.write_bytes(damage)
        assert not files.is_unchanged(path, known)
    path.unlink()
    assert not files.is_unchanged(path, known)


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(content: bytes) -> bytes:
    at = content.index(np.arange(3).tobytes())
    return content[:at] + b"\x07" + content[at + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda _: b"", _cut, lambda _: b"\x93garbage" * 40, _flip], ids=str
)
def test_a_damaged_entry_is_said_once_and_made_again(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache" / "a.npz"
    made: list[int] = []

    def make() -> None:
        made.append(1)
        files.write_arrays(path, numbers=np.arange(3), more=np.arange(50.0))

    def read() -> dict[str, Any]:
        return files.read_or_make(path, files.read_arrays, make)

    assert read()["numbers"].tolist() == [0, 1, 2]
    path.write_bytes(damage(path.read_bytes()))
    assert read()["numbers"].tolist() == [0, 1, 2]
    assert read()["more"].shape == (50,)
    assert len(made) == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(path) in caplog.text


def test_an_entry_that_may_not_be_read_is_no_miss(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(PermissionError):
        files.read_entry(tmp_path, refuse)
    assert tmp_path.is_dir()
