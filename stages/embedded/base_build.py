"""Make a tiny base model from nothing but phantoms: `mrisynth embedded build tiny_sd15|tiny_sdxl`.

The VAE sees all phantoms; UNets and text encoders only tumour-free ones, some with findings of
other kinds, so that what a LoRA adds can be measured.
"""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import TrainingError
from pipeline.files import publish_folder, read_or_make
from stages.components.diffusion.base_model import BaseModel, assemble, load_pipeline, parts_of
from stages.components.networks import training
from stages.components.networks.weights import Family
from stages.embedded import base_data, base_training, base_wide
from stages.embedded import vae as embedded_vae
from stages.embedded.cards import publish, write_card
from stages.embedded.corpora import findings, heads
from stages.embedded.scores import base_scores

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

T = TypeVar("T")
IMAGE_SIZE = 128  # px
SUBJECTS = {"vae": 48, "base": 120, "val": 32}
HEADS_WITH_FINDINGS = 96
Progress = Callable[[str], None]


def build(
    name: str,
    family: Family,
    *,
    out_dir: Path,
    cache_dir: Path,
    device: str,
    progress: Progress,
) -> Path:
    """Build one base model and write it, in float16, with its card, to `out_dir / name`.

    Args:
        name: the model's.
        family: its layout.
        out_dir: parent of the model's folder.
        cache_dir: keeps phantoms and checkpoints; a second call goes on from them.
        device: "cpu" or "cuda".
        progress: takes one line at a time.

    Raises:
        TrainingError: The loss is not finite, or a checkpoint is damaged or another one's.
    """
    heads.build(cache_dir, SUBJECTS["val"], "val", IMAGE_SIZE, 2, progress)
    held_out = heads.read(cache_dir, SUBJECTS["val"], "val", IMAGE_SIZE)
    vae, psnr = build_vae(cache_dir, held_out, device, progress)
    tokenizer = base_data.build_tokenizer()
    settings = base_training.BaseTraining(
        family, base_training.HEALTHY_STEPS[family], base_training.FINDINGS_STEPS[family]
    )
    subjects = {**SUBJECTS, "findings": HEADS_WITH_FINDINGS}
    phases: dict[str, Any] = {"base_model": asdict(settings)}
    kinds: dict[str, NDArray[np.bool_]] = {}
    unet, encoders = build_first(name, settings, vae, tokenizer, cache_dir, device, progress)
    if family in base_wide.SETTINGS:
        base_wide.build_corpora(cache_dir, IMAGE_SIZE, progress)
        unet, encoders = base_wide.widen(
            (unet, encoders), family, vae, tokenizer, IMAGE_SIZE, cache_dir, device, progress
        )
        held_out = heads.read(cache_dir, base_wide.SUBJECTS["wide_val"], "wide_val", IMAGE_SIZE)
        kinds = base_wide.kinds_of(held_out)
        subjects |= base_wide.SUBJECTS
        phases["wide"] = asdict(base_wide.SETTINGS[family])
    out_dir.mkdir(parents=True, exist_ok=True)
    partial = out_dir / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed build
    kind = save_pipeline(partial, family, vae, tokenizer, unet, encoders)
    scores = base_scores(
        partial,
        held_out,
        lambda modality, plane: base_data.captions_of(modality, plane)[0],
        kinds=kinds,
        device=device,
    )
    progress(f"{name}: on held-out tumour-free phantoms, {scores}")
    write_card(
        partial,
        "base",
        name=name,
        kind=kind,
        parameters=sum(p.numel() for part in (vae, unet, *encoders) for p in part.parameters()),
        prompt=base_data.captions_of("t1", "axial")[0],
        knows_brains="wide" in phases,
        facts={
            "image_size": IMAGE_SIZE,
            "subjects": subjects,
            "vae": asdict(embedded_vae.VaeTraining()),
            "vae_psnr_db_held_out_phantoms": round(psnr, 2),
            **phases,
            "held_out_tumour_free_phantoms": scores,
        },
    )
    publish(partial, out_dir / name)
    progress(f"{name}: written to {out_dir / name}")
    return out_dir / name


