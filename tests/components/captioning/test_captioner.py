from pathlib import Path

import pytest

from stages.components.captioning.captioner import Failure, Paid, Usage, answer_of, usage_of
from stages.components.captioning.journal import Journal


def test_journal_reads_what_it_wrote(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    assert journal.read() == {}
    journal.append({"a": "ümlaut; \n second line", "b": Failure("blocked")})
    journal.append({"c": ""})
    expected = {"a": "ümlaut; \n second line", "b": Failure("blocked"), "c": ""}
    assert journal.read() == expected


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"a": "one", "b": "two"})
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-5])
    assert journal.read() == {"a": "one"}
    journal.append({"b": "two"})
    assert journal.path.read_bytes() == whole


def test_journal_keeps_prices_and_adds_them_up(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"a": Paid(Failure("HTTP 500"), Usage(3, 0, 0, 0.0))})
    journal.append({"b": "no charge", "a": Paid("mended", Usage(1, 10, 5, 0.25), "m-1")})
    found = journal.read()
    assert found["a"] == Paid("mended", Usage(4, 10, 5, 0.25), "m-1")
    assert answer_of(found["b"]) == "no charge"
    assert usage_of(found.values()) == Usage(4, 10, 5, 0.25)


@pytest.mark.parametrize("line", ["{}", "[1]", "nonsense", '{"slice_id": "b", "raw": 3}', "\0\0"])
def test_a_foreign_line_is_lost_and_the_rest_is_kept(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"a": "one"})
    with journal.path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    journal.append({"c": "three"})
    assert journal.read() == {"a": "one", "c": "three"}
    assert journal.read() == {"a": "one", "c": "three"}
    (said,) = caplog.messages
    assert said.startswith(f"{journal.path}: 1 of 3 entries are lost (line 2: ")
