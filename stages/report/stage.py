"""Make the page: claims, image grid, charts, tables and limits of one run, in one HTML file.

Reads every other artifact of the run: records, images, training logs and manifests. Writes
`report.html` (needs no other file and no network), `results.json` and `records.jsonl` (all scores
of evaluate and classify), `grid.png` and `scores.png`.

Invariants: no number is computed here, only read, chosen by fixed rules and laid out; an optional
note that no stage recorded is named on the page; the same inputs give the same bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.contracts import (
    ALL,
    DISTANCE,
    FIDELITY,
    GAP_CLOSED,
    INTENDED_USE,
    NOISE,
    OTHER_SCORES,
    REAL,
    VARIETY,
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    CheckpointRecord,
    Context,
    ScoreRecord,
    SliceRecord,
    Stage,
    SyntheticRecord,
)
from pipeline.settings import ReportConfig
from stages.components.phantoms.notice import ICBM152_CITATIONS, ICBM152_NOTICE
from stages.components.report import assembly, charts, grid, notices, page, tables
from stages.components.report.captions import list_caption_tables, list_silent
from stages.components.report.claims import judge_all
from stages.components.report.classifier import lay_out_classifiers
from stages.components.report.copies import read_copies, table_recall
from stages.components.report.explanations import (
    describe_explanations,
    draw_explanations,
    table_explanations,
)
from stages.components.report.location import has_location, is_location, lay_out_location
from stages.components.report.numbers import Legend
from stages.components.report.recaption import is_recaption, table_recaption

COPIED, RECALL = "copied_share", "copy_recall"
SECTIONS = (DISTANCE, FIDELITY, VARIETY)  # come first
LIMITED = f" (at most {assembly.MAX_POINTS} steps of an arm, evenly spaced, unsmoothed)"
CURVES = (
    ("loss", "training loss", f"Training loss by optimiser step{LIMITED}."),
    ("held_out_loss", "held-out loss", "Loss on held-out slices with fixed noise."),
    ("kid", "KID", "KID of images sampled while training to validation slices, where it selected."),
    ("lr", "learning rate", "Learning rate by optimiser step."),
)


@dataclass(frozen=True)
class ReportInputs:
    """Everything the run made; dictionaries are keyed by arm, `generate` also by base/NAME."""

    preprocess: Artifact[SliceRecord]
    caption: dict[str, Artifact[CaptionRecord]]
    finetune: dict[str, Artifact[CheckpointRecord]]
    generate: dict[str, Artifact[SyntheticRecord]]
    evaluate: Artifact[ScoreRecord]
    classify: Artifact[ScoreRecord]


def draw_score_charts(
    scores: Sequence[ScoreRecord], features: str | None, legend: Legend
) -> list[tuple[Figure, page.Chart]]:
    """Draw KID, then FID, over all classes, for each feature extractor; the claims' one first."""
    overall = [score for score in scores if score.stage == "evaluate" and score.group == ALL]
    extractors = sorted(
        {s.features or "" for s in overall}, key=lambda name: (name != features, name)
    )
    drawn = []
    for metric in ("kid", "fid"):
        for name in extractors:
            shown = [s for s in overall if s.metric == metric and (s.features or "") == name]
            bars = assembly.read_bars(shown)
            if not bars:
                continue
            floor = assembly.read_edge(shown, REAL, "floor: real against real")
            ceiling = assembly.read_edge(shown, NOISE, "ceiling: noise")
            title = f"{legend.name(metric)} to real test slices ({name}), lower is better"
            figure = charts.draw_scores(bars, floor=floor, ceiling=ceiling, xlabel=title)
            sizes = sorted({score.n_synthetic for score in shown if score.arm != REAL})
            caption = (
                f"{title}. Lines span the recorded interval; n = "
                f"{' / '.join(str(size) for size in sizes)} a row."
            )
            values = "; ".join(f"{bar.name} {bar.value:.4g}" for bar in bars)
            drawn.append((figure, page.Chart(_to_picture(figure, f"{title}: {values}"), caption)))
    return drawn


def table_overall(scores: Sequence[ScoreRecord], legend: Legend) -> tuple[tables.Panel, ...]:
    """Lay out scores over all classes, one table per section and feature extractor."""
    extractors = sorted(
        {score.features or "" for score in scores}, key=lambda name: (not name, name)
    )
    opened = dict.fromkeys(legend[score.metric].section for score in scores)
    own_sections = [name for name in opened if name not in (*SECTIONS, OTHER_SCORES)]
    found: list[tables.Panel] = []
    for section in (*SECTIONS, *own_sections, OTHER_SCORES):
        for name in extractors:
            own = [
                score
                for score in scores
                if (score.features or "") == name and legend[score.metric].section == section
            ]
            if own:
                where = f"on {name} features" if name else "on pixels"
                table = tables.table_pivot(assembly.sort_by_kind(own), legend, "Arm")
                found.append((f"{section}, {where}", table))
    return tuple(found)


