"""Section of training: curves of loss and rate, and grids of samples over the steps."""

import json

from PIL import Image

from stages.report import charts, pictures
from stages.report.artifacts import ReportInputs
from stages.report.charts import ChartLine
from stages.report.pictures import pick_evenly, to_picture

MAX_POINTS = 400  # of a curve; more would only make the page heavy
TRAIN_LOG = "train_log.jsonl"
SAMPLES = "samples"  # folder of the grids that were sampled while training
MAX_GRID_PX = 640


def read_curves(inputs: ReportInputs, key: str) -> list[ChartLine]:
    """Read one column of every arm's training log, at most `MAX_POINTS` rows of those with it."""
    curves: dict[str, ChartLine] = {}
    for arm, artifact in inputs.finetune.items():
        path = artifact.root / TRAIN_LOG
        if artifact.digest in curves or not path.is_file():
            continue
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
        known = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        points = tuple(pick_evenly(known, MAX_POINTS))
        if points:
            curves[artifact.digest] = ChartLine(arm, points)
    return list(curves.values())


def read_sample_grids(inputs: ReportInputs) -> list[tuple[str, int, Image.Image]]:
    """Read the last grid that each training sampled on its way: arm, optimiser step, picture."""
    grids: dict[str, tuple[str, int, Image.Image]] = {}
    for arm, artifact in inputs.finetune.items():
        paths = sorted((artifact.root / SAMPLES).glob("step-*.png"))
        if artifact.digest in grids or not paths:
            continue
        with Image.open(paths[-1]) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((MAX_GRID_PX, MAX_GRID_PX))
        grids[artifact.digest] = (arm, int(paths[-1].stem.removeprefix("step-")), picture)
    return list(grids.values())


LIMITED = f" (at most {MAX_POINTS} steps of an arm, evenly spaced, unsmoothed)"
CURVES = (
    ("loss", "training loss", f"Training loss by optimiser step{LIMITED}."),
    ("held_out_loss", "held-out loss", "Loss on held-out slices with fixed noise."),
    ("kid", "KID", "KID of images sampled while training to validation slices, where it selected."),
    ("lr", "learning rate", "Learning rate by optimiser step."),
)


def draw_training(inputs: ReportInputs) -> list[pictures.Chart]:
    """Draw what the training logs hold, and the last grid of samples where there is one."""
    drawn = []
    for key, ylabel, caption in CURVES:
        curves = read_curves(inputs, key)
        if curves:
            figure = charts.draw_curves(curves, ylabel=ylabel)
            names = ", ".join(curve.name for curve in curves)
            drawn.append(pictures.Chart(to_picture(figure, f"{ylabel} of {names}"), caption))
    for arm, step, image in read_sample_grids(inputs):
        words = f"synthetic slices of {arm} at optimiser step {step}"
        picture = pictures.inline_image(image, words, is_synthetic=True)
        caption = (
            f"{words[0].upper()}{words[1:]}, from captions of validation slices: classes from left "
            "to right, planes from top to bottom."
        )
        drawn.append(pictures.Chart(picture, caption))
    return drawn
