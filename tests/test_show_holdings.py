"""The chart of holdings shows what a run counted: every cause, on every rank, up to its peak."""

import pytest
import torch

import pipelab as pl
from pipelab.holdings import CAUSES
from pipelab.mesh import Mesh
from pipelab.models import build_model
from pipelab.show import holdings_chart
from pipelab.show.holdings import CAUSE_LOOKS


def trained(name, ranks=2, **options):
    tokens = torch.arange(8 * 16).reshape(8, 16)
    return pl.train(build_model("tiny", layers=4), [(tokens, tokens)], pl.build(name, ranks, 4), **options)


@pytest.fixture(scope="module")
def runs():
    return {"1f1b": trained("1f1b"), "zb-h1": trained("zb-h1")}


def test_every_cause_has_a_look_of_its_own():
    assert set(CAUSE_LOOKS) == set(CAUSES)
    assert len({look[:2] for look in CAUSE_LOOKS.values()}) == len(CAUSES)


def test_the_areas_of_a_rank_add_up_to_its_total_and_their_top_is_the_dotted_line(runs):
    figure = holdings_chart(runs)
    causes = 6  # all but recompute, which neither has
    assert len(figure.data) == 2 * 2 * causes and sum(bool(area.showlegend) for area in figure.data) == causes
    for panel in range(4):
        name, rank = list(runs)[panel // 2], panel % 2
        areas = figure.data[panel * causes : (panel + 1) * causes]
        assert len({tuple(area.x) for area in areas}) == 1, "stacked on the same times"
        top = max(sum(column) for column in zip(*(area.y for area in areas), strict=True))
        assert top * 2**10 == pytest.approx(runs[name].memory.totals[rank])
        assert figure.layout.shapes[panel].y0 * 2**10 == pytest.approx(runs[name].memory.totals[rank])


def test_title_and_axes_name_what_is_found_the_unit_and_the_clock(runs):
    figure = holdings_chart(runs)
    assert (
        figure.layout.title.text.startswith("The fullest rank holds ") and " KiB with 1f1b" in figure.layout.title.text
    )
    assert figure.layout.xaxis3.title.text == "virtual time (ms)" and figure.layout.yaxis.title.text == "KiB"
    assert figure.layout.meta["alt"] == figure.layout.title.text


def test_of_several_pipelines_the_first_is_shown():
    figure = holdings_chart({"hybrid": trained("1f1b", mesh=Mesh(pp=2, tp=2))})
    assert len({area.hovertemplate[:14] for area in figure.data}) == 2


def test_runs_of_different_ranks_are_refused(runs):
    with pytest.raises(ValueError, match="one number of ranks, at most 8: got"):
        holdings_chart({**runs, "more": trained("1f1b", ranks=3)})
    with pytest.raises(ValueError, match="one number of ranks"):
        holdings_chart({})
