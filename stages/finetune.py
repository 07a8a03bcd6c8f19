"""Fine-tune a diffusion model on captioned slices with LoRA.

Reads: slices (preprocess) and their captions (caption), splits `train` and `val`.
Writes: `pytorch_lora_weights.safetensors` at the artifact's root, for
`pipe.load_lora_weights(ARTIFACT)`; the newest earlier checkpoints below `checkpoints/`;
`train_log.jsonl`, one row per optimiser step; a `CheckpointRecord` for each state that is kept.
Invariants: steps are optimiser steps; adapter weights are float32; every random draw comes from
(seed, step, sample), so a killed run resumes to the same bytes (CPU, same library versions).
Methods: "LoRA adapters were trained for N optimiser steps of B slices with AdamW, a cosine
schedule, min-SNR weighting and caption dropout; the base model stayed frozen."
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    CheckpointRecord,
    Context,
    SliceRecord,
    Stage,
)
from pipeline.errors import TrainingError
from pipeline.settings import FinetuneConfig
from stages.components import checkpointing
from stages.components.clip_text import MAX_TOKENS, token_counter
from stages.components.diffusion import BaseModel, predict, time_ids, torch_dtype
from stages.components.lora import AdaptedModel, LoraPlan, add_adapters, save_adapter
from stages.components.training import (
    build_optimizer,
    clip_gradients,
    learning_rate,
    loss_weights,
    require_prediction_type,
    sample_losses,
    set_learning_rates,
    signal_to_noise,
    training_target,
)
from stages.components.training_log import (
    LOG_FILE,
    LogRow,
    append_log,
    checkpoint_records,
    describe_row,
    read_log,
    write_log,
)
from stages.components.training_set import (
    Batch,
    TrainingSet,
    build_training_set,
    draw_held_out,
    draw_step,
    pick_held_out,
    read_samples,
    split_batch,
)


@dataclass(frozen=True)
class FinetuneInputs:
    preprocess: Artifact[SliceRecord]
    caption: Artifact[CaptionRecord]


@dataclass(frozen=True)
class Trainer:
    """All that one optimiser step needs; `base` holds the networks as accelerate prepared them."""

    config: FinetuneConfig
    base: BaseModel
    models: list[AdaptedModel]
    optimizer: Any  # accelerate's wrapper: it steps only when gradients are in step
    accelerator: Any
    device: torch.device
    dtype: torch.dtype
    train: TrainingSet
    held_out: TrainingSet
    seed: int

    @property
    def trained(self) -> list[nn.Module]:
        """The networks whose gradients accelerate must hold back while accumulating: all of them.

        Naming the UNet alone would reduce the text encoders' gradients on every micro-batch.
        """
        return [
            self.base.unet,
            *(self.base.text_encoders if self.config.train_text_encoder else []),
        ]

    @property
    def effective_batch(self) -> int:
        """Slices per optimiser step: batch x accumulation x processes."""
        processes = int(self.accelerator.num_processes)
        return self.config.batch_size * self.config.gradient_accumulation_steps * processes

    @property
    def num_timesteps(self) -> int:
        """Length of the diffusion, 1000 for both families."""
        return int(self.base.noise_scheduler.config.num_train_timesteps)


def compute_losses(trainer: Trainer, data: TrainingSet, batch: Batch) -> Tensor:
    """Return the weighted loss of each sample, float32 (batch,); consumes no randomness."""
    config, base, device = trainer.config, trainer.base, trainer.device
    rows, draws = batch.rows, batch.draws
    crops = [draw.crop for draw in draws]

    # Drawn afresh from the cached posterior, so the cache freezes nothing.
    posterior = torch.stack([draw.posterior for draw in draws])
    latents = data.latents.mean[rows, crops] + data.latents.std[rows, crops] * posterior
    latents = latents.to(device)
    noise = torch.stack([draw.noise for draw in draws]).to(device)
    timesteps = torch.tensor([draw.timestep for draw in draws], device=device)
    noisy = base.noise_scheduler.add_noise(latents, noise, timesteps)

    captions = (data.samples[row].text for row in rows)
    texts = ["" if d.drops_caption else text for d, text in zip(draws, captions, strict=True)]
    ids = time_ids(config.resolution, data.latents.crops[rows, crops].to(device))
    with torch.autocast(device.type, torch.bfloat16, enabled=trainer.dtype == torch.bfloat16):
        conditioning = data.condition(base, texts, device)
        prediction = predict(base, noisy.to(trainer.dtype), timesteps, conditioning, ids)

    target = training_target(base.noise_scheduler, latents, noise, timesteps)
    snr = signal_to_noise(base.noise_scheduler.alphas_cumprod, timesteps)
    kind = base.noise_scheduler.config.prediction_type
    return sample_losses(prediction, target, loss_weights(snr, kind, config.min_snr_gamma))


def optimise(trainer: Trainer, step: int) -> tuple[float, float]:
    """Take one optimiser step.

    Returns:
        The mean loss over the step's samples, and the gradient norm before clipping.

    Raises:
        TrainingError: Loss or gradient is not finite; the weights are left as they were.
    """
    config, accelerator = trainer.config, trainer.accelerator
    micro_batches = split_batch(
        draw_step(
            trainer.train,
            seed=trainer.seed,
            step=step,
            effective_batch=trainer.effective_batch,
            num_timesteps=trainer.num_timesteps,
            caption_dropout=config.caption_dropout,
        ),
        config.batch_size,
    )
    parameters = [p for model in trainer.models for p in model.parameters()]
    total, grad_norm = torch.zeros((), device=trainer.device), math.nan
    for batch in micro_batches[accelerator.process_index :: accelerator.num_processes]:
        with accelerator.accumulate(*trainer.trained):
            loss = compute_losses(trainer, trainer.train, batch).mean()
            accelerator.backward(loss)  # divides by the number of accumulated micro-batches
            total += loss.detach() / config.gradient_accumulation_steps
            if accelerator.sync_gradients:
                grad_norm = clip_gradients(parameters, config.max_grad_norm)
                require_finite(step, float(total), grad_norm)
                set_learning_rates(trainer.optimizer, learning_rates(config, step))
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
    return float(accelerator.reduce(total, "mean")), grad_norm


def require_finite(step: int, loss: float, grad_norm: float) -> None:
    """Stop before NaN or infinity reaches the weights.

    Raises:
        TrainingError: Names the step.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise TrainingError(
            f"step {step}: loss {loss} and gradient norm {grad_norm} are not both finite. The last "
            "checkpoint is kept; lower finetune.learning_rate or use float32, then rerun."
        )


