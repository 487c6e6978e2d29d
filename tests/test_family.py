"""The wider family: grouped, split and V-shaped schedules are the published ones, as short and as small as printed."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from pipelab.action import Action, Pair
from pipelab.cli import main
from pipelab.costs import Costs
from pipelab.placement import Placement
from pipelab.schedule import Schedule
from pipelab.schedules import SCHEDULES, build, chunks_of, options_of
from pipelab.simulate import simulate
from pipelab.validate import validate

GOLDEN = sorted(Path(__file__).parent.glob("golden/*.txt"), key=lambda path: path.stem)
V_SHAPED = ["zb-v", "v-half", "v-min", "1f1b-v", "dualpipe-v"]
SPLIT_OR_V = ["interleaved-zb", "zb-h1", "zb-h2", *V_SHAPED]
COUNTS = list(product(range(1, 10), range(1, 20)))


def traced(name, P, M, V=None, **costs):
    return simulate(build(name, P, M, V), Costs.uniform(**costs))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_four_ranks_and_eight_microbatches_give_the_golden_grid(path):
    """In PyTorch's letters; looped-bfs and interleaved-zb with two chunks."""
    name = path.stem
    schedule = build(name, 4, 8, 2 if chunks_of(name) == "any" else None)
    assert schedule.to_text() + "\n" == path.read_text()
    assert Schedule.from_text(path.read_text(), name) == schedule


def test_there_is_a_golden_grid_of_every_new_name():
    assert {"looped-bfs", "interleaved-zb", "zb-h2", *V_SHAPED} == {path.stem for path in GOLDEN}


@pytest.mark.parametrize("name", SPLIT_OR_V)
def test_none_is_longer_than_1f1b_of_the_same_ranks_and_microbatches(name):
    """With F = I = W, for any counts: below those that a published word needs, too."""
    for P, M in COUNTS:
        bound = traced("1f1b", P, M)
        for V in (1, 2, 3) if chunks_of(name) == "any" else (None,):
            assert traced(name, P, M, V).makespan <= bound.makespan, (P, M, V)


@pytest.mark.parametrize("P, M", COUNTS)
def test_one_chunk_of_the_chunked_is_the_schedule_that_they_thin(P, M):
    assert build("interleaved-zb", P, M).rows == build("zb-h1", P, M).rows
    assert build("looped-bfs", P, M).rows == build("gpipe", P, M, backward_order="lifo").rows


def test_the_word_of_zb_h2_is_the_published_one_wherever_it_exists():
    for P, M in COUNTS:
        for rank, row in enumerate(build("zb-h2", P, M).rows) if M >= 2 * P - 2 else ():
            k = P - 1 - rank
            word = "F" * 2 * k + "FI" * 2 * rank + "FIW" * (M - 2 * P + 2) + "IW" * 2 * k + "W" * 2 * rank
            assert "".join(action.kind for action in row) == word


def test_gpipes_backward_goes_in_either_order_in_the_same_time():
    first_in, last_in = build("gpipe", 3, 4), build("gpipe", 3, 4, backward_order="lifo")
    assert first_in == build("gpipe", 3, 4, backward_order="fifo")
    assert [str(action) for action in last_in.rows[1][4:]] == ["1B3", "1B2", "1B1", "1B0"]
    costs = Costs.uniform(F=2, I=1, W=3, hop=1)
    assert simulate(first_in, costs).makespan == simulate(validate(replace(last_in)), costs).makespan
    with pytest.raises(ValueError, match="backward_order is 'fifo' or 'lifo': got 'random'"):
        build("gpipe", 3, 4, backward_order="random")
    with pytest.raises(ValueError, match="1f1b does not take the option 'backward_order'; it takes none"):
        build("1f1b", 3, 4, backward_order="lifo")


# Qi et al. 2024, Controllable Memory, and their own generators: for P the time over 3M, F = I = W = 1, M >= 2P,
# and the largest peak in flight.
FINITE_SIZE = [
    ("v-half", 4, 2.5, 3),
    ("v-half", 8, 8.5, 5),
    ("v-half", 16, 20.5, 9),
    ("v-min", 4, 5.5, 2),
    ("v-min", 8, 13.5, 4),
    ("v-min", 16, 29.5, 6),
    ("1f1b-v", 4, 7.5, 3),
    ("1f1b-v", 6, 11, 5),
    ("1f1b-v", 8, 16.5, 6),
    ("1f1b-v", 16, 37.5, 11),
]


