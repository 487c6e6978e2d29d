"""Two traces on one axis: every change is told once, and the pieces of both bars sum to the makespans."""

import pytest

import pipelab as pl
from pipelab.action import parts
from pipelab.show.live.columns import read_block
from pipelab.show.live.overlaid import overlay_block
from pipelab.show.overlay import changes, overlay, overlay_text, terms_of_both

UNIT = pl.Costs.uniform(F=1, I=1, W=1)
SLOW = pl.Costs.per_stage(F=[1, 3, 1], I=[1, 1, 1], W=[1, 1, 0.5], hop=0.5)


def step(costs=UNIT, name="zb-h1", ranks=3):
    return pl.simulate(pl.build(name, ranks, 4), costs)


def test_a_trace_does_not_differ_from_itself():
    assert changes(step(SLOW), step(SLOW)) == []
    assert overlay(pl.explain(step(), against=step())).layout.title.text == "here is as long as there"


def test_every_action_that_takes_longer_or_shorter_is_told_at_its_place():
    slow, found = step(SLOW), changes(step(SLOW), step())
    told = {span.waiting_for: span for span in found if span.action.kind in "+-"}
    assert {action.stage for action in told} == {1, 2}
    for span in (span for row in slow.compute for span in row):
        kind = {(1, "F"): "+", (2, "W"): "-"}.get((span.action.stage, span.action.kind))
        assert (told[span.action].action.kind if span.action in told else None) == kind
        assert kind is None or told[span.action][3:5] == span[3:5]


def test_idle_time_that_is_longer_ends_where_the_action_begins():
    starts = {span.action: span.start for row in step(SLOW).compute for span in row}
    waits = [span for span in changes(step(SLOW), step()) if span.action.kind == "w"]
    assert waits and all(span.end == starts[span.waiting_for] and span.start < span.end for span in waits)


@pytest.mark.parametrize("other", [UNIT, SLOW])
def test_the_terms_lie_end_to_end_and_sum_to_the_makespans(other):
    why = pl.explain(step(SLOW), against=step(other))
    for terms, trace in zip(terms_of_both(why), (why.against, why.trace), strict=True):
        assert terms[0].start == 0 and terms[-1].end == trace.makespan
        assert [term.end for term in terms[:-1]] == [term.start for term in terms[1:]]


def test_each_replica_is_compared_with_itself():
    def twice(one, other):
        moved = tuple(span._replace(rank=span.rank + 3) for span in other.spans)
        return pl.Trace("zb-h1", "virtual", (1,) * 6, one.spans + moved)

    found = changes(twice(step(), step(SLOW)), twice(step(), step()))
    assert {span.rank for span in found} <= {3, 4, 5} and len(found) == len(changes(step(SLOW), step()))


def test_another_schedule_is_compared_where_both_have_the_action():
    found = changes(step(), step(name="1f1b"))
    assert {parts(span.waiting_for)[0].kind for span in found} <= {"F"}, "1f1b has B where zb-h1 has I and W"


def test_the_block_holds_both_traces_and_a_row_for_each_difference():
    why = pl.explain(step(SLOW), against=step())
    header, columns = read_block(overlay_block(why))
    bars = [(columns["rank"] == row).sum() for row in range(header["ranks"])]
    assert header["ranks"] == len(header["names"]) == len(header["sides"]) == 3 * 3 + 2
    assert [*bars[0:9:3], *bars[1:9:3]] == [12] * 6 and sum(bars[2:9:3]) == len(changes(why.trace, why.against))
    assert columns["end"].max() == header["length"] == float(max(why.trace.makespan, why.against.makespan))


def test_the_figure_names_units_clocks_and_every_change_with_a_hatch():
    slow = step(SLOW)
    why = pl.explain(pl.Trace(slow.schedule, "virtual", slow.chunks, slow.spans), against=step())
    figure = overlay(why)
    assert figure.layout.xaxis4.title.text == "simulated time and virtual time (s)"
    assert figure.layout.title.text.startswith("virtual is ") and "communication" in figure.layout.title.text
    hatches = {bar.name[:2]: bar.marker.pattern.shape for bar in figure.data if bar.name[:2] in ("+ ", "- ", "w ")}
    assert len(set(hatches.values()) - {""}) == 3
    assert overlay_text(why).count("rank 0") >= 2 and str(why)[:60] in overlay_text(why).replace("\n", " ")


def test_an_overlay_of_one_trace_or_of_unlike_ones_is_refused():
    with pytest.raises(ValueError, match="two traces: explain"):
        overlay(pl.explain(step()))
    with pytest.raises(ValueError, match="as many ranks: got 2 and 3"):
        overlay(pl.explain(step(), against=step(ranks=2)))
