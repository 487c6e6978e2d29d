"""The drawn deadlock shows who waits for whom: the cycle in one colour, those who only wait in another."""

import pytest

import pipelab as pl
from pipelab.show import waiting
from pipelab.show.waiting import GREY, RED


def arrows(figure):
    """(colour, words) of each arrow."""
    return [
        (note.font.color, note.text.replace("<b>", "").replace("</b>", ""))
        for note in figure.layout.annotations
        if note.text
    ]


def test_the_cycle_is_told_from_the_ranks_that_only_wait():
    four = pl.Schedule.from_text("0F0 0F1 0B0 0B1\n1F0 1F1 1B0 1B1\n2F0 2B0 2F1 2B1\n3F0 3F1 3B0 3B1")
    figure = waiting(four)
    assert figure.layout.title.text == "deadlock: rank 2 waits for rank 3, rank 3 for rank 2"
    assert sorted(arrows(figure)) == [
        (GREY, "0B0 needs 1B0"),
        (GREY, "1B0 needs 2B0"),
        (RED, "2B0 needs 3B0"),
        (RED, "3F1 needs 2F1"),
    ]
    assert list(figure.data[0].marker.line.color) == [GREY, GREY, RED, RED]
    assert all(
        words in figure.layout.meta["alt"] for words in ("Rank 0: 0B0 waits for 1B0", "on rank 3, at position 2")
    )


def test_a_circle_of_three_and_a_rank_that_waits_for_itself():
    three = pl.Schedule.from_text(
        "0F0 3F0 0F1 3F1 3B0 0B0 3B1 0B1\n1F1 1F0 4F0 4F1 4B0 1B0 4B1 1B1\n2F1 2F0 5F0 5B0 5F1 5B1 2B0 2B1"
    )
    title = "deadlock: rank 0 waits for rank 2, rank 2 for rank 1, rank 1 for rank 0"
    assert waiting(three).layout.title.text == title
    alone = waiting(pl.Schedule.from_text("0B0 0F0"))
    assert alone.layout.title.text == "out of order: rank 0 waits for itself" and len(alone.layout.shapes) == 1


def test_a_schedule_that_runs_has_no_arrow_and_one_that_is_not_complete_is_refused():
    figure = waiting(pl.build("1f1b", 4, 8))
    assert figure.layout.title.text.startswith("no deadlock") and not figure.layout.annotations
    with pytest.raises(pl.ScheduleError, match="0W0 is missing"):
        waiting(pl.Schedule.from_text("0F0 0I0"))


def test_of_very_many_ranks_the_cycle_is_drawn():
    rows = [f"{s}F0 {s}F1 {s}B0 {s}B1" for s in range(40)]
    rows[7] = "7F0 7B0 7F1 7B1"
    figure = waiting(pl.Schedule.from_text("\n".join(rows)))
    assert list(figure.data[0].text) == ["rank 7", "rank 8"] and len(arrows(figure)) == 2
