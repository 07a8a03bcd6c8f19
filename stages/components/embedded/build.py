"""Make an embedded model from nothing but phantoms: `mrisynth embedded build NAME`.

Every part is seeded and goes on where a killed build stopped; what stands in `data/embedded` was
made by this file. The VAE sees all phantoms; UNets and text encoders only tumour-free ones, some
with findings of other kinds, so that what a LoRA adds can be measured.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pipeline.errors import TrainingError, UnknownPluginError
from pipeline.files import publish_folder
from stages.components.embedded import corpus, findings_corpus
from stages.components.embedded.card import write_card
from stages.components.embedded.vlm_models import FAMILIES

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from stages.components.embedded.base import Family

NAMES = ("tiny_sd15", "tiny_sdxl")
JUDGE = "judge"
IMAGE_SIZE = 128  # px
SUBJECTS = {"vae": 48, "base": 120, "val": 32}
HEADS_WITH_FINDINGS = 96
Progress = Callable[[str], None]


def build(name: str, *, out_dir: Path, cache_dir: Path, device: str, progress: Progress) -> Path:
    """Build one embedded model and write it, in float16, with its card, to `out_dir / name`.

    Args:
        name: of `NAMES`, of the VLMs' `FAMILIES`, or "judge".
        out_dir: parent of the model's folder.
        cache_dir: keeps phantoms and checkpoints; a second call goes on from them.
        device: "cpu" or "cuda".
        progress: takes one line at a time.

    Raises:
        UnknownPluginError: No embedded model of that name.
    """
    if name in FAMILIES:
        from stages.components.embedded import vlm_build

        return vlm_build.build(
            name, out_dir=out_dir, cache_dir=cache_dir, device=device, progress=progress
        )
    if name == JUDGE:
        from stages.components.embedded import judge

        return judge.build(out_dir=out_dir, cache_dir=cache_dir, device=device, progress=progress)
    if name not in NAMES:
        names = ", ".join((*NAMES, *FAMILIES, JUDGE))
        raise UnknownPluginError(f"no embedded model named {name!r}; available: {names}")
    from stages.components.embedded import base, base_data
    from stages.components.embedded.scores import base_scores
    from stages.components.embedded.vae import VaeTraining

    family: Family = "sd" if name == "tiny_sd15" else "sdxl"
    for split, count in SUBJECTS.items():
        corpus.build(cache_dir, count, split, IMAGE_SIZE, 2, progress)
    findings_corpus.build(cache_dir, HEADS_WITH_FINDINGS, IMAGE_SIZE, 2, progress)
    held_out = corpus.read(cache_dir, SUBJECTS["val"], "val", IMAGE_SIZE)
    vae, psnr = build_vae(cache_dir, held_out, device, progress)
    tokenizer = base_data.build_tokenizer()
    settings = base.BaseTraining(family, base.HEALTHY_STEPS[family], base.FINDINGS_STEPS[family])
    data = base_data.training_set(
        corpus.read(cache_dir, SUBJECTS["base"], "base", IMAGE_SIZE),
        findings_corpus.read(cache_dir, HEADS_WITH_FINDINGS, IMAGE_SIZE),
        vae,
        tokenizer,
    )
    unet, encoders = base.train(data, tokenizer, IMAGE_SIZE, cache_dir, settings, device, progress)
    out_dir.mkdir(parents=True, exist_ok=True)
    partial = out_dir / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed build
    kind = save_pipeline(partial, family, vae, tokenizer, unet, encoders)
    scores = base_scores(
        partial,
        held_out,
        lambda modality, plane: base_data.captions_of(modality, plane)[0],
        device=device,
    )
    progress(f"{name}: on held-out tumour-free phantoms, {scores}")
    write_card(
        partial,
        name=name,
        kind=kind,
        parameters=sum(p.numel() for part in (vae, unet, *encoders) for p in part.parameters()),
        prompt=base_data.captions_of("t1", "axial")[0],
        facts={
            "image_size": IMAGE_SIZE,
            "subjects": {**SUBJECTS, "findings": HEADS_WITH_FINDINGS},
            "vae": asdict(VaeTraining()),
            "vae_psnr_db_held_out_phantoms": round(psnr, 2),
            "base_model": asdict(settings),
            "held_out_tumour_free_phantoms": scores,
        },
    )
    publish(partial, out_dir / name)
    progress(f"{name}: written to {out_dir / name}")
    return out_dir / name


def publish(partial: Path, final: Path) -> None:
    """Rename a finished folder into place; what stood there goes once the new one is whole."""
    old = final.with_name(f"{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # left by a killed build
    if final.exists():
        final.rename(old)
    publish_folder(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def build_vae(
    cache_dir: Path, held_out: corpus.Corpus, device: str, progress: Progress
) -> "tuple[AutoencoderKL, float]":
    """Train the VAE that both base models share, or read it where it is finished.

    Returns:
        The VAE, and its mean PSNR in dB on slices of held-out phantoms.

    Raises:
        TrainingError: The finished one, or the checkpoint, is of another architecture.
    """
    from diffusers import AutoencoderKL

    from stages.components.embedded import vae as tiny_vae

    finished = cache_dir / "vae"
    if not (finished / "config.json").exists():
        seen = [
            corpus.read(cache_dir, SUBJECTS[split], split, IMAGE_SIZE) for split in ("vae", "base")
        ]
        fine = np.concatenate([part.fine for part in seen])
        settings = tiny_vae.VaeTraining()
        vae = tiny_vae.train(fine, IMAGE_SIZE, cache_dir, settings, device, progress)
        images = np.concatenate([part.images for part in seen])
        picked = np.random.default_rng(0).permutation(len(images))[:768]
        tiny_vae.order_latents(vae, images[picked])
        partial = cache_dir / "vae.partial"
        vae.half().save_pretrained(partial)
        publish_folder(partial, finished)
    vae = AutoencoderKL.from_pretrained(finished).to(device).eval()
    require_current(finished, vae)
    psnr = tiny_vae.psnr_db(vae, held_out.images[:: max(1, len(held_out.images) // 500)])
    progress(f"vae: held-out phantoms {psnr:.2f} dB")
    return cast("AutoencoderKL", vae), psnr


def require_current(folder: Path, vae: "AutoencoderKL") -> None:
    """Refuse a finished VAE that the code of today would build otherwise.

    Raises:
        TrainingError: Names the folder and what differs.
    """
    from stages.components import network_training
    from stages.components.embedded.vae import new_vae

    now = network_training.describe(new_vae(IMAGE_SIZE).config)
    del now["scaling_factor"]  # measured after training
    found = network_training.differences(network_training.describe(vae.config), now)
    if found:
        raise TrainingError(
            f"the VAE in {folder} is of another architecture ({'; '.join(found[:3])}). Delete that "
            "folder to train it anew."
        )


def save_pipeline(
    folder: Path, family: "Family", vae: Any, tokenizer: Any, unet: Any, encoders: list[Any]
) -> str:
    """Write an ordinary diffusers pipeline with float16 weights; return its class's name."""
    from diffusers import (
        EulerAncestralDiscreteScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
    )

    from stages.components.embedded import base

    scheduler = EulerAncestralDiscreteScheduler.from_config(base.scheduler_config())
    parts = {"vae": vae.half(), "unet": unet.half(), "scheduler": scheduler}
    for encoder in encoders:
        encoder.half()
    if family == "sd":
        pipeline: Any = StableDiffusionPipeline(
            **parts,
            tokenizer=tokenizer,
            text_encoder=encoders[0],
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    else:
        pipeline = StableDiffusionXLPipeline(
            **parts,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            text_encoder=encoders[0],
            text_encoder_2=encoders[1],
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    for path in sorted(folder.glob("*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # where the VAE lay on the machine that built this
        if path.parent.name.startswith("text_encoder"):
            # transformers loads weights in the dtype that the config names: float32, as the UNet's
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return type(pipeline).__name__
