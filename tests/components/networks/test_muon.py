"""Muon: orthogonal steps of AdamW's size, for matrices and convolutions alike."""

import pytest
import torch
from torch import nn

from stages.components.networks.muon import Muon, optimizers, orthogonalise


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_singular_values_draw_together_and_directions_stay(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(
        torch.randn((2, *shape), generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    spectrum = torch.logspace(0, -1.5, left.shape[2])
    matrices = left * torch.stack([spectrum, 100 * spectrum])[:, None] @ right
    for matrix, made in zip(matrices, orthogonalise(matrices), strict=True):
        before, after = torch.linalg.svdvals(matrix), torch.linalg.svdvals(made)
        assert after.max() < 1.3
        assert after.max() / after.min() < 0.2 * before.max() / before.min()
        own_left, _, own_right = torch.linalg.svd(matrix, full_matrices=False)
        turned = own_left.T @ made @ own_right.T
        assert (turned - torch.diag(turned.diag())).abs().max() < 1e-4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_steps_as_its_matrix_does(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn((6, 4, 3, 3), generator=generator)
    gradient = torch.randn((6, 4, 3, 3), generator=generator)
    conv = weight.clone(memory_format=layout).requires_grad_()
    conv.grad = gradient.clone(memory_format=layout)
    # columns in another order: an orthogonalised matrix keeps up with them
    matrix = weight.flatten(1).clone().requires_grad_()
    matrix.grad = gradient.flatten(1).clone()
    Muon([conv], lr=0.1, weight_decay=0.5).step()
    Muon([matrix], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(conv.detach().flatten(1), matrix.detach(), atol=1e-5, rtol=1e-4)


def test_a_step_has_the_size_of_adamws() -> None:
    weight = torch.zeros(32, 64, requires_grad=True)
    weight.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    Muon([weight], lr=1e-3).step()
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2e-3, rel=0.4)


def test_hidden_matrices_go_to_muon_and_all_else_to_adamw() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embedding = nn.Embedding(5, 4)
            self.conv_in = nn.Conv2d(3, 4, 3)
            self.hidden = nn.Conv2d(4, 4, 3)
            self.norm = nn.GroupNorm(2, 4)
            self.linear = nn.Linear(4, 4)
            self.conv_out = nn.Conv2d(4, 3, 3)

    net = Net()
    muon, adamw = optimizers(net, lr=1e-3, weight_decay=0.0)
    given = {id(weight) for group in muon.param_groups for weight in group["params"]}
    assert given == {id(net.hidden.weight), id(net.linear.weight)}
    rest = {id(weight) for group in adamw.param_groups for weight in group["params"]}
    assert rest == {id(weight) for weight in net.parameters()} - given
