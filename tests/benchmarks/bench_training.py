"""Training `tiny_sdxl` beside a loop that does what the published scripts do (issue of speed).

Same model, data, effective batch and number of steps, in turns on the same machine. What is claimed
is a ratio of throughputs; what is asserted is that both loops compute the same losses from the same
noise. `make bench` runs this, `make test` does not: it wants quiet cores.
"""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import harness, workload
from tests.benchmarks.workload import TrainingJob

ROUNDS = 1 if harness.IS_SMOKE else 2
STEPS = 3 if harness.IS_SMOKE else 14
CHECKED_STEPS = 3
BATCH = 2 if harness.IS_SMOKE else 16
SLICES = 4 if harness.IS_SMOKE else 64
MINI = {"steps": 400, "slices": 468}  # of configs/mini.yaml: what the caches are spread over
BARS = {False: 2.0, True: 1.4}
WORDS = {False: "text encoders frozen", True: "text encoders trained"}
LOOPS = ("ours", "plain")


def same_losses(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Ask for equal losses: the first step's to rounding, later ones after equal updates."""
    assert first["losses"][0] == pytest.approx(second["losses"][0], rel=1e-4)
    assert first["losses"] == pytest.approx(second["losses"], rel=2e-3)


@pytest.mark.parametrize("trains_text", [False, True], ids=["frozen", "trained"])
def test_training(trains_text: bool, tmp_path: Path) -> None:
    data = workload.write_data(tmp_path / "data", SLICES, 128)
    job = TrainingJob(
        model="tiny_sdxl",
        weights="data/embedded/tiny_sdxl",
        data=str(data),
        out="",
        steps=STEPS,
        batch_size=BATCH,
        accumulation=1,
        resolution=128,
        rank=32,
        trains_text=trains_text,
    )

    def run(kind: str, name: str, **changes: Any) -> dict[str, Any]:
        out = tmp_path / name / "out"  # caches lie beside it: a new name starts cold
        asked = dataclasses.replace(job, out=str(out), **changes)
        return harness.run_worker(kind, workload.to_json(asked))

    checked = [
        run(f"train-{loop}", f"check-{loop}", steps=CHECKED_STEPS, has_our_draws=True)
        for loop in LOOPS
    ]
    same_losses(*checked)
    caches = run("caches", "caches")
    found: dict[str, list[dict[str, Any]]] = {loop: [] for loop in LOOPS}
    for turn in range(ROUNDS):
        for loop in LOOPS:
            found[loop].append(run(f"train-{loop}", f"{loop}-{turn}"))
    seconds = {
        loop: statistics.median(harness.seconds_a_step(run["step_s"]) for run in runs)
        for loop, runs in found.items()
    }
    peak = {loop: max(run["peak_mib"] for run in runs) for loop, runs in found.items()}
    cache_s = caches["seconds"] / caches["slices"] * MINI["slices"]
    whole = seconds["ours"] + cache_s / MINI["steps"]
    rows = [
        [
            loop,
            f"{BATCH / seconds[loop]:.1f}",
            f"{seconds[loop]:.3f}",
            f"{peak[loop]:.0f}",
            harness.shares(found[loop][0]["parts"], found[loop][0]["watched_s"]),
        ]
        for loop in LOOPS
    ]
    ratio = seconds["plain"] / seconds["ours"]
    lines = [
        *harness.table(
            ["loop", "images/s", "s a step", "peak RSS, MiB", "where a step's time goes"], rows
        ),
        "",
        f"- images/s, ours over plain: {harness.against(ratio, BARS[trains_text])}",
        f"- with the caches filled for {MINI['slices']} slices ({cache_s:.1f} s) and spread over "
        f"{MINI['steps']} steps: "
        f"{harness.against(seconds['plain'] / whole, BARS[trains_text])}",
        f"- peak memory, ours over plain: {peak['ours'] / peak['plain']:.2f} (bar 1.0: "
        f"{'met' if peak['ours'] <= peak['plain'] else 'missed'})",
        f"- {ROUNDS} processes of each loop in turns, {STEPS} steps of {BATCH} slices, rank 32 on "
        "attention; losses of the same noise agree over "
        f"{CHECKED_STEPS} steps ({checked[0]['losses'][-1]:.5f}, {checked[1]['losses'][-1]:.5f})",
    ]
    name = f"training-{'trained' if trains_text else 'frozen'}"
    title = f"Training tiny_sdxl, {WORDS[trains_text]}"
    harness.report(name, title, "pytest -s tests/benchmarks/bench_training.py", lines)