def lay_out_copies(
    run: assembly.Run, scores: Sequence[ScoreRecord], legend: Legend
) -> page.CopySection | None:
    """Lay out the search for copies; None where evaluate made none."""
    facts = read_copies(run.evaluate.manifest["notes"])
    if facts is None:
        return None
    shares = [score for score in scores if score.metric == COPIED]
    drawn = []
    for arm, image, caption in assembly.read_closest(run, facts):
        content = grid.encode_png(image, is_synthetic=True)
        uri = page.to_data_uri(content, "image/png")
        alt = f"images of {arm} above the training slices nearest to them"
        drawn.append(page.Chart(page.Picture(uri, alt, image.width, image.height), caption))
    return page.CopySection(
        facts=facts,
        shares=tables.table_pivot(
            assembly.sort_by_kind(shares), legend, "Arm", ("n training slices", "n searched")
        ),
        recall=table_recall(facts),
        pictures=tuple(drawn),
    )


def lay_out_explanations(
    run: assembly.Run, scores: Sequence[ScoreRecord]
) -> page.ExplanationSection | None:
    """Lay out what classifiers look at; None where nothing was explained."""
    notes = run.classify.manifest["notes"]
    table = table_explanations(scores, notes)
    if table is None:
        return None
    drawn = []
    for it in draw_explanations(notes, run.classify, run.preprocess):
        uri = page.to_data_uri(grid.encode_png(it.image, is_synthetic=False), "image/png")
        alt = f"maps of {it.arm} over real test slices, {it.what}"
        drawn.append(
            page.Chart(page.Picture(uri, alt, it.image.width, it.image.height), it.caption)
        )
    return page.ExplanationSection(describe_explanations(notes), table, tuple(drawn))


def draw_training(run: assembly.Run) -> list[page.Chart]:
    """Draw what the training logs hold, and the last grid of samples where there is one."""
    drawn = []
    for key, ylabel, caption in CURVES:
        curves = assembly.read_curves(run, key)
        if curves:
            figure = charts.draw_curves(curves, ylabel=ylabel)
            names = ", ".join(curve.name for curve in curves)
            drawn.append(page.Chart(_to_picture(figure, f"{ylabel} of {names}"), caption))
    for arm, step, image in assembly.read_sample_grids(run):
        content = grid.encode_png(image, is_synthetic=True)
        words = f"synthetic slices of {arm} at optimiser step {step}"
        picture = page.Picture(
            page.to_data_uri(content, "image/png"), words, image.width, image.height
        )
        caption = (
            f"{words[0].upper()}{words[1:]}, from captions of validation slices: classes from left "
            "to right, planes from top to bottom."
        )
        drawn.append(page.Chart(picture, caption))
    return drawn


