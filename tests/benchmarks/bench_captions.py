"""Captioning in batches beside one slice at a time, by the three local captioners.

The embedded checkpoints where they stand in `data/embedded`, else random weights of the same
classes, which the output says: how batching pays depends on the size of a model, not on what it has
learnt. Asserted: every caption is the same.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import registry
from stages.components.captioning.captioner import Captioner, Failure, Reply
from stages.components.networks import weights
from tests.benchmarks import harness, plain_loop, workload
from tests.fabricate import vlms

ROUNDS = 1 if harness.IS_SMOKE else 2
SLICES = 4 if harness.IS_SMOKE else 64
BATCH = 4 if harness.IS_SMOKE else 16
BAR = 3.0
EMBEDDED = "embedded"
FIRST = 2  # slices before the clock runs


def find_checkpoint(name: str, tmp_path: Path) -> tuple[Any, str]:
    """Return a captioner's settings, and what its weights are."""
    plugin = registry.find(registry.VLMS, name)
    embedded = plugin.Settings(device_map="cpu", batch_size=BATCH, retries=0)
    if weights.find_folder(embedded.model, None) is not None and not plugin.check(embedded):
        return embedded, EMBEDDED
    random = vlms.tiny(plugin, tmp_path).model_copy(update={"batch_size": BATCH, "retries": 0})
    return random, "random weights"


def load(name: str, tmp_path: Path) -> tuple[Captioner, str]:
    """Load a captioner; random weights, which spell byte by byte, may describe in 8 letters."""
    settings, kind = find_checkpoint(name, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        if kind != EMBEDDED:
            vlms.shorten_descriptions(patch)
        captioner: Captioner = registry.find(registry.VLMS, name).load(settings)
    return captioner, kind


def test_captions(tmp_path: Path) -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    data = workload.write_data(tmp_path / "data", SLICES, 128)
    artifact = workload.read_slices(data)
    slices = [item for item in artifact.records() if item.split == "train"]
    paths = [artifact.path(item.image_path) for item in slices]
    rows, notes = [], []
    for name in ("ovis2", "gemma3", "llava"):
        captioner, kind = load(name, tmp_path)

        def batched(count: int, captioner: Captioner = captioner) -> list[Reply]:
            return list(captioner.describe(slices[:count], paths[:count]))

        def one_by_one(count: int, captioner: Captioner = captioner) -> list[Reply]:
            return list(plain_loop.caption(captioner, slices[:count], paths[:count]))

        seconds: dict[str, list[float]] = {"batched": [], "one by one": []}
        for turn in range(ROUNDS):
            said = []
            for way, ask in (("batched", batched), ("one by one", one_by_one)):
                ask(FIRST if turn == 0 else 0)
                began = time.perf_counter()
                said.append(ask(SLICES))
                seconds[way].append((time.perf_counter() - began) / SLICES)
            assert said[0] == said[1]
            assert not any(isinstance(reply, Failure) for reply in said[0])
        each = {way: statistics.median(values) for way, values in seconds.items()}
        parameters = sum(p.numel() for p in captioner.model.parameters())  # type: ignore[attr-defined]
        ratio = each["one by one"] / each["batched"]
        rows.append(
            [
                name,
                f"{kind}, {parameters / 1e6:.1f} M",
                f"{1 / each['one by one']:.2f}",
                f"{1 / each['batched']:.2f}",
                harness.against(ratio, BAR),
            ]
        )
        notes.append(len({str(reply) for reply in said[0]}))
    lines = [
        *harness.table(
            ["captioner", "weights", "one at a time, slices/s", "batched, slices/s", "ratio"], rows
        ),
        "",
        f"- {ROUNDS} turns, {SLICES} slices of 128 px in batches of {BATCH}, JSON constrained by "
        f"the schema, greedy, float32; all captions equal (distinct ones: {notes})",
    ]
    harness.report(
        "captions", "Captioning in batches", "pytest -s tests/benchmarks/bench_captions.py", lines
    )
