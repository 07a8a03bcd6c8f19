"""Checkpoints of five families that we have no file for, tiny and with random weights."""

import json
from pathlib import Path
from typing import Any

from stages.embedded.vlm_models import build_tokenizer

KINDS = ("qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "gemma4")  # idefics3: SmolVLM 1
TOKENS: dict[str, dict[str, str]] = {
    "qwen2_5_vl": {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "start": "<|vision_start|>",
        "end": "<|vision_end|>",
    },
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "idefics3": {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    },
    "gemma4": {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    },
}
TOKENS["qwen3_vl"] = TOKENS["qwen2_5_vl"]
IMAGE = {
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "internvl": "<IMG_CONTEXT>",
    "idefics3": "<image>",
    "gemma4": "<|image|>",
}
TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE"
    "{% else %}{{ p['text'].split('\\n')[0][50:] }}{% endif %}{% endfor %}{% endfor %}<answer>"
)
VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "intermediate_size": 64}  # fmt: skip


def write_checkpoint(folder: Path, kind: str) -> None:
    """Write a checkpoint as those of the hub lie there: 32 px, patches of 8, one layer each."""
    import torch
    from tokenizers import AddedToken
    from transformers import AutoModelForImageTextToText, GenerationConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    tokenizer: Any = build_tokenizer("llava")
    names = TOKENS[kind]
    tokenizer.add_tokens([AddedToken(name, special=True) for name in names.values()], True)
    tokenizer._set_model_specific_special_tokens(names)
    ids = {role: tokenizer.convert_tokens_to_ids(name) for role, name in names.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config, image, words = _describe(kind, len(tokenizer), ids, tokenizer.pad_token_id)
        model = AutoModelForImageTextToText.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:  # so wide that what it says depends on what it sees
                    parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    owner = {"processor_class": PROCESSOR_MAPPING_NAMES[kind]}
    (folder / "preprocessor_config.json").write_text(json.dumps(owner | image))
    (folder / "processor_config.json").write_text(json.dumps(owner | words))
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("IMAGE", IMAGE[kind]))


def _describe(
    kind: str, vocab_size: int, ids: dict[str, int], pad: int
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return the model's configuration, the image processor's, and the processor's own."""
    import transformers

    text = {
        "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": 4096, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": 1, "pad_token_id": pad,
    }  # fmt: skip
    if kind.startswith("qwen"):
        rope: dict[str, Any] = {
            "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0
        }  # fmt: skip
        vision: dict[str, Any] = {
            "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
            "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "out_hidden_size": 32,
        }  # fmt: skip
        if kind == "qwen2_5_vl":
            own: Any = transformers.Qwen2_5_VLConfig
            vision |= {"window_size": 32, "fullatt_block_indexes": [0]}
        else:
            own = transformers.Qwen3VLConfig
            vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
            rope |= {"mrope_interleaved": True}
        config = own(
            text_config=text | {"rope_parameters": rope},
            vision_config=vision,
            image_token_id=ids["image_token"],
            video_token_id=ids["video_token"],
            vision_start_token_id=ids["start"],
            vision_end_token_id=ids["end"],
            tie_word_embeddings=True,
        )
        edges = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
        image = {"image_processor_type": "Qwen2VLImageProcessor", "size": edges, "patch_size": 8,
                 "merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
        return config, image, {}
    if kind == "internvl":
        config = transformers.InternVLConfig(
            text_config=text | {"model_type": "qwen2"},
            vision_config=VISION | {"image_size": [32, 32], "patch_size": [8, 8]},
            image_token_id=ids["context_image_token"],
            image_seq_length=4,
        )
        image = {"image_processor_type": "GotOcr2ImageProcessor",
                 "size": {"height": 32, "width": 32}}  # fmt: skip
        return config, image, {"image_seq_length": 4}
    if kind == "idefics3":
        config = transformers.Idefics3Config(
            text_config=text | {"model_type": "llama"},
            vision_config=VISION | {"image_size": 32, "patch_size": 8},
            image_token_id=ids["image_token"],
            scale_factor=2,
            pad_token_id=pad,
            tie_word_embeddings=True,
        )
        edge = {"longest_edge": 32}
        image = {"image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": False,
                 "size": edge, "max_image_size": edge}  # fmt: skip
        return config, image, {"image_seq_len": 4}
    config = transformers.Gemma4Config(
        text_config=text
        | {"global_head_dim": 16, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
           "layer_types": ["full_attention"], "vocab_size_per_layer_input": vocab_size},
        vision_config=VISION
        | {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 8, "default_output_length": 4,
           "pooling_kernel_size": 2, "position_embedding_size": 64},
        audio_config=None,
        image_token_id=ids["image_token"],
        boi_token_id=ids["boi_token"],
        eoi_token_id=ids["eoi_token"],
        tie_word_embeddings=True,
    )  # fmt: skip
    image = {"image_processor_type": "Gemma4ImageProcessor", "patch_size": 8,
             "max_soft_tokens": 70, "pooling_kernel_size": 2}  # fmt: skip
    return config, image, {}
