"""Two real processes (accelerate launch, gloo, CPU): the loop by itself, and the command line."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline import registry
from pipeline.contracts import CaptionRecord, SliceRecord, write_records
from stages.components.diffusion.adapters import ADAPTER_FILE
from stages.components.diffusion.placeholder import EMBEDS_FILE
from stages.components.imaging.pixels import save_png, to_rgb
from tests.fabricate.pipelines import tiny_settings

ROOT = Path(__file__).parents[3]
# accelerate's own --cpu starts one process; --multi_gpu starts several, and the stage's device
# makes them CPU processes that exchange gradients over gloo.
LAUNCHER = [
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0"),
]
SCRIPT = """
import json, sys
from pathlib import Path

import torch

from pipeline.contracts import (
    Artifact, ArtifactWriter, CaptionRecord, CheckpointRecord, Context, SliceRecord
)
from pipeline.settings import FinetuneConfig
from stages.finetune.stage import STAGE, FinetuneInputs

root, output, config = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
inputs = FinetuneInputs(
    preprocess=Artifact(root, "p", SliceRecord, {}),
    caption=Artifact(root / "caption", "c", CaptionRecord, {}),
)
writer = ArtifactWriter(output, CheckpointRecord)
context = Context("e", 0, "cpu", "float32", 1, root / "cache", lambda line: None)
STAGE.run(FinetuneConfig(**config), inputs, writer, context)
if writer.notes:  # the main process
    (output / "notes.json").write_text(json.dumps(writer.notes))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def write_inputs(root: Path) -> None:
    """Write five captioned training slices and two for validation."""
    slices, captions = [], []
    for number in range(7):
        name, split = f"s{number}", "train" if number < 5 else "val"
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
        save_png(root / f"{name}.png", to_rgb(pixels))
        slices.append(
            SliceRecord(
                slice_id=name,
                subject_id=name,
                group_id=name,
                source="fabricated",
                split=split,
                label="glioma",
                image_path=f"{name}.png",
                original=name,
                original_width_px=32,
                original_height_px=32,
            )
        )
        captions.append(
            CaptionRecord(
                file_name=f"{name}.png",
                text=f"tumor: yes; size: {['small', 'large'][number % 2]}",
                slice_id=name,
                label="glioma",
                split=split,
                status="ok",
                report=None,
                raw="",
                num_tokens=0,
            )
        )
    (root / "caption").mkdir()
    write_records(root / "records.jsonl", slices)
    write_records(root / "caption" / "records.jsonl", captions)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "textual_inversion"])
def test_two_processes_take_the_steps_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    write_inputs(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    settings = tiny_settings(registry.find(registry.BASE_MODELS, "sdxl"), tmp_path / "weights")
    config: dict[str, Any] = {
        "base_model": {"name": "sdxl", "settings": settings.model_dump()},
        "resolution": 32,
        "lora_rank": 4,
        "method": method,
        "train_text_encoder": method == "lora",
        "batch_size": 2,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "max_steps": 4,
        "checkpoint_every": 2,
    }
    # Effective batch 8 either way: 2 x 4 x 1 and 2 x 2 x 2.
    outputs = [tmp_path / "one", tmp_path / "two"]
    commands = []
    for output, accumulation in zip(outputs, (4, 2), strict=True):
        output.mkdir()
        given = json.dumps(config | {"gradient_accumulation_steps": accumulation})
        commands.append([str(tmp_path / "train.py"), str(tmp_path), str(output), given])
    monkeypatch.setattr(sys, "argv", commands[0])
    runpy.run_path(commands[0][0], run_name="__main__")
    done = subprocess.run(
        [sys.executable, *LAUNCHER, *commands[1]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    one, two = (json.loads((output / "notes.json").read_text()) for output in outputs)
    assert one["effective_batch"] == two["effective_batch"] == 8
    assert one["images_seen"] == two["images_seen"] == 32
    rows = [
        [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]
        for output in outputs
    ]
    assert len(rows[0]) == len(rows[1]) == 5
    for first, second in zip(*rows, strict=True):
        assert first["lr"] == second["lr"]
        for name in ("loss", "grad_norm", "held_out_loss"):
            if first[name] is None:
                assert second[name] is None
            else:
                assert first[name] == pytest.approx(second[name], rel=1e-4), (first["step"], name)
    name = ADAPTER_FILE if method == "lora" else EMBEDS_FILE
    adapters = [load_file(output / name) for output in outputs]
    assert set(adapters[0]) == set(adapters[1])
    for name, tensor in adapters[0].items():
        # Sums in another order: of four steps of at most 1e-3 each, a hundredth of one.
        torch.testing.assert_close(tensor, adapters[1][name], atol=1e-5, rtol=0, msg=name)
    if method == "lora":
        moved = sum(float(t.abs().max()) > 1e-4 for n, t in adapters[1].items() if "lora_B" in n)
        assert moved > 30
    else:
        assert set(adapters[1]) == {"clip_l", "clip_g"}
        assert rows[1][-1]["held_out_loss"] != rows[1][0]["held_out_loss"]


EXPERIMENT: dict[str, Any] = {
    "experiment": "two",
    "seed": 3,
    "preprocess": {
        "source": {"name": "phantom", "settings": {"num_subjects": 16, "spacing_mm": 4.0}},
        "image_size": 32,
        "slices_per_scan": 1,
        "test_fraction": 0.4,
        "val_fraction": 0.3,
    },
    "caption": {"vlm": "truth"},
    "finetune": {
        "resolution": 32,
        "lora_rank": 4,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "optimizer": "adamw",
        "warmup_steps": 1,
        "max_steps": 4,
        "checkpoint_every": 2,
        "validate_every": 2,
        "sample_every": 2,
        "sample_steps": 1,
    },
    "generate": {"image_size": 32},
    "classify": {"image_size": 32, "model": {"name": "vit", "settings": {"patch_size": 16}}},
}


@pytest.mark.slow
def test_the_command_line_is_planned_and_published_by_one_of_two_processes(tmp_path: Path) -> None:
    settings = tiny_settings(registry.find(registry.BASE_MODELS, "sd15"), tmp_path / "weights")
    base_model = {"name": "sd15", "settings": {"model": settings.model}}
    config = tmp_path / "two.yaml"
    config.write_text(yaml.safe_dump(EXPERIMENT | {"base_model": base_model}))
    command = [
        *(sys.executable, *LAUNCHER, "-m", "pipeline.cli", "run", "--until", "finetune"),
        *("--config", str(config), "--data-dir", str(tmp_path / "data")),
    ]

    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The second process says nothing.
    assert done.stderr.count("[3/3] finetune [main] done in") == 1
    made = sorted((tmp_path / "data/runs/two/finetune").iterdir())
    assert len(made) == 1  # no lock, no partial folder
    written = json.loads((made[0] / "manifest.json").read_text())
    assert written["notes"]["effective_batch"] == 4
    assert written["notes"]["images_seen"] == 16
    assert [path.name for path in sorted((made[0] / "samples").iterdir())] == [
        "step-000002.png",
        "step-000004.png",
    ]
