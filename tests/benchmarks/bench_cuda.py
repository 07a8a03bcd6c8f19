"""SD 1.5 and SDXL at full size with random weights, on a CUDA device, beside the plain loop.

    python -m tests.benchmarks.bench_cuda [--model sd15] [--model sdxl]

512 px, rank 128 on attention, effective batch 16. The plain loop has the poster's flags (batch 2 x
8, gradient checkpointing, bf16, 8-bit Adam) and samples one prompt at a time in fp16; ours has one
batch of 16, compiled blocks and its caches. Time, memory and where a step's time goes are printed
and go to RESULTS.md. `test_bench_cuda.py` runs the same code on the CPU with tiny networks.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.components.networks.weights import NETWORKS, TOKENIZERS, Family
from tests.benchmarks import harness, ours, workload
from tests.benchmarks.workload import SamplingJob, TrainingJob
from tests.fabricate.pipelines import build_tokenizer

FULL_SIZE = Path(__file__).parents[1] / "full_size"
FAMILIES: dict[str, Family] = {"sd15": "sd", "sdxl": "sdxl"}
BAR = 2.5
# Of one step's loss: bfloat16 rounds to 1 in 256, and both loops sum in another order.
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.03}
CONTRAST = 30.0  # of the random decoder's last layer: else its images are one grey


@dataclass(frozen=True)
class Size:
    """How much is done, and on what."""

    device: str = "cuda"
    dtype: str = "bfloat16"  # of training and of our sampling
    plain_dtype: str = "float16"  # of the plain loop's sampling
    resolution: int = 512
    rank: int = 128
    batch: int = 16
    plain_batch: int = 2
    optimizer: str = "adamw_8bit"
    is_compiled: bool = True
    slices: int = 64
    steps: int = 8
    watched_steps: int = 4
    images: int = 32
    num_inference_steps: int = 50


Run = Callable[[str, str], dict[str, Any]]


def write_full_size(folder: Path, name: str, device: str) -> None:
    """Write a pipeline of the true size with random weights, in bfloat16, as a hub folder has it.

    On a GPU, where drawing 2.6 billion numbers takes a second or two. The tokenizers know a few
    hundred tokens only, since CLIP's vocabulary is not in the repository; texts have 77 anyway.
    """
    import diffusers
    import torch
    import transformers

    source, family = FULL_SIZE / name, FAMILIES[name]
    torch.manual_seed(0)
    parts: dict[str, Any] = {}
    for part in NETWORKS[family]:
        given = json.loads((source / part / "config.json").read_text(encoding="utf-8"))
        with torch.device(device):
            if part.startswith("text_encoder"):
                kind = getattr(transformers, given["architectures"][0])
                network = kind(transformers.CLIPTextConfig(**given))
            else:
                network = getattr(diffusers, given["_class_name"]).from_config(given)
        if part == "vae":
            network.decoder.conv_out.weight.data.mul_(CONTRAST)
        parts[part] = network.to("cpu", torch.bfloat16)
    for part in TOKENIZERS[family]:
        parts[part] = build_tokenizer(folder / part, pad_token="<|endoftext|>")
    index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    scheduler = json.loads((source / "scheduler" / "scheduler_config.json").read_text())
    parts["scheduler"] = getattr(diffusers, index["scheduler"][1]).from_config(scheduler)
    if family == "sd":
        off = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = diffusers.StableDiffusionPipeline(**parts, **off)
    else:
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipeline.save_pretrained(folder)


def measure_training(
    name: str, weights: Path, folder: Path, size: Size, run: Run
) -> tuple[list[list[str]], float]:
    """Train by both loops.

    Returns:
        A row of the table for each, and the ratio of images a second.

    Raises:
        AssertionError: The loops give other losses for the same noise.
    """
    data = workload.write_data(folder / "data", size.slices, size.resolution)
    job = TrainingJob(
        model=name,
        weights=str(weights),
        data=str(data),
        out="",
        steps=size.steps,
        batch_size=size.batch,
        accumulation=1,
        resolution=size.resolution,
        rank=size.rank,
        optimizer=size.optimizer,
        is_compiled=size.is_compiled,
        dtype=size.dtype,
        device=size.device,
        is_watched=False,
    )
    plain = dataclasses.replace(
        job,
        batch_size=size.plain_batch,
        accumulation=size.batch // size.plain_batch,
        is_checkpointed=True,
        is_compiled=False,
    )
    jobs = {"ours": job, "plain": plain}

    def start(loop: str, turn: str, **changes: Any) -> dict[str, Any]:
        out = str(folder / f"{loop}-{turn}" / "out")
        asked = dataclasses.replace(jobs[loop], out=out, **changes)
        return run(f"train-{loop}", workload.to_json(asked))

    checked = {
        loop: start(loop, "check", steps=1, has_our_draws=True, is_compiled=False) for loop in jobs
    }
    first, second = (found["losses"][0] for found in checked.values())
    assert abs(first - second) <= LOSS_TOLERANCE[size.dtype] * abs(second), (first, second)
    timed = {loop: start(loop, "timed") for loop in jobs}
    watched = {
        loop: start(loop, "watched", steps=size.watched_steps, is_watched=True) for loop in jobs
    }
    seconds = {loop: harness.seconds_a_step(found["step_s"]) for loop, found in timed.items()}
    rows = [
        [
            loop,
            f"{jobs[loop].batch_size} x {jobs[loop].accumulation}",
            f"{size.batch / seconds[loop]:.2f}",
            f"{seconds[loop]:.3f}",
            f"{timed[loop]['peak_mib'] / 1024:.1f}",
            harness.shares(watched[loop]["parts"], watched[loop]["watched_s"]),
        ]
        for loop in jobs
    ]
    return rows, seconds["plain"] / seconds["ours"]


def measure_generation(
    name: str, weights: Path, folder: Path, size: Size, run: Run
) -> tuple[list[list[str]], float]:
    """Sample the same prompts and seeds by both ways; rows of the table, and the ratio."""
    job = SamplingJob(
        model=name,
        weights=str(weights),
        out=str(folder / "sampled" / "out"),
        adapter=str(folder / "adapter"),
        num_images=size.images,
        batch_size=size.batch,
        image_size=size.resolution,
        num_inference_steps=size.num_inference_steps,
        guidance_scale=5.0,
        is_compiled=size.is_compiled,
        dtype=size.dtype,
        device=size.device,
    )
    ours.write_adapter(job, size.rank)
    made = run("sample-ours", workload.to_json(job))["images"]
    assert len(made) == size.images, "random weights drew an image of one grey"
    plain = dataclasses.replace(
        job,
        out=str(folder / "sampled-plain"),
        dtype=size.plain_dtype,
        prompts=[[prompt, seed] for prompt, seed, _ in made],
    )
    run("sample-plain", workload.to_json(plain))
    each = {
        "ours": harness.seconds_an_image([Path(path) for _, _, path in made], size.batch),
        "plain": harness.seconds_an_image(sorted(Path(plain.out).glob("*.png")), 1),
    }
    how = {"ours": f"batches of {size.batch}, {size.dtype}", "plain": f"one, {size.plain_dtype}"}
    rows = [[loop, how[loop], f"{1 / s:.2f}", f"{s:.3f}"] for loop, s in each.items()]
    return rows, each["plain"] / each["ours"]


def measure(
    name: str, weights: Path, folder: Path, size: Size, run: Run = harness.run_worker
) -> list[str]:
    """Compare training and generation on one model; return the lines of the report."""
    training, faster = measure_training(name, weights, folder, size, run)
    sampling, sooner = measure_generation(name, weights, folder, size, run)
    return [
        *harness.table(
            ["training", "batch", "images/s", "s a step", "peak GiB", "where the time goes"],
            training,
        ),
        "",
        *harness.table(["generation", "how", "images/s", "s an image"], sampling),
        "",
        f"- training, images/s, ours over plain: {harness.against(faster, BAR)}",
        f"- generation, images/s, ours over plain: {harness.against(sooner, BAR)}",
        f"- {size.resolution} px, rank {size.rank}, effective batch {size.batch}, {size.dtype}, "
        f"{size.optimizer}, {size.steps} steps; {size.images} images of "
        f"{size.num_inference_steps} steps; random weights; the loops agree on the loss of the "
        "same noise; shares are of a training that waits for the device at every part",
    ]


def main(names: list[str]) -> None:
    """Run what was asked for, or say that there is no device."""
    import torch

    if not torch.cuda.is_available():
        sys.stderr.write("bench_cuda: no CUDA device is to be had; nothing was run\n")
        return
    for name in names:
        with tempfile.TemporaryDirectory() as where:
            weights = Path(where) / name
            write_full_size(weights, name, "cuda")
            lines = measure(name, weights, Path(where), Size())
        command = f"python -m tests.benchmarks.bench_cuda --model {name}"
        harness.report(f"cuda-{name}", f"{name} at full size on a GPU", command, lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(FAMILIES), action="append")
    main(parser.parse_args().model or list(FAMILIES))
