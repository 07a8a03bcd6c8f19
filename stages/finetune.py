"""Fine-tune a diffusion model on captioned slices with LoRA, rsLoRA or DoRA.

Reads: slices (preprocess) and their captions (caption), splits `train` and `val`.
Writes: `pytorch_lora_weights.safetensors` at the artifact's root, for
`pipe.load_lora_weights(ARTIFACT)`; `kohya/lora.safetensors`, the same for other tools; `README.md`,
its card; the newest earlier checkpoints below `checkpoints/`; `train_log.jsonl`, one row per
optimiser step; `tensorboard/`; a `CheckpointRecord` for each state that is kept.
Invariants: steps are optimiser steps; adapter weights are float32; every random draw comes from
(seed, step, sample), so a killed run resumes to the same bytes (CPU, same library versions).
Methods: "LoRA adapters were trained for N optimiser steps of B slices with AdamW, a cosine
schedule, min-SNR weighting and caption dropout; the base model stayed frozen."
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import nn

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
from stages.components import checkpointing, tracking
from stages.components.adapter_export import save_kohya
from stages.components.adapter_targets import text_targets, unet_targets
from stages.components.averaging import AdapterAverage, judged_weights
from stages.components.diffusion import ADAPTER_FILE, BaseModel, torch_dtype
from stages.components.lora import AdaptedModel, LoraPlan, add_adapters, save_adapter
from stages.components.loss_weighting import require_prediction_type
from stages.components.memory import GIB
from stages.components.model_card import write_card
from stages.components.optimizers import build_optimizer, effective_rate
from stages.components.quantisation import quantise_unet
from stages.components.trainer import (
    Trainer,
    compute_held_out_loss,
    explained,
    optimise,
    parameter_groups,
)
from stages.components.training_checks import missing_library
from stages.components.training_log import (
    LOG_FILE,
    LogRow,
    Pace,
    append_log,
    as_scalars,
    best_step,
    checkpoint_records,
    describe_row,
    is_past_best,
    read_log,
    write_log,
)
from stages.components.training_set import build_training_set, pick_held_out, read_samples
from stages.components.training_summary import card_facts, counts_of, notes_of, warnings_of


@dataclass(frozen=True)
class FinetuneInputs:
    preprocess: Artifact[SliceRecord]
    caption: Artifact[CaptionRecord]


Output = ArtifactWriter[CheckpointRecord]


def train(trainer: Trainer, output: Output, context: Context) -> list[LogRow]:
    """Run all optimiser steps, from the newest checkpoint on if there is one; return the log."""
    config, is_main = trainer.config, trainer.accelerator.is_main_process
    patience = config.early_stop_patience
    optimizer, models, average = trainer.own_optimizer, trainer.models, trainer.average
    done, seconds = checkpointing.restore_newest(output.root, models, optimizer, average)
    log_path = output.path(LOG_FILE)
    if done:
        context.progress(f"finetune: going on after step {done} of {config.max_steps}")
        log = read_log(log_path, done)
    else:
        log = [LogRow(0, None, 0.0, None, compute_held_out_loss(trainer), 0.0)]
    trackers: list[tracking.Tracker] = []
    if is_main:
        write_log(log_path, log)
        checkpointing.drop_best(output.root, best_step(log))
        trackers = tracking.open_trackers(
            config.trackers,
            output.root,
            experiment=context.experiment,
            first_step=done + 1,
            config=config.model_dump(mode="json"),
        )

    started = time.monotonic()
    began = started - seconds
    for step in range(done + 1, config.max_steps + 1):
        with explained(step):
            loss, grad_norm = optimise(trainer, step)

            is_last, is_checkpoint = step == config.max_steps, step % config.checkpoint_every == 0
            is_judged = is_last or is_checkpoint or step % config.validate_every == 0
            held_out = compute_held_out_loss(trainer) if is_judged else None
            now = time.monotonic()
            rate = effective_rate(optimizer)
            log.append(LogRow(step, loss, rate, grad_norm, held_out, round(now - began, 3)))
            pace = measure(trainer, step - done, now - started)
            if is_main:
                append_log(log_path, log[-1])
                for tracker in trackers:
                    tracker.log(step, as_scalars(log[-1], pace))
                if config.select == "best" and is_judged and best_step(log) == step:
                    with judged_weights(models, optimizer, average):
                        checkpointing.save_best(output.root, step, models)
                if is_checkpoint and not is_last:
                    checkpointing.save_checkpoint(
                        output.root,
                        step,
                        log[-1].seconds,
                        models,
                        optimizer,
                        config.keep_checkpoints,
                        average,
                    )
                    checkpointing.drop_best(output.root, best_step(log))
        if is_judged or step % max(1, config.max_steps // 20) == 0:
            context.progress(describe_row(log[-1], config.max_steps, pace))
        if patience is not None and not is_last and is_judged and is_past_best(log, patience):
            context.progress(
                f"finetune: stopped early, least held-out loss at step {best_step(log)}"
            )
            break
    for tracker in trackers:
        tracker.close()
    return log


def measure(trainer: Trainer, steps: int, seconds: float) -> Pace:
    """Say how fast this process has trained so far, over all processes, and its memory."""
    if trainer.device.type == "cuda":
        used = torch.cuda.max_memory_allocated(trainer.device)
    else:
        used = psutil.Process().memory_info().rss
    return Pace(steps * trainer.effective_batch / max(seconds, 1e-9), used / GIB)


def freeze_but_adapt(
    base: BaseModel, config: FinetuneConfig, default_targets: Sequence[str], seed: int
) -> list[AdaptedModel]:
    """Add the adapters that the config asks for; checkpoint the UNet (most activations are its)."""
    rank = config.lora_rank
    plan = LoraPlan(
        rank=rank,
        alpha=config.lora_alpha or float(rank),
        target_modules=unet_targets(config, tuple(default_targets)),
        text_encoder_rank=(config.text_encoder_rank or rank) if config.train_text_encoder else None,
        kind=config.adapter,
        text_targets=text_targets(config),
    )
    models = add_adapters(base, plan, seed)
    for model in models:
        model.module.train()
    if config.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    if config.compile_blocks:
        base.unet.compile_repeated_blocks()
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


def with_prepared(base: BaseModel, modules: Sequence[nn.Module]) -> BaseModel:
    """Put accelerate's networks (wrapped, when there are several processes) in place of ours."""
    unet, *encoders = modules
    return replace(base, unet=unet, text_encoders=encoders or base.text_encoders)


