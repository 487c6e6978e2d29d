"""Clocks of two hosts: the fastest answer bounds the error, and gloo carries the question."""

import time

import pytest

from pipelab.alignment import Reading, measure_offset, offset_of
from pipelab.launcher import launch


def test_the_offset_is_wrong_by_no_more_than_the_residual_however_the_ways_differ():
    ahead = 100.0
    ways = [(0.3, 0.9), (0.01, 0.05), (0.2, 0.2)]
    readings = [
        Reading(10.0 * n, 10.0 * n + there + ahead, 10.0 * n + there + back) for n, (there, back) in enumerate(ways)
    ]
    offset, residual = offset_of(readings)
    assert residual == pytest.approx(0.03)
    assert abs(offset - ahead) <= residual + 1e-9


@pytest.mark.usefixtures("travelling")
def test_over_gloo_a_clock_that_is_ahead_by_an_hour_is_found_to_be():
    def rank():
        import torch.distributed as dist

        dist.init_process_group("gloo")
        hour = 3600.0 * dist.get_rank()
        return measure_offset(dist.group.WORLD, 0, 1, clock=lambda: time.perf_counter() + hour)

    reference, other = launch(rank, ranks=2)
    assert reference == (0.0, 0.0)
    offset, residual = other
    assert abs(offset + 3600) <= residual + 1e-6
    assert residual < 600  # of the hour
