"""Layout of the page: each section reads and draws its own part, and here they come together."""

from collections.abc import Sequence

from pipeline.contracts import ALL, GAP_CLOSED, INTENDED_USE, Context, ScoreRecord
from pipeline.settings import ReportConfig
from stages.components.phantoms.notice import ICBM152_CITATIONS, ICBM152_NOTICE
from stages.report import facts, tables
from stages.report.artifacts import ReportInputs, read_caption_manifests, sort_by_kind
from stages.report.claims.evidence import read_findings
from stages.report.claims.rules import decide_all
from stages.report.notices import list_licences, list_limits
from stages.report.numbers import Legend
from stages.report.page import Page
from stages.report.pictures import Chart
from stages.report.sections import captions, classifier, copies, images, location, recaption
from stages.report.sections.explanations import lay_out_explanations
from stages.report.sections.scores import table_overall
from stages.report.sections.training import draw_training


def lay_out_page(
    config: ReportConfig,
    inputs: ReportInputs,
    scores: Sequence[ScoreRecord],
    grid: Sequence[images.GridBlock],
    score_charts: Sequence[Chart],
    context: Context,
) -> Page:
    """Lay out the whole page."""
    notes = inputs.evaluate.manifest["notes"]
    legend = Legend.of(notes)
    findings, missing = read_findings(inputs, scores)
    evaluated = [score for score in scores if score.stage == "evaluate"]
    overall = [score for score in evaluated if score.group == ALL]
    classified = [score for score in scores if score.stage == "classify"]
    gaps = [score for score in overall if score.metric == GAP_CLOSED]
    recaptions, recaption_words = recaption.table_recaption(overall, notes)
    source = inputs.preprocess.manifest["config"]["source"]["name"]
    arms = findings.arms
    manifests = read_caption_manifests(inputs)
    sizes = " and ".join(
        sorted({f"{px} px" for arm in arms if (px := arm.settings.get("generate.image_size"))})
    )
    bases = " and ".join(sorted({arm.base_model for arm in arms if arm.base_model is not None}))
    return Page(
        title=config.title,
        experiment=context.experiment,
        facts=facts.read_facts(inputs, seed=context.seed),
        scope=(
            f"Each claim is judged by a fixed rule from recorded intervals. A verdict holds for "
            f"this run, at this size ({bases}, {sizes}), and for nothing else."
        ),
        claims=tuple(decide_all(findings)),
        missing=missing,
        warnings=(*facts.read_warnings(inputs), *([recaption_words] if recaption_words else [])),
        grid=tuple(grid),
        shared_prompts=images.share_prompts(grid),
        score_charts=tuple(score_charts),
        score_tables=table_overall(
            [
                score
                for score in overall
                if score.metric not in (GAP_CLOSED, copies.COPIED, copies.RECALL)
                and not recaption.is_recaption(score)
                and not location.is_location(score)
            ],
            legend,
        )
        + recaptions,
        class_table=tables.table_scores(
            [score for score in evaluated if score.group != ALL], legend
        ),
        gap_table=tables.table_pivot(gaps, legend, "Arm") if gaps else None,
        location=location.lay_out_location(sort_by_kind(overall), notes, arms),
        copies=copies.lay_out_copies(inputs, overall, legend),
        audit=tables.list_notes(inputs.preprocess.manifest),
        captions=captions.list_caption_tables(manifests),
        captions_missing=captions.list_silent(manifests),
        caption_notes=tables.list_notes_side_by_side(manifests),
        curves=tuple(draw_training(inputs)),
        classifier=classifier.lay_out_classifiers(classified, inputs.classify.manifest),
        confusions=classifier.read_confusions(
            inputs.classify.manifest, dict.fromkeys(score.arm for score in classified)
        ),
        explanations=lay_out_explanations(inputs, classified),
        stages=tables.table_stages(inputs.stages()),
        versions=tables.table_settings(facts.read_versions(inputs)),
        methods=facts.read_methods(inputs),
        unequal=tables.table_unequal_settings(arms),
        settings=facts.read_settings(inputs),
        intended_use=INTENDED_USE,
        limits=tuple(
            list_limits(
                arms=arms,
                source=source,
                features=findings.features,
                has_copies=copies.read_copies(notes) is not None,
                has_location=location.has_location(notes),
                has_subjects=all(r.subject_id is not None for r in inputs.preprocess.records()),
            )
        ),
        notice=ICBM152_NOTICE if source == "phantom" else None,
        citations=ICBM152_CITATIONS if source == "phantom" else (),
        licences=tuple(list_licences(arms, inputs.other_parts())),
        legend=legend,
    )
