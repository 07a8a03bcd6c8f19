"""Where a lesion was asked for, as a soft map of the image, and how far a segmentation is from it.

Coordinates are shares of half the image's side, from its middle: across from -1 (the image's left)
to 1, down from -1 (top) to 1. Slices are cropped to the head and hung alike by preprocess, so a
region has its place in the image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.contracts import TumorReport

# Region -> (across, down, reach across, reach down): an ellipse about where its lesions lie, two
# standard deviations of their middles and of their own extent wide. Measured on the masks of 699
# phantom slices at 128 px; where fewer than ten showed a region (of the basal ganglia, cerebellum,
# posterior fossa, skull base), with a reach of 0.2 at least. Off the sagittal plane `across` is the
# distance from the middle, on either side.
PLACES: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "axial": {
        "frontal lobe": (0.28, -0.34, 0.38, 0.54),
        "parietal lobe": (0.34, 0.14, 0.20, 0.26),
        "temporal lobe": (0.39, 0.16, 0.26, 0.44),
        "occipital lobe": (0.24, 0.63, 0.28, 0.20),
        "basal ganglia": (0.21, -0.15, 0.22, 0.20),
        "cerebellum": (0.17, 0.57, 0.20, 0.20),
        "convexity": (0.44, 0.22, 0.36, 0.86),
        "falx": (0.13, -0.02, 0.30, 0.62),
        "posterior fossa": (0.28, 0.48, 0.42, 0.40),
        "skull base": (0.30, -0.39, 0.36, 0.36),
        "sellar region": (0.00, -0.12, 0.13, 0.16),
    },
    "coronal": {
        "frontal lobe": (0.26, -0.45, 0.42, 0.50),
        "parietal lobe": (0.28, -0.51, 0.20, 0.26),
        "temporal lobe": (0.38, -0.06, 0.28, 0.38),
        "occipital lobe": (0.35, -0.12, 0.34, 0.50),
        "basal ganglia": (0.19, -0.25, 0.20, 0.20),
        "cerebellum": (0.24, 0.37, 0.20, 0.30),
        "convexity": (0.40, -0.44, 0.34, 0.54),
        "falx": (0.09, -0.55, 0.26, 0.36),
        "posterior fossa": (0.28, 0.10, 0.34, 0.24),
        "skull base": (0.29, -0.05, 0.36, 0.36),
        "sellar region": (0.00, 0.10, 0.13, 0.30),
    },
    "sagittal": {
        "frontal lobe": (-0.24, -0.43, 0.50, 0.46),
        "parietal lobe": (0.13, -0.56, 0.20, 0.26),
        "temporal lobe": (0.16, -0.09, 0.46, 0.36),
        "occipital lobe": (0.63, -0.16, 0.20, 0.28),
        "basal ganglia": (-0.07, -0.23, 0.20, 0.20),
        "cerebellum": (0.48, 0.26, 0.20, 0.20),
        "convexity": (0.25, -0.44, 0.76, 0.52),
        "falx": (0.04, -0.54, 0.44, 0.34),
        "posterior fossa": (0.41, 0.10, 0.32, 0.24),
        "skull base": (-0.36, -0.01, 0.22, 0.30),
        "sellar region": (-0.07, 0.08, 0.14, 0.16),
    },
}
HEAD_SHARE = 0.55  # of the image's area; 0.53, 0.52 and 0.59 on axial, coronal, sagittal phantoms
# Lesions by their share of the head: from 5 % of the small to 95 % of the large ones on phantoms;
# the limits between are those by which ground truth is named.
SIZE_RANGES = {"small": (0.002, 0.008), "medium": (0.008, 0.02), "large": (0.02, 0.1)}
ANY_SIZE = (0.002, 0.1)
MIDLINE = 0.1  # of half the image, either way
SIDE_EDGE, PLACE_EDGE = 0.03, 0.1  # widths of the soft edges


def place_map(report: TumorReport, height: int, width: int) -> Tensor:
    """Map where the lesion of a report may lie, float32 (height, width) in [0, 1].

    1 inside the region and on the side asked for, falling softly to 0. A region without a place in
    `PLACES`, or in an unknown plane, is anywhere; a report without a tumour has 0 everywhere.
    """
    if report.tumor is False:
        return torch.zeros(height, width)
    across = (2 * (torch.arange(width) + 0.5) / width - 1)[None, :].expand(height, width)
    down = (2 * (torch.arange(height) + 0.5) / height - 1)[:, None].expand(height, width)
    found = torch.ones(height, width)
    place = PLACES.get(report.orientation or "", {}).get(report.location or "")
    if place is not None:
        own = across if report.orientation == "sagittal" else across.abs()
        distance = torch.hypot((own - place[0]) / place[2], (down - place[1]) / place[3])
        found = torch.sigmoid((1 - distance) / PLACE_EDGE)
    if report.side == "left":
        found = found * torch.sigmoid(-across / SIDE_EDGE)
    elif report.side == "right":
        found = found * torch.sigmoid(across / SIDE_EDGE)
    elif report.side == "midline":
        found = found * torch.sigmoid((MIDLINE - across.abs()) / SIDE_EDGE)
    return found


def location_loss(logits: Tensor, reports: Sequence[TumorReport]) -> Tensor:
    """Say how far segmented lesions are from what was asked for, float32 (n,), at least 0.

    The sum of what is missing of the least area where the lesion may lie, what is beyond the
    largest, and the share of the lesion that lies elsewhere. So a lesion may lie anywhere in its
    region, with any outline, and none is worse than one of which a part lies elsewhere: measured
    by area in place of share, the loss is lowered most by taking every lesion away. Without a
    tumour asked for: any lesion, in shares of the least that counts. A report that does not say
    whether there is a tumour asks for nothing.

    Args:
        logits: of lesion against none, (n, 1, height, width).
        reports: what was asked of each image.
    """
    probability = torch.sigmoid(logits[:, 0].float())
    height, width = probability.shape[1:]
    allowed = torch.stack([place_map(report, height, width) for report in reports])
    allowed = allowed.to(logits.device)
    inside = (probability * allowed).mean(dim=(1, 2)) / HEAD_SHARE
    outside = (probability * (1 - allowed)).mean(dim=(1, 2)) / HEAD_SHARE
    ranges = [SIZE_RANGES.get(report.size or "", ANY_SIZE) for report in reports]
    least, most = torch.tensor(ranges, device=logits.device).T
    misplaced = outside / (inside + outside + least)
    lesion = torch.relu(1 - inside / least) + torch.relu(inside / most - 1) + misplaced
    whole = inside + outside
    has_lesion = torch.tensor([float(report.tumor is True) for report in reports])
    is_stated = torch.tensor([float(report.tumor is not None) for report in reports])
    has_lesion, is_stated = has_lesion.to(logits.device), is_stated.to(logits.device)
    loss: Tensor = is_stated * (has_lesion * lesion + (1 - has_lesion) * whole / least)
    return loss
