"""What a step comes to follows from four times of each rank."""

import pytest

import pipelab as pl
from pipelab.action import Action
from pipelab.outline import Figures
from pipelab.trace import Span, Trace

REDUCE = Action(0, "REDUCE", 0)


@pytest.mark.parametrize("name", [name for name in pl.SCHEDULES if name != "zb-auto"])
def test_the_figures_of_a_step_follow_from_the_outlines_of_its_ranks_taken_apart(name):
    whole = pl.simulate(pl.build(name, 3, 5), pl.Costs.uniform(F=2, I=1, W=3, hop=1))
    whole = Trace(name, "simulated", whole.chunks, (*whole.spans, Span(1, "collective", REDUCE, 50, 999)))
    apart = [
        Trace(name, "simulated", whole.chunks, tuple(s for s in whole.spans if s.rank == rank)).outline
        for rank in range(3)
    ]
    assert Figures.of(apart) == whole.figures
    assert Figures.of(apart[:1]).busy == whole.busy[:1]
    assert whole.duration == 999 - min(span.start for row in whole.compute for span in row)


def test_a_rank_without_work_is_idle_and_a_step_without_work_takes_no_time():
    one = (Span(0, "compute", Action(0, "F", 0), 2, 5),)
    assert Trace("mine", "simulated", (1, 0), one).figures == Figures((3, 0), 3, 3, 3)
    assert Trace("mine", "simulated", (1, 1), ()).figures == Figures((0, 0), 0, 0, 0)
    assert Trace("mine", "simulated", (1, 1), ()).bubble("step") == 0
