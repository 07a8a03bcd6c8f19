"""Summary of a finished training: records, counts, notes for the manifest, facts for its card."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    CheckpointRecord,
    SliceRecord,
)
from pipeline.files import portable_name
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.tokens import MAX_TOKENS, token_counter
from stages.finetune.adapters.kohya import KOHYA_FILE, unnamed_layers
from stages.finetune.card import CardFacts, write_card
from stages.finetune.checkpoints import list_checkpoints
from stages.finetune.log import LogRow, checkpoint_records, measure_of, measured
from stages.finetune.trainer import Trainer

# Settings that the card leaves out: where and how often, not what was learnt.
NOT_ON_CARD = {
    "base_model",
    "checkpoint_every",
    "compile_blocks",
    "keep_checkpoints",
    "sample_every",
    "trackers",
}


def write(
    trainer: Trainer,
    log: Sequence[LogRow],
    best: int | None,
    preprocess: Artifact[SliceRecord],
    captions: Artifact[CaptionRecord],
    output: ArtifactWriter[CheckpointRecord],
) -> None:
    """Write records, counts, notes and card; `best` is the result's step, None the last one."""
    result = log[-1].step if best is None else best
    output.write(checkpoint_records(log, list_checkpoints(output.root), result))
    output.counts |= counts_of(trainer, captions)
    output.notes |= notes_of(trainer, log, result)
    has_kohya = (output.root / KOHYA_FILE).is_file()
    write_card(output.root, card_facts(trainer, preprocess, captions, log, result, has_kohya))


def counts_of(trainer: Trainer, captions: Artifact[CaptionRecord]) -> dict[str, int]:
    """Count what was learnt from, and what was left out or cut."""
    count = token_counter(trainer.base.tokenizers)
    rows = list(captions.records())
    captions_of = {row.slice_id: row.text for row in rows}
    cut = sum(not s.text.endswith(captions_of[s.slice_id]) for s in trainer.train.samples)
    return {
        "train": len(trainer.train.samples),
        "held_out": len(trainer.held_out.samples),
        "captions_failed": sum(row.status == "failed" for row in rows),
        "captions_empty": sum(row.status == "ok" and not row.text.strip() for row in rows),
        "captions_cut": sum(count(s.text) > MAX_TOKENS for s in trainer.train.samples),
        # Their last words gave way to the placeholder.
        **({"captions_shortened": cut} if trainer.config.is_inversion else {}),
    }


def notes_of(trainer: Trainer, log: Sequence[LogRow], result: int) -> dict[str, Any]:
    """Say how the training went; `result` is the step whose state is the artifact's."""
    measure = measure_of(trainer.config)
    return {
        "method": trainer.config.method,
        "family": trainer.base.family,
        "trainable_parameters": trained_numbers(trainer),
        "effective_batch": trainer.effective_batch,
        "optimizer_steps": log[-1].step,
        "images_seen": log[-1].step * trainer.effective_batch,
        "seconds_per_step": log[-1].seconds / log[-1].step,
        "held_out_loss": {"first": log[0].held_out_loss, "last": log[-1].held_out_loss},
        "result_step": result,
        "selection": {
            "selected_by": trainer.config.select_by,
            "step": result,
            "measure": measure,
            "curve": {str(step): value for step, value in measured(log, measure).items()},
        },
        "stopped_early": log[-1].step < trainer.config.max_steps,
        "warnings": warnings_of(trainer),
    }


def trained_numbers(trainer: Trainer) -> dict[str, int]:
    """Count the trained numbers of each network."""
    return {m.prefix: sum(p.numel() for p in m.parameters()) for m in trainer.trained.models}


def warnings_of(trainer: Trainer) -> list[str]:
    """Say what the training set is too small for, and which file will be missing."""
    warnings = []
    if len(trainer.train.samples) == 1:
        name = trainer.train.samples[0].slice_id
        warnings.append(f"there is one training slice only, {name!r}: the adapter will repeat it")
    trained = trainer.trained
    if trainer.config.adapter != "dora" and not trainer.config.is_inversion:
        unet_config = trained.models[0].module.config
        unnamed = unnamed_layers(trained.parameters, trainer.base.family, unet_config)
        if unnamed:
            listed = ", ".join(unnamed[:4]) + (", ..." if len(unnamed) > 4 else "")
            warnings.append(
                f"{KOHYA_FILE} will not be written, since that layout has no name for {listed}; "
                "the adapter itself will be whole"
            )
    return warnings


def card_facts(
    trainer: Trainer,
    preprocess: Artifact[SliceRecord],
    captions: Artifact[CaptionRecord],
    log: Sequence[LogRow],
    result: int,
    has_kohya: bool,
) -> CardFacts:
    """Collect what the card beside the adapter states."""
    config = trainer.config
    assert config.base_model is not None, "filled in by the runner"
    names = {sample.slice_id for sample in trainer.train.samples}
    slices = [row for row in preprocess.records() if row.slice_id in names]
    losses = {row.step: row.held_out_loss for row in log}
    kids = measured(log, "kid")
    plugin = registry.find(registry.BASE_MODELS, config.base_model.name)
    settings = plugin.Settings.model_validate(config.base_model.settings)
    chosen = config.model_dump(mode="json", exclude=NOT_ON_CARD | not_of_method(config))
    return CardFacts(
        base_model=portable_name(settings.model),
        base_description=(plugin.__doc__ or "").splitlines()[0],
        family=trainer.base.family,
        data={
            "training slices": len(slices),
            "held-out slices": len(trainer.held_out.samples),
            "sources": tally(row.source for row in slices),
            "classes": tally(row.label for row in slices),
            "preprocess artifact": preprocess.digest,
            "caption artifact": captions.digest,
        },
        settings={
            **{key: value for key, value in chosen.items() if value is not None},
            "effective batch": trainer.effective_batch,
            "trained numbers": trained_numbers(trainer),
            "seed": trainer.seed,
        },
        scores={
            "held-out loss of the base model": f"{losses[0]:.5f}",
            f"held-out loss of this adapter (step {result})": f"{losses[result]:.5f}",
            **({"KID on validation slices": f"{kids[result]:.5f}"} if result in kids else {}),
            "optimiser steps done": log[-1].step,
        },
        captions=[sample.text for sample in trainer.train.samples[:2]],
        has_kohya=has_kohya,
        placeholder=config.inversion.placeholder if config.is_inversion else None,
    )


def not_of_method(config: FinetuneConfig) -> set[str]:
    """Name the settings that the method does not use."""
    if not config.is_inversion:
        return {"inversion"}
    adapters = {"adapter", "lora_rank", "lora_alpha", "target_preset", "target_modules"}
    return adapters | {"learning_rate", "train_text_encoder"}


def tally(values: Iterable[str]) -> str:
    """Count values, the most frequent first.

    Example:
        >>> tally(["notumor", "glioma", "glioma"])
        'glioma 2, notumor 1'
    """
    counts = sorted(Counter(values).items(), key=lambda item: (-item[1], item))
    return ", ".join(f"{name} {count}" for name, count in counts)
