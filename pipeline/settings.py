"""The configuration's models: every setting, its unit and its default, and nothing else.

Defaults are the poster's where it published one. `pipeline.run.config` reads YAML into these.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.contracts import Label, PluginConfig, Regime, Section, Split, Task


class PreprocessConfig(Section):
    """Decode, crop to the head, pad to a square, resize; find duplicates; split by group."""

    source: PluginConfig
    image_size: int = Field(512, ge=32, multiple_of=8)  # px, square
    crop_margin: float = Field(0.04, ge=0, le=0.5)  # of the head's longer side
    slices_per_scan: int = Field(4, ge=1)  # planes taken from each 3-D scan
    val_fraction: float = Field(0.1, gt=0, lt=1)  # of the training groups
    test_fraction: float = Field(0.2, gt=0, lt=1)  # of all groups, where no test split is published
    keep_published_test: bool = True  # minus the files that leak into it
    leaked_files: Literal["drop_test", "drop_train"] = "drop_test"  # which side of a leak goes
    test_as_val: int = Field(0, ge=0)  # slices of a published test split given to val (poster: 262)
    near_duplicate_bits: int = Field(4, ge=0, le=64)  # Hamming distance of 64-bit perceptual hashes
    near_duplicate_correlation: float = Field(0.95, ge=0, le=1)  # of thumbnails, confirms a hash
    max_skipped_fraction: float = Field(0.02, ge=0, le=1)
    max_per_class: int | None = Field(None, ge=1)  # training slices kept per class, by seed


class SourcePolicy(Section):
    """What may be done with the slices of one source."""

    allow_upload: bool = False  # may a captioner send them to another machine?


class CaptionConfig(Section):
    """Who writes the captions, and how they are rendered."""

    vlm: PluginConfig
    style: Literal["structured", "sentence", "label_only"] = "structured"
    include_label: bool = False  # "glioma. <the VLM's words>": makes blind captions conditional
    tokenizer: PluginConfig | None = None  # base model whose tokenizer counts; filled from the arm
    splits: tuple[Split, ...] = ("train", "val")
    max_failed_fraction: float = Field(0.05, ge=0, le=1)
    sources: dict[str, SourcePolicy] = Field(default_factory=dict)  # by the name of the source

    def upload_problem(self, source: str, host: str | None) -> str | None:
        """Say why slices of a source may not go to a host (None: nowhere); None if they may."""
        if host is None or (source in self.sources and self.sources[source].allow_upload):
            return None
        return (
            f"would send slices of the source {source!r} to {host}; if they may leave this "
            f"machine, set caption.sources.{source}.allow_upload: true, else choose a local VLM"
        )


class InversionConfig(Section):
    """Textual inversion: new words of the text encoders, learnt while all else is frozen."""

    placeholder: str = Field("<mri-slice>", pattern=r"^<[a-z][a-z-]*>$")  # opens every caption
    initializer: str = Field("brain mri", min_length=1)  # its tokens' embeddings, in turn
    num_vectors: int = Field(1, ge=1, le=16)  # tokens that the placeholder takes of the 77
    learning_rate: float = Field(5e-4, gt=0)  # in place of finetune.learning_rate


class FinetuneConfig(Section):
    """LoRA or textual inversion on a diffusion model. Steps are always optimiser steps."""

    base_model: PluginConfig | None = None  # filled from the arm
    method: Literal["lora", "textual_inversion"] = "lora"
    inversion: InversionConfig = InversionConfig()  # only with method: textual_inversion
    resolution: int = Field(512, ge=32, multiple_of=8)  # px
    adapter: Literal["lora", "rslora", "dora"] = "lora"
    lora_rank: int = Field(128, ge=1)
    lora_alpha: float | None = Field(None, gt=0)  # None: alpha = rank
    target_preset: Literal["attention", "all_linear", "wider"] | None = None
    target_modules: tuple[str, ...] | None = None  # names instead; neither: attention
    train_text_encoder: bool = False
    text_encoder_rank: int | None = Field(None, ge=1)  # None: lora_rank
    batch_size: int = Field(2, ge=1)
    gradient_accumulation_steps: int = Field(8, ge=1)
    optimizer: Literal["adamw", "adamw_8bit", "muon", "prodigy", "schedule_free"] = "adamw_8bit"
    learning_rate: float = Field(1e-4, gt=0)
    text_encoder_learning_rate: float | None = Field(None, gt=0)  # None: learning_rate
    weight_decay: float = Field(0.01, ge=0)
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(500, ge=0)
    max_steps: int = Field(20_000, ge=1)
    loss_weighting: Literal["min_snr", "debiased", "none"] = "min_snr"
    min_snr_gamma: float = Field(5.0, gt=0)  # of loss_weighting: min_snr
    lesion_weight: float = Field(1.0, ge=1)  # times the error of cells in a lesion's mask; 1: off
    # times the grounding loss: words that name the place attend to the lesion's mask; 0: off
    grounding_weight: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    # stratified: each sample of a step has its own share of the noise levels, in random order
    timestep_sampling: Literal["uniform", "stratified"] = "uniform"
    caption_dropout: float = Field(0.1, ge=0, le=1)  # share of steps' captions replaced by ""
    ema_decay: float | None = Field(None, gt=0, lt=1)  # set: the moving average is the result
    gradient_checkpointing: bool = False
    quantize_base: bool = False  # the UNet's transformers in 4 bits (QLoRA), for small GPUs
    compile_blocks: bool = False  # torch.compile of the repeated blocks; minutes before step 1
    checkpoint_every: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)  # the newest ones stay in the artifact
    validate_every: int = Field(500, ge=1)
    num_validation_samples: int = Field(64, ge=1)
    # Which of the judged states is the result: the last, or the one with the least of a measure.
    select_by: Literal["last", "held_out_loss", "kid"] = "last"
    select_images: int = Field(48, ge=8)  # sampled for each KID, and captions of val it needs
    early_stop_patience: int | None = Field(None, ge=1)  # judgements in a row without a new least
    sample_every: int = Field(0, ge=0)  # steps between grids of samples; 0: none
    sample_steps: int = Field(20, ge=1)  # of DPM-Solver, for those grids and for select_by: kid
    sample_guidance: float = Field(5.0, ge=1)
    crops_per_image: int = Field(1, ge=1)  # 1: the whole slice; more: random crops, cached
    mirror: bool = False  # axial and coronal slices mirrored too, left and right in the caption
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    # Hub repository (made private) that the artifact is sent to once evaluate has found no copies
    # among its images; HF_TOKEN in the environment. No part of the digest: it changes no weight.
    push_to_hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$", exclude=True)
    allow_upload: bool = Field(False, exclude=True)  # may what was learnt leave this machine?

    @property
    def is_inversion(self) -> bool:
        """Whether new words are learnt instead of adapters."""
        return self.method == "textual_inversion"

    @property
    def trains_text(self) -> bool:
        """Whether something in the text encoders is trained, so that they run at every step."""
        return self.train_text_encoder or self.is_inversion

    @property
    def kid_selects(self) -> bool:
        """Whether images are sampled and scored while training."""
        return self.select_by == "kid"


SchedulerName = Literal["dpmsolver_multistep", "ddim", "euler", "euler_ancestral", "unipc", "ddpm"]


class GenerateConfig(Section):
    """Sampling: a balanced grid of prompts, one generator per image."""

    base_model: PluginConfig | None = None  # filled from the arm
    refiner: PluginConfig | None = None  # SDXL only: takes over for the last steps
    num_images: int = Field(500, ge=1)
    # Grid prompts that state left or right, asked again with the other side and the same seed.
    counterfactuals: int = Field(0, ge=0)
    image_size: int = Field(512, ge=32, multiple_of=8)  # px
    num_inference_steps: int = Field(50, ge=1)
    guidance_scale: float = Field(5.0, ge=1)
    guidance_rescale: float = Field(0.0, ge=0, le=1)  # against overexposure at high guidance
    negative_prompt: str = ""
    scheduler: SchedulerName = "dpmsolver_multistep"
    batch_size: int | Literal["auto"] = 16  # auto: by the memory there is, halved where it lacks
    prompts_from: Literal["grid", "test_captions"] = "grid"
    prompt_words: Literal["truth", "published"] = "truth"  # as the training captions are worded
    # Of the grid: each size alike, or as often as the training captions of the class name it.
    grid_sizes: Literal["balanced", "trained"] = "balanced"
    # As the arm's captions are worded, where not set: caption.style, caption.include_label.
    prompt_style: Literal["structured", "sentence", "label_only"] | None = None
    include_label: bool | None = None
    labels: tuple[Label, ...] = ("notumor", "glioma", "meningioma", "pituitary")
    max_attempts: int = Field(3, ge=1)  # black, constant or NaN images are made again
    max_failed_fraction: float = Field(0.05, ge=0, le=1)  # of the images, at every attempt
    guidance: PluginConfig | None = None  # "location": a judge's loss steers sampling
    # true: what is nearer to a training slice than held-out slices are is made again.
    withhold_copies: PluginConfig | None = None
    fuse_adapter: bool = False  # into bfloat16 weights too, which rounds it; float32 always does
    channels_last: bool = False
    compile_blocks: bool = False  # torch.compile of the repeated blocks; minutes before image 1
    # Processes that share an arm's images; no part of the digest, because it changes no image.
    num_shards: int = Field(1, ge=1, exclude=True)

    @field_validator("batch_size", mode="before")
    @classmethod
    def _is_count_or_auto(cls, value: object) -> object:
        if value != "auto" and (type(value) is not int or value < 1):
            raise ValueError(f"expected a number >= 1 or 'auto', found {value!r}")
        return value

    @field_validator("withhold_copies", mode="before")
    @classmethod
    def _is_on_or_off(cls, value: object) -> object:
        if value is True:
            return {"name": "nearest_slice"}
        return None if value is False else value


class EvaluateConfig(Section):
    """Scores of synthetic slices against real ones that trained nothing."""

    # val: to choose settings (sampler, guidance, steps) without a look at the test slices.
    split: Literal["val", "test"] = "test"
    features: tuple[PluginConfig, ...] = (PluginConfig(name="efficientnet_lite0"),)
    metrics: tuple[str, ...] = ("kid", "fid", "prdc", "ms_ssim", "feature_spread")
    num_bootstrap: int = Field(200, ge=0)
    num_permutations: int = Field(99, ge=0)  # behind each p; 99: none below 0.01
    memorisation: bool = True  # look for copies of training slices
    location: bool = True  # do tumours lie where prompts ask: read by a judge
    # embedded: that of phantoms. train: trained here, on true masks of the training slices.
    judge: PluginConfig = PluginConfig(name="embedded")
    recaption: PluginConfig | None = None  # a VLM reads the images: do they show what was asked?
    recaption_upload: bool = False  # may that VLM get images, real ones too, on another machine?
    confidence: float = Field(0.95, gt=0, lt=1)
    max_images: int = Field(1000, ge=2)  # equal n for every arm
    batch_size: int = Field(32, ge=1)
    base_models: dict[str, PluginConfig] = Field(default_factory=dict)  # filled: vae/NAME rows


class ProtectedConfig(Section):
    """An attribute whose groups a classifier should treat alike, from a table of the user's."""

    attribute: str  # a column of the table, for example sex
    table: str  # CSV with a header and a column subject_id or slice_id
    sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of the table: another one, another artifact


