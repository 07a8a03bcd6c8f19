"""Make the page: claims, image grid, charts, tables and limits of one run, in one HTML file.

Reads every other artifact of the run: records, images, training logs and manifests. Writes
`report.html` (needs no other file and no network), `results.json` and `records.jsonl` (all scores
of evaluate and classify), `grid.png` and `scores.png`; `facts.json`, and from it alone `poster.pdf`
(A1) and `poster.png`.

Invariants: no number is computed here, only read, chosen by fixed rules and laid out; an optional
note that no stage recorded is named on the page; the same inputs give the same bytes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.contracts import ArtifactWriter, Context, ScoreRecord, Stage
from pipeline.settings import ReportConfig
from stages.report.artifacts import ReportInputs, drop_twins, name_deciding_features
from stages.report.charts import to_png
from stages.report.claims.evidence import read_findings
from stages.report.layout import lay_out_page
from stages.report.numbers import Legend
from stages.report.page import render_page
from stages.report.poster import gather_facts, list_pictures, write_poster
from stages.report.sections.images import lay_out_images
from stages.report.sections.scores import draw_score_charts


def run(
    config: ReportConfig,
    inputs: ReportInputs,
    output: ArtifactWriter[ScoreRecord],
    context: Context,
) -> None:
    """Write the page, its pictures and all scores."""
    scores = [*inputs.evaluate.records(), *inputs.classify.records()]
    grid, grid_png = lay_out_images(inputs, config.images_per_class)
    output.path("grid.png").write_bytes(grid_png)
    context.progress(f"report: image grid of {len(grid)} blocks")
    legend = Legend.of(inputs.evaluate.manifest["notes"], inputs.source.slices)
    drawn = draw_score_charts(drop_twins(scores)[0], name_deciding_features(inputs), legend)
    if drawn:
        output.path("scores.png").write_bytes(to_png(drawn[0][0]))
    charts = [chart for _, chart in drawn]
    page = lay_out_page(config, inputs, scores, grid, charts, legend, context)
    output.path("report.html").write_text(render_page(page), encoding="utf-8")
    findings, _ = read_findings(inputs, scores)
    write_poster(output.root, gather_facts(page, inputs, findings), list_pictures(page))
    context.progress(f"report: {output.root / 'poster.pdf'}")
    _write_results(output.path("results.json"), scores)
    output.write(scores)
    output.notes["verdicts"] = {str(claim.number): claim.verdict for claim in page.claims}
    context.progress(f"report: {output.root / 'report.html'}")


def _write_results(path: Path, scores: Sequence[ScoreRecord]) -> None:
    rows = [score.model_dump(mode="json") for score in scores]
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


STAGE = Stage("report", run, ReportConfig, ReportInputs, ScoreRecord)
