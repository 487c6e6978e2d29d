"""The line through the times is the right one, and the U-curve is what the simulator says of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelab as pl
from pipelab.data import Batches
from pipelab.microbatch import Line, RowTimes, Sweep, divisors, fit_line, predict_steps
from pipelab.models import build_model


def costs(rows, fixed, per_row, stages=3):
    times = [fixed + rows * per_row] * stages
    return pl.Costs.per_stage(F=times, I=times, W=times)


@given(st.floats(0.001, 10), st.floats(0.001, 10), st.sets(st.integers(1, 64), min_size=2, max_size=6))
def test_a_line_is_found_again(fixed, per_row, sizes):
    rows = sorted(sizes)
    assert fit_line(rows, [fixed + b * per_row for b in rows]) == pytest.approx((fixed, per_row), rel=1e-6, abs=1e-6)


def test_no_part_of_a_line_is_below_zero():
    assert fit_line([1, 2], [1, 4]).fixed == 0 < fit_line([1, 2], [1, 4]).per_row
    assert fit_line([1, 2], [4, 1]).per_row == 0 < fit_line([1, 2], [4, 1]).fixed


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_best_number_of_micro_batches_is_the_root_of_the_textbook(name, ranks):
    """(M + P - 1)(a + c R / M) is smallest at M = sqrt((P - 1) R c / a)."""
    fixed, per_row, rows = 3.0, 1.0, 240
    times = RowTimes.fit({b: costs(b, fixed, per_row, ranks) for b in (1, 4)})
    steps = predict_steps(times, name, ranks, rows)
    for count, step in steps.items():
        assert step == pytest.approx(3 * (count + ranks - 1) * (fixed + per_row * rows / count))
    root = ((ranks - 1) * rows * per_row / fixed) ** 0.5
    best = Sweep(ranks, steps, {}).best
    assert best in sorted(steps, key=lambda count: max(count / root, root / count))[:2]


def test_the_fit_tells_by_how_much_it_misses():
    exact = RowTimes.fit({b: costs(b, 1, 2) for b in (1, 2, 4)})
    bent = RowTimes.fit({1: costs(1, 1, 2), 2: costs(2, 3, 2), 4: costs(4, 1, 2)})
    assert exact.error < 1e-12 < 0.1 < bent.error
    assert exact.busiest(1) == pytest.approx(Line(3, 6)) and exact.costs(8).work["F"] == pytest.approx((17, 17, 17))


def test_a_fit_of_runs_gives_costs_for_every_stage_kind_and_message():
    runs = {}
    for count in (2, 8):
        batches = Batches(text=bytes(range(256)) * 8, microbatches=count, rows=8 // count, context=16, seed=0, steps=1)
        model = build_model("tiny", layers=4)
        runs[8 // count] = pl.train(model, batches, pl.build("zb-h1", 2, count), link=pl.Link(0.001, 1e6)).costs()
    times = RowTimes.fit(runs)
    assert set(times.work) == {(stage, kind) for stage in (0, 1) for kind in "FIW"}
    assert times.hops[0, "F"] == pytest.approx(Line(0.001, 16 * 32 * 4 / 1e6))
    assert times.costs(2).hop[0, "F"] == pytest.approx(0.001 + 2 * 16 * 32 * 4 / 1e6)
    assert all(step > 0 for step in predict_steps(times, "zb-h1", 2, 8).values())


def test_bad_input_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="measure another"):
        RowTimes.fit({1: costs(1, 1, 1)})
    with pytest.raises(ValueError, match="one schedule and one cut"):
        RowTimes.fit({1: costs(1, 1, 1), 2: costs(2, 1, 1, stages=2)})
    with pytest.raises(ValueError, match=r"run\.costs\(\)"):
        RowTimes.fit({1: pl.Costs.uniform(), 2: pl.Costs.uniform()})
    times = RowTimes.fit({b: costs(b, 1, 1) for b in (1, 2)})
    with pytest.raises(ValueError, match="take one of 1, 2, 4, 8"):
        predict_steps(times, "1f1b", 3, 8, [3])
    with pytest.raises(ValueError, match="a row at least: got 0"):
        predict_steps(times, "1f1b", 3, 0)
    assert divisors(1) == [1]


def test_a_sweep_knows_its_best_and_the_rule_of_thumb():
    sweep = Sweep(2, {1: 5.0, 2: 3.0, 4: 2.0, 8: 2.5, 16: 4.0}, {4: 2.2})
    assert (sweep.best, sweep.rule) == (4, 8)
