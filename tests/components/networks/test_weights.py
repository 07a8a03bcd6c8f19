import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.errors import MissingWeightsError
from pipeline.source_code import ROOT
from stages.components.captioning.vlms import gemma3
from stages.components.networks import weights
from tests.components.hub import COMMIT, HubServer

HUB_ID = "someone/some-model"
Serve = Callable[[Mapping[str, bytes]], HubServer]


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
    assert weights.find_folder("stages/components/diffusion/base_models", None) == (
        ROOT / "stages/components/diffusion/base_models"
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
    assert "--include 'unet/*.json' --include 'unet/*.safetensors' --include 'tokenizer/*'" in line
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


SDXL = ("unet", "vae", "tokenizer", "tokenizer_2", "scheduler")


def files_of_a_hub_model() -> dict[str, bytes]:
    """What stands beside the wanted files in repositories such as SDXL's."""
    import numpy as np
    from safetensors.numpy import save

    names = [
        "README.md",
        "model.ckpt",
        "sdxl.safetensors",
        "unet/model.onnx",
        "vae_1_0/config.json",
    ]
    names += ["model_index.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
    names += ["tokenizer_2/vocab.json", "scheduler/scheduler_config.json"]
    for part in ("unet", "vae"):
        names += [f"{part}/config.json", f"{part}/diffusion_pytorch_model.bin"]
        names += [f"{part}/diffusion_pytorch_model{kind}.safetensors" for kind in ("", ".fp16")]
    return {  # no two alike: the hub's library fetches a content once
        name: save({name: np.ones(4)})
        if name.endswith(".safetensors")
        else json.dumps({"name": name}).encode()
        for name in names
    }


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[HubServer] = []

    def start(files: Mapping[str, bytes]) -> HubServer:
        running.append(HubServer(HUB_ID, files))
        return running[-1]

    yield start
    for hub in running:
        hub.close()


def download(line: str, hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command at the end of a line as a shell would, against a hub on this machine."""
    from huggingface_hub import constants

    command = line[line.index("Run: ") + 5 :]
    assert command.startswith("hf download ")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    away = ("proxy", "hf_hub_offline")
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith(away)}
    settings = {"PATH": path, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)}
    done = subprocess.run(
        ["sh", "-c", command],
        env=kept | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_printed_command_fetches_what_is_missing_and_no_more(
    variant: str | None,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = serve(files_of_a_hub_model())
    (line,) = weights.problems(HUB_ID, None, SDXL, variant, "Licence: somewhere.")
    download(line, hub, tmp_path, monkeypatch)
    kind = ".fp16" if variant else ""
    networks = {
        f"{part}/{name}"
        for part in ("unet", "vae")
        for name in ("config.json", f"diffusion_pytorch_model{kind}.safetensors")
    }
    assert hub.fetched - networks == {
        "model_index.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
        "tokenizer_2/vocab.json", "scheduler/scheduler_config.json",
    }  # fmt: skip
    assert networks <= hub.fetched
    assert weights.problems(HUB_ID, None, SDXL, variant, "") == []
    assert weights.digest_of(HUB_ID, None, variant) == f"{HUB_ID}@{COMMIT}:{variant or ''}"


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_the_command_of_a_vlm_leaves_other_formats_where_they_are(
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import numpy as np
    from safetensors.numpy import save

    wanted = {
        "config.json": b'{"model_type": "gemma3"}',
        "model.safetensors": save({"w": np.ones(4)}),
        "tokenizer.json": b"{}",
        "processor_config.json": b"{ }",
    }
    other = dict.fromkeys(("pytorch_model.bin", "consolidated.pth", "model.gguf"), b"")
    hub = serve(wanted | other)
    settings = gemma3.Settings(model=HUB_ID, revision=COMMIT)
    (line,) = gemma3.check(settings)
    download(line, hub, tmp_path, monkeypatch)
    assert hub.fetched == set(wanted)
    assert gemma3.check(settings) == []
