"""The card that lies beside an embedded model: what it is, how it was made, what it is not for."""

import json
from pathlib import Path
from typing import Any

from pipeline.contracts import INTENDED_USE
from stages.components.phantoms.notice import ICBM152_CITATIONS, ICBM152_NOTICE

CARD = """---
license: mit
library_name: diffusers
tags: [synthetic, medical, brain-mri, phantom]
---
# {name}

A complete {kind} pipeline of {parameters:.1f} million parameters at {size} px, for
`configs/mini.yaml` of mrisynth. Trained on nothing but computed, tumour-free brain phantoms (the
VAE also saw phantoms with tumours): it draws heads in the plane and contrast asked for, healthy or
with a cyst, an infarct, a hematoma, a vascular malformation or an aneurysm at the place asked for.
From those it has its words for places, sides, sizes and shapes. It knows no tumours, and nothing
that takes up contrast agent as they do: those are what a LoRA is to add.

```python
from diffusers import {kind}
pipe = {kind}.from_pretrained("data/embedded/{name}")
pipe("{prompt}",
     num_inference_steps=25, guidance_scale=3.0).images[0]
```

{intended_use}

## How it was made

`mrisynth embedded build {name}`, seeded; the settings and what was measured:

```json
{facts}
```

Weights are stored as float16 and load as float32. Zero-terminal-SNR schedule, v-prediction. The
latents are ordered by the pixel variance that they carry, coarse ones first.

## Origin

{notice}

{citations}
"""


def write_card(
    folder: Path, *, name: str, kind: str, parameters: int, prompt: str, facts: dict[str, Any]
) -> None:
    """Write `README.md` and `training.json` into the model's folder.

    Args:
        folder: the pipeline's folder.
        name: the model's.
        kind: class of the diffusers pipeline.
        parameters: how many, over all parts.
        prompt: an example.
        facts: settings and measurements, JSON values.
    """
    text = json.dumps(facts, indent=2)
    (folder / "training.json").write_text(text + "\n", encoding="utf-8")
    card = CARD.format(
        name=name,
        kind=kind,
        parameters=parameters / 1e6,
        size=facts["image_size"],
        prompt=prompt,
        intended_use=INTENDED_USE,
        facts=text,
        notice=ICBM152_NOTICE,
        citations="\n".join(f"- {line}" for line in ICBM152_CITATIONS),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
