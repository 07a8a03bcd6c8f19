"""Both loops compute the same, on random weights of 32 px; how fast, `make bench` says."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import ours, worker, workload
from tests.benchmarks.bench_cuda import Size, measure
from tests.benchmarks.bench_generation import largest_difference
from tests.benchmarks.bench_training import same_losses
from tests.benchmarks.workload import SamplingJob, TrainingJob
from tests.fabricate.pipelines import write_pipeline

TINY = Size(
    device="cpu",
    dtype="float32",
    plain_dtype="float32",
    resolution=32,
    rank=4,
    batch=4,
    is_compiled=False,
    slices=6,
    steps=4,
    watched_steps=2,
    images=6,
    num_inference_steps=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    write_pipeline(folder / "sdxl", "sdxl")
    write_pipeline(folder / "sd15", "sd")
    workload.write_data(folder / "data", 6, 32)
    return folder


def run(kind: str, job: TrainingJob | SamplingJob, out: Path, **changes: Any) -> dict[str, Any]:
    asked = dataclasses.replace(job, out=str(out / "out"), **changes)
    return worker.perform(kind, workload.to_json(asked))


@pytest.mark.parametrize(("name", "trains_text"), [("sdxl", True), ("sdxl", False), ("sd15", True)])
def test_losses_of_the_same_noise_are_the_same(
    folder: Path, tmp_path: Path, name: str, trains_text: bool
) -> None:
    job = TrainingJob(
        model=name,
        weights=str(folder / name),
        data=str(folder / "data"),
        out="",
        steps=3,
        batch_size=2,
        accumulation=2,
        resolution=32,
        rank=4,
        trains_text=trains_text,
        learning_rate=1e-2,
    )
    first = run("train-ours", job, tmp_path / "ours")
    second = run("train-plain", job, tmp_path / "plain", has_our_draws=True)
    same_losses(first, second)
    assert len(set(second["losses"])) == len(second["step_s"]) == 3
    assert {"UNet", "backward", "optimiser"} <= first["parts"].keys()
    assert {"UNet", "VAE", "text encoders", "backward", "optimiser"} == second["parts"].keys()
    own = run("train-plain", job, tmp_path / "own")
    assert own["losses"][0] != pytest.approx(second["losses"][0], rel=1e-4)


def test_images_of_the_same_prompts_and_seeds_are_the_same(folder: Path, tmp_path: Path) -> None:
    job = SamplingJob(
        model="sdxl",
        weights=str(folder / "sdxl"),
        out="",
        adapter=str(tmp_path / "adapter"),
        num_images=3,
        batch_size=2,
        image_size=32,
        num_inference_steps=2,
        guidance_scale=2.0,
    )
    ours.write_adapter(job, rank=4)
    made = run("sample-ours", job, tmp_path / "ours")["images"]
    prompts = [[prompt, seed] for prompt, seed, _ in made]
    run("sample-plain", job, tmp_path / "plain", prompts=prompts)
    others = sorted((tmp_path / "plain" / "out").glob("*.png"))
    pairs = list(zip([Path(path) for _, _, path in made], others, strict=True))
    assert len(pairs) == 3
    assert max(largest_difference(*pair) for pair in pairs) <= 2
    assert largest_difference(others[0], others[1]) > 2


@pytest.mark.parametrize("name", [pytest.param("sd15", marks=pytest.mark.slow), "sdxl"])
def test_the_script_for_gpus_runs_on_the_cpu_with_tiny_networks(
    folder: Path, tmp_path: Path, name: str
) -> None:
    size = dataclasses.replace(TINY, optimizer="adamw" if name == "sd15" else "adamw_8bit")
    lines = measure(name, folder / name, tmp_path, size, worker.perform)
    assert lines[0].startswith("| training | batch | images/s")
    assert lines[2].startswith("| ours | 4 x 1 | ")
    assert lines[3].startswith("| plain | 2 x 2 | ")
    assert "VAE" in lines[3]
    assert sum(line.startswith(("| ours | batches of 4", "| plain | one")) for line in lines) == 2
    assert any("training, images/s, ours over plain" in line for line in lines)
