"""Fine-tuning and generation by this project's own stages, on the benchmarks' jobs."""

import itertools
import json
import time
from pathlib import Path

import torch

from pipeline import registry
from pipeline.contracts import (
    LABELS,
    Artifact,
    ArtifactWriter,
    CheckpointRecord,
    Context,
    PluginConfig,
    SyntheticRecord,
)
from pipeline.settings import FinetuneConfig, GenerateConfig
from stages.components.diffusion.base_model import BaseModel, torch_dtype
from stages.finetune import stage as finetune
from stages.finetune.adapters.export import save_adapter
from stages.finetune.adapters.lora import ADAPTER, add_adapters, initialise
from stages.finetune.training_set import TrainingSet, build_training_set, draw_step, read_samples
from stages.generate import stage as generate
from tests.benchmarks.plain_loop import Given, Noise, Trained
from tests.benchmarks.workload import SamplingJob, TrainingJob, read_captions, read_slices

NO_WARM_UP = 0  # of the rate: constant from the first step, as in the plain loop


def context_of(job: TrainingJob | SamplingJob, dtype: str) -> Context:
    """Build what a stage may know; caches lie beside the output."""
    cache = Path(job.out).parent / "cache"
    return Context(
        "benchmark", job.seed, job.device, dtype, torch.get_num_threads(), cache, lambda line: None
    )


def plugin_of(job: TrainingJob | SamplingJob) -> PluginConfig:
    """Name the base model and its folder; full-size configurations bring their own VAE."""
    return PluginConfig(name=job.model, settings={"model": job.weights, "vae": None})


def config_of(job: TrainingJob) -> FinetuneConfig:
    """Word a job as the stage's section."""
    return FinetuneConfig(
        base_model=plugin_of(job),
        resolution=job.resolution,
        lora_rank=job.rank,
        train_text_encoder=job.trains_text,
        batch_size=job.batch_size,
        gradient_accumulation_steps=job.accumulation,
        optimizer=job.optimizer,
        learning_rate=job.learning_rate,
        lr_schedule="constant",
        warmup_steps=NO_WARM_UP,
        max_steps=job.steps,
        caption_dropout=0.0,  # the published scripts have none
        gradient_checkpointing=job.is_checkpointed,
        compile_blocks=job.is_compiled,
        checkpoint_every=job.steps,
        validate_every=job.steps,
        num_validation_samples=1,
    )


def load_base(job: TrainingJob) -> BaseModel:
    """Load the base model as the stage does."""
    chosen = plugin_of(job)
    plugin = registry.find(registry.BASE_MODELS, chosen.name)
    settings = plugin.Settings.model_validate(chosen.settings)
    base: BaseModel = plugin.load(settings, dtype=torch_dtype(job.dtype), device=job.device)
    return base


def build_set(job: TrainingJob) -> TrainingSet:
    """Encode the training slices and captions, or read them from the cache of an earlier call."""
    folder = Path(job.data)
    return build_training_set(
        load_base(job),
        read_samples(read_slices(folder), read_captions(folder), "train"),
        config_of(job),
        cache_dir=context_of(job, job.dtype).cache_dir,
        progress=lambda line: None,
    )


def time_caches(job: TrainingJob) -> tuple[float, int]:
    """Return the seconds that encoding everything once takes, and for how many slices."""
    load_base(job)  # what the first use of a library costs is not the cache's
    began = time.perf_counter()
    load_base(job)
    loading_s = time.perf_counter() - began
    began = time.perf_counter()
    data = build_set(job)
    return max(0.0, time.perf_counter() - began - loading_s), len(data.samples)


def train(job: TrainingJob) -> Trained:
    """Run the finetune stage; return seconds and losses of each step from its log."""
    folder = Path(job.data)
    output = ArtifactWriter(Path(job.out), CheckpointRecord)
    output.root.mkdir(parents=True, exist_ok=True)
    inputs = finetune.FinetuneInputs(read_slices(folder), read_captions(folder))
    finetune.STAGE.run(config_of(job), inputs, output, context_of(job, job.dtype))
    log = (output.root / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, log) if row["step"] > 0]
    seconds = [0.0, *(row["seconds"] for row in rows)]
    step_s = [later - earlier for earlier, later in itertools.pairwise(seconds)]
    return Trained(step_s, [row["loss"] for row in rows])


def draws_of(job: TrainingJob) -> Given:
    """Hand our order, noise and initial adapters to the plain loop."""
    data = build_set(job)
    effective = job.batch_size * job.accumulation
    steps = [
        draw_step(
            data,
            seed=job.seed,
            step=step,
            effective_batch=effective,
            num_timesteps=1000,
            caption_dropout=0.0,
        )
        for step in range(1, job.steps + 1)
    ]
    draws = [draw for step in steps for draw in step.draws]

    def noise(number: int) -> Noise:
        chosen = draws[number * job.batch_size : (number + 1) * job.batch_size]
        return Noise(
            torch.stack([draw.posterior for draw in chosen]),
            torch.stack([draw.noise for draw in chosen]),
            torch.tensor([draw.timestep for draw in chosen]),
        )

    def start(prefix: str, module: torch.nn.Module) -> None:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                initialise(f"{prefix}.{name}", parameter, job.seed)

    return Given([row for step in steps for row in step.rows], noise, start)


def write_adapter(job: SamplingJob, rank: int) -> None:
    """Write an adapter that changes images."""
    plugin = registry.find(registry.BASE_MODELS, job.model)
    settings = plugin.Settings.model_validate(plugin_of(job).settings)
    base = plugin.load(settings, dtype=torch.float32, device="cpu")
    models = add_adapters(base, FinetuneConfig(lora_rank=rank), seed=0)
    generator = torch.Generator().manual_seed(1)
    for model in models:
        for name, parameter in model.module.named_parameters():
            if parameter.requires_grad and f"lora_B.{ADAPTER}" in name:
                parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    save_adapter(models, Path(job.adapter))


def sample(job: SamplingJob) -> list[tuple[str, int, Path]]:
    """Run the generate stage; return each image's prompt, seed and file, in order."""
    config = GenerateConfig(
        base_model=plugin_of(job),
        num_images=job.num_images,
        image_size=job.image_size,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        batch_size=job.batch_size,
        prompt_style="structured",
        include_label=False,
        labels=LABELS,
        max_attempts=1,
        fuse_adapter=job.dtype != "float32",  # there it always is
        channels_last=job.device != "cpu",
        compile_blocks=job.is_compiled,
    )
    output = ArtifactWriter(Path(job.out), SyntheticRecord)
    output.root.mkdir(parents=True, exist_ok=True)
    adapter = Artifact(Path(job.adapter), "adapter", CheckpointRecord, {"config": {}, "notes": {}})
    inputs = generate.GenerateInputs(finetune=adapter, caption=None)
    generate.STAGE.run(config, inputs, output, context_of(job, job.dtype))
    records = Artifact(output.root, "images", SyntheticRecord, {}).records()
    return [(it.prompt, it.seed, output.root / it.image_path) for it in records]
