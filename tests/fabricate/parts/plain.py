"""A classifier: one linear layer on the pixels of the smallest slices."""

from typing import TYPE_CHECKING

from pipeline.contracts import Licence, Section

if TYPE_CHECKING:
    from torch import nn

LICENCE = Licence(part="Plain", terms="Terms of the plain one.")


class Settings(Section):
    bias: bool = True


def build(settings: Settings, image_size: int, num_classes: int) -> "nn.Module":
    from torch import nn

    return nn.Sequential(
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(3 * (image_size // 4) ** 2, num_classes, bias=settings.bias),
    )
