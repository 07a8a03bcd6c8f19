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

from pipeline.contracts import (
    ALL,
    GAP_CLOSED,
    INTENDED_USE,
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
from stages.report import artifacts, charts, notices, page, pictures, tables
from stages.report.claims import evidence
from stages.report.claims.rules import judge_all
from stages.report.facts import (
    read_facts,
    read_methods,
    read_settings,
    read_versions,
    read_warnings,
)
from stages.report.numbers import Legend
from stages.report.sections import classifier, images
from stages.report.sections.captions import list_caption_tables, list_silent
from stages.report.sections.classifier import lay_out_classifiers
from stages.report.sections.copies import COPIED, RECALL, lay_out_copies, read_copies
from stages.report.sections.explanations import lay_out_explanations
from stages.report.sections.location import has_location, is_location, lay_out_location
from stages.report.sections.recaption import is_recaption, table_recaption
from stages.report.sections.scores import draw_score_charts, table_overall
from stages.report.sections.training import draw_training


@dataclass(frozen=True)
class ReportInputs:
    """Everything the run made; dictionaries are keyed by arm, `generate` also by base/NAME."""

    preprocess: Artifact[SliceRecord]
    caption: dict[str, Artifact[CaptionRecord]]
    finetune: dict[str, Artifact[CheckpointRecord]]
    generate: dict[str, Artifact[SyntheticRecord]]
    evaluate: Artifact[ScoreRecord]
    classify: Artifact[ScoreRecord]


def build_page(
    config: ReportConfig,
    run: artifacts.Run,
    scores: Sequence[ScoreRecord],
    blocks: Sequence[images.GridBlock],
    score_charts: Sequence[pictures.Chart],
    context: Context,
) -> page.Page:
    """Lay out the whole page."""
    legend = Legend.of(run.evaluate.manifest["notes"])
    findings, missing = evidence.read_findings(run, scores)
    evaluated = [score for score in scores if score.stage == "evaluate"]
    overall = [score for score in evaluated if score.group == ALL]
    classified = [score for score in scores if score.stage == "classify"]
    gaps = [score for score in overall if score.metric == GAP_CLOSED]
    recaptions, recaption_words = table_recaption(overall, run.evaluate.manifest["notes"])
    source = run.preprocess.manifest["config"]["source"]["name"]
    arms = findings.arms
    captions = artifacts.read_caption_manifests(run)
    sizes = " and ".join(
        sorted({f"{px} px" for arm in arms if (px := arm.settings.get("generate.image_size"))})
    )
    bases = " and ".join(sorted({arm.base_model for arm in arms if arm.base_model is not None}))
    return page.Page(
        title=config.title,
        experiment=context.experiment,
        facts=read_facts(run, seed=context.seed),
        scope=(
            f"Each claim is judged by a fixed rule from recorded intervals. A verdict holds for "
            f"this run, at this size ({bases}, {sizes}), and for nothing else."
        ),
        claims=tuple(judge_all(findings)),
        missing=missing,
        warnings=(*read_warnings(run), *([recaption_words] if recaption_words else [])),
        grid=tuple(blocks),
        shared_prompts=images.share_prompts(blocks),
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
        location=lay_out_location(artifacts.sort_by_kind(overall), run.evaluate.manifest["notes"]),
        copies=lay_out_copies(run, overall, legend),
        audit=tables.list_notes(run.preprocess.manifest),
        captions=list_caption_tables(captions),
        captions_missing=list_silent(captions),
        caption_notes=tables.list_notes_side_by_side(captions),
        curves=tuple(draw_training(run)),
        classifier=lay_out_classifiers(classified, run.classify.manifest),
        confusions=classifier.read_confusions(
            run.classify.manifest, dict.fromkeys(score.arm for score in classified)
        ),
        explanations=lay_out_explanations(run, classified),
        stages=tables.table_stages(run.stages()),
        versions=tables.table_settings(read_versions(run)),
        methods=read_methods(run),
        unequal=tables.table_unequal_settings(arms),
        settings=read_settings(run),
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
    made = artifacts.Run(
        preprocess=inputs.preprocess,
        caption=inputs.caption,
        finetune=inputs.finetune,
        generate=inputs.generate,
        evaluate=inputs.evaluate,
        classify=inputs.classify,
    )
    scores = [*inputs.evaluate.records(), *inputs.classify.records()]
    chosen = images.read_blocks(made, config.images_per_class)
    output.path("grid.png").write_bytes(
        pictures.encode_png(pictures.draw_grid(chosen), is_synthetic=len(chosen) > 1)
    )
    blocks = []
    for block in chosen:
        image = pictures.draw_block(block)
        content = pictures.encode_png(image, is_synthetic=block.is_synthetic)
        picture = pictures.Picture(
            pictures.to_data_uri(content, "image/png"),
            images.describe_block(block),
            image.width,
            image.height,
        )
        blocks.append(images.lay_out_block(block, picture))
    context.progress(f"report: image grid of {len(blocks)} blocks")
    drawn = draw_score_charts(
        scores,
        artifacts.name_deciding_features(made),
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


STAGE = Stage("report", run, ReportConfig, ReportInputs, ScoreRecord)