def build_page(
    config: ReportConfig,
    run: assembly.Run,
    scores: Sequence[ScoreRecord],
    blocks: Sequence[page.GridBlock],
    score_charts: Sequence[page.Chart],
    context: Context,
) -> page.Page:
    """Lay out the whole page."""
    legend = Legend.of(run.evaluate.manifest["notes"])
    findings, missing = assembly.read_findings(run, scores)
    evaluated = [score for score in scores if score.stage == "evaluate"]
    overall = [score for score in evaluated if score.group == ALL]
    classified = [score for score in scores if score.stage == "classify"]
    gaps = [score for score in overall if score.metric == GAP_CLOSED]
    recaptions, recaption_words = table_recaption(overall, run.evaluate.manifest["notes"])
    source = run.preprocess.manifest["config"]["source"]["name"]
    arms = findings.arms
    captions = assembly.read_caption_manifests(run)
    sizes = " and ".join(
        sorted({f"{px} px" for arm in arms if (px := arm.settings.get("generate.image_size"))})
    )
    bases = " and ".join(sorted({arm.base_model for arm in arms if arm.base_model is not None}))
    return page.Page(
        title=config.title,
        experiment=context.experiment,
        facts=assembly.read_facts(run, seed=context.seed),
        scope=(
            f"Each claim is judged by a fixed rule from recorded intervals. A verdict holds for "
            f"this run, at this size ({bases}, {sizes}), and for nothing else."
        ),
        claims=tuple(judge_all(findings)),
        missing=missing,
        warnings=(*assembly.read_warnings(run), *([recaption_words] if recaption_words else [])),
        grid=tuple(blocks),
        shared_prompts=assembly.share_prompts(blocks),
        score_charts=tuple(score_charts),
        score_tables=table_overall(
            [
                score
                for score in overall
                if score.metric not in (GAP_CLOSED, COPIED, RECALL)
                and not is_recaption(score)
                and not is_location(score)
            ],
            legend,
        )
        + recaptions,
        class_table=tables.table_scores(
            [score for score in evaluated if score.group != ALL], legend
        ),
        gap_table=tables.table_pivot(gaps, legend, "Arm") if gaps else None,
        location=lay_out_location(assembly.sort_by_kind(overall), run.evaluate.manifest["notes"]),
        copies=lay_out_copies(run, overall, legend),
        audit=tables.list_notes(run.preprocess.manifest),
        captions=list_caption_tables(captions),
        captions_missing=list_silent(captions),
        caption_notes=tables.list_notes_side_by_side(captions),
        curves=tuple(draw_training(run)),
        classifier=lay_out_classifiers(classified, run.classify.manifest),
        confusions=assembly.read_confusions(
            run.classify.manifest, dict.fromkeys(score.arm for score in classified)
        ),
        explanations=lay_out_explanations(run, classified),
        stages=tables.table_stages(run.stages()),
        versions=tables.table_settings(assembly.read_versions(run)),
        methods=assembly.read_methods(run),
        unequal=tables.table_unequal_settings(arms),
        settings=assembly.read_settings(run),
        intended_use=INTENDED_USE,
        limits=tuple(
            notices.list_limits(
                arms=arms,
                source=source,
                features=findings.features,
                has_copies=read_copies(run.evaluate.manifest["notes"]) is not None,
                has_location=has_location(run.evaluate.manifest["notes"]),
                has_subjects=all(r.subject_id is not None for r in run.preprocess.records()),
            )
        ),
        notice=ICBM152_NOTICE if source == "phantom" else None,
        citations=ICBM152_CITATIONS if source == "phantom" else (),
        licences=tuple(notices.list_licences(arms, run.other_parts())),
        legend=legend,
    )


def run(
    config: ReportConfig,
    inputs: ReportInputs,
    output: ArtifactWriter[ScoreRecord],
    context: Context,
) -> None:
    """Write the page, its pictures and all scores."""
    made = assembly.Run(
        preprocess=inputs.preprocess,
        caption=inputs.caption,
        finetune=inputs.finetune,
        generate=inputs.generate,
        evaluate=inputs.evaluate,
        classify=inputs.classify,
    )
    scores = [*inputs.evaluate.records(), *inputs.classify.records()]
    chosen = assembly.read_blocks(made, config.images_per_class)
    output.path("grid.png").write_bytes(
        grid.encode_png(grid.draw_grid(chosen), is_synthetic=len(chosen) > 1)
    )
    blocks = []
    for block in chosen:
        image = grid.draw_block(block)
        content = grid.encode_png(image, is_synthetic=block.is_synthetic)
        picture = page.Picture(
            page.to_data_uri(content, "image/png"),
            assembly.describe_block(block),
            image.width,
            image.height,
        )
        blocks.append(assembly.lay_out_block(block, picture))
    context.progress(f"report: image grid of {len(blocks)} blocks")
    drawn = draw_score_charts(
        scores,
        assembly.name_deciding_features(made),
        Legend.of(inputs.evaluate.manifest["notes"]),
    )
    if drawn:
        output.path("scores.png").write_bytes(charts.to_png(drawn[0][0]))
    built = build_page(config, made, scores, blocks, [chart for _, chart in drawn], context)
    output.path("report.html").write_text(page.render_page(built), encoding="utf-8")
    _write_results(output.path("results.json"), scores)
    output.write(scores)
    output.notes["verdicts"] = {str(claim.number): claim.verdict for claim in built.claims}
    context.progress(f"report: {output.root / 'report.html'}")


def _write_results(path: Path, scores: Sequence[ScoreRecord]) -> None:
    rows = [score.model_dump(mode="json") for score in scores]
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _to_picture(figure: Figure, alt: str) -> page.Picture:
    width, height = (round(side * 96) for side in figure.get_size_inches())
    return page.Picture(
        page.to_data_uri(charts.to_svg(figure), "image/svg+xml"), alt, width, height
    )


STAGE = Stage("report", run, ReportConfig, ReportInputs, ScoreRecord)
