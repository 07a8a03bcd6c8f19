"""Generate synthetic slices from a balanced grid of prompts.

Reads: an adapter (finetune; None samples the base model itself) and, to repeat the poster, test
captions (caption).
Writes: `images/IMAGE_ID.png`, RGB uint8 as the pipeline gives them, with prompt, seed, adapter and
`synthetic: true` in their text chunks; one `SyntheticRecord` each.
Invariants: an image depends on its prompt and its own seed, and seeds depend on the run's seed and
the prompt's place only, so arms differ by their models alone; black, constant and NaN images are
counted and made again with a recorded new seed; a killed run resumes to the same bytes.
Methods: "N slices of S px were sampled with K steps of SCHEDULER at guidance G, prompts balanced
over class, plane, side, location and size."
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    CheckpointRecord,
    Context,
    Stage,
    SyntheticRecord,
)
from pipeline.errors import TrainingError
from pipeline.seeding import derive_seed
from pipeline.settings import GenerateConfig
from stages.components.clip_text import load_tokenizers, token_counter
from stages.components.diffusion import torch_dtype
from stages.components.imaging import save_png
from stages.components.prompts import Prompt, build_grid, prompts_from_captions
from stages.components.synthesis import Fault, Sampler, build_sampler

JOURNAL = "generate.journal.jsonl"


@dataclass(frozen=True)
class GenerateInputs:
    finetune: Artifact[CheckpointRecord] | None  # None: the base model without LoRA
    caption: Artifact[CaptionRecord] | None  # only for prompts_from "test_captions"


@dataclass(frozen=True)
class Order:
    """One image to be made: its prompt, as a request and as text."""

    prompt: Prompt
    text: str


def build_orders(config: GenerateConfig, inputs: GenerateInputs, seed: int) -> list[Order]:
    """List the images to be made, worded as the training captions are."""
    assert config.base_model is not None, "filled in by the runner"
    assert config.prompt_style is not None, "filled in from caption.style"
    assert config.include_label is not None, "filled in from caption.include_label"
    if config.prompts_from == "grid":
        prompts = build_grid(
            config.labels,
            config.num_images,
            seed,
            config.prompt_words,
            include_label=config.include_label,
        )
    else:
        assert inputs.caption is not None, "the runner hands captions in"
        captions = inputs.caption.records()
        prompts = prompts_from_captions(captions, config.labels, config.num_images, seed)
    count = token_counter(load_tokenizers(config.base_model))
    return [Order(prompt, prompt.render(config.prompt_style, count)) for prompt in prompts]


def seed_of(run_seed: int, prompt_id: str, attempt: int) -> int:
    """Derive an image's seed; no arm, batch or model has a part in it."""
    return derive_seed(run_seed, "generate", prompt_id, attempt)


@dataclass(frozen=True)
class Made:
    """A finished batch: its records, and how many attempts failed of which fault."""

    records: list[SyntheticRecord]
    faults: Counter[Fault]


def make_batch(
    orders: Sequence[Order],
    sampler: Sampler,
    output: ArtifactWriter[SyntheticRecord],
    *,
    run_seed: int,
    max_attempts: int,
    adapter_digest: str | None,
    marks: dict[str, str],
) -> Made:
    """Make and write the images of a batch, those black, constant or NaN again with a new seed.

    Raises:
        TrainingError: An image failed `max_attempts` times.
    """
    records: dict[str, SyntheticRecord] = {}
    faults: Counter[Fault] = Counter()
    waiting = list(orders)
    for attempt in range(max_attempts):
        seeds = [seed_of(run_seed, order.prompt.prompt_id, attempt) for order in waiting]
        images, found = sampler.draw([order.text for order in waiting], seeds)
        for order, seed, image, fault in zip(waiting, seeds, images, found, strict=True):
            if fault is not None:
                faults[fault] += 1
                continue
            record = SyntheticRecord(
                image_id=order.prompt.prompt_id,
                image_path=f"images/{order.prompt.prompt_id}.png",
                prompt=order.text,
                requested=order.prompt.report,
                label=order.prompt.label,
                seed=seed,
                attempt=attempt,
                adapter_digest=adapter_digest,
            )
            text = marks | {"prompt": record.prompt, "seed": str(seed)}
            save_png(output.path(record.image_path), image, text)
            records[record.image_id] = record
        waiting = [order for order in waiting if order.prompt.prompt_id not in records]
        if not waiting:
            return Made([records[order.prompt.prompt_id] for order in orders], faults)
    raise TrainingError(
        f"image {waiting[0].prompt.prompt_id!r} ({waiting[0].text!r}) failed {max_attempts} times; "
        f"faults of its batch: {dict(faults)}. The adapter may have diverged: look at the training "
        "curve. Else lower generate.guidance_scale, use float32 or raise generate.max_attempts."
    )


