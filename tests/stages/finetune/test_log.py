from pathlib import Path

import pytest

from pipeline.errors import ArtifactError
from stages.finetune.log import (
    LogRow,
    Pace,
    append_log,
    as_scalars,
    best_step,
    bests,
    checkpoint_records,
    describe_row,
    is_past_best,
    measured,
    read_log,
    write_log,
)

ROWS = [
    LogRow(0, None, 0.0, None, 1.0, 0.0),
    LogRow(1, 4.0, 1e-4, 2.0, None, 1.0),
    LogRow(2, 2.0, 1e-4, 2.0, 0.75, 2.0),
    LogRow(3, 1.0, 1e-4, 2.0, 0.5, 3.0),
]


def test_log_survives_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_log(path, ROWS[:2])
    append_log(path, ROWS[2])
    with path.open("a") as out:
        out.write('{"step": 3, "loss"')
    assert read_log(path, last_step=2) == ROWS[:3]
    assert read_log(path, last_step=1) == ROWS[:2]


def test_a_lost_step_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    write_log(path, ROWS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0\0\0\n" + lines[2])
    with pytest.raises(ArtifactError, match=r"log\.jsonl has lost step 1 of 2.*delete"):
        read_log(path, last_step=2)
    assert f"{path}: 1 of 3 entries are lost" in caplog.text


def test_records_name_the_kept_states_and_the_result_last() -> None:
    records = checkpoint_records(ROWS, kept=[2], result=3)
    assert [(r.step, r.path, r.train_loss, r.held_out_loss) for r in records] == [
        (2, "checkpoints/step-000002", 3.0, 0.75),
        (3, ".", 1.0, 0.5),
    ]


def test_the_result_may_be_an_earlier_state() -> None:
    records = checkpoint_records(ROWS, kept=[3], result=2)
    assert [(r.step, r.path, r.train_loss, r.held_out_loss) for r in records] == [
        (3, "checkpoints/step-000003", 7 / 3, 0.5),
        (2, ".", 3.0, 0.75),
    ]


def test_progress_line_says_loss_rate_speed_memory_and_how_long_it_will_take() -> None:
    line = describe_row(ROWS[2], max_steps=10, pace=Pace(12.34, 1.26))
    assert line == (
        "finetune: step 2 of 10, loss 2.0000, held-out 0.7500, rate 1.00e-04, 12.3 images/s, "
        "1.3 GiB, 8 s left"
    )


def judged(*losses: float | None) -> list[LogRow]:
    return [LogRow(step, 1.0, 1e-4, 1.0, loss, 1.0) for step, loss in enumerate(losses)]


def test_best_step_is_the_first_least_one_after_the_start() -> None:
    assert best_step(judged(0.1, None, 0.5, 0.4, 0.4)) == 3
    assert best_step(judged(0.1, None)) is None


def test_what_was_the_best_at_a_state_is_known_too() -> None:
    log = judged(9.0, 0.4, None, 0.5, 0.3)
    assert bests(log, [2, 3], "held_out_loss") == {1, 4}
    assert bests(log, [7], "held_out_loss") == {4}  # a damaged state beyond the log
    assert bests(judged(9.0), [], "held_out_loss") == {None}


def test_patience_counts_measured_and_not_steps() -> None:
    log = judged(9.0, 0.4, None, None, 0.5, None, 0.6)
    assert is_past_best(log, 2)
    assert not is_past_best(log, 3)
    assert not is_past_best(judged(0.1), 1)
    assert not is_past_best(log, None)


def test_kid_judges_where_it_was_measured() -> None:
    rows = [
        LogRow(step, 1.0, 1e-4, 1.0, loss, 1.0, kid)
        for step, (loss, kid) in enumerate([(1, None), (0.5, 0.2), (0.1, None), (0.9, 0.1)])
    ]
    assert best_step(rows) == 2
    assert best_step(rows, "kid") == 3
    assert measured(rows, "kid") == {1: 0.2, 3: 0.1}
    assert is_past_best(rows, 1)
    assert not is_past_best(rows, 1, "kid")
    assert ", held-out 0.9000, KID 0.1000, rate" in describe_row(rows[3], 9, Pace(1.0, 1.0))
    assert as_scalars(rows[3], Pace(1.0, 2.0))["validation/kid"] == 0.1


def test_scalars_leave_out_what_was_not_computed() -> None:
    assert "validation/loss" not in as_scalars(ROWS[1], Pace(1.0, 2.0))
    assert as_scalars(ROWS[2], Pace(1.0, 2.0)) == {
        "train/loss": 2.0,
        "train/learning_rate": 1e-4,
        "train/gradient_norm": 2.0,
        "validation/loss": 0.75,
        "speed/images_per_second": 1.0,
        "speed/memory_gib": 2.0,
    }
