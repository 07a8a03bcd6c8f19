from pathlib import Path

from pipeline.contracts import SyntheticRecord, TumorReport
from stages.components import image_journal
from stages.components.image_journal import Outcome

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


def test_what_is_appended_is_read_from_all_journals(tmp_path: Path) -> None:
    assert image_journal.read_all(tmp_path) == {}
    made = Outcome("a", RECORD, ("black",))
    failed = Outcome("b", None, ("constant", "black"))
    image_journal.append(image_journal.journal_path(tmp_path, 0, 1), made)
    image_journal.append(image_journal.journal_path(tmp_path, 1, 3), failed)
    assert image_journal.read_all(tmp_path) == {"a": made, "b": failed}
    assert image_journal.count_faults([made, failed]) == {"black": 2, "constant": 1}
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["generate.journal.2-of-3.jsonl", "generate.journal.jsonl"]
    image_journal.remove_all(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_torn_line_is_cut_off_and_a_second_one_of_an_image_wins(tmp_path: Path) -> None:
    path = image_journal.journal_path(tmp_path, 0, 1)
    image_journal.append(path, Outcome("a", None, ("black",)))
    image_journal.append(path, Outcome("a", RECORD, ()))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"image_id": "b", "rec')
    assert image_journal.read_all(tmp_path) == {"a": Outcome("a", RECORD, ())}
    assert path.read_bytes() == whole
