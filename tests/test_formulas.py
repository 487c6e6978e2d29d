"""Every closed form is exactly what the simulator finds in all its domain; outside it is refused by name."""

from fractions import Fraction
from itertools import product

import pytest

from pipelab.costs import Costs
from pipelab.formulas import CLOSED_FORMS, PEAKS, QUANTITIES, formula
from pipelab.schedules import build
from pipelab.simulate import simulate

EVERYWHERE = ["naive", "gpipe", "1f1b", "zb-h1", "pipedream", "inference"]
V_SHAPED = ["zb-v", "v-half", "v-min", "1f1b-v", "dualpipe-v"]
TIMES = [quantity for quantity in QUANTITIES if quantity not in PEAKS]

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


def inside(name, P, M, V, F, I, W, hop):  # noqa: E741
    """The domains of the closed forms of times, said once more; a single rank is always inside."""
    if P == 1 or name in EVERYWHERE or name == "looped-bfs" or V == 1:
        return True
    alike, V = F == I == W and hop == 0, V or 1
    rounds = max(1, M // P)
    return {
        "interleaved": hop == 0 or (2 * hop <= Fraction(F + I + W, V) and (M % rounds == 0 or M // rounds + 1 >= V)),
        "interleaved-zb": M >= P and W <= F and W <= I and hop == 0,
        "zb-h2": M >= 2 * P - 1 and W <= F and 2 * W <= F + I and 2 * hop <= F + I - W,
        "zb-v": alike,
        "v-half": alike and P >= 3 and M >= 2 * P,
        "v-min": alike and M > P,
        "1f1b-v": alike and M >= 2 * P,
        "dualpipe-v": M >= 2 * P and F == I and W <= F and hop == 0,
    }[name]


def ask(name, quantity, P, M, V, F=1, I=1, W=1, hop=0, **rank):  # noqa: E741
    chunks = {} if V is None else {"V": V}
    return formula(name, quantity, P=P, M=M, F=F, I=I, W=W, hop=hop, **chunks, **rank)


def agrees(name, P, M, V, costs):
    """True if formula and simulation are equal, False if the formula refuses and should; else it fails."""
    F, I, W, hop = costs  # noqa: E741
    if not inside(name, P, M, V, *costs):
        for quantity in TIMES:
            with pytest.raises(ValueError, match=f"{name} has a closed form (for|with) .*: got"):
                ask(name, quantity, P, M, V, *costs)
        return False
    trace = simulate(build(name, P, M, V), Costs.uniform(F=F, I=I, W=W, hop=hop))
    times = [trace.makespan, trace.span, *trace.bubbles().values()]
    assert [ask(name, quantity, P, M, V, *costs) for quantity in TIMES] == times, (name, P, M, V, costs)
    return True


def peaks_agree(name, P, M, V):
    """Both peaks, rank by rank; what has a closed form in the steady state only is refused below it."""
    trace = simulate(build(name, P, M, V), Costs.uniform())
    for quantity, peaks in (("peak_in_flight", trace.peak_in_flight), ("peak_until_input", trace.peak_until_input)):
        unknown = (name, quantity) == ("v-min", "peak_until_input")
        if unknown or (name in ("v-half", "v-min", "1f1b-v") and P > 1 and M < 2 * P):
            with pytest.raises(ValueError, match=f"{name} has (a closed form for M >= 2P|no closed form)"):
                ask(name, quantity, P, M, V)
            continue
        assert [ask(name, quantity, P, M, V, rank=rank) for rank in range(P)] == list(peaks), (name, P, M, V)
        assert ask(name, quantity, P, M, V) == max(peaks)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_formula_is_simulation_for_any_ranks_microbatches_work_and_hop(name):
    for P, M in product(range(1, 13), range(1, 31)):
        assert agrees(name, P, M, None, COSTS[(5 * P + M) % len(COSTS)])
    for P, M, costs in product((1, 2, 3, 5), (1, 2, 3, 4, 5, 6, 11), COSTS):
        assert agrees(name, P, M, None, costs)


@pytest.mark.parametrize("V", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["interleaved", "looped-bfs", "interleaved-zb"])
def test_chunks_are_simulation_in_their_domain_and_refused_outside(name, V):
    cases = [(P, M, COSTS[(5 * P + M + V) % len(COSTS)]) for P, M in product(range(1, 13), range(1, 31, 2))]
    cases += [(P, M, costs) for P, M, costs in product((2, 3, 4), (1, 2, 4, 5, 7, 8, 9), COSTS)]
    found = [agrees(name, P, M, V, costs) for P, M, costs in cases]
    assert any(found) and all(found) == (V == 1 or name == "looped-bfs"), "cases inside and outside the domain"


# For zb-h2: the edges of W <= F, 2W <= F+I and 2 hop <= F+I-W, and one step beyond each.
EDGES = [(12, 36, 12, 18), (12, 36, 12, 19), (12, 36, 13, 0), (36, 12, 24, 12), (36, 12, 25, 0), (24, 24, 12, 18)]


def test_zb_h2_is_simulation_in_its_domain_and_refused_outside():
    cases = [(P, M, (COSTS + EDGES)[(5 * P + M) % 18]) for P, M in product(range(1, 11), range(1, 31))]
    cases += [(P, M, costs) for P, M, costs in product((2, 3, 4), (2, 3, 4, 5, 6, 7, 8, 11), COSTS + EDGES)]
    found = [agrees("zb-h2", P, M, None, costs) for P, M, costs in cases]
    assert 100 < sum(found) < len(found)


@pytest.mark.parametrize("name", V_SHAPED)
def test_v_shapes_are_simulation_in_their_domain_and_refused_outside(name):
    """Mostly F = I = W, where they have one; DualPipeV needs F = I alone."""
    alike = [(12, 12, 12, 0), (Fraction(1, 3),) * 3 + (0,), (12, 12, 5, 0), (12, 12, 0, 0)]
    cases = [(P, M, costs) for P, M, costs in product(range(1, 8), range(1, 24), alike)]
    cases += [(P, 2 * P + extra, (2, 2, 2, 0)) for P, extra in product(range(8, 20), (0, 1, 7))]
    cases += [(P, M, costs) for P, M, costs in product((1, 2, 3), (4, 5, 6), COSTS)]
    found = [agrees(name, P, M, None, costs) for P, M, costs in cases]
    assert 100 < sum(found) < len(found)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_peaks_in_both_conventions_are_the_simulators(name):
    for P, M in product(range(1, 10), range(1, 20)):
        for V in (1, 2, 3) if CLOSED_FORMS[name].chunks == "any" else (None,):
            peaks_agree(name, P, M, V)


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
        assert formula("looped-bfs", "makespan", V=V, **{**question, "hop": 0}) == ideal + Fraction(P - 1, V) * (F + B)
    if M > P:
        assert formula("zb-h1", "span", **question) == ideal + (P - 1) * (F + I - W) + 4 * (P - 1) * hop
    if M >= 2 * P - 1:
        assert formula("zb-h2", "span", **question) == ideal + (P - 1) * (F + I - 2 * W + 2 * hop)
        assert formula("zb-v", "bubble_span", P=P, M=M) == formula("zb-h2", "bubble_span", P=P, M=M) == 0
        assert formula("zb-v", "bubble_step", P=P, M=M) == Fraction(P - 1, 6 * M + P - 1)
    assert formula("gpipe", "bubble_overhead", P=P, M=M) == Fraction(P - 1, M)
    assert formula("1f1b", "bubble_step", P=P, M=M) == Fraction(P - 1, M + P - 1)
    assert formula("naive", "bubble_step", P=P, M=M) == 1 - Fraction(1, P)
    assert formula("zb-h1", "bubble_step", P=P, M=M) == Fraction(P - 1, 3 * M + P - 1)


# Qi et al. 2024, table 5 (times in ms, T_B is our I). 1F1B-I is the exact one: the printed one lacks P hops.
TABLE_5 = [  # P, M, V, F, I, W, hop, and the bubbles of 1F1B, 1F1B-I, ZB-H1 and ZB-H2
    (8, 24, 4, 29.718, 29.444, 19.927, 0.527, 0.2347, 0.0827, 0.1323, 0.0698),
    (8, 32, 4, 29.802, 29.428, 19.53, 0.577, 0.1898, 0.0644, 0.1045, 0.0559),
    (8, 64, 4, 29.935, 29.621, 19.388, 0.535, 0.1091, 0.0328, 0.0554, 0.0294),
    (16, 48, 3, 11.347, 11.248, 8.132, 0.377, 0.2552, 0.1136, 0.1397, 0.0672),
    (16, 64, 3, 11.307, 11.254, 8.101, 0.379, 0.2082, 0.0878, 0.1088, 0.0516),
    (16, 128, 3, 11.325, 11.308, 8.109, 0.378, 0.1251, 0.0459, 0.0576, 0.0266),
]


@pytest.mark.parametrize("row", TABLE_5)
def test_the_zero_bubble_papers_table_to_its_four_digits(row):
    P, M, V, F, I, W, hop, *printed = row  # noqa: E741
    question = {"P": P, "M": M, "F": F, "I": I, "W": W, "hop": hop}
    found = [
        formula("1f1b", "bubble_span", **question),
        formula("interleaved", "bubble_span", V=V, **question),
        formula("zb-h1", "bubble_span", **question),
        formula("zb-h2", "bubble_span", **question),
    ]
    assert [round(float(bubble), 4) for bubble in found] == printed


def test_results_are_exact_fractions_whatever_number_goes_in():
    value = formula("1f1b", "makespan", P=2, M=3, F=0.1, I=Fraction(1, 3), W=2)
    assert type(value) is Fraction and value == 4 * (Fraction(0.1) + Fraction(1, 3) + 2)
    for name, quantity in product(CLOSED_FORMS, QUANTITIES):
        if (name, quantity) != ("v-min", "peak_until_input"):
            assert type(formula(name, quantity, P=3, M=7)) is Fraction
            assert type(formula(name, quantity, P=1, M=4, F=0, I=0, W=0, hop=1)) is Fraction


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
        ("zb-v", "span", {"V": 1}, "zb-v has two chunks a rank: got V=1; leave V out"),
        ("dualpipe-v", "span", {"V": 3}, "dualpipe-v has two chunks a rank: got V=3; leave V out"),
        ("zb-h2", "span", {"M": 6}, "zb-h2 has a closed form for M >= 2P-1, W <= F, .*: got P=4, M=6"),
        ("v-half", "span", {"P": 2}, "v-half has a closed form for P=1 and P >= 3: got P=2, M=8"),
        ("v-min", "peak_until_input", {}, "v-min has no closed form for peak_until_input; ask for peak_in_flight"),
        ("gpipe", "span", {"P": 0}, "P must be a whole number of at least 1: got 0"),
        ("gpipe", "span", {"M": 2.5}, "M must be a whole number of at least 1: got 2.5"),
        ("gpipe", "span", {"M": True}, "M must be a whole number of at least 1: got True"),
        ("gpipe", "span", {"F": -1}, "F must be a time of at least 0: got -1"),
        ("gpipe", "span", {"hop": float("nan")}, "hop must be a time of at least 0: got nan"),
        ("gpipe", "span", {"W": float("inf")}, "W must be a time of at least 0: got inf"),
        ("gpipe", "span", {"I": "1"}, "I must be a time of at least 0: got '1'"),
        (
            "gpipe",
            "span",
            {"rank": 0},
            "span is of all ranks together; leave rank out, only peak_in_flight and peak_un",
        ),
        ("gpipe", "peak_in_flight", {"rank": 4}, r"rank must be one of 0\.\.3: got 4"),
        ("gpipe", "peak_in_flight", {"rank": -1}, r"rank must be one of 0\.\.3: got -1"),
    ],
)
def test_wrong_questions_are_answered_in_a_sentence(name, quantity, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        formula(name, quantity, **{"P": 4, "M": 8, **options})
