"""Trained tensors and their averages, which are measured and exported in their place."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.finetune.adapters.lora import AdaptedModel


class AdapterAverage:
    """An exponential moving average (EMA) of the trained tensors, float32 on their device.

    After step n the average moves by 1 - min(decay, (1 + n) / (10 + n)), so that a short run is not
    ruled by its first steps.
    """

    def __init__(self, models: Sequence[AdaptedModel], decay: float) -> None:
        self.decay = decay
        self.parameters = trained_parameters(models)
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights as they are after optimiser step `step`."""
        weight = 1.0 - min(self.decay, (1.0 + step) / (10.0 + step))
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter, weight)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go back to stored averages."""
        for name, value in values.items():
            self.values[name].copy_(value)


@dataclass(frozen=True)
class Trained:
    """All that training changes: tensors of networks, their optimiser's state, their average."""

    models: Sequence[AdaptedModel]
    optimizer: Any  # not accelerate's wrapper of it
    average: AdapterAverage | None = None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained tensors by name, in a fixed order."""
        return trained_parameters(self.models)

    @contextmanager
    def as_exported(self) -> Iterator[None]:
        """Put the weights that a user would get in place; afterwards exactly those of training.

        They are the moving average if there is one, schedule-free's own average if that optimises,
        and else what is trained. Schedule-free rounds when it switches back and forth, so the
        trained weights are kept aside: looking at the others changes no later step.
        """
        is_schedule_free = hasattr(self.optimizer, "eval")
        if self.average is None and not is_schedule_free:
            yield
            return
        parameters = self.parameters
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        if is_schedule_free:
            self.optimizer.eval()
        if self.average is not None:
            assign(parameters, self.average.values)
        try:
            yield
        finally:
            if is_schedule_free:
                self.optimizer.train()
            assign(parameters, kept)


def trained_parameters(models: Sequence[AdaptedModel]) -> dict[str, nn.Parameter]:
    """Map the names of all trained tensors to them, in a fixed order."""
    return {k: p for model in models for k, p in model.named_parameters().items()}


@torch.no_grad()
def assign(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy values into parameters of the same names."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
