"""Fine-tuning and generation as the published example scripts do them: what ours is compared with.

After diffusers' `examples/text_to_image/train_text_to_image_lora.py` and its SDXL counterpart: the
VAE encodes the images and the text encoders the captions at every step, adapters are peft's,
accelerate accumulates; and after the documentation's inference snippets: the adapter is loaded and
stays beside the weights, one prompt is sampled at a time. Their known faults (see the comments) are
left out, so that both loops learn the same. Written for this comparison, not copied.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tests.benchmarks.workload import ATTENTION, SamplingJob, TrainingJob

TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
MIN_SNR_GAMMA = 5.0
MAX_GRAD_NORM = 1.0
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Noise:
    """The randomness of one micro-batch."""

    posterior: Tensor  # (batch, channel, h, w)
    noise: Tensor  # the same shape
    timesteps: Tensor  # int64 (batch,)


@dataclass(frozen=True)
class Given:
    """Randomness from outside, so that two loops can be compared step by step."""

    rows: Sequence[int]  # of the data set, in the order of all steps
    noise: Callable[[int], Noise]  # by micro-batch
    initialise: Callable[[str, nn.Module], None]  # adapters of a named network


@dataclass(frozen=True)
class Trained:
    """Seconds and mean losses of each optimiser step."""

    step_s: list[float]
    losses: list[float]


class Slices(torch.utils.data.Dataset[dict[str, Any]]):
    """An imagefolder; each slice is decoded when it is asked for."""

    def __init__(self, folder: Path, resolution: int) -> None:
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]
        self.folder, self.resolution = folder, resolution

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        with Image.open(self.folder / row["file_name"]) as opened:
            image = opened.convert("RGB")
        size = (self.resolution, self.resolution)
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1)
        return {"pixels": pixels.permute(2, 0, 1), "text": row["text"]}


def load_pipeline(weights: str, dtype: torch.dtype) -> Any:
    """Load all parts, without the safety checker."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(
        weights, dtype=dtype, use_safetensors=True, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encode(
    texts: Sequence[str], tokenizers: Sequence[Any], encoders: Sequence[nn.Module], is_sdxl: bool
) -> tuple[Tensor, Tensor | None]:
    """Return embeddings (batch, 77, width), and SDXL's pooled ones."""
    hidden, pooled = [], None
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        ids = tokenizer(
            list(texts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        out = encoder(ids.to(next(encoder.parameters()).device), output_hidden_states=is_sdxl)
        if is_sdxl:
            pooled = out[0]
            hidden.append(out.hidden_states[-2])
        else:
            hidden.append(out.last_hidden_state)
    return torch.cat(hidden, dim=-1), pooled


def snr_weights(noise_scheduler: Any, timesteps: Tensor) -> Tensor:
    """Return the min-SNR weights of the published scripts, (batch,)."""
    from diffusers.training_utils import compute_snr

    snr = compute_snr(noise_scheduler, timesteps)
    kept = torch.minimum(snr, torch.full_like(snr, MIN_SNR_GAMMA))
    if noise_scheduler.config.prediction_type == "v_prediction":
        snr = snr + 1
    return kept / snr


def build_optimizer(job: TrainingJob, parameters: list[nn.Parameter]) -> Any:
    """Build AdamW, in 8 bits where the job asks for it."""
    if job.optimizer == "adamw_8bit":
        import bitsandbytes

        kind = bitsandbytes.optim.AdamW8bit
    else:
        kind = torch.optim.AdamW
    return kind(parameters, lr=job.learning_rate, weight_decay=WEIGHT_DECAY)


def train(job: TrainingJob, given: Given | None = None) -> Trained:
    """Fine-tune as the published scripts do; save the adapter at the end."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    torch.manual_seed(job.seed)
    is_half = job.dtype == "bfloat16"
    accelerator = Accelerator(
        gradient_accumulation_steps=job.accumulation,
        cpu=job.device == "cpu",
        mixed_precision="bf16" if is_half else "no",
    )
    dtype = torch.bfloat16 if is_half else torch.float32
    pipeline = load_pipeline(job.weights, dtype)
    is_sdxl = hasattr(pipeline, "text_encoder_2")
    vae, unet = pipeline.vae, pipeline.unet
    suffixes = ("", "_2") if is_sdxl else ("",)
    encoders = [getattr(pipeline, f"text_encoder{suffix}") for suffix in suffixes]
    tokenizers = [getattr(pipeline, f"tokenizer{suffix}") for suffix in suffixes]
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    for part in (vae, unet, *encoders):
        part.requires_grad_(False)
        part.to(accelerator.device)
    vae.to(torch.float32)  # SDXL's own overflows in half precision

    places = [("unet", unet, ATTENTION)]
    if job.trains_text:
        names = ("text_encoder", "text_encoder_2")
        places += [(n, e, TEXT_ATTENTION) for n, e in zip(names, encoders, strict=False)]
    for name, module, targets in places:
        module.add_adapter(
            LoraConfig(
                r=job.rank,
                lora_alpha=job.rank,
                init_lora_weights="gaussian",
                target_modules=list(targets),
            )
        )
        if given is not None:
            given.initialise(name, module)
        module.train()
    trained = [module for _, module, _ in places]
    if is_half:
        cast_training_params(trained, dtype=torch.float32)
    if job.is_checkpointed:
        unet.enable_gradient_checkpointing()
        for encoder in encoders if job.trains_text else []:
            encoder.gradient_checkpointing_enable()
    # a list: the scripts' iterator is used up by the optimiser, and then clips nothing
    parameters = [p for module in trained for p in module.parameters() if p.requires_grad]
    optimizer = build_optimizer(job, parameters)
    slices = Slices(Path(job.data) / "caption", job.resolution)
    loader = torch.utils.data.DataLoader(
        slices,
        batch_size=job.batch_size,
        sampler=list(given.rows) if given else shuffled(len(slices), job),
    )
    *prepared, optimizer, loader = accelerator.prepare(*trained, optimizer, loader)

    step_s, losses, total = [], [], torch.zeros((), device=accelerator.device)
    began = time.perf_counter()
    for number, batch in enumerate(loader):
        with accelerator.accumulate(*prepared):
            pixels = batch["pixels"].to(accelerator.device, torch.float32)
            with torch.no_grad():
                posterior = vae.encode(pixels).latent_dist
            drawn = given.noise(number) if given else draw(posterior.mean, noise_scheduler)
            latents = posterior.mean + posterior.std * drawn.posterior.to(accelerator.device)
            latents = (latents * vae.config.scaling_factor).to(dtype)
            noise = drawn.noise.to(accelerator.device, dtype)
            timesteps = drawn.timesteps.to(accelerator.device)
            noisy = noise_scheduler.add_noise(latents, noise, timesteps)
            embeds, pooled = encode(batch["text"], tokenizers, encoders, is_sdxl)
            added = None
            if is_sdxl:
                size = [job.resolution] * 2
                ids = torch.tensor([[*size, 0, 0, *size]] * len(latents), dtype=dtype)
                added = {"text_embeds": pooled, "time_ids": ids.to(accelerator.device)}
            prediction = unet(
                noisy,
                timesteps,
                encoder_hidden_states=embeds,
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
            target = noise
            if noise_scheduler.config.prediction_type == "v_prediction":
                target = noise_scheduler.get_velocity(latents, noise, timesteps)
            squared = F.mse_loss(prediction.float(), target.float(), reduction="none")
            weights = snr_weights(noise_scheduler, timesteps)
            loss = (squared.mean(dim=(1, 2, 3)) * weights).mean()
            accelerator.backward(loss)
            # as the scripts do for their progress bar
            total += accelerator.gather(loss.detach()).mean() / job.accumulation
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            losses.append(float(total))
            total = torch.zeros_like(total)
            step_s.append(time.perf_counter() - began)
            began = time.perf_counter()
    return Trained(step_s, losses)


def shuffled(count: int, job: TrainingJob) -> list[int]:
    """Return rows for all steps: every epoch all slices, in random order."""
    wanted = job.steps * job.batch_size * job.accumulation
    epochs = [torch.randperm(count).tolist() for _ in range(-(-wanted // count))]
    return [row for epoch in epochs for row in epoch][:wanted]


def draw(like: Tensor, noise_scheduler: Any) -> Noise:
    """Draw a micro-batch's randomness from the global generator, as the scripts do."""
    steps = noise_scheduler.config.num_train_timesteps
    timesteps = torch.randint(0, steps, (len(like),), device=like.device)
    return Noise(torch.randn_like(like), torch.randn_like(like), timesteps)


def generate(job: SamplingJob) -> None:
    """Sample one prompt at a time, and save each image as `out/NUMBER.png`."""
    from diffusers import DPMSolverMultistepScheduler

    dtype = {"float32": torch.float32, "float16": torch.float16}[job.dtype]
    pipeline = load_pipeline(job.weights, dtype).to(job.device)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.load_lora_weights(job.adapter)
    folder = Path(job.out)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (text, seed) in enumerate(job.prompts):
        image = pipeline(
            text,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            height=job.image_size,
            width=job.image_size,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        image.save(folder / f"{number:05d}.png")


def caption(captioner: Any, slices: Sequence[Any], paths: Sequence[Path]) -> Iterator[Any]:
    """Ask a captioner for one slice at a time."""
    for item, path in zip(slices, paths, strict=True):
        yield from captioner.describe([item], [path])
