"""Tiny Ovis2, tiny Gemma and tiny LLaVA, in the classes and files of the large models.

The tokenizer holds every field of the caption schema together with its value as one token
(`,"size":"small"`), so that a caption is eleven tokens long, and all 256 bytes for any other text.
The chat template keeps the image and drops the words of the prompt: these models know one task, are
blind whatever the prompt gives away, and need not read 200 tokens to be told so.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pipeline.contracts import LABELS, Modality, TumorReport
from stages.components.tumor_report.rendering import describe
from stages.components.tumor_report.schema import json_schema
from stages.components.tumor_report.words import (
    INTENSITIES,
    ORIENTATIONS,
    REGIONS,
    SHAPES,
    SIDES,
    SIZES,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

Family = Literal["ovis2", "gemma3", "llava"]
FAMILIES: tuple[Family, ...] = ("ovis2", "gemma3", "llava")
MODALITIES: tuple[Modality, ...] = ("t1", "t1ce", "t2", "flair")
FIELDS = tuple(json_schema()["properties"])  # in the order that the grammar demands
VALUES: dict[str, tuple[str, ...]] = {
    "location": REGIONS,
    "side": SIDES,
    "size": SIZES,
    "shape": SHAPES,
    "intensity": INTENSITIES,
    "orientation": ORIENTATIONS,
}
ANSWER_TOKENS = 11  # one a field, three for the description, one for the end
PAD, END, ANSWER = "<pad>", "<eos>", "<answer>"
IMAGE_TOKENS: dict[Family, dict[str, str]] = {
    "ovis2": {
        "image_token": "<image>",
        "atom_token": "<IMG_ATOM>",
        "start_token": "<IMG_START>",
        "grid_token": "<IMG_GRID>",
        "column_token": "<IMG_COL>",
        "row_token": "<IMG_ROW>",
        "end_token": "<IMG_END>",
    },
    "gemma3": {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
    "llava": {"image_token": "<image>"},
}
TEMPLATE = (
    "{%% for message in messages %%}{%% for part in message['content'] %%}"
    "{%% if part['type'] == 'image' %%}%s{%% endif %%}{%% endfor %%}{%% endfor %%}"
    "{%% if add_generation_prompt %%}" + ANSWER + "{%% endif %%}"
)


@dataclass(frozen=True)
class Size:
    """Widths and depths; the language model sees `(image_px / token_px) ** 2` image tokens."""

    image_px: int = 128
    patch_px: int = 16  # of 8 px they take 2.4 times as long, and half the steps
    token_px: int = 16  # side of the square of pixels behind one image token
    vision_width: int = 144
    vision_layers: int = 4
    text_width: int = 112
    text_layers: int = 2
    num_heads: int = 4
    visual_words: int = 256  # Ovis2's visual vocabulary

    @property
    def num_image_tokens(self) -> int:
        """Image tokens that the language model sees."""
        return (self.image_px // self.token_px) ** 2


def answer_text(report: TumorReport) -> str:
    """Write a report as the JSON that a constrained captioner answers: every field, no spaces."""
    stated = report.model_dump(mode="json")
    return json.dumps({name: stated[name] for name in FIELDS}, separators=(",", ":"))


def phrases() -> list[str]:
    """List the tokens that captions of phantoms are made of."""
    words = ['{"tumor":true', '{"tumor":false']
    for name, values in VALUES.items():
        words += [f',"{name}":{json.dumps(value)}' for value in (*values, None)]
    plane = ORIENTATIONS[0]
    for modality in MODALITIES:
        head, _ = describe("notumor", modality, plane).split(f" {plane}")
        words.append(f',"general_description":"{head}')
    words += [f" {name}" for name in ORIENTATIONS]
    for label in LABELS:
        _, tail = describe(label, MODALITIES[0], plane).split(f" {plane}")
        words.append(f'{tail}"}}')
    return words


def build_tokenizer(family: Family) -> "PreTrainedTokenizerFast":
    """Build the byte-level tokenizer of a family; nothing is learned."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [PAD, END, ANSWER, *IMAGE_TOKENS[family].values()]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: index for index, name in enumerate([*names, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    backend.add_tokens([AddedToken(text, normalized=False) for text in phrases()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=IMAGE_TOKENS[family],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def encode_answer(tokenizer: "PreTrainedTokenizerFast", report: TumorReport) -> list[int]:
    """Encode a phantom's report, end included: `ANSWER_TOKENS` ids, one a field.

    Raises:
        ValueError: The report's words are none that phantoms are described in.
    """
    ids = tokenizer(answer_text(report), add_special_tokens=False).input_ids
    if len(ids) != ANSWER_TOKENS - 1:
        raise ValueError(
            f"report {answer_text(report)!r} takes {len(ids) + 1} tokens, expected {ANSWER_TOKENS}"
        )
    return [*ids, cast("int", tokenizer.eos_token_id)]


