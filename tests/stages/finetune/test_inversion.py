"""Textual inversion on random weights: what is learnt, where it goes, and who can read it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipeline import registry
from pipeline.contracts import ArtifactWriter, CheckpointRecord
from pipeline.errors import MissingWeightsError, TrainingError
from pipeline.settings import GenerateConfig
from stages.components.diffusion.adapters import ADAPTER_FILE
from stages.components.diffusion.base_model import encode_prompts, parts_of
from stages.components.diffusion.placeholder import EMBEDS_FILE, open_prompts
from stages.finetune.adapters.textual_inversion import InvertedEncoder
from stages.finetune.trainer import Trainer
from tests.fabricate.pipelines import tiny_settings
from tests.stages.finetune.conftest import killed_after

Train = Callable[..., ArtifactWriter[CheckpointRecord]]
WORDS = {"placeholder": "<scan>", "initializer": "tumor brain", "learning_rate": 1e-2}
INVERSION: dict[str, Any] = {
    "method": "textual_inversion",
    "max_steps": 3,
    "inversion": WORDS | {"num_vectors": 3},
}
TEXT = "<scan> tumor: yes; size: large"


def invert(train: Train, name: str = "run", model: str = "sd15", **changes: Any) -> Any:
    return train(name, model=model, **(INVERSION | changes))


def load_plain(model: str, weights_dir: Path, folder: Path) -> Any:
    """Load as the documentation of diffusers says, without a line of ours."""
    import diffusers

    source = weights_dir / ("random_sdxl" if model == "sdxl" else "random_sd")
    if model == "sd15":
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(source)
        pipeline.load_textual_inversion(folder)
        return pipeline
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(source)
    words = load_file(folder / EMBEDS_FILE)
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            words[key],
            token="<scan>",
            text_encoder=getattr(pipeline, f"text_encoder{suffix}"),
            tokenizer=getattr(pipeline, f"tokenizer{suffix}"),
        )
    return pipeline


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_only_new_words_are_learnt_and_plain_diffusers_reads_them(
    train: Train, build_trainer: Callable[..., Trainer], weights_dir: Path, model: str
) -> None:
    trainer = build_trainer(model=model, **INVERSION)
    words = [m.learned for m in trainer.trained.models if isinstance(m, InvertedEncoder)]
    assert all(torch.equal(word[0], word[2]) for word in words)  # in turn
    assert len({tuple(word[0].tolist()) for word in words}) == len(trainer.trained.models)
    assert all(s.text.startswith("<scan> tumor: yes") for s in trainer.train.samples)

    def weights() -> list[dict[str, torch.Tensor]]:
        parts = [trainer.base.unet, *trainer.base.text_encoders]
        return [{n: p.clone() for n, p in part.named_parameters()} for part in parts]

    frozen = weights()
    for step in (1, 2, 3):
        trainer.optimise(step)
    changed = {
        name
        for before, after in zip(frozen, weights(), strict=True)
        for name in before
        if not torch.equal(before[name], after[name])
    }
    assert {name.rpartition(".")[2] for name in changed} == {"learned"}

    output = invert(train, model=model)
    assert not (output.root / ADAPTER_FILE).exists()
    assert not (output.root / "kohya").exists()
    stored = load_file(output.root / EMBEDS_FILE)
    assert {k: tuple(v.shape) for k, v in stored.items()} == (
        {"<scan>": (3, 32)} if model == "sd15" else {"clip_l": (3, 32), "clip_g": (3, 32)}
    )
    numbers = output.notes["trainable_parameters"]
    assert sum(numbers.values()) == 3 * 32 * len(stored)
    assert "unet" not in numbers
    assert output.counts["captions_shortened"] == 0

    # The same conditioning in training, in our generation and in plain diffusers.
    plugin = registry.find(registry.BASE_MODELS, model)
    settings = tiny_settings(plugin, weights_dir)
    ours = plugin.load_pipeline(
        settings, device="cpu", dtype=torch.float32, adapter_dir=output.root
    )
    plain = load_plain(model, weights_dir, output.root)
    with torch.no_grad():
        trained = encode_prompts(trainer.base, [TEXT])
        loaded = encode_prompts(parts_of(ours), [TEXT])
        embeds, _, *more = plain.encode_prompt(
            prompt=TEXT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    torch.testing.assert_close(trained.prompt_embeds, loaded.prompt_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(loaded.prompt_embeds, embeds, atol=1e-6, rtol=0)
    if model == "sdxl":
        torch.testing.assert_close(loaded.pooled, more[0], atol=1e-6, rtol=0)
    with torch.no_grad():
        without = encode_prompts(parts_of(ours), [TEXT.removeprefix("<scan> ")])
    assert not torch.allclose(loaded.prompt_embeds, without.prompt_embeds, atol=1e-3)


def test_artifact_says_how_to_use_it(train: Train) -> None:
    output = invert(train, model="sdxl")
    card = (output.root / "README.md").read_text(encoding="utf-8")
    assert 'words["clip_g"], token="<scan>"' in card
    assert "`<scan> tumor: yes; ...`" in card
    header = yaml.safe_load(card.split("---")[1])
    assert header["tags"][0] == "textual_inversion"
    assert "base_model" not in header  # a folder of this machine
    assert "lora" not in card.lower()
    rows = [json.loads(s) for s in (output.root / "records.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == ["checkpoints/step-000002", "."]
    assert (output.root / "checkpoints/step-000002" / EMBEDS_FILE).is_file()
    assert output.notes["method"] == "textual_inversion"


def test_learning_lowers_the_held_out_loss(train: Train) -> None:
    output = invert(train, max_steps=25, batch_size=4, checkpoint_every=100, caption_dropout=0.0)
    held_out = output.notes["held_out_loss"]
    assert held_out["last"] < held_out["first"]


@pytest.mark.parametrize("model", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_killed_run_resumes_to_the_same_bytes(train: Train, model: str) -> None:
    changes: dict[str, Any] = {"model": model, "max_steps": 5, "select_by": "held_out_loss"}
    changes |= {"gradient_checkpointing": True, "ema_decay": 0.9, "mirror": True}
    whole = invert(train, "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        invert(train, "killed", progress=killed_after(3), **changes)
    resumed = invert(train, "killed", **changes)
    for name in (EMBEDS_FILE, f"checkpoints/step-000004/{EMBEDS_FILE}"):
        assert (resumed.root / name).read_bytes() == (whole.root / name).read_bytes()
    logs = [(run.root / "train_log.jsonl").read_text().splitlines() for run in (whole, resumed)]
    for row, other in zip(*logs, strict=True):
        assert json.loads(row) | {"seconds": 0} == json.loads(other) | {"seconds": 0}


def test_prompts_open_with_the_word_and_fit(train: Train, tmp_path: Path) -> None:
    root = invert(train).root

    def count(text: str) -> int:
        return len(text.split()) + 2

    texts, counter = open_prompts(root, ["tumor: no", " ".join(["a"] * 75)], count)
    assert texts == ["<scan> tumor: no", "<scan> " + " ".join(["a"] * 72)]
    assert [counter(text) for text in texts] == [7, 77]
    assert open_prompts(tmp_path, ["tumor: no"], count) == (["tumor: no"], count)
    assert open_prompts(None, ["tumor: no"], count) == (["tumor: no"], count)


def test_images_are_those_of_plain_diffusers(train: Train, weights_dir: Path) -> None:
    root = invert(train).root
    plugin = registry.find(registry.BASE_MODELS, "sd15")
    ours = plugin.load_pipeline(
        tiny_settings(plugin, weights_dir), device="cpu", dtype=torch.float32, adapter_dir=root
    )
    from stages.components.diffusion.sampling import build_sampler

    sampler = build_sampler(
        ours,
        [TEXT],
        GenerateConfig(
            scheduler="ddim",
            image_size=32,
            num_inference_steps=3,
            guidance_scale=3.0,
            batch_size=1,
        ),
    )
    image = sampler.draw([TEXT], [5])[0][0]
    plain = load_plain("sd15", weights_dir, root)
    plain.set_progress_bar_config(disable=True)
    made = plain(
        TEXT,
        height=32,
        width=32,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert np.abs(image.astype(int) - np.asarray(made).astype(int)).max() <= 2


def test_words_that_cannot_be_learnt_are_refused(train: Train) -> None:
    with pytest.raises(TrainingError, match=r"initializer: '  ' has no token; name a word"):
        invert(train, inversion=WORDS | {"initializer": "  "})


def test_words_that_cannot_be_loaded_are_named(
    train: Train, weights_dir: Path, tmp_path: Path
) -> None:
    root = invert(train).root
    plugin = registry.find(registry.BASE_MODELS, "sdxl")

    def load(folder: Path) -> None:
        settings = tiny_settings(plugin, weights_dir)
        plugin.load_pipeline(settings, device="cpu", dtype=torch.float32, adapter_dir=folder)

    with pytest.raises(
        MissingWeightsError, match=r"another base model: .* widths \[32\], .* take \[32, 32\]"
    ):
        load(root)
    whole = (root / EMBEDS_FILE).read_bytes()
    (tmp_path / EMBEDS_FILE).write_bytes(whole[:-9])
    with pytest.raises(MissingWeightsError, match=r"learned_embeds.*cannot be read.*Rerun"):
        load(tmp_path)
    save_file({"<scan>": torch.zeros(1, 32)}, tmp_path / EMBEDS_FILE)
    with pytest.raises(MissingWeightsError, match=r"learned_embeds.*does not name its word"):
        load(tmp_path)
