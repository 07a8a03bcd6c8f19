"""`mrisynth embedded build`: a model's folder is the old one or the new one, never half of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import TrainingError, UnknownPluginError
from stages.components.networks import training
from stages.embedded import base_build, base_data, base_training, base_wide, build
from stages.embedded import vae as embedded_vae
from stages.embedded.corpora import findings, heads
from stages.embedded.corpora.heads import HeadCorpus
from stages.embedded.vae import new_vae


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put untrained parts in the place of hours of training; note which splits are read."""
    read: list[str] = []
    blank = np.zeros((2, 8, 8), np.uint8)
    codes = np.zeros(2, np.int8)

    def read_no_findings(*_: Any) -> findings.FindingCorpus:
        return findings.FindingCorpus(blank, blank > 0, [], [])

    def read_blank(folder: Path, count: int, split: str, size: int) -> HeadCorpus:
        read.append(split)
        return HeadCorpus(blank, blank, codes, codes, codes, np.zeros(2, np.int32))

    def train(data: Any, tokenizer: Any, size: int, folder: Path, plan: Any, *_: Any) -> Any:
        trained = base_training.new_text_encoders(plan.family, tokenizer)
        return base_training.new_unet(plan.family, 12, 4), trained

    def finished(*_: Any) -> Any:
        vae = new_vae(32)
        vae.register_to_config(_name_or_path="/somewhere/vae")
        return vae, 30.0

    monkeypatch.setattr(heads, "build", lambda *_: None)
    monkeypatch.setattr(heads, "read", read_blank)
    monkeypatch.setattr(base_build, "build_vae", finished)
    monkeypatch.setattr(findings, "build", lambda *_: None)
    monkeypatch.setattr(findings, "read", read_no_findings)
    monkeypatch.setattr(base_data, "training_set", lambda *_: None)
    monkeypatch.setattr(base_training, "train", train)
    monkeypatch.setattr(base_wide, "train", train)
    return read


def make(out_dir: Path, tmp_path: Path, name: str = "tiny_sd15") -> Path:
    return build.build(
        name, out_dir=out_dir, cache_dir=tmp_path, device="cpu", progress=lambda line: None
    )


def test_a_failure_leaves_what_stood_there_and_success_replaces_it(
    reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "embedded"
    (out / "tiny_sd15").mkdir(parents=True)
    (out / "tiny_sd15" / "README.md").write_text("the old card")

    def failing(folder: Path, *_: Any, **__: Any) -> dict[str, float]:
        assert (folder / "model_index.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(base_build, "base_scores", failing)
    with pytest.raises(KeyboardInterrupt):
        make(out, tmp_path)
    assert [path.name for path in (out / "tiny_sd15").iterdir()] == ["README.md"]
    monkeypatch.setattr(base_build, "base_scores", lambda *_, **__: {"kid": 0.125})
    assert reads == ["val", "base"]
    reads.clear()
    folder = make(out, tmp_path)
    assert reads == ["val"]  # the networks were finished
    assert folder == out / "tiny_sd15"
    assert [path.name for path in out.iterdir()] == ["tiny_sd15"]
    assert "# tiny_sd15\n" in (folder / "README.md").read_text()
    facts = json.loads((folder / "training.json").read_text())
    assert facts["held_out_tumour_free_phantoms"] == {"kid": 0.125}
    config = json.loads((folder / "vae" / "config.json").read_text())
    assert config["latent_channels"] == 12
    assert "_name_or_path" not in config


def test_only_the_larger_model_goes_on_with_brains(
    reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_build, "base_scores", lambda *_, **words: sorted(words["kinds"]))
    cards = {}
    for name, wide in (("tiny_sd15", []), ("tiny_sdxl", ["wide", "wide_val"])):
        reads.clear()
        folder = make(tmp_path / "embedded", tmp_path, name)
        facts = json.loads((folder / "training.json").read_text())
        assert reads == ["val", "base", *wide]
        assert ("wide" in facts) == ("wide" in facts["subjects"]) == bool(wide)
        assert facts["held_out_tumour_free_phantoms"] == (["brains", "heads"] if wide else [])
        cards[name] = (folder / "README.md").read_text()
    assert "stripped to the brain" in cards["tiny_sdxl"]
    assert "stripped to the brain" not in cards["tiny_sd15"]


def test_a_finished_vae_of_another_architecture_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKL

    monkeypatch.setattr(base_build, "IMAGE_SIZE", 32)
    vae = new_vae(32)
    vae.register_to_config(scaling_factor=0.9)  # measured after training
    base_build.require_current(tmp_path / "vae", vae)
    other = AutoencoderKL.from_config({**vae.config, "norm_num_groups": 4})
    with pytest.raises(TrainingError, match=r"vae is of .*norm_num_groups is 4, expected 8\)"):
        base_build.require_current(tmp_path / "vae", other)


def test_the_description_of_a_base_knows_heads_and_token_ids() -> None:
    tokenizer = base_data.build_tokenizer()
    encoders = base_training.new_text_encoders("sdxl", tokenizer)
    with torch.device("meta"):
        unet = base_training.new_unet("sdxl", 12, 4)
    found = base_training.describe(unet, encoders, tokenizer)
    again = json.loads(json.dumps(found))
    assert training.differences(found, again) == []
    again["unet"]["attention_head_dim"] = [1, 3, 4]
    again["text"]["1"]["num_attention_heads"] = 8
    again["vocabulary"] = "other"
    assert [line.split(" is ")[0] for line in training.differences(again, found)] == [
        "text.1.num_attention_heads",
        "unet.attention_head_dim",
        "vocabulary",
    ]


def test_every_name_has_a_builder_of_its_own() -> None:
    found = {name: build.builder_of(name) for name in build.NAMES}
    for name, builder in found.items():
        start = (name, build.BASES[name]) if name in build.BASES else (name,)
        assert getattr(builder, "args", (name,)) == start
    modules = {getattr(builder, "func", builder).__module__ for builder in found.values()}
    assert len(modules) == 3


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownPluginError, match=r"named 'tiny_sd3'; .*tiny_sdxl, ovis2, gemma3, llava, judge"
    ):
        build.build("tiny_sd3", out_dir=tmp_path, cache_dir=tmp_path, device="cpu", progress=print)


@pytest.mark.parametrize("damage", [b"", b"x" * 400], ids=["empty", "garbage"])
def test_a_finished_vae_that_is_damaged_is_made_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: bytes,
) -> None:
    codes = np.zeros(2, np.int8)
    blank = np.zeros((2, 8, 8), np.uint8)
    part = HeadCorpus(blank, blank, codes, codes, codes, np.zeros(2, np.int32))
    trained: list[Any] = []

    def train(*_: Any) -> Any:
        trained.append(new_vae(base_build.IMAGE_SIZE))
        return trained[-1]

    monkeypatch.setattr(heads, "build", lambda *_: None)
    monkeypatch.setattr(heads, "read", lambda *_: part)
    monkeypatch.setattr(embedded_vae, "train", train)
    monkeypatch.setattr(embedded_vae, "order_latents", lambda *_: None)
    monkeypatch.setattr(embedded_vae, "psnr_db", lambda *_: 30.0)
    for _ in range(2):
        base_build.build_vae(tmp_path, part, "cpu", lambda line: None)
    assert len(trained) == 1
    (weights,) = (tmp_path / "vae").glob("*.safetensors")
    weights.write_bytes(damage)
    for _ in range(2):
        base_build.build_vae(tmp_path, part, "cpu", lambda line: None)
    assert len(trained) == 2
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path / 'vae'}: a damaged entry of a cache")