def build_processor(family: Family, size: Size, tokenizer: "PreTrainedTokenizerFast") -> Any:
    """Build the family's own processor; images are resized to `image_px` and scaled to [-1, 1]."""
    from transformers.models.gemma3 import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.llava import LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.ovis2 import Ovis2Processor
    from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil

    square = {"height": size.image_px, "width": size.image_px}
    shared: dict[str, Any] = {"size": square, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    image_token = IMAGE_TOKENS[family]["boi_token" if family == "gemma3" else "image_token"]
    words: dict[str, Any] = {"tokenizer": tokenizer, "chat_template": TEMPLATE % image_token}
    if family == "ovis2":
        return Ovis2Processor(
            Ovis2ImageProcessorPil(**shared), image_seq_length=size.num_image_tokens, **words
        )
    if family == "gemma3":
        return Gemma3Processor(
            Gemma3ImageProcessorPil(**shared), image_seq_length=size.num_image_tokens, **words
        )
    return LlavaProcessor(
        LlavaImageProcessorPil(**shared, crop_size=square),
        patch_size=size.patch_px,
        vision_feature_select_strategy="default",  # drops the class token
        num_additional_image_tokens=1,
        **words,
    )


def build_model(family: Family, size: Size, tokenizer: "PreTrainedTokenizerFast") -> "nn.Module":
    """Build the family's model with random weights; draws from torch's global generator.

    Positions start as sines of row and column, so that neighbourhood need not be learned first.
    """
    import torch
    from transformers import GenerationConfig

    builder = {"ovis2": _ovis2, "gemma3": _gemma3, "llava": _llava}[family]
    model = builder(size, tokenizer)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ends)
    for name, parameter in model.named_parameters():
        if name.endswith("position_embedding.weight"):
            with torch.no_grad():
                patches = sine_positions(size.image_px // size.patch_px, size.vision_width)
                parameter[-len(patches) :] = patches  # CLIP's class token comes first
    return cast("nn.Module", model)


def sine_positions(side: int, width: int) -> Any:
    """Return sines and cosines of row and column, float32 (side ** 2, width), rms 0.35.

    Source: Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", 2021.
    """
    import torch

    rates = 1 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    return 0.5 * torch.cat([rows, columns], dim=2).reshape(side * side, -1)


def save(folder: Path, model: Any, processor: Any) -> None:
    """Write model and processor in the hub's layout, float16 weights that load as float32."""
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _ids(tokenizer: Any, names: Sequence[str]) -> list[int]:
    return [int(tokenizer.convert_tokens_to_ids(name)) for name in names]


def _text(size: Size, tokenizer: Any) -> dict[str, Any]:
    """Return what every family's text configuration shares."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": size.text_width,
        "intermediate_size": 3 * size.text_width,
        "num_hidden_layers": size.text_layers,
        "num_attention_heads": size.num_heads,
        "num_key_value_heads": size.num_heads,
        "head_dim": size.text_width // size.num_heads,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision(size: Size) -> dict[str, Any]:
    return {
        "image_size": size.image_px,
        "patch_size": size.patch_px,
        "hidden_size": size.vision_width,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.num_heads,
    }


def _ovis2(size: Size, tokenizer: Any) -> Any:
    import torch
    from transformers import Ovis2Config, Ovis2ForConditionalGeneration, Qwen2Config
    from transformers.models.ovis2.configuration_ovis2 import Ovis2VisionConfig

    names = IMAGE_TOKENS["ovis2"]
    indicators = [names[f"{part}_token"] for part in ("start", "grid", "column", "row", "end")]
    text = Qwen2Config(**_text(size, tokenizer))
    vision = Ovis2VisionConfig(
        **_vision(size),
        intermediate_size=2 * size.vision_width,  # gated: three matrices
        hidden_stride=size.token_px // size.patch_px,
        vocab_size=size.visual_words + len(indicators),
        num_visual_indicator_tokens=len(indicators),
    )
    config = Ovis2Config(
        vision_config=vision,
        text_config=text,
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        image_token_id=_ids(tokenizer, [names["atom_token"]])[0],
        visual_indicator_token_ids=_ids(tokenizer, indicators),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Ovis2ForConditionalGeneration(config)
    with torch.no_grad():
        # As initialised, a token is nearly the mean of all visual words, the same for every patch.
        model.model.visual_embeddings_table.weight.normal_()
        model.model.vision_tower.head_norm.weight.fill_(3.0)
    return model


def _gemma3(size: Size, tokenizer: Any) -> Any:
    import torch
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    names = IMAGE_TOKENS["gemma3"]
    boi, eoi, image = _ids(tokenizer, list(names.values()))
    head = size.text_width // size.num_heads
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(
            **_vision(size), intermediate_size=3 * size.vision_width, vision_use_head=False
        ),
        text_config=Gemma3TextConfig(**_text(size, tokenizer), query_pre_attn_scalar=head),
        mm_tokens_per_image=size.num_image_tokens,
        boi_token_index=boi,
        eoi_token_index=eoi,
        image_token_index=image,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():  # as initialised, zero
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(
            std=size.vision_width**-0.5
        )
    return model


def _llava(size: Size, tokenizer: Any) -> Any:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **_vision(size), intermediate_size=3 * size.vision_width, projection_dim=size.text_width
        ),
        text_config=LlamaConfig(**_text(size, tokenizer)),
        image_token_index=_ids(tokenizer, [IMAGE_TOKENS["llava"]["image_token"]])[0],
        image_seq_length=size.num_image_tokens,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaForConditionalGeneration(config)
