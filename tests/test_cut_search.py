"""The search finds what trying everything finds, and says when it has not proved it."""

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipelab.cut_search import best_cut, bottleneck


def all_cuts(layers, stages):
    return combinations(range(1, layers), stages - 1)


def ends(at, layers):
    return list(pairwise((0, *at, layers)))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_the_bottleneck_is_the_lightest_of_all_also_where_stages_are_unequal_by_nature(weights, data):
    stages = data.draw(st.integers(1, len(weights)))
    factor = data.draw(st.lists(st.integers(1, 4), min_size=stages, max_size=stages))

    def load(stage, i, j):
        return factor[stage] * sum(weights[i:j])

    def heaviest(at):
        return max(load(stage, i, j) for stage, (i, j) in enumerate(ends(at, len(weights))))

    at, value = bottleneck(len(weights), stages, load)
    assert value == heaviest(at) == min(map(heaviest, all_cuts(len(weights), stages)))


@given(st.integers(1, 8), st.data())
def test_the_best_of_any_value_is_found_with_the_weakest_bound(layers, data):
    stages = data.draw(st.integers(1, layers))
    cuts = list(all_cuts(layers, stages))
    values = {at: data.draw(st.integers(1, 99)) for at in cuts}
    found = best_cut(
        layers, stages, [cuts[0]], value=values.__getitem__, bound=lambda begin: 0, floor=0, effort=10**6, price=1
    )
    assert found.exact and found.value == values[found.at] == min(values.values())


def test_a_search_that_runs_out_of_effort_says_so():
    found = best_cut(
        12, 6, [(1, 2, 3, 4, 5)], value=lambda at: 100 + sum(at) % 7, bound=lambda begin: 0, floor=50, effort=5, price=1
    )
    assert not found.exact and found.bound == 50 <= found.value


def test_of_equal_cuts_the_first_stays():
    starts = [(3,), (1,), (2,)]
    assert best_cut(
        5, 2, starts, value=lambda at: 0.1 + 0.2 + at[0] * 1e-16, bound=lambda begin: 0, floor=0, effort=99, price=1
    ).at == (3,)
