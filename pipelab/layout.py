"""Which layer goes to which stage, in one line of text? `Et*3|(tt|)*6|tH`: letters are layers, `|` is a cut.

E is an embedding, H the head, t any other layer: a block. `*3` repeats what stands before it, a letter or a group in
round brackets. A cut that ends a group and one right after the group are the same cut. Blanks mean nothing.
(Megatron-LM's `--pipeline-model-parallel-layout` looks much the same.)
"""

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise

from torch import nn

from pipelab.models import Embedding, Head

EMBEDDING, BLOCK, HEAD, CUT = "E", "t", "H", "|"
LETTERS = (EMBEDDING, BLOCK, HEAD)
MOST = 100_000
Places = list[tuple[str, int]]
"""Letters and cuts in order, each with its position in the text."""


class LayoutError(ValueError):
    """A layout that cannot be read: `str()` is the text and, below it, a caret with the reason and the remedy."""

    def __init__(self, text: str, position: int, reason: str) -> None:
        self.text, self.position, self.reason = text, position, reason
        super().__init__(self.under("layout: "))

    def under(self, before: str) -> str:
        """The text after the words `before`, and the caret in the line below.

        >>> print(LayoutError("Et||H", 3, "an empty stage").under("layout: "))
        layout: Et||H
                   ^ an empty stage
        """
        return f"{before}{self.text}\n{' ' * (len(before) + self.position)}^ {self.reason}"


def parse_layout(text: str) -> tuple[str, ...]:
    """The letters of each stage. Raises LayoutError, which points at the mistake and says the remedy.

    >>> parse_layout("Et*3|(tt|)*2|tH")
    ('Ettt', 'tt', 'tt', 'tH')
    >>> try: parse_layout("Et*3|(tt|*6|tH")
    ... except LayoutError as error: print(error)
    layout: Et*3|(tt|*6|tH
                     ^ a cut is not repeated; write it in a group, such as (tt|)*6
    """
    if not text.isprintable():
        raise LayoutError(" ".join(text.split()), 0, "a layout is one line of plain text; take other characters out")
    places, _ = _elements(text, 0, opened=None)
    if not places:
        raise LayoutError(text, 0, "there is no layer; write one letter a layer, such as Ett|ttH")
    stages, last = [""], (CUT, -1)
    for letter, position in [*places, (CUT, len(text))]:
        if letter != CUT:
            stages[-1] += letter
        elif stages[-1]:
            stages.append("")
        elif position == len(text) or last[1] == position or not set("()") & set(text[last[1] + 1 : position]):
            raise LayoutError(
                text, position, f"stage {len(stages) - 1} would be empty; put a layer in, or take a | out"
            )
        last = letter, position
    return tuple(stages[:-1])


def layout_boundaries(text: str, model: nn.Sequential, stages: int) -> list[int]:
    """Where the layout cuts the model: the first layer of each stage but the first, as `train(at=...)` takes it.

    Raises LayoutError for a layout of other layers than the model has, or of another number of stages.

    >>> from pipelab.models import build_model
    >>> layout_boundaries("Et*5|(t)*6|t*5H", build_model("tiny"), stages=3)
    [6, 12]
    """
    written, letters = parse_layout(text), layer_letters(model)
    if "".join(written) != letters:
        there, asked = (", ".join(f"{w.count(c)} {c}" for c in LETTERS) for w in (letters, "".join(written)))
        reason = f"this has {asked}; the model's layers, in order, are {_runs(letters)}: {there}"
        raise LayoutError(text, 0, reason)
    if len(written) != stages:
        raise LayoutError(text, 0, f"this has {len(written)} stages and the schedule {stages}; write {stages - 1} cuts")
    return list(accumulate(map(len, written)))[:-1]


def layout_text(model: nn.Sequential, at: Sequence[int]) -> str:
    """The layout of a model that is cut at these layers, in the shortest words.

    >>> from pipelab.models import build_model
    >>> layout_text(build_model("tiny"), [4, 6, 8, 10, 12, 14, 16])
    'Et*3|(tt|)*6|tH'
    """
    letters = layer_letters(model)
    stages = [_runs(letters[i:j]) for i, j in pairwise((0, *at, len(letters)))]
    words = [(stage, len(list(same))) for stage, same in groupby(stages[:-1])]  # a group would end with a cut
    return CUT.join([*(stage if count == 1 else f"({stage}|)*{count}" for stage, count in words), stages[-1]])


def layer_letters(model: nn.Sequential) -> str:
    """One letter a layer.

    >>> layer_letters(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)))
    'Ett'
    """
    kinds = {Head: HEAD, Embedding: EMBEDDING, nn.Embedding: EMBEDDING, nn.EmbeddingBag: EMBEDDING}
    return "".join(kinds.get(type(layer), BLOCK) for layer in model)


def _elements(text: str, start: int, opened: int | None) -> tuple[Places, int]:
    """What stands from `start` to the end of the group that was opened there, or of the text; and where that is."""
    places: Places = []
    unit: Places | None = None  # what a * would repeat
    at = start
    while at < len(text):
        sign = text[at]
        if sign == "(":
            unit, at = _elements(text, at + 1, opened=at)
            places += unit
        elif sign == ")":
            if opened is None:
                raise LayoutError(text, at, "this ) closes nothing; take it out, or open a ( before it")
            return places, at
        elif sign == "*":
            number, end = _number(text, at + 1)
            if unit is None:
                what = "a cut is not repeated; write it in a group, such as (tt|)*6"
                raise LayoutError(
                    text, at, what if CUT in text[:at].rstrip()[-1:] else "there is nothing before this * to repeat"
                )
            if len(places) + len(unit) * number > MOST:
                raise LayoutError(text, at, f"this makes more than {MOST} layers; repeat less")
            places += unit * (number - 1)
            unit, at = None, end - 1
        elif sign in LETTERS or sign == CUT:
            unit = [(sign, at)] if sign != CUT else None
            places.append((sign, at))
        elif not sign.isspace():
            raise LayoutError(text, at, "this is no layer; E is an embedding, t a block, H the head")
        at += 1
    if opened is not None:
        raise LayoutError(text, opened, "this ( is never closed; add a )")
    return places, at


def _number(text: str, start: int) -> tuple[int, int]:
    """The number after a *, and where it ends."""
    end = start
    while end < len(text) and text[end] in "0123456789":
        end += 1
    number = int(text[start:end][:12] or 0)
    if number < 1:
        raise LayoutError(text, min(start, len(text)), "a * wants a whole number of at least 1, such as t*3")
    return number, end


def _runs(letters: str) -> str:
    """Letters in a row, counted where that is shorter.

    >>> _runs("EtttttH"), _runs("tt")
    ('Et*5H', 'tt')
    """
    runs = ((letter, len(list(same))) for letter, same in groupby(letters))
    return "".join(letter * count if count < 3 else f"{letter}*{count}" for letter, count in runs)