def learning_rates(config: FinetuneConfig, step: int) -> list[float]:
    """Return the rate of each parameter group in a step: UNet, then text encoders if trained.

    Set by hand: accelerate would step a scheduler once per process, and scripts that scale its
    counts by the accumulation never leave the warm-up.
    """
    return [
        learning_rate(
            step,
            peak=peak,
            warmup_steps=config.warmup_steps,
            max_steps=config.max_steps,
            schedule=config.lr_schedule,
        )
        for peak in peak_rates(config)
    ]


def peak_rates(config: FinetuneConfig) -> list[float]:
    """Return the highest rate of each parameter group."""
    rates = [config.learning_rate]
    if config.train_text_encoder:
        rates.append(config.text_encoder_learning_rate or config.learning_rate)
    return rates


def compute_held_out_loss(trainer: Trainer) -> float:
    """Return the mean weighted loss on held-out slices, with the same noise every time."""
    batch = draw_held_out(trainer.held_out, seed=trainer.seed, num_timesteps=trainer.num_timesteps)
    # One size of batch whatever `batch_size` is, so that arms can be compared.
    with torch.no_grad():
        losses = [compute_losses(trainer, trainer.held_out, b) for b in split_batch(batch, 16)]
    return float(torch.cat(losses).double().mean())


