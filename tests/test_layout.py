"""A layout says which layer goes where; what cannot be read is pointed at, with the remedy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipelab.layout import LayoutError, layer_letters, layout_boundaries, layout_text, parse_layout
from pipelab.models import build_model
from pipelab.partition import cut


def test_sixteen_blocks_on_eight_stages():
    model = build_model("tiny")
    at = layout_boundaries("Et*3|(tt|)*6|tH", model, stages=8)
    assert [len(part) for part in cut(model, 8, at=at)] == [4, 2, 2, 2, 2, 2, 2, 2]
    assert layout_text(model, at) == "Et*3|(tt|)*6|tH"


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("E t | t H", ("Et", "tH")),
        ("((t|)*2t|)*2H", ("t", "t", "t", "t", "t", "t", "H")),
        ("E(|tt)*2|H", ("E", "tt", "tt", "H")),
        ("(Et)", ("Et",)),
        ("t*12", ("t" * 12,)),
    ],
)
def test_groups_repeat_and_a_cut_at_the_edge_of_a_group_is_one_cut(text, stages):
    assert parse_layout(text) == stages


@pytest.mark.parametrize(
    ("text", "position", "remedy"),
    [
        ("", 0, "write one letter a layer"),
        ("()", 0, "write one letter a layer"),
        ("Et*3|(tt|*6|tH", 9, "write it in a group"),
        ("Et(tt", 2, "add a )"),
        ("Et|)t", 3, "take it out"),
        ("ExH", 1, "E is an embedding"),
        ("et", 0, "E is an embedding"),
        ("*3", 0, "nothing before"),
        ("t*", 2, "at least 1"),
        ("t*0", 2, "at least 1"),
        ("t*2*3", 3, "nothing before"),
        ("t*99999999", 1, "repeat less"),
        ("((t*1000)*1000)*1000", 9, "repeat less"),
        ("Et||tH", 3, "stage 1 would be empty"),
        ("|Et", 0, "stage 0 would be empty"),
        ("Et|", 3, "stage 1 would be empty"),
        ("(tt|)*3", 7, "stage 3 would be empty"),
        ("(|)*3t", 1, "stage 0 would be empty"),
    ],
)
def test_a_mistake_is_pointed_at_with_its_remedy(text, position, remedy):
    with pytest.raises(LayoutError) as error:
        parse_layout(text)
    assert (error.value.position, remedy in error.value.reason) == (position, True)
    first, second = str(error.value).split("\n")
    assert first[second.index("^") :] == text[position:]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Et*7|t*8H", "15 t"),
        ("t*8|Et*8H", "Et*16H"),
        ("Et*8|t*4|t*4H", "3 stages and the schedule 2; write 1 cut"),
    ],
)
def test_a_layout_of_another_model_or_schedule_is_refused(text, words):
    with pytest.raises(LayoutError) as error:
        layout_boundaries(text, build_model("tiny"), stages=2)
    assert words in str(error.value)


@given(st.data())
def test_every_cut_has_a_layout_that_says_the_same(data):
    layers = [nn.Embedding(2, 2), *(nn.Linear(2, 2) for _ in range(data.draw(st.integers(0, 12))))]
    model = nn.Sequential(*layers[data.draw(st.integers(0, min(1, len(layers) - 1))) :])
    at = sorted(data.draw(st.sets(st.integers(1, len(model) - 1)))) if len(model) > 1 else []
    text = layout_text(model, at)
    assert layout_boundaries(text, model, len(at) + 1) == at
    assert "".join(parse_layout(text)) == layer_letters(model)


@given(st.text(alphabet="EtH|()*123 ", max_size=14))
def test_any_text_is_read_or_refused(text):
    try:
        assert all(parse_layout(text))
    except LayoutError as error:
        assert 0 <= error.position <= len(text)
