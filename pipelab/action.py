"""What is one step of work? The letters of the field, and the word written with them. Read next: `placement`.

    F  forward             I  gradient of the input (what the stage before waits for)
    B  full backward       W  gradient of the weights (nobody waits for it); B = I + W, always

The zero-bubble papers write B for our I and BW for our B; DeepSeek's B is our B.
Lowered programs and traces add messages (`SEND_F RECV_F SEND_B RECV_B`), named after what they carry, `R`, which
recomputes the activations that a forward did not keep, and `U`, the update of a stage's weights, where it comes after
each micro-batch and not after the step. `REDUCE` sums a stage's
gradients over its replicas, `GATHER` brings the weights that each has updated to all (in programs the number is 0, in
traces it counts the buckets), `NORM` sums the square of the gradients over all ranks.
"""

import re
from typing import NamedTuple

F, B, I, W = "F", "B", "I", "W"  # noqa: E741 (the letters of the field)
COMPUTE = (F, B, I, W)
R = "R"
WORK = (*COMPUTE, R)
U = "U"
REDUCE, GATHER, NORM = "REDUCE", "GATHER", "NORM"
SEND_F, RECV_F, SEND_B, RECV_B, SEND_T, RECV_T = "SEND_F", "RECV_F", "SEND_B", "RECV_B", "SEND_T", "RECV_T"
MESSAGES = (SEND_F, RECV_F, SEND_B, RECV_B, SEND_T, RECV_T)

_LIKE = re.compile(r"(\d{1,9})([^\W\d]+)(\d{1,9})", re.ASCII)
_TEXT = re.compile(
    r"(\d{1,9})(" + "|".join((*MESSAGES, *COMPUTE, R, U, REDUCE, GATHER, NORM)) + r")(\d{1,9})", re.ASCII
)


class Action(NamedTuple):
    """One stage works on one micro-batch, or passes a message about it: `2F5` is stage 2's forward of micro-batch 5.

    >>> Action(2, "F", 5) == Action.parse("2F5")
    True
    >>> str(Action(2, "F", 5))
    '2F5'
    """

    stage: int
    kind: str
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"

    @classmethod
    def parse(cls, text: str) -> "Action":
        """Read an action from its text. Raises ValueError with the expected form.

        >>> Action.parse("0W11")
        Action(stage=0, kind='W', microbatch=11)
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(_not_an_action(text))
        return cls(int(match[1]), match[2], int(match[3]))


def _not_an_action(text: str) -> str:
    """What to write instead of this word."""
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    sentence = f"{shown!r} is not an action; write stage, kind (F, B, I or W) and micro-batch, as in 2F5"
    like = _LIKE.fullmatch(text)
    if like is None:
        return sentence
    if like[2].upper() in COMPUTE:
        return f"{sentence}: did you mean {text.upper()}?"
    return f"{sentence}: there is no kind {like[2][:40]}"


class Pair(NamedTuple):
    """Two actions of one rank overlapped in one slot, as DualPipe does with a forward and a backward.

    >>> str(Pair(Action(2, "F", 5), Action(3, "B", 1)))
    '2F5+3B1'
    """

    first: Action
    second: Action

    def __str__(self) -> str:
        return f"{self.first}+{self.second}"


Element = Action | Pair
"""What a row of a schedule holds."""


def parts(element: Element) -> tuple[Action, ...]:
    """The actions of one element of a row: itself, or the two of a pair.

    >>> [str(action) for action in parts(parse_element("2F5+3B1"))]
    ['2F5', '3B1']
    """
    return tuple(element) if type(element) is Pair else (element,)  # type: ignore[return-value]


def parse_element(text: str) -> Element:
    """Read one word of a row: `2F5`, or the pair `2F5+3B1`. Raises ValueError with the expected form.

    >>> parse_element("0B3")
    Action(stage=0, kind='B', microbatch=3)
    """
    words = text.split("+")
    if len(words) == 1:
        return Action.parse(text)
    if len(words) != 2:
        raise ValueError(f"{text!r} joins {len(words)} actions; a pair joins two, as in 2F5+3B1")
    return Pair(Action.parse(words[0]), Action.parse(words[1]))
