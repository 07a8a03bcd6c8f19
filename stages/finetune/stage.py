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

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    CheckpointRecord,
    Context,
    SliceRecord,
    Stage,
)
from pipeline.settings import FinetuneConfig
from stages.finetune import (
    checkpoints,
    checks,
    kid_selection,
    log,
    preview,
    push,
    setup,
    summary,
    training_set,
)
from stages.finetune.adapters.kohya import KOHYA_FILE, save_kohya
from stages.finetune.side_products import SideProducts
from stages.finetune.trackers import Trackers
from stages.finetune.trainer import Trainer, explained


@dataclass(frozen=True)
class FinetuneInputs:
    preprocess: Artifact[SliceRecord]
    caption: Artifact[CaptionRecord]


Output = ArtifactWriter[CheckpointRecord]


def prepare(
    config: FinetuneConfig, inputs: FinetuneInputs, context: Context
) -> tuple[Trainer, preview.Preview | None, kid_selection.KidProbe | None]:
    """Load and encode all that training needs; only this function picks a model.

    Returns:
        The trainer, and what sample grids and KIDs are made from, where they are asked for.

    Raises:
        TrainingError: A package is missing, there is no data, or an adapter does not fit.
        SampleSizeError: There are too few validation slices for selection by KID.
    """
    checks.require_libraries(config)
    torch.set_num_threads(context.num_threads)
    if context.device == "cpu":
        setup.keep_freed_memory()
    train_slices = training_set.read_samples(inputs.preprocess, inputs.caption, "train")
    val_slices = training_set.read_samples(inputs.preprocess, inputs.caption, "val")
    kid_selection.require_slices(config, val_slices)

    accelerator = setup.build_accelerator(config, context.device)
    device = accelerator.device if accelerator.num_processes > 1 else torch.device(context.device)
    base = setup.load_base(config, context, device)
    if config.is_inversion:
        train_slices = training_set.open_captions(train_slices, config, base)
        val_slices = training_set.open_captions(val_slices, config, base)
    held_out = training_set.pick_held_out(val_slices, config.num_validation_samples, context.seed)
    caches: dict[str, Any] = {"cache_dir": context.cache_dir, "progress": context.progress}
    # Before anything is added: what is cached is the base model's, and its weights are its key.
    with explained(0):
        train_set = training_set.build_training_set(base, train_slices, config, **caches)
        held_out_set = training_set.build_training_set(
            base, held_out, config, is_held_out=True, **caches
        )
    trainer = setup.build_trainer(
        base,
        config,
        context,
        accelerator=accelerator,
        device=device,
        train=train_set,
        held_out=held_out_set,
    )
    grid = preview.build_grid(base, val_slices, config, context.seed)
    probe = kid_selection.build_probe(base, val_slices, config, context, str(device))
    setup.release(base, config)
    return trainer, grid, probe


def run(config: FinetuneConfig, inputs: FinetuneInputs, output: Output, context: Context) -> None:
    """Train what one arm asks for.

    Raises:
        TrainingError: Training cannot begin, or cannot go on.
        SampleSizeError: There are too few validation slices for selection by KID.
    """
    trainer, grid, probe = prepare(config, inputs, context)
    for line in summary.warnings_of(trainer):
        context.progress(f"finetune: {line}")
    side = SideProducts(lambda line: context.progress(f"finetune: {line}"))
    rows = train(trainer, grid, probe, output, context, side)
    if trainer.accelerator.is_main_process:
        with explained(rows[-1].step):
            best = None
            if config.select_by != "last":
                best = log.best_step(rows, log.measure_of(config))
            result = checkpoints.save_result(output.root, trainer.trained, best)
            if not config.is_inversion:
                unet = trainer.accelerator.unwrap_model(trainer.base.unet)
                export = partial(save_kohya, result, output.root, trainer.base.family, unet.config)
                side.attempt(KOHYA_FILE, export)
            summary.write(trainer, rows, best, inputs.preprocess, inputs.caption, output)
            output.notes["warnings"] += side.warnings


