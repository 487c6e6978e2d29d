"""Can the messages of a program get stuck, or meet the wrong receive? Played before a run, without any process.

Two libraries carry messages by two rules. Gloo matches a send and a receive by peer and *tag*: any order goes. NCCL has
no tags: the first send on a communicator meets the first receive, the second the second, and an operation waits for
those that were *issued* before it. So a program may pass with the one and hang with the other. Read next:
`transport.processes`, which uses one communicator a `Channel` and posts receives `AHEAD`.
"""

from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

from pipelab.action import Action, Element, F, I
from pipelab.dependencies import T
from pipelab.lower import CARRIES, Program
from pipelab.schedule import ScheduleError
from pipelab.wait_for import cycle

RULES = {"gloo": "tag", "nccl": "issue order"}
"""How the libraries between processes match a send with its receive."""

AHEAD = {"tag": 8, "issue order": 2}
"""Receives that a rank posts on each channel before it needs them. Gloo hands a message over at once where its receive
is posted, and else asks first and wakes a thread on both sides: a short step of GPipe took twice the processor time
with 2. On a GPU, whose memory is dear, one is being filled while one is being used."""

WINDOW = 8
"""Messages that a rank has under way on a channel before it waits for the oldest to be taken."""

CALLED = {F: "activations", I: "gradients", T: "tokens"}


class Channel(NamedTuple):
    """One direction of an edge: rank `sender` sends rank `receiver` activations (F), gradients (I), or tokens (T)."""

    sender: int
    receiver: int
    value: str

    def __str__(self) -> str:
        return f"{CALLED[self.value]} from rank {self.sender} to rank {self.receiver}"


class Traffic(NamedTuple):
    """The messages of a channel, by their sends: in the order of the sender's row, and in that of the receiver's."""

    sent: tuple[Action, ...]
    received: tuple[Action, ...]


def channels(program: Program) -> dict[Channel, Traffic]:
    """Every channel of a program with its messages, in one order that is the same wherever it is asked for.

    >>> from pipelab import build, lower
    >>> for channel, traffic in channels(lower(build("gpipe", ranks=2, microbatches=2))).items():
    ...     print(channel, *traffic.sent)
    activations from rank 0 to rank 1 0SEND_F0 0SEND_F1
    gradients from rank 1 to rank 0 1SEND_B0 1SEND_B1
    """
    found: dict[Channel, tuple[list[Action], list[Action]]] = defaultdict(lambda: ([], []))
    for step in chain(*program.rows):
        if (send := program.send_of(step)) is not None:
            found[channel(program, send)][step != send].append(send)
    return {key: Traffic(*map(tuple, found[key])) for key in sorted(found)}


def channel(program: Program, send: Action) -> Channel:
    """The channel that a send belongs to."""
    rank_of = program.placement.rank_of
    return Channel(rank_of[send.stage], rank_of[program.peer(send).stage], CARRIES[send.kind])


def check_messages(
    program: Program, rule: str = "tag", *,
    blocking: bool = False, ahead: int | None = None, share: bool = False, most: int | None = None,
) -> None:  # fmt: skip
    """Raise ScheduleError, naming the cycle, if the program's messages cannot all be delivered under a rule.

    `rule` is "tag" (gloo) or "issue order" (NCCL). With `blocking` a rank goes on only when its send has been taken, as
    of a message too large for any buffer. Receives are posted `ahead` of their use (`AHEAD`, unless said otherwise).
    With `share` both directions of a pair of ranks, activations and gradients, use one communicator, as unbatched NCCL
    messages in PyTorch do. With `most` messages under way on a channel, a rank waits for the oldest of them before it
    sends there again.

    >>> from pipelab import build, lower
    >>> program = lower(build("1f1b", ranks=2, microbatches=4))
    >>> check_messages(program, "tag", blocking=True)
    >>> check_messages(program, "tag", blocking=True, ahead=0)
    Traceback (most recent call last):
    pipelab.schedule.ScheduleError: the messages lock up: rank 0 waits at 0SEND_F1 for rank 1 to receive it, ...
    """
    if rule not in AHEAD:
        raise ValueError(f"messages are matched by {' or '.join(map(repr, AHEAD))}: got {rule!r}")
    ahead = AHEAD[rule] if ahead is None else ahead
    traffic = channels(program)
    if rule == "issue order":
        crossed = [reason for key, messages in traffic.items() for reason in _crossed(key, messages)]
        if crossed:
            raise ScheduleError(crossed)
    in_order = rule == "issue order"
    post = _Post(program, traffic, in_order=in_order, blocking=blocking, ahead=ahead, share=share, most=most)
    waiting = post.play()
    if waiting:
        raise ScheduleError([_lock_up(post, waiting)])


