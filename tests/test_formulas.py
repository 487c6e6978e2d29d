"""Every closed form is exactly what the simulator finds in all its domain; outside it is refused by name."""

from fractions import Fraction
from itertools import product

import pytest

from pipelab.costs import Costs
from pipelab.formulas import CLOSED_FORMS, QUANTITIES, formula
from pipelab.schedules import build
from pipelab.simulate import simulate

ONE_CHUNK = ["naive", "gpipe", "1f1b", "zb-h1"]

COSTS = [  # F, I, W, hop: of a rank, in ticks that 2, 3 and 4 chunks divide
    (12, 12, 12, 0),
    (12, 12, 12, 1),
    (24, 12, 36, 2),  # W > F > I
    (24, 36, 12, Fraction(8, 3)),
    (12, 36, 0, 3),  # B has no W
    (36, 12, 24, 5),  # a hop above B / V for four chunks
    (12, 12, 60, 0),  # W longer than F + I
    (12, 24, 60, 4),
    (48, 0, 24, 7),
    (0, 12, 24, 1),
    (12, 12, 12, 5),
    (12, 24, 12, 300),  # a hop that nothing hides
]


def outside(P, M, V, F, B, hop):
    """The domain of interleaved, said once more: all else has a closed form everywhere."""
    if V == 1 or P == 1 or hop == 0:
        return False
    rounds = max(1, M // P)
    return 2 * hop > Fraction(F + B, V) or (M % rounds != 0 and M // rounds + 1 < V)


def simulated(name, P, M, V, F, I, W, hop):  # noqa: E741
    trace = simulate(build(name, P, M, V), Costs.uniform(F=F, I=I, W=W, hop=hop))
    return [trace.makespan, trace.span, *trace.bubbles().values()], trace.peak_in_flight


def closed(name, P, M, V, F, I, W, hop):  # noqa: E741
    question = {"P": P, "M": M, "V": V, "F": F, "I": I, "W": W, "hop": hop}
    return [formula(name, quantity, **question) for quantity in QUANTITIES if quantity != "peak_in_flight"]


def agrees(name, P, M, V, costs):
    """True if formula and simulation are equal, False if the formula refuses and should; else it fails."""
    F, I, W, hop = costs  # noqa: E741
    if name == "interleaved" and outside(P, M, V, F, I + W, hop):
        with pytest.raises(ValueError, match=r"interleaved has a closed form .* hops"):
            closed(name, P, M, V, *costs)
        return False
    times, peaks = simulated(name, P, M, V, *costs)
    assert closed(name, P, M, V, *costs) == times, (name, P, M, V, costs)
    by_rank = [formula(name, "peak_in_flight", P=P, M=M, V=V, rank=rank) for rank in range(P)]
    assert by_rank == list(peaks) and formula(name, "peak_in_flight", P=P, M=M, V=V) == max(peaks)
    return True


@pytest.mark.parametrize("name", ONE_CHUNK)
def test_formula_is_simulation_for_any_ranks_microbatches_work_and_hop(name):
    for P, M in product(range(1, 13), range(1, 31)):
        assert agrees(name, P, M, 1, COSTS[(5 * P + M) % len(COSTS)])
    for P, M, costs in product((1, 2, 3, 5), (1, 2, 3, 4, 5, 6, 11), COSTS):
        assert agrees(name, P, M, 1, costs)


@pytest.mark.parametrize("V", [1, 2, 3, 4])
def test_interleaved_is_simulation_in_its_domain_and_refused_outside(V):
    cases = [(P, M, COSTS[(5 * P + M + V) % len(COSTS)]) for P, M in product(range(1, 13), range(1, 31))]
    cases += [(P, M, costs) for P, M, costs in product((2, 3, 4), (1, 2, 4, 5, 7, 8, 9), COSTS)]
    found = [agrees("interleaved", P, M, V, costs) for P, M, costs in cases]
    assert any(found) and all(found) == (V == 1), "the grid must hold cases inside and outside the domain"


def test_many_chunks_in_uneven_rounds_are_outside_only_with_a_hop():
    assert agrees("interleaved", 2, 7, 3, (12, 12, 12, 1))  # rounds of 3, 2 and 2
    assert not agrees("interleaved", 2, 7, 4, (12, 12, 12, 1))
    assert agrees("interleaved", 2, 7, 4, (12, 12, 12, 0))
    assert agrees("interleaved", 2, 8, 4, (12, 12, 12, 1))


def test_refusals_outside_the_domain_name_it():
    with pytest.raises(ValueError, match=r"hops of at most half the work of a chunk, 2 hop <= \(F\+B\)/V: got hop=1"):
        formula("interleaved", "makespan", P=4, M=8, V=2, F=1, I=Fraction(1, 4), W=Fraction(1, 4), hop=1)
    with pytest.raises(ValueError, match="V at most 3, one more than the smallest: got P=2, M=7, V=4"):
        formula("interleaved", "span", P=2, M=7, V=4, hop=Fraction(1, 100))


@pytest.mark.parametrize("P, M", [(2, 2), (4, 8), (4, 12), (8, 24)])
def test_published_forms_are_special_cases(P, M):
    F, I, W, hop = 5, 4, 3, Fraction(1, 7)  # noqa: E741
    B, ideal = I + W, M * (5 + 4 + 3)
    question = {"P": P, "M": M, "F": F, "I": I, "W": W, "hop": hop}
    assert formula("1f1b", "makespan", **question) == (M + P - 1) * (F + B) + (2 * (P - 1) * (M // P + 1) - 2) * hop
    for V in (2, 3, 4):
        published = ideal + Fraction(P - 1, V) * (F + B) + 2 * (P * V - 1) * hop
        assert formula("interleaved", "makespan", V=V, **question) == published
    if M > P:
        assert formula("zb-h1", "span", **question) == ideal + (P - 1) * (F + I - W) + 4 * (P - 1) * hop
    assert formula("gpipe", "bubble_overhead", P=P, M=M) == Fraction(P - 1, M)
    assert formula("1f1b", "bubble_step", P=P, M=M) == Fraction(P - 1, M + P - 1)
    assert formula("naive", "bubble_step", P=P, M=M) == 1 - Fraction(1, P)
    assert formula("zb-h1", "bubble_step", P=P, M=M) == Fraction(P - 1, 3 * M + P - 1)


# Qi et al. 2024, table 5 (times in ms, T_B is our I). 1F1B-I is the exact one: the printed one lacks P hops.
TABLE_5 = [  # P, M, V, F, I, W, hop, and the bubbles of 1F1B, 1F1B-I and ZB-H1
    (8, 24, 4, 29.718, 29.444, 19.927, 0.527, 0.2347, 0.0827, 0.1323),
    (8, 32, 4, 29.802, 29.428, 19.53, 0.577, 0.1898, 0.0644, 0.1045),
    (8, 64, 4, 29.935, 29.621, 19.388, 0.535, 0.1091, 0.0328, 0.0554),
    (16, 48, 3, 11.347, 11.248, 8.132, 0.377, 0.2552, 0.1136, 0.1397),
    (16, 64, 3, 11.307, 11.254, 8.101, 0.379, 0.2082, 0.0878, 0.1088),
    (16, 128, 3, 11.325, 11.308, 8.109, 0.378, 0.1251, 0.0459, 0.0576),
]


@pytest.mark.parametrize("row", TABLE_5)
def test_the_zero_bubble_papers_table_to_its_four_digits(row):
    P, M, V, F, I, W, hop, *printed = row  # noqa: E741
    question = {"P": P, "M": M, "F": F, "I": I, "W": W, "hop": hop}
    found = [
        formula("1f1b", "bubble_span", **question),
        formula("interleaved", "bubble_span", V=V, **question),
        formula("zb-h1", "bubble_span", **question),
    ]
    assert [round(float(bubble), 4) for bubble in found] == printed


def test_results_are_exact_fractions_whatever_number_goes_in():
    value = formula("1f1b", "makespan", P=2, M=3, F=0.1, I=Fraction(1, 3), W=2)
    assert type(value) is Fraction and value == 4 * (Fraction(0.1) + Fraction(1, 3) + 2)
    for name, quantity in product(CLOSED_FORMS, QUANTITIES):
        assert type(formula(name, quantity, P=3, M=4)) is Fraction
        assert type(formula(name, quantity, P=3, M=4, F=0, I=0, W=0, hop=1)) is Fraction


@pytest.mark.parametrize(
    "name, quantity, options, sentence",
    [
        (
            "zb-h9",
            "span",
            {},
            "there is no closed form for 'zb-h9'; there is one for naive, gpipe, 1f1b, interleaved",
        ),
        ("1f1b", "time", {}, "there is no quantity 'time'; the quantities are makespan, span, bubble_step"),
        ("gpipe", "span", {"V": 2}, "gpipe has one chunk a rank: got V=2; leave V out"),
        ("gpipe", "span", {"P": 0}, "P must be a whole number of at least 1: got 0"),
        ("gpipe", "span", {"M": 2.5}, "M must be a whole number of at least 1: got 2.5"),
        ("gpipe", "span", {"M": True}, "M must be a whole number of at least 1: got True"),
        ("gpipe", "span", {"F": -1}, "F must be a time of at least 0: got -1"),
        ("gpipe", "span", {"hop": float("nan")}, "hop must be a time of at least 0: got nan"),
        ("gpipe", "span", {"W": float("inf")}, "W must be a time of at least 0: got inf"),
        ("gpipe", "span", {"I": "1"}, "I must be a time of at least 0: got '1'"),
        ("gpipe", "span", {"rank": 0}, "span is of all ranks together; leave rank out"),
        ("gpipe", "peak_in_flight", {"rank": 4}, r"rank must be one of 0\.\.3: got 4"),
        ("gpipe", "peak_in_flight", {"rank": -1}, r"rank must be one of 0\.\.3: got -1"),
    ],
)
def test_wrong_questions_are_answered_in_a_sentence(name, quantity, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        formula(name, quantity, **{"P": 4, "M": 8, **options})
