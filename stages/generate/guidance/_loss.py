"""Loss of guidance: how far an image is from the tumour asked for, as the judge sees it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.contracts import TumorReport
from stages.components.judge.network import SIDES, Naming
from stages.components.tumor_report.truth import SIZE_LIMITS

HEAD_SHARE = 0.55  # of the image's area; 0.53, 0.52 and 0.59 on axial, coronal, sagittal phantoms
ANY_SIZE = (0.002, 0.1)  # shares of the head: 5 % of small lesions on phantoms, 95 % of large ones
# By the limits that ground truth is named by, the last of which (1) is no size of a lesion.
_BOUNDS = (ANY_SIZE[0], *(limit for _, limit in SIZE_LIMITS[:-1]), ANY_SIZE[1])
SIZE_RANGES = dict(zip((name for name, _ in SIZE_LIMITS), pairwise(_BOUNDS), strict=True))


def location_loss(
    lesion: Tensor, named: Naming, reports: Sequence[TumorReport], regions: Sequence[str]
) -> Tensor:
    """Say how far lesions are from what was asked for, float32 (n,), at least 0.

    With a tumour asked for, the sum of four parts of at most 1 each (the second grows slowly): the
    share of the least area that is missing, the area beyond the largest in shares of it, and how
    sure the judge is that the lesion does not lie in the region, and on the side, asked for. So
    taking a lesion away never pays. Without one asked for, its area in shares of the least that
    counts. A report that does not say whether there is a tumour asks for nothing.

    Args:
        lesion: logits of lesion against none, (n, 1, height, width).
        named: what the judge names under the lesion.
        reports: what was asked of each image.
        regions: those that the judge knows, in the order of its logits.
    """
    area = torch.sigmoid(lesion[:, 0].float()).mean(dim=(1, 2)) / HEAD_SHARE
    ranges = [SIZE_RANGES.get(report.size or "", ANY_SIZE) for report in reports]
    least, most = torch.tensor(ranges, device=lesion.device).T
    amount = torch.relu(1 - area / least) + torch.relu(area / most - 1)
    place = doubt(named.region, [report.location for report in reports], regions)
    place = place + doubt(named.side, [report.side for report in reports], SIDES)
    says_either = [0.0 if report.tumor is None else 1.0 for report in reports]
    with_tumor = [1.0 if report.tumor else 0.0 for report in reports]
    is_asked, has_tumor = torch.tensor([says_either, with_tumor], device=lesion.device)
    loss: Tensor = has_tumor * (amount + place) + (is_asked - has_tumor) * area / ANY_SIZE[0]
    return loss


def doubt(logits: Tensor, names: Sequence[str | None], known: Sequence[str]) -> Tensor:
    """Return 1 - the probability (n,) of the value asked for; 0 where it is none of the known.

    >>> doubt(torch.zeros(2, 2), ["falx", None], ["convexity", "falx"]).tolist()
    [0.5, 0.0]
    """
    chances = logits.float().softmax(dim=1)
    rows = [
        1 - chances[row, known.index(name)] if name in known else chances.new_zeros(())
        for row, name in enumerate(names)
    ]
    return torch.stack(rows)
