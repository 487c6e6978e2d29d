"""Messages that lock up, or meet the wrong receive, are found before a run, under the rules of gloo and of NCCL."""

import pytest

import pipelab as pl
from pipelab.message_order import RULES, WINDOW, channels, check_messages, window
from pipelab.schedules import chunks_of

SHAPES = [(ranks, microbatches) for ranks in (1, 2, 3, 4) for microbatches in (1, 2, 5, 8)]


def program(name: str, ranks: int, microbatches: int, chunks: int | None = None) -> pl.lower:
    return pl.lower(pl.build(name, ranks, microbatches, chunks))


def by_hand(*rows: str) -> pl.lower:
    return pl.lower(pl.Schedule.from_text("\n".join(rows)))


@pytest.mark.parametrize("name", pl.SCHEDULES)
@pytest.mark.parametrize("rule", RULES.values())
def test_no_published_schedule_locks_up_while_messages_overlap(name, rule):
    chunks = 2 if chunks_of(name) == "any" else None
    for ranks, microbatches in SHAPES:
        lowered = program(name, ranks, microbatches, chunks)
        check_messages(lowered, rule)
        check_messages(lowered, rule, ahead=0)


@pytest.mark.parametrize("rule", RULES.values())
def test_tokens_that_go_round_do_not_lock_up_and_have_a_channel_of_their_own(rule):
    for ranks, groups, rounds in [(1, 2, 3), (2, 1, 3), (2, 2, 2), (4, 2, 3), (3, 5, 2)]:
        lowered = pl.lower(pl.build("inference", ranks, groups * rounds, groups=groups))
        for ahead in (0, 1, 2):
            check_messages(lowered, rule, ahead=ahead)
        assert (f"tokens from rank {ranks - 1} to rank 0" in map(str, channels(lowered))) == (ranks > 1)


@pytest.mark.parametrize("name", ["naive", "gpipe", "1f1b", "zb-h1", "zb-h2", "zb-v", "dualpipe-v"])
def test_schedules_of_one_message_at_a_time_stand_blocking_sends_with_receives_posted_ahead(name):
    for ranks, microbatches in SHAPES:
        check_messages(program(name, ranks, microbatches), blocking=True)


def test_two_ranks_that_both_send_first_lock_up_unless_a_receive_is_posted():
    lowered = program("1f1b", 2, 4)
    with pytest.raises(pl.ScheduleError) as caught:
        check_messages(lowered, blocking=True, ahead=0)
    assert "rank 0 waits at 0SEND_F1 for rank 1 to receive it" in str(caught.value)
    assert "rank 1 waits at 1SEND_B0 for rank 0 to receive it" in str(caught.value)
    check_messages(lowered, blocking=True, ahead=1)
    check_messages(lowered, ahead=0)


def test_one_communicator_for_both_directions_passes_by_tag_and_locks_up_by_issue_order():
    # What PyTorch does with unbatched messages under NCCL: one communicator for each pair of ranks.
    lowered = program("1f1b", 2, 4)
    check_messages(lowered, "tag", share=True)
    with pytest.raises(pl.ScheduleError, match=r"rank 0 waits at 0RECV_B0 for 1SEND_B0 of rank 1, rank 1 waits at"):
        check_messages(lowered, "issue order", share=True)
    check_messages(lowered, "issue order")


def test_a_receive_posted_early_delays_a_message_behind_it_only_where_they_share_a_communicator():
    # Rank 0 posts the receive of the gradient before it sends 0F0, which that gradient is made from.
    lowered = by_hand("0F0 0B0 0F1 0B1", "1F0 1B0 1F1 1B1")
    check_messages(lowered, "issue order", share=True, ahead=0)
    with pytest.raises(pl.ScheduleError, match="lock up"):
        check_messages(lowered, "issue order", share=True, ahead=1)
    check_messages(lowered, "issue order", ahead=1)


def test_micro_batches_taken_in_another_order_pass_by_tag_and_are_swapped_by_issue_order():
    lowered = by_hand("0F0 0F1 0B0 0B1", "1F1 1F0 1B0 1B1")
    check_messages(lowered, "tag")
    with pytest.raises(pl.ScheduleError) as caught:
        check_messages(lowered, "issue order")
    (reason,) = caught.value.reasons
    assert reason.startswith(
        "activations from rank 0 to rank 1: message 1 is sent as 0SEND_F0 and received as 0SEND_F1"
    )


def test_looped_bfs_with_more_messages_than_receives_posted_needs_overlap():
    lowered = program("looped-bfs", 2, 32, 2)
    check_messages(lowered)
    with pytest.raises(pl.ScheduleError, match="let messages overlap"):
        check_messages(lowered, blocking=True)


@pytest.mark.parametrize("name", pl.SCHEDULES)
def test_a_few_messages_under_way_on_each_channel_are_enough_however_many_micro_batches_there_are(name):
    for ranks, microbatches in [(2, 8), (2, 40), (4, 8), (4, 40)]:
        lowered = program(name, ranks, microbatches, 2 if chunks_of(name) == "any" else None)
        most = window(lowered)
        check_messages(lowered, ahead=0, most=most)
        assert most == WINDOW or name == "looped-bfs"


def test_a_sender_that_must_wait_locks_up_where_its_receiver_first_wants_something_later():
    lowered = program("looped-bfs", 2, 40, 2)  # rank 0 makes all of stage 0 before rank 1's messages are of use to it
    with pytest.raises(pl.ScheduleError, match="lock up"):
        check_messages(lowered, ahead=0, most=WINDOW)
    assert WINDOW < window(lowered) < 40


@pytest.mark.parametrize("name", pl.SCHEDULES)
def test_every_message_is_on_one_channel_once_at_each_end(name):
    lowered = program(name, 3, 4, 2 if chunks_of(name) == "any" else None)
    steps = [str(step) for row in lowered.rows for step in row]
    traffic = channels(lowered)
    assert list(traffic) == sorted(traffic)
    sends = [str(send) for messages in traffic.values() for send in messages.sent]
    assert sorted(sends) == sorted(step for step in steps if "SEND" in step)
    for channel, messages in traffic.items():
        assert sorted(messages.sent) == sorted(messages.received)
        assert channel.sender != channel.receiver
        assert {step.kind[-1] for step in messages.sent} == {{"F": "F", "I": "B"}[channel.value]}


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'tag' or 'issue order': got 'telepathy'"):
        check_messages(program("gpipe", 2, 2), "telepathy")
