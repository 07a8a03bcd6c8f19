"""Layout of the page: each section reads and draws its own part, and here they come together."""

from collections.abc import Sequence

from pipeline.contracts import ALL, GAP_CLOSED, INTENDED_USE, Context, ScoreRecord
from pipeline.settings import ReportConfig
from stages.report import facts, tables
from stages.report.artifacts import (
    ReportInputs,
    drop_twins,
    is_control,
    read_caption_manifests,
    sort_by_kind,
)
from stages.report.claims.evidence import read_findings
from stages.report.claims.rules import decide_all
from stages.report.notices import list_licences, list_limits
from stages.report.numbers import Legend
from stages.report.objections import list_objections
from stages.report.page import Page
from stages.report.pictures import Chart
from stages.report.sections import captions, classifier, copies, images, location, recaption
from stages.report.sections.explanations import lay_out_explanations
from stages.report.sections.scores import table_controls, table_overall
from stages.report.sections.summary import lay_out_summary
from stages.report.sections.training import draw_training


def lay_out_page(
    config: ReportConfig,
    inputs: ReportInputs,
    scores: Sequence[ScoreRecord],
    grid: Sequence[images.GridBlock],
    score_charts: Sequence[Chart],
    legend: Legend,
    context: Context,
) -> Page:
    """Lay out the whole page; the first of the charts opens it."""
    notes = inputs.evaluate.manifest["notes"]
    findings, missing = read_findings(inputs, scores)
    evaluated, twins = drop_twins([score for score in scores if score.stage == "evaluate"])
    controls = table_controls(evaluated, legend)
    evaluated = [score for score in evaluated if not is_control(score)]
    overall = [score for score in evaluated if score.group == ALL]
    classified = [score for score in scores if score.stage == "classify"]
    gaps = [score for score in overall if score.metric == GAP_CLOSED]
    recaptions, recaption_words = recaption.table_recaption(overall, notes, legend)
    groups = dict.fromkeys(score.group for score in evaluated if score.group != ALL)
    arms = findings.arms
    manifests = read_caption_manifests(inputs)
    sizes = " and ".join(
        sorted({f"{px} px" for arm in arms if (px := arm.settings.get("generate.image_size"))})
    )
    bases = " and ".join(sorted({arm.base_model for arm in arms if arm.base_model is not None}))
    return Page(
        title=config.title,
        experiment=context.experiment,
        summary=lay_out_summary(inputs, findings, legend),
        chart=next(iter(score_charts), None),
        facts=facts.read_facts(inputs, seed=context.seed),
        scope=(
            f"Each claim is judged by a fixed rule from recorded intervals. A verdict holds for "
            f"this run, at this size ({bases}, {sizes}), and for nothing else."
        ),
        claims=tuple(decide_all(findings)),
        missing=missing,
        warnings=(
            *facts.read_warnings(inputs),
            *twins,
            *([recaption_words] if recaption_words else []),
        ),
        grid=tuple(grid),
        grid_words=images.describe_grid(inputs),
        shared_prompts=images.share_prompts(grid),
        score_charts=tuple(score_charts[1:]),
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
        + controls
        + recaptions,
        by_group=tuple(
            (group, table_overall([s for s in evaluated if s.group == group], legend))
            for group in groups
        ),
        gap_table=tables.table_pivot(gaps, legend, "Arm") if gaps else None,
        location=location.lay_out_location(sort_by_kind(overall), notes, arms, legend),
        copies=copies.lay_out_copies(inputs, overall, legend),
        audit=tables.list_notes(inputs.preprocess.manifest),
        captions=captions.list_caption_tables(manifests),
        captions_missing=captions.list_silent(manifests),
        caption_notes=tables.list_notes_side_by_side(manifests),
        curves=tuple(draw_training(inputs)),
        classifier=classifier.lay_out_classifiers(classified, inputs.classify.manifest, legend),
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
                source=inputs.source,
                features=findings.features,
                has_copies=copies.read_copies(notes) is not None,
                has_location=location.has_location(notes),
                has_subjects=all(r.subject_id is not None for r in inputs.preprocess.records()),
            )
        ),
        objections=list_objections(inputs, findings),
        licences=tuple(list_licences(arms, inputs.other_parts())),
        legend=legend,
    )
