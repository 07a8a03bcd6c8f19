"""Fine-tune a diffusion model on captioned slices: LoRA, rsLoRA, DoRA or textual inversion.

Reads: slices (preprocess) and their captions (caption), splits `train` and `val`.
Writes: `pytorch_lora_weights.safetensors` at the artifact's root, for
`pipe.load_lora_weights(ARTIFACT)`, and `kohya/lora.safetensors`, the same for other tools; or, for
textual inversion, `learned_embeds.safetensors`, for `pipe.load_textual_inversion`. `README.md`, its
card; the newest earlier checkpoints below `checkpoints/`; `train_log.jsonl`, one row per optimiser
step; `tensorboard/`; `samples/step-000100.png` where asked for; a `CheckpointRecord` for each state
that is kept.
Invariants: steps are optimiser steps; what is trained is float32; every random draw comes from
(seed, step, sample), so a killed run resumes to the same bytes (CPU, same library versions), with
sample grids or without.
Methods: "LoRA adapters were trained for N optimiser steps of B slices with AdamW, a cosine
schedule, min-SNR weighting and caption dropout; the base model stayed frozen."
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

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
from stages.components.diffusion.adapters import ADAPTER_FILE
from stages.components.diffusion.base_model import BaseModel, torch_dtype
from stages.components.diffusion.grounding import watch_attention
from stages.components.diffusion.placeholder import Placeholder
from stages.components.diffusion.tokens import token_counter
from stages.finetune import checkpoints, kid_selection, preview, push
from stages.finetune.adapters.export import result_file, save_trained
from stages.finetune.adapters.kohya import save_kohya
from stages.finetune.averaging import AdapterAverage, judged_weights
from stages.finetune.card import write_card
from stages.finetune.checks import missing_library
from stages.finetune.kid_selection import KidJudge
from stages.finetune.log import (
    LOG_FILE,
    LogRow,
    Measure,
    Pace,
    append_log,
    as_scalars,
    best_step,
    checkpoint_records,
    describe_row,
    is_past_best,
    read_log,
    sync_log,
    write_log,
)
from stages.finetune.loss import require_prediction_type
from stages.finetune.memory import GIB
from stages.finetune.optimizers import build_optimizer, effective_rate, parameter_groups
from stages.finetune.preview import Preview
from stages.finetune.setup import (
    add_trained,
    build_accelerator,
    keep_freed_memory,
    quantise_unet,
    release,
    with_prepared,
)
from stages.finetune.summary import card_facts, counts_of, notes_of, warnings_of
from stages.finetune.trackers import Tracker, open_trackers
from stages.finetune.trainer import Trainer, compute_held_out_loss, explained, optimise
from stages.finetune.training_set import Sample, build_training_set, pick_held_out, read_samples


@dataclass(frozen=True)
class FinetuneInputs:
    preprocess: Artifact[SliceRecord]
    caption: Artifact[CaptionRecord]


Output = ArtifactWriter[CheckpointRecord]


@dataclass(frozen=True)
class Watch:
    """What looks at images while training goes on, where the config asks for it."""

    grid: Preview | None = None
    judge: KidJudge | None = None

    @property
    def measure(self) -> Measure:
        """What states are compared by."""
        return "held_out_loss" if self.judge is None else "kid"

    def score(self, trainer: Trainer) -> float | None:
        """Return the KID now; None where it is not asked for."""
        return None if self.judge is None else kid_selection.compute_kid(trainer, self.judge)


def train(trainer: Trainer, watch: Watch, output: Output, context: Context) -> list[LogRow]:
    """Run all optimiser steps, from the newest checkpoint on if there is one; return the log."""
    config, is_main = trainer.config, trainer.accelerator.is_main_process
    patience, measure = config.early_stop_patience, watch.measure
    optimizer, models, average = trainer.own_optimizer, trainer.models, trainer.average
    done, seconds = checkpoints.restore_newest(output.root, models, optimizer, average)
    log_path = output.path(LOG_FILE)
    if done:
        context.progress(f"finetune: going on after step {done} of {config.max_steps}")
        log = read_log(log_path, done)
    else:
        log = [LogRow(0, None, 0.0, None, compute_held_out_loss(trainer), 0.0)]
    trainer.accelerator.wait_for_everyone()  # all have read what the main process writes anew
    trackers: list[Tracker] = []
    if is_main:
        write_log(log_path, log)
        checkpoints.drop_best(output.root, best_step(log, measure))
        trackers = open_trackers(
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
            is_validation = is_last or step % config.validate_every == 0
            is_judged = is_checkpoint or is_validation
            held_out = compute_held_out_loss(trainer) if is_judged else None
            kid = watch.score(trainer) if is_validation else None
            now = time.monotonic()
            rate = effective_rate(optimizer)
            log.append(LogRow(step, loss, rate, grad_norm, held_out, round(now - began, 3), kid))
            pace = measure_pace(trainer, step - done, now - started)
            if is_main:
                append_log(log_path, log[-1])
                for tracker in trackers:
                    tracker.log(step, as_scalars(log[-1], pace))
                if watch.grid is not None and step % config.sample_every == 0:
                    grid = preview.write_grid(trainer, watch.grid, output.root, step)
                    for tracker in trackers:
                        tracker.show(step, "samples", grid)
                if config.select_by != "last" and best_step(log, measure) == step:
                    with judged_weights(models, optimizer, average):
                        checkpoints.save_best(output.root, step, models)
                if is_checkpoint and not is_last:
                    sync_log(log_path)
                    checkpoints.save_checkpoint(
                        output.root,
                        step,
                        log[-1].seconds,
                        models,
                        optimizer,
                        config.keep_checkpoints,
                        average,
                    )
                    checkpoints.drop_best(output.root, best_step(log, measure))
        if is_judged or step % max(1, config.max_steps // 20) == 0:
            context.progress(describe_row(log[-1], config.max_steps, pace))
        is_over = patience is not None and is_judged and is_past_best(log, patience, measure)
        if is_over and not is_last:
            name = "KID" if measure == "kid" else "held-out loss"
            context.progress(
                f"finetune: stopped early, least {name} at step {best_step(log, measure)}"
            )
            break
    for tracker in trackers:
        tracker.close()
    return log


def measure_pace(trainer: Trainer, steps: int, seconds: float) -> Pace:
    """Say how fast this process has trained so far, over all processes, and its memory."""
    if trainer.device.type == "cuda":
        used = torch.cuda.max_memory_allocated(trainer.device)
    else:
        used = psutil.Process().memory_info().rss
    return Pace(steps * trainer.effective_batch / max(seconds, 1e-9), used / GIB)


def build_watch(
    base: BaseModel, samples: list[Sample], config: FinetuneConfig, context: Context, device: str
) -> Watch:
    """Choose the prompts of grids and of selection by KID, from validation slices."""
    grid = judge = None
    if config.sample_every:
        grid = preview.build_preview(
            base,
            preview.pick_views(samples),
            purpose="preview",
            seed=context.seed,
            trains_text=config.trains_text,
        )
    if config.kid_selects:
        judge = kid_selection.build_judge(
            base, samples, config, seed=context.seed, device=device, cache_dir=context.cache_dir
        )
    return Watch(grid, judge)


def save_result(trainer: Trainer, watch: Watch, log: Sequence[LogRow], output: Output) -> int:
    """Write the result in its layouts, drop what is not needed; return its step."""
    step = log[-1].step
    name = result_file(trainer.models)
    if trainer.config.select_by != "last":
        best = best_step(log, watch.measure)
        assert best is not None, "the last step is always judged"
        step = best
        folder = checkpoints.checkpoint_path(output.root, step, checkpoints.BEST)
        shutil.copyfile(folder / name, output.root / name)
    else:
        with judged_weights(trainer.models, trainer.own_optimizer, trainer.average):
            save_trained(trainer.models, output.root)
    shutil.rmtree(output.root / checkpoints.BEST, ignore_errors=True)
    if name == ADAPTER_FILE:
        unet = trainer.models[0].module
        save_kohya(output.root / name, output.root, trainer.base.family, unet.config)
    checkpoints.drop_states(output.root)
    return step


def open_captions(
    samples: Sequence[Sample], config: FinetuneConfig, base: BaseModel
) -> list[Sample]:
    """Open the captions with the placeholder of a textual inversion, within 77 tokens."""
    word = Placeholder(config.inversion.placeholder, config.inversion.num_vectors)
    count = token_counter(base.tokenizers)
    return [sample.opened(word, count) for sample in samples]


def run(config: FinetuneConfig, inputs: FinetuneInputs, output: Output, context: Context) -> None:
    """Train what one arm asks for; only this function picks a model.

    Raises:
        TrainingError: A package is missing, there is no data, or training cannot go on.
        SampleSizeError: There are too few validation slices for selection by KID.
    """
    assert config.base_model is not None, "filled in by the runner"
    for problem in filter(None, map(missing_library, (config.optimizer, *config.trackers))):
        raise TrainingError(problem)
    torch.set_num_threads(context.num_threads)
    if context.device == "cpu":
        keep_freed_memory()
    plugin = registry.find(registry.BASE_MODELS, config.base_model.name)
    settings = plugin.Settings.model_validate(config.base_model.settings)
    train_samples = read_samples(inputs.preprocess, inputs.caption, "train")
    val_samples = read_samples(inputs.preprocess, inputs.caption, "val")
    kid_selection.require_slices(config, val_samples)

    accelerator = build_accelerator(config, context.device)
    device = accelerator.device if accelerator.num_processes > 1 else torch.device(context.device)
    dtype = torch_dtype(context.dtype)
    base: BaseModel = plugin.load(settings, dtype=dtype, device=device)
    require_prediction_type(base.noise_scheduler.config.prediction_type)
    if config.quantize_base:
        quantise_unet(base.unet, dtype)
    if config.is_inversion:
        train_samples, val_samples = (
            open_captions(samples, config, base) for samples in (train_samples, val_samples)
        )
    common: dict[str, Any] = {
        "resolution": config.resolution,
        "trains_text_encoder": config.trains_text,
        "cache_dir": context.cache_dir,
        "progress": context.progress,
    }
    held_out = pick_held_out(val_samples, config.num_validation_samples, context.seed)
    # Before anything is added: what is cached is the base model's, and its weights are its key.
    with explained(0):
        train_set = build_training_set(
            base,
            train_samples,
            crops_per_image=config.crops_per_image,
            is_mirrored=config.mirror,
            finds_lesions=config.lesion_weight > 1 or config.grounding_weight > 0,
            **common,
        )
        held_out_set = build_training_set(
            base, held_out, crops_per_image=1, is_mirrored=False, **common
        )
    watched = watch_attention(base.unet) if config.grounding_weight > 0 else []
    models = add_trained(base, config, context.seed)
    optimizer = build_optimizer(
        config.optimizer, parameter_groups(models, config), config.weight_decay
    )
    decay = config.ema_decay
    prepared = accelerator.prepare(*(model.module for model in models), optimizer)
    trainer = Trainer(
        config=config,
        base=with_prepared(base, models, prepared[:-1]),
        models=models,
        optimizer=prepared[-1],
        accelerator=accelerator,
        device=device,
        dtype=dtype,
        train=train_set,
        held_out=held_out_set,
        seed=context.seed,
        average=AdapterAverage(models, decay) if decay is not None else None,
        watched=watched,
    )
    watch = build_watch(base, val_samples, config, context, str(device))
    release(base, config)
    for line in warnings_of(trainer):
        context.progress(f"finetune: {line}")
    log = train(trainer, watch, output, context)
    if accelerator.is_main_process:
        with explained(log[-1].step):
            result = save_result(trainer, watch, log, output)
            kept = checkpoints.list_checkpoints(output.root)
            output.write(checkpoint_records(log, kept, result))
            output.counts |= counts_of(trainer, inputs.caption)
            output.notes |= notes_of(trainer, log, result)
            facts = card_facts(trainer, inputs.preprocess, inputs.caption, log, result)
            write_card(output.root, facts)


STAGE = Stage("finetune", run, FinetuneConfig, FinetuneInputs, CheckpointRecord, deliver=push.push)
