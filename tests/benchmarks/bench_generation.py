"""Sampling `tiny_sdxl` with an adapter, beside one prompt at a time by plain diffusers.

Same prompts, seeds, scheduler and steps. Asserted: the images are equal within 2/255.
"""

import dataclasses
import statistics
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks import harness, ours, workload
from tests.benchmarks.workload import SamplingJob

ROUNDS = 1 if harness.IS_SMOKE else 2
IMAGES = 4 if harness.IS_SMOKE else 48
BATCH = 2 if harness.IS_SMOKE else 16
STEPS = 2 if harness.IS_SMOKE else 20
BAR = 1.5
MOST = 2  # grey levels


def largest_difference(first: Path, second: Path) -> int:
    """Return the largest difference of two files' pixels, in grey levels."""
    pixels = []
    for path in (first, second):
        with Image.open(path) as image:
            pixels.append(np.asarray(image.convert("RGB"), dtype=np.int16))
    return int(np.abs(pixels[0] - pixels[1]).max())


def test_generation(tmp_path: Path) -> None:
    job = SamplingJob(
        model="tiny_sdxl",
        weights="data/embedded/tiny_sdxl",
        out="",
        adapter=str(tmp_path / "adapter"),
        num_images=IMAGES,
        batch_size=BATCH,
        image_size=128,
        num_inference_steps=STEPS,
        guidance_scale=2.0,
    )
    ours.write_adapter(job, rank=32)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    worst = 0
    for turn in range(ROUNDS):
        asked = dataclasses.replace(job, out=str(tmp_path / f"ours-{turn}" / "out"))
        made = harness.run_worker("sample-ours", workload.to_json(asked))["images"]
        files = [Path(path) for _, _, path in made]
        assert len(files) == IMAGES
        seconds["ours"].append(harness.seconds_an_image(files, BATCH))
        plain = dataclasses.replace(
            job,
            out=str(tmp_path / f"plain-{turn}"),
            prompts=[[prompt, seed] for prompt, seed, _ in made],
        )
        harness.run_worker("sample-plain", workload.to_json(plain))
        others = sorted(Path(plain.out).glob("*.png"))
        seconds["plain"].append(harness.seconds_an_image(others, 1))
        pairs = zip(files, others, strict=True)
        worst = max(worst, *(largest_difference(*pair) for pair in pairs))
    assert worst <= MOST
    each = {loop: statistics.median(values) for loop, values in seconds.items()}
    how = {"ours": f"batches of {BATCH}, adapter merged", "plain": "one prompt at a time"}
    lines = [
        *harness.table(
            ["loop", "how", "s an image", "images/s"],
            [[loop, how[loop], f"{s:.3f}", f"{1 / s:.2f}"] for loop, s in each.items()],
        ),
        "",
        f"- images/s, ours over plain: {harness.against(each['plain'] / each['ours'], BAR)}",
        f"- {ROUNDS} processes of each in turns, {IMAGES} images of 128 px, DPM-Solver of {STEPS} "
        f"steps, guidance 2; pixels differ by at most {worst}/255",
    ]
    harness.report(
        "generation",
        "Generation with tiny_sdxl",
        "pytest -s tests/benchmarks/bench_generation.py",
        lines,
    )
