"""Generation on random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    CheckpointRecord,
    Context,
    PluginConfig,
    SyntheticRecord,
    TumorReport,
    write_records,
)
from pipeline.errors import DataError, TrainingError
from pipeline.settings import GenerateConfig
from stages import generate
from stages.components import synthesis
from stages.components.diffusers_plugin import ATTENTION
from stages.components.lora import LoraPlan, add_adapters, save_adapter
from stages.generate import STAGE, GenerateInputs

ALONE = GenerateInputs(finetune=None, caption=None)


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def adapter(weights_dir: Path) -> Artifact[CheckpointRecord]:
    """An adapter that changes images."""
    plugin = registry.find(registry.BASE_MODELS, "sd15")
    base = plugin.load(plugin.tiny(weights_dir), dtype=torch.float32, device="cpu")
    models = add_adapters(base, LoraPlan(4, 4.0, ATTENTION, 4), seed=0)
    generator = torch.Generator().manual_seed(1)
    for model in models:
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    save_adapter(models, weights_dir / "adapter")
    return Artifact(weights_dir / "adapter", "digest-of-adapter", CheckpointRecord, {})


def run(
    root: Path,
    weights_dir: Path,
    inputs: GenerateInputs = ALONE,
    model: str = "sd15",
    dtype: str = "float32",
    **changes: Any,
) -> ArtifactWriter[SyntheticRecord]:
    settings = registry.find(registry.BASE_MODELS, model).tiny(weights_dir)
    given = {
        "base_model": PluginConfig(name=model, settings=settings.model_dump()),
        "prompt_style": "structured",
        "include_label": False,
        "num_images": 6,
        "image_size": 32,
        "num_inference_steps": 2,
        "batch_size": 4,
    }
    root.mkdir(exist_ok=True)
    output = ArtifactWriter(root, SyntheticRecord)
    context = Context("e", 0, "cpu", dtype, 1, weights_dir, lambda line: None)
    STAGE.run(GenerateConfig(**(given | changes)), inputs, output, context)
    return output


def records(output: ArtifactWriter[SyntheticRecord]) -> list[SyntheticRecord]:
    lines = (output.root / "records.jsonl").read_text().splitlines()
    return [SyntheticRecord.model_validate_json(line) for line in lines]


def pixels(output: ArtifactWriter[SyntheticRecord], record: SyntheticRecord) -> Any:
    with Image.open(output.path(record.image_path)) as image:
        return np.asarray(image).astype(int)


def test_images_carry_prompt_seed_adapter_and_the_mark(
    tmp_path: Path, weights_dir: Path, adapter: Artifact[CheckpointRecord]
) -> None:
    output = run(tmp_path / "a", weights_dir, GenerateInputs(adapter, None))
    rows = records(output)
    assert len(rows) == output.counts["written"] == 6
    assert {row.label for row in rows} == {"notumor", "glioma", "meningioma", "pituitary"}
    for row in rows:
        with Image.open(output.path(row.image_path)) as image:
            assert (image.mode, image.size) == ("RGB", (32, 32))
            text = image.text  # type: ignore[attr-defined]
        assert text["prompt"] == row.prompt
        assert text["prompt"].startswith("tumor: ")
        assert text["seed"] == str(row.seed)
        assert text["synthetic"] == "true"
        assert text["adapter"] == row.adapter_digest == "digest-of-adapter"
        assert text["base_model"] == "sd15"
        assert text["software"].startswith("mrisynth ")
    assert not (output.root / generate.JOURNAL).exists()


def test_plain_diffusers_reproduces_a_file(
    tmp_path: Path, weights_dir: Path, adapter: Artifact[CheckpointRecord]
) -> None:
    from diffusers import DPMSolverMultistepScheduler

    output = run(tmp_path / "a", weights_dir, GenerateInputs(adapter, None))
    row = records(output)[3]
    plugin = registry.find(registry.BASE_MODELS, "sd15")
    plain = plugin.load_pipeline(plugin.tiny(weights_dir), dtype=torch.float32, device="cpu")
    plain.load_lora_weights(adapter.root)
    plain.scheduler = DPMSolverMultistepScheduler.from_config(plain.scheduler.config)
    image = plain(
        row.prompt,
        height=32,
        width=32,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(row.seed),
    ).images[0]
    assert np.abs(np.asarray(image).astype(int) - pixels(output, row)).max() <= 1


def test_arms_share_prompts_and_seeds_and_differ_in_images(
    tmp_path: Path, weights_dir: Path, adapter: Artifact[CheckpointRecord]
) -> None:
    base = run(tmp_path / "base", weights_dir)
    arm = run(tmp_path / "arm", weights_dir, GenerateInputs(adapter, None))
    pairs = list(zip(records(base), records(arm), strict=True))
    assert all((a.prompt, a.seed) == (b.prompt, b.seed) for a, b in pairs)
    assert len({a.seed for a, _ in pairs}) == 6
    assert all(a.adapter_digest is None for a, _ in pairs)
    assert np.abs(pixels(base, pairs[0][0]) - pixels(arm, pairs[0][1])).max() > 4


def test_batch_size_changes_no_image(tmp_path: Path, weights_dir: Path) -> None:
    together = run(tmp_path / "a", weights_dir, batch_size=6, model="sdxl")
    alone = run(tmp_path / "b", weights_dir, batch_size=1, model="sdxl")
    for a, b in zip(records(together), records(alone), strict=True):
        assert a == b
        assert np.abs(pixels(together, a) - pixels(alone, b)).max() <= 1


def test_killed_run_resumes_to_the_same_bytes(
    tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", weights_dir, batch_size=2)
    original, batches = synthesis.Sampler.draw, []

    def die(self: synthesis.Sampler, prompts: Any, seeds: Any) -> Any:
        batches.append(prompts)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return original(self, prompts, seeds)

    with monkeypatch.context() as patch:
        patch.setattr(synthesis.Sampler, "draw", die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", weights_dir, batch_size=2)
    with (tmp_path / "killed" / generate.JOURNAL).open("a") as out:
        out.write('{"records": [{"image')  # the kill tore a line
    with monkeypatch.context() as patch:
        patch.setattr(
            synthesis.Sampler, "draw", lambda s, p, k: (batches.append(p), original(s, p, k))[1]
        )
        resumed = run(tmp_path / "killed", weights_dir, batch_size=2)

    assert len(batches) == 4  # three before the kill, one after
    for path in (whole.root / "images").iterdir():
        assert path.read_bytes() == (resumed.root / "images" / path.name).read_bytes()
    texts = [(o.root / "records.jsonl").read_bytes() for o in (whole, resumed)]
    assert texts[0] == texts[1]


def test_black_images_are_counted_and_made_again_with_another_seed(
    tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = synthesis.Sampler.draw, []

    def darken(self: synthesis.Sampler, prompts: Any, seeds: Any) -> Any:
        images, faults = original(self, prompts, seeds)
        calls.append(len(prompts))
        if len(calls) == 1:
            images[1] = 0
            faults[1] = synthesis.find_fault(images[1])
        return images, faults

    monkeypatch.setattr(synthesis.Sampler, "draw", darken)
    output = run(tmp_path / "a", weights_dir)
    rows = records(output)
    assert calls == [4, 1, 2]
    assert [row.attempt for row in rows] == [0, 1, 0, 0, 0, 0]
    assert rows[1].seed == generate.seed_of(0, rows[1].image_id, 1)
    assert rows[1].seed != generate.seed_of(0, rows[1].image_id, 0)
    assert output.counts["made_again"] == 1
    assert output.notes["faults"] == {"black": 1}


def test_image_that_never_succeeds_stops_the_run(
    tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis, "find_fault", lambda image: "constant")
    with pytest.raises(TrainingError, match=r"'grid-00000' .*failed 2 times.*'constant': 8"):
        run(tmp_path / "a", weights_dir, max_attempts=2)


def test_prompts_from_test_captions(tmp_path: Path, weights_dir: Path) -> None:
    (tmp_path / "caption").mkdir()
    captions = Artifact(tmp_path / "caption", "c", CaptionRecord, {})
    inputs = GenerateInputs(None, captions)
    rows = [
        CaptionRecord(
            file_name="a.png",
            text="tumor: yes; size: large",
            slice_id="a",
            label="glioma",
            split="test",
            status="ok",
            report=TumorReport(tumor=True, size="large"),
            raw="",
            num_tokens=9,
        )
    ]
    write_records(captions.root / "records.jsonl", rows)
    changes: dict[str, Any] = {"prompts_from": "test_captions", "num_images": 2}
    output = run(tmp_path / "a", weights_dir, inputs, labels=("glioma",), **changes)
    assert {row.prompt for row in records(output)} == {"tumor: yes; size: large"}
    assert output.notes["distinct_prompts"] == 1
    with pytest.raises(DataError, match="'pituitary'"):
        run(tmp_path / "b", weights_dir, inputs, labels=("pituitary",), **changes)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_bfloat16_makes_images(
    tmp_path: Path, weights_dir: Path, adapter: Artifact[CheckpointRecord], model: str
) -> None:
    inputs = GenerateInputs(adapter if model == "sd15" else None, None)
    output = run(tmp_path / "a", weights_dir, inputs, model, "bfloat16", num_images=1)
    assert np.ptp(pixels(output, records(output)[0])) > 8


def test_journal_rows_are_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert generate.read_journal(path) == []
    path.write_text(json.dumps({"records": [], "faults": {"black": 2}}) + '\n{"rec')
    (made,) = generate.read_journal(path)
    assert made.faults == {"black": 2}
    assert path.read_text().endswith("}\n")
