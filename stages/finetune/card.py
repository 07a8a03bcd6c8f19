"""The card beside an adapter: what it learnt from, how, what is known of it, and its limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.components.diffusion.adapters import ADAPTER_FILE
from stages.components.diffusion.placeholder import EMBEDS_FILE
from stages.components.networks.weights import PIPELINE_CLASSES, Family, is_folder_name
from stages.finetune.adapters.kohya import KOHYA_FILE

CARD_FILE = "README.md"
LIMITS = (
    "The images it makes are synthetic. They show no patient, and must not be used for diagnosis, "
    "treatment or any other medical advice; the base model's licence excludes it too.",
    "It has learnt from two-dimensional slices: neighbouring images do not form a volume, and "
    "sides are those of the image.",
    "It can repeat what it has seen. Compare its images with the training slices before any of "
    "them leave the machine that holds the patients' data.",
    "The loss says how well noise is predicted, not how good images are. Scores against real "
    "slices (KID, FID) are the evaluate stage's, made later than this card.",
)


@dataclass(frozen=True)
class CardFacts:
    """All that a card states; nothing in it depends on the time or the machine."""

    base_model: str  # hub id or folder, as configured
    base_description: str  # the plug-in's own words, with the licence
    family: Family
    data: Mapping[str, object]  # e.g. {"training slices": 512, "sources": "phantom"}
    settings: Mapping[str, object]
    scores: Mapping[str, object]
    captions: Sequence[str]  # examples
    has_kohya: bool
    placeholder: str | None = None  # of a textual inversion


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write `README.md`; the same facts give the same bytes."""
    (folder / CARD_FILE).write_text(render_card(facts), encoding="utf-8")


def render_card(facts: CardFacts) -> str:
    """Render the card in the hub's form: YAML header, then Markdown."""
    method = "lora" if facts.placeholder is None else "textual_inversion"
    header: dict[str, Any] = {
        # The hub refuses a card whose base model is a folder of this machine.
        **({} if is_folder_name(facts.base_model) else {"base_model": facts.base_model}),
        "library_name": "diffusers",
        "tags": [method, "text-to-image", "synthetic", "mri"],
    }
    kind = "LoRA adapter" if facts.placeholder is None else "Textual inversion"
    return "\n".join(
        [
            "---",
            *yaml_lines(header),
            "---",
            f"# {kind} for synthetic brain MRI slices",
            "",
            f"Base model: `{facts.base_model}`. {facts.base_description}",
            "",
            *(lora_use(facts) if facts.placeholder is None else inversion_use(facts)),
            "",
            *section("Data", facts.data),
            *(f"- a caption: “{text}”" for text in facts.captions),
            "",
            *section("Settings", facts.settings),
            "",
            *section("Scores known when this was written", facts.scores),
            "",
            "## Limits",
            "",
            *(f"- {line}" for line in LIMITS),
            "",
        ]
    )


def lora_use(facts: CardFacts) -> list[str]:
    """Say which files there are and how plain diffusers loads an adapter."""
    kohya = f"- `{KOHYA_FILE}`: the same in kohya's layout, for ComfyUI, AUTOMATIC1111 and others\n"
    loader = PIPELINE_CLASSES[facts.family]
    return [
        f"- `{ADAPTER_FILE}`: diffusers' layout\n{kohya if facts.has_kohya else ''}",
        "```python",
        f"from diffusers import {loader}",
        f'pipe = {loader}.from_pretrained("{facts.base_model}")',
        'pipe.load_lora_weights("FOLDER OF THIS CARD")',
        "```",
    ]


def inversion_use(facts: CardFacts) -> list[str]:
    """Say how plain diffusers loads a textual inversion, and how its prompts begin."""
    loader = PIPELINE_CLASSES[facts.family]
    lines = [f'pipe = {loader}.from_pretrained("{facts.base_model}")']
    if facts.family == "sd":
        head = f"from diffusers import {loader}"
        lines += ['pipe.load_textual_inversion("FOLDER OF THIS CARD")']
    else:
        head = f"from diffusers import {loader}\nfrom safetensors.torch import load_file"
        lines += [f'words = load_file("FOLDER OF THIS CARD/{EMBEDS_FILE}")']
        for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
            lines += [
                "pipe.load_textual_inversion(",
                f'    words["{key}"], token="{facts.placeholder}",',
                f"    text_encoder=pipe.text_encoder{suffix}, tokenizer=pipe.tokenizer{suffix},",
                ")",
            ]
    return [
        f"- `{EMBEDS_FILE}`: the vectors of the new word `{facts.placeholder}`. Open every prompt "
        f"with it: `{facts.placeholder} tumor: yes; ...`",
        "",
        "```python",
        head,
        *lines,
        "```",
    ]


def section(title: str, rows: Mapping[str, object]) -> list[str]:
    """Render a heading and a list."""
    return [f"## {title}", "", *(f"- {key}: {value}" for key, value in rows.items())]


def yaml_lines(values: Mapping[str, Any]) -> list[str]:
    """Write a flat mapping of texts and lists of texts as YAML."""
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, str):
            lines.append(f"{key}: {value}")
        else:
            lines += [f"{key}:", *(f"- {item}" for item in value)]
    return lines
