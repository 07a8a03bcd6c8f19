"""The card beside an adapter: what it learnt from, how, what is known of it, and its limits."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import jinja2

from stages.components.diffusion.adapters import ADAPTER_FILE
from stages.components.diffusion.placeholder import EMBEDS_FILE
from stages.components.networks.weights import PIPELINE_CLASSES, Family, is_folder_name
from stages.finetune.adapters.kohya import KOHYA_FILE

CARD_FILE = "README.md"
TEMPLATE = "card.md.j2"


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
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).from_string(resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        **asdict(facts),
        is_folder=is_folder_name(facts.base_model),
        loader=PIPELINE_CLASSES[facts.family],
        adapter_file=ADAPTER_FILE,
        embeds_file=EMBEDS_FILE,
        kohya_file=KOHYA_FILE,
        sections=(
            ("Data", facts.data),
            ("Settings", facts.settings),
            ("Scores known when this was written", facts.scores),
        ),
    )