def train(
    trainer: Trainer,
    grid: preview.Preview | None,
    probe: kid_selection.KidProbe | None,
    output: Output,
    context: Context,
    side: SideProducts,
) -> list[log.LogRow]:
    """Run all optimiser steps, from the newest state on if there is one; return the log.

    Args:
        trainer: What takes a step.
        grid: Prompts of sample grids; None: none are made.
        probe: What states are compared by; None: by the held-out loss.
        output: Gets log, checkpoints and sample grids.
        context: Of the run.
        side: Makes sample grids, and hands numbers to trackers.
    """
    config, root, is_main = trainer.config, output.root, trainer.accelerator.is_main_process
    measure, trained = log.measure_of(config), trainer.trained
    done, seconds = checkpoints.restore_newest(root, trained, context.progress)
    log_path = output.path(log.LOG_FILE)
    if done:
        context.progress(f"finetune: going on after step {done} of {config.max_steps}")
        rows = log.read_log(log_path, done)
    else:
        rows = [log.LogRow(0, None, 0.0, None, trainer.compute_held_out_loss(), 0.0)]
    trainer.accelerator.wait_for_everyone()  # all have read what the main process writes anew
    is_over = log.is_past_best(rows, config.early_stop_patience, measure)
    last = done if is_over else config.max_steps
    watchers: Trackers | None = None
    if is_main:
        log.write_log(log_path, rows)
        checkpoints.drop_best(root, log.bests(rows, checkpoints.list_states(root), measure))
        watchers = Trackers(
            config.trackers,
            root,
            experiment=context.experiment,
            first_step=done + 1,
            config=config.model_dump(mode="json", exclude={"base_model"}),
            side=side,
        )

    started = time.monotonic()
    began = started - seconds
    for step in range(done + 1, last + 1):
        with explained(step):
            loss, grad_norm = trainer.optimise(step)

            is_last, is_checkpoint = step == last, step % config.checkpoint_every == 0
            is_validation = is_last or step % config.validate_every == 0
            is_measured = is_checkpoint or is_validation
            held_out = trainer.compute_held_out_loss() if is_measured else None
            kid = kid_selection.compute_kid(trainer, probe) if probe and is_validation else None
            now = time.monotonic()
            row = log.LogRow(
                step, loss, trainer.rate, grad_norm, held_out, round(now - began, 3), kid
            )
            rows.append(row)
            is_over = is_measured and log.is_past_best(rows, config.early_stop_patience, measure)
            pace = trainer.measure_pace(step - done, now - started)
            if watchers is not None:
                log.append_log(log_path, row)
                watchers.log(step, log.as_scalars(row, pace))
                if grid is not None and step % config.sample_every == 0:
                    draw = partial(preview.write_grid, trainer, grid, root, step)
                    image = side.attempt(preview.FOLDER, draw)
                    if image is not None:
                        watchers.show(step, preview.FOLDER, image)
                if config.select_by != "last" and log.best_step(rows, measure) == step:
                    with trained.as_exported():
                        checkpoints.save_best(root, step, trained.models)
                if is_checkpoint and not is_last:
                    checkpoints.save_checkpoint(root, step, trained, config.keep_checkpoints)
                if is_checkpoint or is_last or is_over:
                    log.sync_log(log_path)
                    checkpoints.save_state(root, step, row.seconds, trained)
                    states = checkpoints.list_states(root)
                    checkpoints.drop_best(root, log.bests(rows, states, measure))
        if is_measured or step % max(1, config.max_steps // 20) == 0:
            context.progress(log.describe_row(row, config.max_steps, pace))
        if is_over and not is_last:
            name = "KID" if measure == "kid" else "held-out loss"
            best = log.best_step(rows, measure)
            context.progress(f"finetune: stopped early, least {name} at step {best}")
            break
    if watchers is not None:
        watchers.close()
    return rows


STAGE = Stage("finetune", run, FinetuneConfig, FinetuneInputs, CheckpointRecord, deliver=push.push)