def save_result(trainer: Trainer, log: Sequence[LogRow], output: Output) -> int:
    """Write the resulting adapter in both layouts, drop what is not needed; return its step."""
    step = log[-1].step
    if trainer.config.select == "best":
        best = best_step(log)
        assert best is not None, "the last step is always judged"
        step = best
        folder = checkpointing.checkpoint_path(output.root, step, checkpointing.BEST)
        shutil.copyfile(folder / ADAPTER_FILE, output.root / ADAPTER_FILE)
    else:
        with judged_weights(trainer.models, trainer.own_optimizer, trainer.average):
            save_adapter(trainer.models, output.root)
    shutil.rmtree(output.root / checkpointing.BEST, ignore_errors=True)
    unet = trainer.models[0].module
    save_kohya(output.root / ADAPTER_FILE, output.root, trainer.base.family, unet.config)
    checkpointing.drop_states(output.root)
    return step


def run(config: FinetuneConfig, inputs: FinetuneInputs, output: Output, context: Context) -> None:
    """Train one arm's adapter; only this function picks a model.

    Raises:
        TrainingError: A package is missing, there is no data, or training cannot go on.
    """
    assert config.base_model is not None, "filled in by the runner"
    for problem in filter(None, map(missing_library, (config.optimizer, *config.trackers))):
        raise TrainingError(problem)
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
    if config.quantize_base:
        quantise_unet(base.unet, dtype)
    common: dict[str, Any] = {
        "resolution": config.resolution,
        "trains_text_encoder": config.train_text_encoder,
        "cache_dir": context.cache_dir,
        "progress": context.progress,
    }
    held_out = pick_held_out(val_samples, config.num_validation_samples, context.seed)
    # Before the adapters: what is cached is the base model's, and its weights are its key.
    with explained(0):
        train_set = build_training_set(
            base,
            train_samples,
            crops_per_image=config.crops_per_image,
            is_mirrored=config.mirror,
            **common,
        )
        held_out_set = build_training_set(
            base, held_out, crops_per_image=1, is_mirrored=False, **common
        )
    models = freeze_but_adapt(base, config, plugin.default_target_modules, context.seed)
    optimizer = build_optimizer(
        config.optimizer, parameter_groups(models, config), config.weight_decay
    )
    decay = config.ema_decay
    prepared = accelerator.prepare(*(model.module for model in models), optimizer)
    trainer = Trainer(
        config=config,
        base=with_prepared(base, prepared[:-1]),
        models=models,
        optimizer=prepared[-1],
        accelerator=accelerator,
        device=device,
        dtype=dtype,
        train=train_set,
        held_out=held_out_set,
        seed=context.seed,
        average=AdapterAverage(models, decay) if decay is not None else None,
    )
    release(base, config)
    for line in warnings_of(trainer):
        context.progress(f"finetune: {line}")
    log = train(trainer, output, context)
    if accelerator.is_main_process:
        with explained(log[-1].step):
            result = save_result(trainer, log, output)
            kept = checkpointing.list_checkpoints(output.root)
            output.write(checkpoint_records(log, kept, result))
            output.counts |= counts_of(trainer, inputs.caption)
            output.notes |= notes_of(trainer, log, result)
            facts = card_facts(trainer, inputs.preprocess, inputs.caption, log, result)
            write_card(output.root, facts)


STAGE = Stage("finetune", run, FinetuneConfig, FinetuneInputs, CheckpointRecord)