class ClassifyConfig(Section):
    """The poster's ViT, trained on real slices, on synthetic ones, or on both."""

    model: PluginConfig = PluginConfig(name="vit")
    references: tuple[PluginConfig, ...] = ()  # other networks, trained on real slices: a yardstick
    tasks: tuple[Task, ...] = Field(("binary",), min_length=1)  # binary: tumour or not
    regimes: tuple[Regime, ...] = Field(("real", "synthetic"), min_length=1)
    mixing: Literal["replace", "add"] = "replace"  # both kinds: n in all, or n of each
    image_size: int = Field(512, ge=32)
    batch_size: int = Field(16, ge=1)
    max_steps: int = Field(2000, ge=1)  # the same for every arm
    num_images: int | None = Field(None, ge=2)  # matched n; None: the smallest arm's
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(1e-3, ge=0)
    warmup_steps: int = Field(625, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    validate_every: int = Field(100, ge=1)
    num_seeds: int = Field(1, ge=1)  # trainings of each arm, per task
    target_sensitivity: float | None = Field(None, gt=0, le=1)  # on validation; None: Youden's
    # Real slices with so many times as many synthetic ones, at matched steps; 0: real ones alone.
    ratios: tuple[Annotated[int, Field(ge=0)], ...] = ()
    ratio_arms: tuple[str, ...] = ()  # whose synthetic slices; empty: every arm's
    baselines: tuple[str, ...] = ("metadata_only", "intensity_only", "always_tumor")
    protected: ProtectedConfig | None = None
    # Other sources, by a name of your own: their test slices are judged too, once. What a section
    # leaves out is as in `preprocess`.
    cross_test: dict[str, PreprocessConfig] = Field(default_factory=dict)
    explain: tuple[str, ...] = ()  # what speaks for a tumour: maps by name, of each arm's first run
    num_explained: int = Field(8, ge=1)  # test slices with a tumour; as many wrong ones at most


class ReportConfig(Section):
    """The page."""

    title: str = "Synthetic brain-tumour MRI"
    images_per_class: int = Field(4, ge=1)


class ArmConfig(Section):
    """One arm with everything resolved: the shared settings under the arm's own overrides."""

    name: str
    base_model: PluginConfig
    preprocess: PreprocessConfig
    caption: CaptionConfig
    finetune: FinetuneConfig
    generate: GenerateConfig


class RunConfig(Section):
    """A whole experiment, validated: what `config.load` returns and `config.yaml` in a run keeps.

    Preprocess, evaluate, classify and report are shared by all arms.
    """

    experiment: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    preprocess: PreprocessConfig
    evaluate: EvaluateConfig
    classify: ClassifyConfig
    report: ReportConfig
    arms: tuple[ArmConfig, ...] = Field(min_length=1)
