"""Requests to a server overlapped, beside one at a time, against a stand-in on this machine.

It takes a drawn time for each answer, as servers do, so that a slow one shows. Asserted: every
caption is the same.
"""

import random
import time
from pathlib import Path

import pytest

from pipeline.contracts import Artifact, SliceRecord
from stages.components.captioning.asking import answer_all
from stages.components.captioning.captioner import Failure, answer_of
from stages.components.captioning.journal import Journal
from stages.components.captioning.vlms import openai_compatible
from tests.benchmarks import harness, workload
from tests.components.captioning.vlms.loopback import Asked, LoopbackServer

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

SLICES = 4 if harness.IS_SMOKE else 64
SECONDS = (0.01, 0.02) if harness.IS_SMOKE else (0.1, 0.9)  # of an answer, drawn evenly
CONCURRENCY = 8
BAR = 5.0


def ask(artifact: Artifact[SliceRecord], journal: Path, concurrency: int) -> dict[str, str]:
    """Ask about every slice, a server that takes the same times at each call."""
    server = LoopbackServer()
    draw = random.Random(0)

    def think(asked: Asked) -> None:
        time.sleep(draw.uniform(*SECONDS))

    server.always = think
    slices = list(artifact.records())[:SLICES]
    settings = openai_compatible.Settings(
        model="stand-in", base_url=f"{server.url}/v1", concurrency=concurrency
    )
    replies = answer_all(
        slices,
        [artifact.path(item.image_path) for item in slices],
        lambda: openai_compatible.load(settings),
        Journal(journal),
        lambda line: None,
    )
    server.close()
    answers = {name: answer_of(reply) for name, reply in replies.items()}
    assert len(answers) == SLICES
    return {name: said for name, said in answers.items() if not isinstance(said, Failure)}


def test_servers(tmp_path: Path) -> None:
    artifact = workload.read_slices(workload.write_data(tmp_path / "data", SLICES, 128))
    seconds, said = {}, []
    for concurrency in (1, CONCURRENCY):
        began = time.perf_counter()
        said.append(ask(artifact, tmp_path / f"{concurrency}.jsonl", concurrency))
        seconds[concurrency] = time.perf_counter() - began
    assert said[0] == said[1]
    assert len(said[0]) == SLICES
    alone, overlapped = seconds[1], seconds[CONCURRENCY]
    rows = [
        [
            f"{SLICES / alone:.2f}",
            f"{SLICES / overlapped:.2f}",
            harness.against(alone / overlapped, BAR),
        ]
    ]
    header = ["one at a time, slices/s", f"{CONCURRENCY} at once, slices/s", "ratio"]
    lines = [
        *harness.table(header, rows),
        "",
        f"- {SLICES} slices, answers after {SECONDS[0]:g} to {SECONDS[1]:g} s; all captions equal",
    ]
    harness.report(
        "servers",
        "Captions from a server",
        "pytest -s tests/benchmarks/bench_servers.py",
        lines,
    )
