from pathlib import Path

import pytest

from pipeline.errors import MissingWeightsError
from pipeline.source_code import ROOT
from stages.components import weights

HUB_ID = "someone/some-model"


def write_model(folder: Path, parts: tuple[str, ...] = ("unet",), variant: str = "") -> None:
    import numpy as np
    from safetensors.numpy import save_file

    for part in parts:
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
        save_file({"w": np.ones(4)}, folder / part / f"model{variant}.safetensors")


def test_hub_ids_and_folders_are_told_apart(tmp_path: Path) -> None:
    assert not weights.is_folder_name(HUB_ID)
    for name in ("data/embedded/tiny_sd15", "./some/model", "~/model", str(tmp_path), "model"):
        assert weights.is_folder_name(name), name


def test_relative_folders_count_from_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert weights.find_folder("stages/components/base_models", None) == (
        ROOT / "stages/components/base_models"
    )


def test_whole_folder_has_no_problems(tmp_path: Path) -> None:
    write_model(tmp_path, ("unet", "vae"))
    assert weights.problems(str(tmp_path), None, ["unet", "vae"], None, "") == []


def test_missing_parts_are_listed_with_the_folder(tmp_path: Path) -> None:
    write_model(tmp_path)
    (line,) = weights.problems(
        str(tmp_path), None, ["unet", "text_encoder", "tokenizer", "scheduler"], None, "Buy one."
    )
    for words in ("text_encoder/config.json", "text_encoder/*.safetensors", "Buy one."):
        assert words in line
    assert "tokenizer/vocab.json, scheduler/scheduler_config.json" in line
    assert str(tmp_path) in line
    assert "unet/" not in line


def test_variant_asks_for_files_of_that_name(tmp_path: Path) -> None:
    write_model(tmp_path, variant=".fp16")
    assert weights.problems(str(tmp_path), None, ["unet"], "fp16", "") == []
    (line,) = weights.problems(str(tmp_path), None, ["unet"], "bf16", "")
    assert "unet/*.bf16.safetensors" in line


def test_truncated_weights_are_named(tmp_path: Path) -> None:
    write_model(tmp_path)
    path = tmp_path / "unet" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    (line,) = weights.problems(str(tmp_path), None, ["unet"], None, "")
    assert "unet/model.safetensors (damaged)" in line


def test_absent_folder_names_where_it_was_looked_for() -> None:
    (line,) = weights.problems("data/embedded/nothing", None, ["unet"], None, "Build it.")
    assert str(ROOT / "data/embedded/nothing") in line
    assert "Build it." in line


def test_absent_hub_model_names_the_download_command() -> None:
    (line,) = weights.problems(HUB_ID, "v2", ["unet", "tokenizer"], None, "Licence: somewhere.")
    assert f"hf download {HUB_ID} --revision v2" in line
    assert '"unet/*" "tokenizer/*"' in line
    assert "Licence: somewhere." in line


def test_require_raises_with_every_line() -> None:
    weights.require([])
    with pytest.raises(MissingWeightsError, match=r"one\n  two"):
        weights.require(["one", "two"])


def test_pipeline_of_the_other_family_is_named(tmp_path: Path) -> None:
    (line,) = weights.class_problems(tmp_path, "sd")
    assert "model_index.json is missing" in line
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    assert weights.class_problems(tmp_path, "sdxl") == []
    (line,) = weights.class_problems(tmp_path, "sd")
    assert "'StableDiffusionXLPipeline', expected 'StableDiffusionPipeline'" in line


def test_digest_follows_the_weights_and_not_the_card(tmp_path: Path) -> None:
    write_model(tmp_path)
    before = weights.digest_of(str(tmp_path), None, None)
    (tmp_path / "README.md").write_text("a card")
    assert weights.digest_of(str(tmp_path), None, None) == before
    assert weights.digest_of(str(tmp_path), None, "fp16") != before
    (tmp_path / "unet" / "config.json").write_text('{"changed": 1}')
    assert weights.digest_of(str(tmp_path), None, None) != before


def test_digest_of_absent_weights_is_their_name() -> None:
    assert weights.digest_of(HUB_ID, "v2", None) == f"{HUB_ID}@v2:"
    assert weights.digest_of("data/embedded/nothing", None, None) == "data/embedded/nothing@absent"


def test_hub_snapshot_is_found_and_its_commit_is_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = {}

    def snapshot(name: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.update(name=name, revision=revision, local_files_only=local_files_only)
        return str(tmp_path / "abc123")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert weights.digest_of(HUB_ID, None, "fp16") == f"{HUB_ID}@abc123:fp16"
    assert asked == {"name": HUB_ID, "revision": None, "local_files_only": True}
