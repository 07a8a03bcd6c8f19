"""Muon: momentum whose matrices are made orthogonal before each step (Jordan et al. 2024).

All directions of a weight matrix move equally far, so the faint ones (fine detail in the VAE, the
weaker conditions in the UNet) are learned together with the loud ones. `torch.optim.Muon` takes
two-dimensional parameters only and works in bfloat16, which plain CPUs emulate; here convolutions
are read as matrices of (out, in * height * width), in float32.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 3  # Jordan et al. take five: nearer to 1, at two thirds more time


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the larger singular values of float32 (n, rows, columns) near 1 and lift the rest."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT.contiguous() if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; a step has about the size that AdamW's would have.

    Args:
        params: weights of linear layers (out, in) and convolutions (out, in, height, width), or
            groups of them.
        lr: learning rate, on AdamW's scale.
        momentum: of the running mean of gradients.
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], *, lr: float,
        momentum: float = 0.95, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                mean = state["mean"].lerp_(weight.grad, 1 - group["momentum"])
                rows = weight.grad.lerp(mean, group["momentum"]).flatten(1)
                updates.setdefault(rows.shape, []).append((weight, rows))
            for shape, same in updates.items():  # of one shape at once: small products are slow
                size = 0.2 * max(shape) ** 0.5
                moved = orthogonalise(torch.stack([rows for _, rows in same]))
                for (weight, _), step in zip(same, moved, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(step.reshape(weight.shape), alpha=-group["lr"] * size)


def optimizers(
    model: nn.Module, *, lr: float, weight_decay: float
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Give hidden weight matrices to Muon; embeddings, first and last layers, vectors to AdamW."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    hidden: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in model.named_parameters():
        outer = any(part in ("conv_in", "conv_out") for part in name.split("."))
        is_hidden = weight.ndim >= 2 and not outer and id(weight) not in embeddings
        (hidden if is_hidden else rest).append(weight)
    return (
        Muon(hidden, lr=lr, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True),
    )