def build_first(
    name: str,
    settings: base_training.BaseTraining,
    vae: "AutoencoderKL",
    tokenizer: "CLIPTokenizer",
    cache_dir: Path,
    device: str,
    progress: Progress,
) -> base_training.Networks:
    """Train the first two phases, or read their weights where they are finished: `NAME-first`.

    Raises:
        TrainingError: The loss is not finite, or a checkpoint is damaged or another one's.
    """
    finished = cache_dir / f"{name}-first"

    def make() -> None:
        heads.build(cache_dir, SUBJECTS["base"], "base", IMAGE_SIZE, 2, progress)
        findings.build(cache_dir, HEADS_WITH_FINDINGS, "findings", IMAGE_SIZE, 2, progress)
        data = base_data.training_set(
            heads.read(cache_dir, SUBJECTS["base"], "base", IMAGE_SIZE),
            findings.read(cache_dir, HEADS_WITH_FINDINGS, "findings", IMAGE_SIZE),
            vae,
            tokenizer,
        )
        unet, encoders = base_training.train(
            data, tokenizer, IMAGE_SIZE, cache_dir, settings, device, progress
        )
        partial = cache_dir / f"{name}-first.partial"
        save_pipeline(partial, settings.family, deepcopy(vae), tokenizer, unet, encoders)
        publish_folder(partial, finished)

    def read(folder: Path) -> BaseModel:
        pipeline = load_saved(
            folder,
            lambda: load_pipeline(
                settings.family, folder, vae_dir=None, variant=None, dtype=torch.float32
            ),
        )
        return parts_of(pipeline)

    first = read_or_make(finished, read, make)
    for network in (first.unet, *first.text_encoders):
        network.requires_grad_(True)
    return first.unet, cast("list[CLIPTextModel]", first.text_encoders)


def build_vae(
    cache_dir: Path, held_out: heads.HeadCorpus, device: str, progress: Progress
) -> "tuple[AutoencoderKL, float]":
    """Train the VAE that both base models share, or read it where it is finished.

    Returns:
        The VAE, and its mean PSNR in dB on slices of held-out phantoms.

    Raises:
        TrainingError: The finished one, or the checkpoint, is of another architecture.
    """
    finished = cache_dir / "vae"

    def make() -> None:
        for split in ("vae", "base"):
            heads.build(cache_dir, SUBJECTS[split], split, IMAGE_SIZE, 2, progress)
        seen = [
            heads.read(cache_dir, SUBJECTS[split], split, IMAGE_SIZE) for split in ("vae", "base")
        ]
        fine = np.concatenate([part.fine for part in seen])
        settings = embedded_vae.VaeTraining()
        vae = embedded_vae.train(fine, IMAGE_SIZE, cache_dir, settings, device, progress)
        images = np.concatenate([part.images for part in seen])
        picked = np.random.default_rng(0).permutation(len(images))[:768]
        embedded_vae.order_latents(vae, images[picked])
        partial = cache_dir / "vae.partial"
        vae.half().save_pretrained(partial)
        publish_folder(partial, finished)

    vae = read_or_make(finished, read_vae, make).to(device).eval()
    require_current(finished, vae)
    psnr = embedded_vae.psnr_db(vae, held_out.images[:: max(1, len(held_out.images) // 500)])
    progress(f"vae: held-out phantoms {psnr:.2f} dB")
    return vae, psnr


def read_vae(folder: Path) -> "AutoencoderKL":
    """Read a finished VAE; raises as `load_saved`."""
    from diffusers import AutoencoderKL

    return load_saved(folder, lambda: cast("AutoencoderKL", AutoencoderKL.from_pretrained(folder)))


def load_saved(folder: Path, load: Callable[[], T]) -> T:
    """Load what `folder` holds in diffusers' layout.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        return load()
    except OSError as error:  # which is what diffusers makes of a file that it cannot parse
        raise ValueError(str(error).splitlines()[0]) from error


def require_current(folder: Path, vae: "AutoencoderKL") -> None:
    """Refuse a finished VAE that the code of today would build otherwise.

    Raises:
        TrainingError: Names the folder and what differs.
    """
    now = training.describe(embedded_vae.new_vae(IMAGE_SIZE).config)
    del now["scaling_factor"]  # measured after training
    misfits = training.differences(training.describe(vae.config), now)
    if misfits:
        raise TrainingError(
            f"the VAE in {folder} is of another architecture ({'; '.join(misfits[:3])}). Delete "
            "that folder to train it anew."
        )


def save_pipeline(
    folder: Path,
    family: Family,
    vae: Any,
    tokenizer: Any,
    unet: Any,
    encoders: list[Any],
) -> str:
    """Write an ordinary diffusers pipeline with float16 weights; return its class's name."""
    from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler

    noise = base_training.scheduler_config()
    for network in (vae, unet, *encoders):
        network.half()
    base = BaseModel(
        family=family,
        tokenizers=[tokenizer] * len(encoders),
        text_encoders=encoders,
        unet=unet,
        vae=vae,
        noise_scheduler=DDPMScheduler.from_config(noise),
        zeros_for_empty=family == "sdxl",
    )
    pipeline = assemble(base, EulerAncestralDiscreteScheduler.from_config(noise))
    pipeline.save_pretrained(folder)
    for path in sorted(folder.glob("*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # where the VAE lay on the machine that built this
        if path.parent.name.startswith("text_encoder"):
            # transformers loads weights in the dtype that the config names: float32, as the UNet's
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return type(pipeline).__name__