@pytest.mark.parametrize("name, P, extra, peak", FINITE_SIZE)
def test_time_over_ideal_and_peak_are_the_printed_ones_to_half_a_slot(name, P, extra, peak):
    for M in (2 * P, 2 * P + 1, 3 * P, 5 * P + 2, 200):
        trace = traced(name, P, M)
        assert max(trace.span, trace.makespan) - 3 * M <= extra + 0.5
        assert max(trace.peak_in_flight) == peak


@pytest.mark.parametrize("P", [1, 2, 3, 4, 7, 12])
def test_zb_v_has_no_bubble_in_any_ranks_span_with_the_memory_of_1f1b(P):
    for M in (2 * P - 1, 2 * P, 5 * P + 1):
        trace = traced("zb-v", P, M, F=2, I=2, W=2)
        assert trace.bubble("span") == 0
        assert trace.makespan == 6 * M + P - 1
        assert trace.peak_in_flight == (P,) * P


@pytest.mark.parametrize("P", [1, 2, 3, 5, 8])
def test_dualpipe_v_holds_one_chunk_more_than_zb_v_and_pairs_most_of_its_work(P):
    M = 4 * P
    schedule = build("dualpipe-v", P, M)
    assert simulate(schedule, Costs.uniform()).peak_in_flight == ((2 * P + 1) / 2,) * P
    pairs = [element for row in schedule.rows for element in row if isinstance(element, Pair)]
    assert all(forward.kind == "F" and backward.kind == "B" for forward, backward in pairs)
    # All in the steady state, but the first of the last rank; on the way out one chunk's forwards are left.
    assert len(pairs) == sum(2 * (M - 2 * P + rank + 1) + P - 1 - rank for rank in range(P)) - 1


@pytest.mark.parametrize("name", V_SHAPED)
def test_a_v_gives_rank_0_the_first_and_the_last_stage(name):
    for P in (1, 2, 5):
        assert build(name, P, 3).placement == Placement.vee(P)


@pytest.mark.parametrize("name", ["v-half", "v-min", "1f1b-v"])
def test_blocks_fit_for_any_number_of_ranks(name):
    """And the steady state can be repeated for any number of micro-batches: the ends stay as they are."""
    for P in (*range(10, 26), 40, 61):
        extras = {traced(name, P, M).makespan - 3 * M for M in (2 * P, 3 * P)}
        assert len(extras) == 1, P


def test_chunks_are_one_two_or_any_and_others_are_refused():
    assert {name: chunks_of(name) for name in SCHEDULES if chunks_of(name) != 1} == {
        **dict.fromkeys(V_SHAPED, 2),
        **dict.fromkeys(["interleaved", "looped-bfs", "interleaved-zb", "zb-auto"], "any"),
    }
    for name in V_SHAPED:
        assert build(name, 3, 4) == build(name, 3, 4, chunks=2)
        assert "chunks" not in options_of(name)
        for chunks in (1, 3):
            with pytest.raises(ValueError, match=f"{name} has two chunks a rank: got chunks={chunks}; leave it out"):
                build(name, 3, 4, chunks=chunks)
    with pytest.raises(ValueError, match="zb-h2 has one chunk a rank: got chunks=2; leave it out, or take interleaved"):
        build("zb-h2", 3, 4, chunks=2)


def test_the_command_line_lists_chunks_and_options(capsys):
    assert main(["schedules", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["schedules"]}
    assert set(listed) == set(SCHEDULES)
    assert (listed["zb-v"]["chunks"], listed["looped-bfs"]["chunks"], listed["zb-h2"]["chunks"]) == (2, "any", 1)
    assert listed["gpipe"]["options"] == ["backward_order"]
    assert all(len(entry["description"]) <= 110 for entry in listed.values())


def test_many_ranks_and_few_microbatches_are_no_trouble():
    """A word that is written for 2P micro-batches is not judged, nor kept, as a schedule of so many."""
    for name in V_SHAPED:
        assert len(build(name, 300, 1).rows[0]) <= 6
    with pytest.raises(ValueError, match="are more than 20 million actions"):
        build("zb-v", 1000, 6000)


def test_words_count_a_full_backward_as_both_of_its_halves():
    f, b, i, w = ((0, kind) for kind in "FBIW")
    word = [f, f, f, i, w, (f, b), b, i, w]
    schedule = Schedule.from_words("mixed", Placement.loop(1), 4, lambda rank: word)
    assert schedule.to_text() == "0F0 0F1 0F2 0I0 0W0 0F3+0B1 0B2 0I3 0W3"
    assert validate(schedule)
    shorter = Schedule.from_words("mixed", Placement.loop(1), 2, lambda rank: word, drop_rest=True)
    assert shorter.to_text() == "0F0 0F1 0I0 0W0 0B1"
    assert shorter.rows[0][-1] == Action(0, "B", 1)
