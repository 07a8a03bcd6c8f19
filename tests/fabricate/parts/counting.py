"""A classifier that notes how many slices it judges at once, and can be killed at one of these."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.contracts import Section

if TYPE_CHECKING:
    from torch import Tensor, nn


class Settings(Section):
    calls: Path = Path(os.devnull)  # one line each
    killed_at: int = 0  # this line ends the process, as Ctrl-C does


def build(settings: Settings, image_size: int, num_classes: int) -> "nn.Module":
    from torch import nn

    class Counting(nn.Sequential):
        def forward(self, images: "Tensor") -> "Tensor":
            if not self.training:
                with settings.calls.open("a", encoding="utf-8") as out:
                    out.write(f"{len(images)}\n")
                if len(settings.calls.read_text().splitlines()) == settings.killed_at:
                    raise KeyboardInterrupt
            logits: Tensor = super().forward(images)
            return logits

    features = 3 * (image_size // 4) ** 2
    return Counting(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(features, num_classes))