def read_journal(path: Path) -> list[Made]:
    """Read the batches that a killed run had finished, and cut off a torn last line."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    path.write_bytes(whole)
    rows = [json.loads(line) for line in whole.splitlines()]
    return [
        Made([SyntheticRecord(**record) for record in row["records"]], Counter(row["faults"]))
        for row in rows
    ]


def append_journal(path: Path, made: Made) -> None:
    """Add a batch whose images are all on disk."""
    records = [record.model_dump(mode="json") for record in made.records]
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"records": records, "faults": made.faults}) + "\n")


def run(
    config: GenerateConfig,
    inputs: GenerateInputs,
    output: ArtifactWriter[SyntheticRecord],
    context: Context,
) -> None:
    """Make every image once; only this function picks a model."""
    assert config.base_model is not None, "filled in by the runner"
    torch.set_num_threads(context.num_threads)
    orders = build_orders(config, inputs, context.seed)
    plugin = registry.find(registry.BASE_MODELS, config.base_model.name)
    pipeline = plugin.load_pipeline(
        plugin.Settings.model_validate(config.base_model.settings),
        device=context.device,
        dtype=torch_dtype(context.dtype),
        adapter_dir=inputs.finetune.root if inputs.finetune else None,
    )
    sampler = build_sampler(
        pipeline,
        [order.text for order in orders],
        negative_prompt=config.negative_prompt,
        scheduler=config.scheduler,
        image_size=config.image_size,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        batch_size=config.batch_size,
    )
    adapter_digest = inputs.finetune.digest if inputs.finetune else None
    marks = {
        "synthetic": "true",
        "software": f"mrisynth {version('mrisynth')}",
        "base_model": config.base_model.name,
        "adapter": adapter_digest or "none",
        "negative_prompt": config.negative_prompt,
    }
    journal = output.path(JOURNAL)
    done = read_journal(journal)
    if done:
        context.progress(f"generate: {sum(len(made.records) for made in done)} images were there")
    began, resumed = time.monotonic(), len(done)
    # Batches are cut the same way whether a run resumes or not: rounding depends on their size.
    batches = [orders[i : i + config.batch_size] for i in range(0, len(orders), config.batch_size)]
    for number, batch in enumerate(batches[resumed:], start=resumed + 1):
        made = make_batch(
            batch,
            sampler,
            output,
            run_seed=context.seed,
            max_attempts=config.max_attempts,
            adapter_digest=adapter_digest,
            marks=marks,
        )
        append_journal(journal, made)
        done.append(made)
        if number == len(batches) or number % max(1, len(batches) // 10) == 0:
            context.progress(f"generate: {number} of {len(batches)} batches")

    output.write(record for made in done for record in made.records)
    faults: Counter[Fault] = sum((made.faults for made in done), Counter())
    images_now = sum(len(batch) for batch in batches[resumed:])
    output.counts |= {"made_again": faults.total()}
    output.notes |= {
        "faults": dict(faults),
        "distinct_prompts": len({order.text for order in orders}),
        "batch_size": config.batch_size,
        "seconds_per_image": (time.monotonic() - began) / images_now if images_now else None,
        "dtype": context.dtype,
        "value_range": "uint8 [0, 255], RGB",
    }
    journal.unlink()  # the records hold all of it


STAGE = Stage("generate", run, GenerateConfig, GenerateInputs, SyntheticRecord)
