"""Pipelines with random weights in the hub's folder layout: nothing in them is trained.

Both families at 32 px: VAE f8 with 12 latent channels, one or two CLIP text models of width 32, a
UNet of two levels, and a byte-level BPE of a few hundred tokens.
"""

import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from stages.components.networks.weights import Family, ModelSettings

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTokenizer

WORDS = (
    "tumor: yes; tumor: no; location: left right frontal temporal parietal occipital lobe "
    "cerebellum brainstem sellar region; size: small medium large; shape: round oval irregular "
    "lobulated; intensity: hyperintense hypointense isointense mixed; orientation: axial coronal "
    "sagittal; general description: t1-weighted t2-weighted flair contrast-enhanced t1 t2 mri of a "
    "the brain with without glioma meningioma pituitary visible no tumour tumor"
)
LATENT_CHANNELS = 12
TEXT_WIDTH = 32
IMAGE_SIZE = 32


def tiny_settings(plugin: ModuleType, folder: Path) -> ModelSettings:
    """Write random weights of a base model's family below `folder`, once; return its settings.

    By family, not by name: a new plug-in of a known family is tested on arrival.
    """
    family: Family = plugin.PLUGIN.family
    model = folder / f"random_{family}"
    if not model.exists():
        write_pipeline(model, family)
    settings: ModelSettings = plugin.Settings(model=str(model), vae=None)
    return settings


def write_pipeline(folder: Path, family: Family) -> None:
    """Write a whole pipeline; the same folder content on every machine of one torch version."""
    import torch
    from diffusers import (
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    folder.mkdir(parents=True)
    tokenizer = build_tokenizer(folder / "tokenizer", pad_token="<|endoftext|>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        text_encoder = CLIPTextModel(text_config(tokenizer))
        vae, unet = build_vae(), build_unet(family)
        if family == "sd":
            pipeline = StableDiffusionPipeline(
                vae=vae,
                text_encoder=text_encoder,
                tokenizer=tokenizer,
                unet=unet,
                scheduler=scheduler,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        else:
            second = build_tokenizer(folder / "tokenizer_2", pad_token="!")
            pipeline = StableDiffusionXLPipeline(
                vae=vae,
                text_encoder=text_encoder,
                text_encoder_2=CLIPTextModelWithProjection(text_config(second)),
                tokenizer=tokenizer,
                tokenizer_2=second,
                unet=unet,
                scheduler=scheduler,
                add_watermarker=False,
            )
    pipeline.save_pretrained(folder, safe_serialization=True)


def build_tokenizer(folder: Path, pad_token: str) -> "CLIPTokenizer":
    """Write a byte-level BPE as CLIP's `vocab.json` and `merges.txt`.

    Its merges spell each of `WORDS` from left to right: a trained BPE breaks ties at random.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in dict.fromkeys(re.findall(r"[a-z]+", WORDS)):
        spelt = word[0]
        for letter in [*word[1:-1], word[-1] + "</w>"][: len(word) - 1]:
            merges[spelt, letter] = None
            spelt += letter
    names = ["!", *letters, *(letter + "</w>" for letter in letters)]
    names += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={name: index for index, name in enumerate(dict.fromkeys(names))},
        merges=list(merges),
        pad_token=pad_token,
        model_max_length=77,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def text_config(tokenizer: "CLIPTokenizer") -> "CLIPTextConfig":
    """Size a CLIP text model for a tokenizer."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_vae() -> Any:
    """Build an AutoencoderKL f8 with `LATENT_CHANNELS` latent channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=LATENT_CHANNELS,
        mid_block_add_attention=False,
        sample_size=IMAGE_SIZE,
        scaling_factor=0.7,
    )


def build_unet(family: Family) -> "UNet2DConditionModel":
    """Build a UNet of two levels; SDXL's has pooled text and time-id conditioning."""
    from diffusers import UNet2DConditionModel

    sdxl = {
        "cross_attention_dim": 2 * TEXT_WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + TEXT_WIDTH,
        "use_linear_projection": True,
    }
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=2,
        **(sdxl if family == "sdxl" else {"cross_attention_dim": TEXT_WIDTH}),
    )
