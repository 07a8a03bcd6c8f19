from pathlib import Path

from stages.components.training_log import (
    LogRow,
    append_log,
    checkpoint_records,
    describe_row,
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


def test_records_name_the_kept_states_and_the_result_last() -> None:
    records = checkpoint_records(ROWS, kept=[2])
    assert [(r.step, r.path, r.train_loss, r.held_out_loss) for r in records] == [
        (2, "checkpoints/step-000002", 3.0, 0.75),
        (3, ".", 1.0, 0.5),
    ]


def test_progress_line_says_how_long_it_will_take() -> None:
    line = describe_row(ROWS[2], max_steps=10)
    assert line == "finetune: step 2 of 10, loss 2.0000, held-out 0.7500, rate 1.00e-04, 8 s left"
