"""The figures of cuts and of micro-batches say what they show, with units and clock."""

import pytest

from pipelab.microbatch import Sweep
from pipelab.show import balance_chart, microbatch_chart

SWEEP = Sweep(2, {2: 0.004, 4: 0.003, 8: 0.0036}, {4: 0.0031})


def test_a_sweep_is_drawn_as_line_points_star_and_cross():
    figure = microbatch_chart([SWEEP])
    assert [trace.name for trace in figure.data] == [
        "P = 2, predicted", "P = 2, measured", "P = 2, best predicted", "P = 2, M = 4P",
    ]  # fmt: skip
    assert (
        figure.layout.title.text
        == "P = 2: the shortest step predicted is at M = 4; the rule M = 4P makes it 20.0 % longer"
    )
    assert "virtual time" in figure.layout.yaxis.title.text and "ms" in figure.layout.yaxis.title.text
    assert figure.data[1].x == (4,) and figure.data[1].y == pytest.approx((3.1,))


def test_several_sweeps_are_told_apart_and_none_is_refused():
    other = Sweep(4, {2: 0.004, 8: 0.003}, {})
    figure = microbatch_chart([SWEEP, other])
    assert "4 for P = 2, 8 for P = 4" in figure.layout.title.text
    assert len({trace.line.color for trace in figure.data if trace.mode == "lines"}) == 2
    assert not [trace for trace in figure.data if trace.name == "P = 4, M = 4P"], "there is no such M"
    with pytest.raises(ValueError, match="no sweep"):
        microbatch_chart([])


def test_the_bars_of_a_cut_add_up_to_the_work_of_each_rank():
    cuts, steps = {"uniform": [3], "optimal": [5]}, {"uniform": 0.1, "optimal": 0.08}
    figure = balance_chart([1, 1, 1, 1, 1, 4], "EttttH", cuts, (0, 1), steps)
    totals = [sum(times) for times in zip(*(bar.x for bar in figure.data), strict=True)]
    assert totals == [3000, 6000, 5000, 4000]
    assert [bar.name for bar in figure.data] == ["embedding", "blocks", "head and loss"]
    assert figure.layout.title.text == "optimal makes the step 20.0 % shorter than uniform (virtual time)"
    chunks = balance_chart([1, 1, 1, 1], "tttt", {"V": [1, 2, 3]}, (0, 1, 1, 0), {"V": 1.0})
    assert chunks.data[1].x == (2000, 2000) and "No cut" in chunks.layout.title.text
