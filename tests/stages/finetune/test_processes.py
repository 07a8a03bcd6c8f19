"""Two real processes (accelerate launch, gloo, CPU) take the same steps as one."""

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
from safetensors.torch import load_file

from pipeline import registry
from pipeline.contracts import CaptionRecord, SliceRecord, write_records
from stages.components.diffusion import ADAPTER_FILE
from stages.components.imaging import save_png, to_rgb

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
from stages.finetune import STAGE, FinetuneInputs

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
def test_two_processes_take_the_steps_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    settings = registry.find(registry.BASE_MODELS, "sdxl").tiny(tmp_path / "weights")
    config: dict[str, Any] = {
        "base_model": {"name": "sdxl", "settings": settings.model_dump()},
        "resolution": 32,
        "lora_rank": 4,
        "train_text_encoder": True,
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
    adapters = [load_file(output / ADAPTER_FILE) for output in outputs]
    assert set(adapters[0]) == set(adapters[1])
    for name, tensor in adapters[0].items():
        # Sums in another order: of four steps of at most 1e-3 each, a hundredth of one.
        torch.testing.assert_close(tensor, adapters[1][name], atol=1e-5, rtol=0, msg=name)
    moved = sum(float(t.abs().max()) > 1e-4 for n, t in adapters[1].items() if "lora_B" in n)
    assert moved > 30
