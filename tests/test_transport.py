"""Messages find their receiver in any order, and whoever waits is woken: by a message, a failure, or the clock."""

import _thread
import random
import threading
import time

import pytest
import torch
from torch import Tensor, nn

import pipelab as pl
from pipelab.failure import RunError
from pipelab.transport import Aborted, Message
from pipelab.transport.memory import Mailboxes

BATCH = torch.ones(8, 4), torch.ones(8, 4)


def message(number: float) -> Message:
    return Message(torch.full((2,), float(number)), number, pl.Action(0, "F", int(number)))


def send_of(microbatch: int) -> pl.Action:
    return pl.Action(0, "SEND_F", microbatch)


def rank_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rank")]


class Asks:
    """A thread that waits for one message, and what came of it."""

    def __init__(self, mailboxes: Mailboxes, step: pl.Action) -> None:
        self.outcome: Message | type[BaseException] | None = None
        self._thread = threading.Thread(target=self._ask, args=(mailboxes, step))
        self._thread.start()

    def _ask(self, mailboxes: Mailboxes, step: pl.Action) -> None:
        try:
            self.outcome = mailboxes.receive(step)
        except Exception as error:
            self.outcome = type(error)

    def answer(self) -> Message | type[BaseException] | None:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive(), "still waiting"
        return self.outcome


# ---- mailboxes


def test_messages_are_found_by_their_name_in_whatever_order_they_were_sent():
    mailboxes = Mailboxes(timeout=60)
    order = random.Random(0).sample(range(20), 20)
    for number in order:
        mailboxes.send(send_of(number), message(number))
    received = [mailboxes.receive(send_of(number)) for number in range(20)]
    assert [got.arrival for got in received] == list(range(20))
    assert [got.giver.microbatch for got in received] == list(range(20))
    assert [got.tensor[0].item() for got in received] == list(range(20))


def test_a_message_is_taken_once_and_forwards_and_gradients_do_not_mix():
    mailboxes = Mailboxes(timeout=0.01)
    mailboxes.send(pl.Action(1, "SEND_F", 0), message(1))
    mailboxes.send(pl.Action(1, "SEND_B", 0), message(2))
    assert mailboxes.receive(pl.Action(1, "SEND_B", 0)).arrival == 2
    with pytest.raises(TimeoutError, match="1SEND_B0"):
        mailboxes.receive(pl.Action(1, "SEND_B", 0))
    assert mailboxes.receive(pl.Action(1, "SEND_F", 0)).arrival == 1


def test_receivers_that_wait_already_each_get_their_own_message():
    mailboxes = Mailboxes(timeout=60)
    waiting = [Asks(mailboxes, send_of(number)) for number in range(6)]
    for number in reversed(range(6)):
        mailboxes.send(send_of(number), message(number))
    assert [asks.answer().arrival for asks in waiting] == list(range(6))


def test_abort_wakes_all_who_wait_and_refuses_all_who_come():
    mailboxes = Mailboxes(timeout=60)
    waiting = [Asks(mailboxes, send_of(number)) for number in range(4)]
    mailboxes.abort()
    assert [asks.answer() for asks in waiting] == [Aborted] * 4
    mailboxes.send(send_of(9), message(9))
    with pytest.raises(Aborted):
        mailboxes.receive(send_of(9))


def test_who_waits_too_long_is_told_which_send_did_not_come_and_what_to_do():
    with pytest.raises(TimeoutError, match=r"^2SEND_B7 did not come within 0\.01 s; raise the timeout"):
        Mailboxes(timeout=0.01).receive(pl.Action(2, "SEND_B", 7))


# ---- runs that end early


class Once(nn.Module):
    """Does something at one call, counted over all micro-batches and steps, and then passes on."""

    def __init__(self, at: int, what) -> None:
        super().__init__()
        self.calls, self.at, self.what = 0, at, what

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            self.what()
        return x * 1


def fail() -> None:
    raise RuntimeError("no such luck")


def leave() -> None:
    raise SystemExit(3)


def run_with(layer: nn.Module, rank: int = 1, name: str = "zb-h1", **options) -> pl.Run:
    layers = [nn.Linear(4, 4) for _ in range(4)]
    layers[rank] = nn.Sequential(layers[rank], layer)
    options = {"loss": nn.functional.mse_loss, "timeout": 60.0, **options}
    return pl.train(nn.Sequential(*layers), [BATCH] * 3, pl.build(name, 4, 4), at=[1, 2, 3], **options)


@pytest.mark.parametrize("clock", ["virtual", "wall"])
@pytest.mark.parametrize(("rank", "call", "action"), [(0, 1, "0F0"), (2, 3, "2F2"), (3, 8, "3F3"), (1, 6, "1F1")])
def test_a_rank_that_fails_ends_all_others_at_once_and_is_named_with_its_action(clock, rank, call, action):
    # With a timeout of a minute: ranks that were not woken would hang for as long.
    threads, before = rank_threads(), torch.get_num_threads()
    with pytest.raises(RunError, match=f"^rank {rank} failed at {action}: RuntimeError: no such luck$"):
        run_with(Once(call, fail), rank, clock=clock)
    assert rank_threads() == threads == []
    assert torch.get_num_threads() == before


def test_a_failure_in_the_backward_is_named_with_its_action():
    class FailsBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            fail()

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return FailsBackward.apply(x)

    with pytest.raises(RunError, match=r"^rank 2 failed at 2I0: RuntimeError: no such luck$"):
        run_with(Layer(), 2)
    assert rank_threads() == []


def test_a_layer_that_ends_its_thread_is_a_failed_rank_too():
    with pytest.raises(RunError, match=r"^rank 1 failed at 1F0: SystemExit: 3$"):
        run_with(Once(1, leave))
    assert rank_threads() == []


def test_a_loss_that_fails_is_named_with_the_last_rank():
    with pytest.raises(RunError, match=r"^rank 3 failed at 3F0: RuntimeError: no such luck$"):
        run_with(nn.Identity(), loss=lambda output, target: fail())


def test_a_layer_that_gives_no_tensor_is_named():
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    model = nn.Sequential(nn.Linear(4, 4), Pair(), nn.Linear(4, 4))
    with pytest.raises(RunError, match="layer 1 gives a tuple; a stage passes one tensor on"):
        pl.train(model, [BATCH], pl.build("gpipe", 2, 2), at=[2], loss=nn.functional.mse_loss)


def test_a_rank_that_holds_the_others_up_for_too_long_is_named(given_up):
    with pytest.raises(RunError, match=r"^rank 1 gave no sign of life for 3 s while running 1F0; give slow work"):
        run_with(Once(1, given_up), timeout=3)
    assert rank_threads() == []


def test_an_interrupt_between_steps_leaves_no_thread():
    def interrupt(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_with(nn.Identity(), on_step=interrupt)
    assert rank_threads() == []


@pytest.mark.parametrize("call", [6, 11])
def test_an_interrupt_while_ranks_compute_leaves_no_thread(call, interruptible):
    # Control-C reaches the main thread, whatever it waits for; it is made here by a layer of rank 1.
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        run_with(Once(call, _thread.interrupt_main))
        time.sleep(60)  # should the run have ended before the interrupt was noticed
    assert rank_threads() == []
    assert torch.get_num_threads() == threads


def test_a_run_after_a_failed_one_is_as_if_nothing_had_happened():
    layer = Once(2, fail)
    with pytest.raises(RunError):
        run_with(layer)
    torch.manual_seed(0)
    again = run_with(layer)
    torch.manual_seed(0)
    assert again.losses == run_with(Once(0, fail)).losses
