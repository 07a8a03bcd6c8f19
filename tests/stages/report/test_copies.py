"""The section of copies: what stands in which row."""

from stages.report.claims.evidence import Difference
from stages.report.numbers import SHARE, Legend
from stages.report.sections.copies import COPIED, table_shares
from tests.stages.report.test_location import score


def test_what_exceeds_real_slices_stands_in_the_row_of_a_base_model_too():
    legend = Legend({COPIED: SHARE}, "reference phantoms")
    shares = [
        score(arm, "", value).model_copy(update={"metric": COPIED})
        for arm, value in (("base/tiny", 0.5), ("real", 0.02))
    ]
    rows = [Difference("base/tiny", "real", COPIED, 0.48, 0.4, 0.5)]
    table = table_shares(shares, legend, rows)
    assert table.head[-1] == "beyond reference phantoms (points)"
    assert [(cells[0], cells[-1]) for cells in table.rows] == [
        ("tiny, no LoRA", "48.0 (40.0 to 50.0)"),
        ("reference phantoms", "–"),
    ]