def train(
    trainer: Trainer, output: ArtifactWriter[CheckpointRecord], context: Context
) -> list[LogRow]:
    """Run all optimiser steps, from the newest checkpoint on if there is one; return the log."""
    config, is_main = trainer.config, trainer.accelerator.is_main_process
    optimizer = trainer.optimizer.optimizer
    done, seconds = checkpointing.restore_newest(output.root, trainer.models, optimizer)
    log_path = output.path(LOG_FILE)
    if done:
        context.progress(f"finetune: going on after step {done} of {config.max_steps}")
        log = read_log(log_path, done)
    else:
        log = [LogRow(0, None, 0.0, None, compute_held_out_loss(trainer), 0.0)]
    if is_main:
        write_log(log_path, log)

    began = time.monotonic() - seconds
    for step in range(done + 1, config.max_steps + 1):
        loss, grad_norm = optimise(trainer, step)

        is_last, is_checkpoint = step == config.max_steps, step % config.checkpoint_every == 0
        is_judged = is_last or is_checkpoint or step % config.validate_every == 0
        held_out = compute_held_out_loss(trainer) if is_judged else None
        seconds = round(time.monotonic() - began, 3)
        rate = learning_rates(config, step)[0]
        log.append(LogRow(step, loss, rate, grad_norm, held_out, seconds))
        if is_main:
            append_log(log_path, log[-1])
        if is_main and is_checkpoint and not is_last:
            checkpointing.save_checkpoint(
                output.root, step, seconds, trainer.models, optimizer, config.keep_checkpoints
            )
        if is_judged or step % max(1, config.max_steps // 20) == 0:
            context.progress(describe_row(log[-1], config.max_steps))
    return log


def freeze_but_adapt(
    base: BaseModel, config: FinetuneConfig, default_targets: Sequence[str], seed: int
) -> list[AdaptedModel]:
    """Add the adapters that the config asks for; checkpoint the UNet (most activations are its)."""
    rank = config.lora_rank
    plan = LoraPlan(
        rank=rank,
        alpha=config.lora_alpha or float(rank),
        target_modules=config.target_modules or tuple(default_targets),
        text_encoder_rank=(config.text_encoder_rank or rank) if config.train_text_encoder else None,
    )
    models = add_adapters(base, plan, seed)
    for model in models:
        model.module.train()
    if config.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    return models


def build_accelerator(config: FinetuneConfig, device: str) -> Any:
    """Build accelerate's part: accumulation and gradient exchange, no autocast, no schedule."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # The last layer of SDXL's first text encoder feeds nothing, so its adapter gets no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.train_text_encoder)
    return Accelerator(
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        cpu=device == "cpu",
        device_placement=False,
        kwargs_handlers=[unused],
    )


def release(base: BaseModel, config: FinetuneConfig) -> None:
    """Move to the CPU what has been cached for good; on a GPU, memory is what limits the batch."""
    base.vae.to("cpu")
    for encoder in [] if config.train_text_encoder else base.text_encoders:
        encoder.to("cpu")


def parameter_groups(
    models: Sequence[AdaptedModel], config: FinetuneConfig
) -> list[tuple[list[nn.Parameter], float]]:
    """Pair trained tensors with their peak rates: UNet, then all text encoders together."""
    unet, *encoders = models
    groups = [unet.parameters()]
    if encoders:
        groups.append([p for model in encoders for p in model.parameters()])
    return list(zip(groups, peak_rates(config), strict=True))


def with_prepared(base: BaseModel, modules: Sequence[nn.Module]) -> BaseModel:
    """Put accelerate's networks (wrapped, when there are several processes) in place of ours."""
    unet, *encoders = modules
    return replace(base, unet=unet, text_encoders=encoders or base.text_encoders)


def describe_run(
    trainer: Trainer,
    inputs: FinetuneInputs,
    log: Sequence[LogRow],
    output: ArtifactWriter[CheckpointRecord],
) -> None:
    """Put counts and notes for the report into the manifest."""
    count = token_counter(trainer.base.tokenizers)
    output.counts |= {
        "train": len(trainer.train.samples),
        "held_out": len(trainer.held_out.samples),
        "captions_failed": sum(row.status == "failed" for row in inputs.caption.records()),
        "captions_cut": sum(count(s.text) > MAX_TOKENS for s in trainer.train.samples),
    }
    output.notes |= {
        "family": trainer.base.family,
        "trainable_parameters": {
            model.prefix: sum(p.numel() for p in model.parameters()) for model in trainer.models
        },
        "effective_batch": trainer.effective_batch,
        "optimizer_steps": log[-1].step,
        "images_seen": log[-1].step * trainer.effective_batch,
        "seconds_per_step": log[-1].seconds / log[-1].step,
        "held_out_loss": {"first": log[0].held_out_loss, "last": log[-1].held_out_loss},
    }


def run(
    config: FinetuneConfig,
    inputs: FinetuneInputs,
    output: ArtifactWriter[CheckpointRecord],
    context: Context,
) -> None:
    """Train one arm's adapter; only this function picks a model."""
    assert config.base_model is not None, "filled in by the runner"
    torch.set_num_threads(context.num_threads)
    plugin = registry.find(registry.BASE_MODELS, config.base_model.name)
    settings = plugin.Settings.model_validate(config.base_model.settings)
    train_samples = read_samples(inputs.preprocess, inputs.caption, "train")
    val_samples = read_samples(inputs.preprocess, inputs.caption, "val")

    accelerator = build_accelerator(config, context.device)
    device = accelerator.device if accelerator.num_processes > 1 else torch.device(context.device)
    dtype = torch_dtype(context.dtype)
    base: BaseModel = plugin.load(settings, dtype=dtype, device=device)
    require_prediction_type(base.noise_scheduler.config.prediction_type)
    held_out = pick_held_out(val_samples, config.num_validation_samples, context.seed)
    common: dict[str, Any] = {
        "resolution": config.resolution,
        "trains_text_encoder": config.train_text_encoder,
        "cache_dir": context.cache_dir,
        "progress": context.progress,
    }
    models = freeze_but_adapt(base, config, plugin.default_target_modules, context.seed)
    optimizer = build_optimizer(
        config.optimizer, parameter_groups(models, config), config.weight_decay
    )
    prepared = accelerator.prepare(*(model.module for model in models), optimizer)
    trainer = Trainer(
        config=config,
        base=with_prepared(base, prepared[:-1]),
        models=models,
        optimizer=prepared[-1],
        accelerator=accelerator,
        device=device,
        dtype=dtype,
        train=build_training_set(
            base, train_samples, crops_per_image=config.crops_per_image, **common
        ),
        held_out=build_training_set(base, held_out, crops_per_image=1, **common),
        seed=context.seed,
    )
    release(base, config)
    log = train(trainer, output, context)
    if accelerator.is_main_process:
        save_adapter(models, output.root)
        checkpointing.drop_states(output.root)
        kept = checkpointing.list_checkpoints(output.root)
        output.write(checkpoint_records(log, kept))
        describe_run(trainer, inputs, log, output)


STAGE = Stage("finetune", run, FinetuneConfig, FinetuneInputs, CheckpointRecord)
