"""One job in a process of its own: `python -m tests.benchmarks.worker KIND JOB`; prints JSON."""

import json
import logging
import os
import sys
from contextlib import nullcontext
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # it names kernels that it lacks


def train(kind: str, job: Any) -> dict[str, Any]:
    """Train by one loop; return times, losses, the peak of memory and where the time went."""
    import torch

    from tests.benchmarks import harness, ours, plain_loop

    given = ours.draws_of(job) if job.has_our_draws and kind == "plain" else None
    on_gpu = job.device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    events: list[harness.Event] = []
    with harness.watched(job.device, events) if job.is_watched else nullcontext():
        done = ours.train(job) if kind == "ours" else plain_loop.train(job, given)
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else harness.peak_mib()
    parts, watched_s = harness.parts_of(events)
    return {
        "step_s": done.step_s,
        "losses": done.losses,
        "peak_mib": peak,
        "parts": parts,
        "watched_s": watched_s,
    }


def perform(kind: str, text: str) -> dict[str, Any]:
    """Do a job: train-ours, train-plain, caches, sample-ours or sample-plain; `text` is JSON."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from tests.benchmarks import ours, plain_loop
    from tests.benchmarks.workload import SamplingJob, TrainingJob

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    values = json.loads(text)
    if kind.startswith("train-"):
        return train(kind.removeprefix("train-"), TrainingJob(**values))
    if kind == "caches":
        seconds, count = ours.time_caches(TrainingJob(**values))
        return {"seconds": seconds, "slices": count}
    if kind == "sample-ours":
        made = ours.sample(SamplingJob(**values))
        return {"images": [[prompt, seed, str(path)] for prompt, seed, path in made]}
    assert kind == "sample-plain", kind
    plain_loop.generate(SamplingJob(**values))
    return {}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(perform(*sys.argv[1:])) + "\n")
