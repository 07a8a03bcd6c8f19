"""Images on random weights: what they carry, depend on and are made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextModel

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    CheckpointRecord,
    SyntheticRecord,
    TumorReport,
    write_records,
)
from pipeline.errors import ConfigError, DataError
from stages.components.judge.network import Judge, JudgeConfig, JudgeNet
from stages.generate import journal
from stages.generate.stage import GenerateInputs
from tests.fabricate.pipelines import tiny_settings

Run = Callable[..., ArtifactWriter[SyntheticRecord]]


def records(output: ArtifactWriter[SyntheticRecord]) -> list[SyntheticRecord]:
    lines = (output.root / "records.jsonl").read_text().splitlines()
    return [SyntheticRecord.model_validate_json(line) for line in lines]


def pixels(output: ArtifactWriter[SyntheticRecord], record: SyntheticRecord) -> Any:
    with Image.open(output.path(record.image_path)) as image:
        return np.asarray(image).astype(int)


def test_images_carry_prompt_seed_adapter_and_the_mark(
    run: Run, tmp_path: Path, weights_dir: Path, adapter: Artifact[CheckpointRecord]
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
        contrast = {"T2-weighted": "t2", "FLAIR": "flair"}
        words = (row.requested.general_description or "").split()[0]
        assert row.modality in (contrast.get(words), "t1", "t1ce")
    assert [path.name for path in output.root.glob(journal.PATTERN)] == ["generate.journal.jsonl"]
    methods = output.notes["methods"]
    assert f"6 slices of 32 px were asked for by {output.notes['distinct_prompts']} " in methods
    assert f"“{next(row.prompt for row in rows if row.requested.tumor)}”" in methods
    assert "2 steps of dpmsolver multistep at guidance 5; negative prompt: none" in methods
    assert "the run's seed 0" in methods


def test_plain_diffusers_reproduces_a_file(
    run: Run, tmp_path: Path, weights_dir: Path, adapter: Artifact[CheckpointRecord]
) -> None:
    from diffusers import DPMSolverMultistepScheduler

    output = run(tmp_path / "a", weights_dir, GenerateInputs(adapter, None))
    row = records(output)[3]
    plugin = registry.find(registry.BASE_MODELS, "sd15")
    plain = plugin.load_pipeline(
        tiny_settings(plugin, weights_dir), dtype=torch.float32, device="cpu"
    )
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
    run: Run, tmp_path: Path, weights_dir: Path, adapter: Artifact[CheckpointRecord]
) -> None:
    base = run(tmp_path / "base", weights_dir)
    arm = run(tmp_path / "arm", weights_dir, GenerateInputs(adapter, None))
    pairs = list(zip(records(base), records(arm), strict=True))
    assert all((a.prompt, a.seed) == (b.prompt, b.seed) for a, b in pairs)
    assert len({a.seed for a, _ in pairs}) == 6
    assert all(a.adapter_digest is None for a, _ in pairs)
    assert np.abs(pixels(base, pairs[0][0]) - pixels(arm, pairs[0][1])).max() > 4


def test_batch_size_changes_no_image(run: Run, tmp_path: Path, weights_dir: Path) -> None:
    together = run(tmp_path / "a", weights_dir, batch_size=6, model="sdxl")
    alone = run(tmp_path / "b", weights_dir, batch_size=1, model="sdxl")
    for a, b in zip(records(together), records(alone), strict=True):
        assert a == b
        assert np.abs(pixels(together, a) - pixels(alone, b)).max() <= 1


def test_guidance_by_a_judge_is_marked_and_changes_images(
    run: Run, tmp_path: Path, weights_dir: Path
) -> None:
    config = JudgeConfig(image_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        Judge(JudgeNet(config), config).save(tmp_path / "judge")
    settings = {"judge": str(tmp_path / "judge"), "strength": 2.0, "share_of_steps": 1.0}
    asked: dict[str, Any] = {"num_images": 2, "labels": ("glioma",)}
    guidance = {"name": "location", "settings": settings}
    guided = run(tmp_path / "a", weights_dir, **asked, guidance=guidance)
    plain = run(tmp_path / "b", weights_dir, **asked)
    for a, b in zip(records(guided), records(plain), strict=True):
        assert a == b
        assert np.abs(pixels(guided, a) - pixels(plain, b)).max() > 1
        marks = []
        for output in (guided, plain):
            with Image.open(output.path(a.image_path)) as image:
                marks.append(image.text.get("guidance"))  # type: ignore[attr-defined]
        assert marks == ["location", None]


def artifact_of_captions(root: Path, text: str) -> GenerateInputs:
    root.mkdir()
    row = CaptionRecord(
        file_name="a.png",
        text=text,
        slice_id="a",
        label="glioma",
        split="test",
        status="ok",
        report=TumorReport(tumor=True, size="large"),
        raw="",
        num_tokens=9,
    )
    write_records(root / "records.jsonl", [row])
    return GenerateInputs(None, Artifact(root, "c", CaptionRecord, {}))


def test_prompts_from_test_captions(run: Run, tmp_path: Path, weights_dir: Path) -> None:
    inputs = artifact_of_captions(tmp_path / "caption", "tumor: yes; size: large")
    changes: dict[str, Any] = {"prompts_from": "test_captions", "num_images": 2}
    output = run(tmp_path / "a", weights_dir, inputs, labels=("glioma",), **changes)
    assert {row.prompt for row in records(output)} == {"tumor: yes; size: large"}
    assert output.notes["distinct_prompts"] == 1
    assert output.counts["prompts_cut"] == 0
    with pytest.raises(DataError, match="'pituitary'"):
        run(tmp_path / "b", weights_dir, inputs, labels=("pituitary",), **changes)


def test_prompts_beyond_77_tokens_are_cut_and_counted(
    run: Run, tmp_path: Path, weights_dir: Path
) -> None:
    inputs = artifact_of_captions(tmp_path / "caption", "tumor " * 1000)
    lines: list[str] = []
    output = run(
        tmp_path / "a",
        weights_dir,
        inputs,
        lines=lines,
        prompts_from="test_captions",
        num_images=2,
        labels=("glioma",),
    )
    assert output.counts["prompts_cut"] == 2
    assert any("2 prompts have more than 77 tokens" in line and "'a-0'" in line for line in lines)


def test_negative_prompt_beyond_77_tokens_is_refused(
    run: Run, tmp_path: Path, weights_dir: Path
) -> None:
    with pytest.raises(ConfigError, match=r"at most 77 tokens, found 102 in 'tumor tumor"):
        run(tmp_path / "a", weights_dir, negative_prompt="tumor " * 100)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_bfloat16_makes_images(
    run: Run, tmp_path: Path, weights_dir: Path, adapter: Artifact[CheckpointRecord], model: str
) -> None:
    inputs = GenerateInputs(adapter if model == "sd15" else None, None)
    output = run(tmp_path / "a", weights_dir, inputs, "bfloat16", model=model, num_images=1)
    assert np.ptp(pixels(output, records(output)[0])) > 8


def test_bfloat16_decodes_in_float32(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKL

    original, seen = AutoencoderKL.decode, []

    def decode(self: Any, z: torch.Tensor, **given: Any) -> Any:
        out = original(self, z, **given)
        seen.extend([z.dtype, out[0].dtype, *{p.dtype for p in self.parameters()}])
        return out

    monkeypatch.setattr(AutoencoderKL, "decode", decode)
    run(
        tmp_path / "a",
        weights_dir,
        dtype="bfloat16",
        model="sdxl",
        num_images=1,
        labels=("glioma",),
    )
    assert seen == [torch.float32] * 3


def test_equal_prompts_are_encoded_once(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = artifact_of_captions(tmp_path / "caption", "tumor: yes; size: large")
    original, num_texts = CLIPTextModel.forward, []

    def forward(self: Any, input_ids: torch.Tensor, **given: Any) -> Any:
        num_texts.append(len(input_ids))
        return original(self, input_ids, **given)

    monkeypatch.setattr(CLIPTextModel, "forward", forward)
    changes: dict[str, Any] = {"prompts_from": "test_captions", "labels": ("glioma",)}
    run(tmp_path / "a", weights_dir, inputs, num_images=5, **changes)
    assert sum(num_texts) == 2  # the prompt, and the empty one


def test_flags_for_gpus_change_rounding_only(
    run: Run, tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    def compile_eagerly(unet: torch.nn.Module) -> None:
        for module in unet.modules():
            if type(module).__name__ in unet._repeated_blocks:
                module.compile(backend="eager")

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "compile_repeated_blocks", compile_eagerly)
    plain = run(tmp_path / "a", weights_dir)
    fast = run(
        tmp_path / "b", weights_dir, fuse_adapter=True, channels_last=True, compile_blocks=True
    )
    for a, b in zip(records(plain), records(fast), strict=True):
        assert np.abs(pixels(plain, a) - pixels(fast, b)).max() <= 1