def window(program: Program) -> int:
    """How many messages each channel may have under way, so that senders wait, buffers are few, and nothing locks up.

    `WINDOW` for all but schedules that send more than that before their receiver asks for the first; those get twice as
    many, or four times, and so on. Receives posted ahead are not counted on: there are none before layouts are known.

    >>> from pipelab import build, lower
    >>> window(lower(build("gpipe", ranks=4, microbatches=64)))
    8
    >>> window(lower(build("looped-bfs", ranks=2, microbatches=64, chunks=2)))
    32
    """
    most, longest = WINDOW, max((len(traffic.sent) for traffic in channels(program).values()), default=0)
    while most < longest:
        try:
            check_messages(program, ahead=0, most=most)
            return most
        except ScheduleError:
            most *= 2
    return most


def _crossed(key: Channel, traffic: Traffic) -> Iterator[str]:
    for number, (sent, received) in enumerate(zip(*traffic, strict=True), start=1):
        if sent != received:
            yield (
                f"{key}: message {number} is sent as {sent} and received as {received}, and NCCL pairs them by their"
                " order alone; let both ranks take the micro-batches in one order"
            )
            return


class _Post:
    """A machine that delivers messages: ranks walk along their rows, and stop at what is not there yet."""

    def __init__(
        self, program: Program, traffic: Mapping[Channel, Traffic], *,
        in_order: bool, blocking: bool, ahead: int, share: bool, most: int | None,
    ) -> None:  # fmt: skip
        self.program = program
        self.channel_of = {send: key for key, messages in traffic.items() for send in messages.sent}
        self.in_order, self.blocking, self.ahead, self.share, self.most = in_order, blocking, ahead, share, most
        self.under_way: dict[Channel, deque[Action]] = defaultdict(deque)
        self.at = [0] * len(program.rows)
        self.sent: set[Action] = set()
        self.posted: set[Action] = set()
        self.delivered: set[Action] = set()
        self.queues: dict[Hashable, deque[Action]] = defaultdict(deque)  # of one rank on one communicator, by issue
        self.to_post = {key: deque(messages.received) for key, messages in traffic.items()}
        for key in traffic:
            for _ in range(ahead):
                self._post_next(key)

    def play(self) -> dict[int, Action]:
        """Let every rank go on for as long as any can; gives the send that each stuck rank waits for."""
        moved = True
        while moved:
            moved = sum(map(self._advance, range(len(self.at)))) > 0  # all of them, not only until the first
        left = [(rank, row[at:]) for rank, (row, at) in enumerate(zip(self.program.rows, self.at, strict=True))]
        return {rank: send for rank, rest in left if rest and (send := self.program.send_of(rest[0])) is not None}

    def _advance(self, rank: int) -> bool:
        row, began = self.program.rows[rank], self.at[rank]
        while self.at[rank] < len(row) and self._passes(row[self.at[rank]]):
            self.at[rank] += 1
        return self.at[rank] > began

    def _passes(self, step: Element) -> bool:
        if (send := self.program.send_of(step)) is None:
            return True
        return self._send(send) if send == step else self._receive(send)

    def _send(self, send: Action) -> bool:
        if send not in self.sent:
            under_way = self.under_way[self.channel_of[send]]
            if len(under_way) == self.most:
                if under_way[0] not in self.delivered:
                    return False
                under_way.popleft()
            under_way.append(send)
            self.sent.add(send)
            self._issue(send, self.channel_of[send].sender)
        return send in self.delivered or not self.blocking

    def _receive(self, send: Action) -> bool:
        key = self.channel_of[send]
        while send not in self.posted:
            self._post_next(key)
        if send not in self.delivered:
            return False
        if self.ahead:
            self._post_next(key)
        return True

    def _post_next(self, key: Channel) -> None:
        if self.to_post[key]:
            send = self.to_post[key].popleft()
            self.posted.add(send)
            self._issue(send, key.receiver)

    def _issue(self, send: Action, rank: int) -> None:
        """One end of a message is there. It arrives with the other; by issue order, at the head of both queues only."""
        if self.in_order:
            self._queue(send, rank).append(send)
        candidates = [send]
        while candidates:
            send = candidates.pop()
            if send not in self.sent or send not in self.posted:
                continue
            ends = [self._queue(send, end) for end in self.channel_of[send][:2]] if self.in_order else []
            if all(queue[0] == send for queue in ends):
                self.delivered.add(send)
                for queue in ends:
                    queue.popleft()
                    candidates += list(queue)[:1]

    def _queue(self, send: Action, rank: int) -> deque[Action]:
        key = self.channel_of[send]
        communicator = frozenset((key.sender, key.receiver)) if self.share else key
        return self.queues[rank, communicator]


def _lock_up(post: _Post, waiting: Mapping[int, Action]) -> str:
    """Who waits for whom in a circle."""
    ends = {rank: post.channel_of[send] for rank, send in waiting.items()}
    graph = {rank: (key.receiver if rank == key.sender else key.sender,) for rank, key in ends.items()}
    links = []
    for stuck in cycle(graph):
        send, key = waiting[stuck], ends[stuck]
        if stuck == key.sender:
            links.append(f"rank {stuck} waits at {send} for rank {key.receiver} to receive it")
        else:
            links.append(f"rank {stuck} waits at {post.program.peer(send)} for {send} of rank {key.sender}")
    return f"the messages lock up: {', '.join(links)}; let messages overlap with the work, or send in another order"
