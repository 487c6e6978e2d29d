"""How is each kind of work told apart? By colour, hatch and letter, so that no reader depends on one of them.

The colours are Okabe and Ito's, chosen for colour-blind readers too; dark text is legible on each.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pipelab.action import B, F, I, W

INK, EDGE, GRID, IDLE, PAPER = "#1A1A1A", "#404040", "#D9D9D9", "#EFEFEF", "#FFFFFF"


class Look(NamedTuple):
    """Colour and hatch of a kind (in plotly's words), its filling in the text timeline, and its name."""

    colour: str
    hatch: str
    fill: str
    words: str
    hatch_colour: str = EDGE


LOOKS: Mapping[str, Look] = MappingProxyType(
    {
        F: Look("#56B4E9", "", "-", "forward"),
        B: Look("#E69F00", "/", "=", "full backward"),
        I: Look("#F0E442", "\\", "~", "input gradient"),
        W: Look(
            "#2CB88A", ".", "+", "weight gradient", "#C8F0E2"
        ),  # a lighter green and light dots, for the text on it
        "R": Look("#CC79A7", "x", "^", "recompute"),
    }
)
COLLECTIVE = "#8757C9"  # seen on light and on dark paper
OTHER = Look("#BBBBBB", "-", "?", "other work")

LANES: Mapping[str, Look] = MappingProxyType(
    {
        "send": Look("#BBBBBB", "", ">", "a message on its way"),
        "recv": Look("#BBBBBB", "-", "<", "waiting for one"),
        "collective": Look(COLLECTIVE, "+", "c", "ranks reduce or gather together"),
        "memory": Look("#D8B98A", "|", "u", "weights are updated"),
    }
)
"""What happens beside the work, by lane: whatever it is called, it looks like its lane."""

CHANGES: Mapping[str, Look] = MappingProxyType(
    {
        "+": Look("#F28E4B", "/", "+", "longer here"),
        "-": Look("#8EB8E5", ".", "-", "shorter here"),
        "w": Look("#C9C9C9", "x", "w", "idle longer here"),
    }
)
"""How one of two traces differs from the other."""

CAUSES: Mapping[str, Look] = MappingProxyType(
    {
        "work": Look("#A9BFD6", "", "f", "what an average rank does"),
        "order": Look("#56B4E9", "|", "o", "what the order forces, equal stages and free messages"),
        "warm-up": Look("#56B4E9", "", "s", "before a rank's first action"),
        "cool-down": Look("#E69F00", "/", "e", "after a rank's last action"),
        "dependency": Look("#F0E442", "\\", "d", "until a result of another rank is there"),
        "communication": Look("#CC79A7", "x", "m", "messages"),
        "imbalance": Look("#2CB88A", ".", "i", "unequal stages"),
        "jitter": Look("#BBBBBB", "-", "j", "an action does not always take the same time"),
    }
)
"""What a step is made of, and why a rank is idle: the words of `pipelab.explain`."""

RANK_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#000000", "#E69F00", "#56B4E9", "#777777")
RANK_COLOURS_IN_THE_DARK = ("#56B4E9", "#F28E4B", "#2CB88A", "#DDA0DD", "#FFFFFF", "#F0E442", "#8EA8FF", "#AAAAAA")
RANK_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
BARS = (("#56B4E9", ""), ("#E69F00", "/"), ("#F0E442", "\\"), ("#CC79A7", "x"), ("#2CB88A", "."), ("#BBBBBB", "-"))
"""Colour and hatch of the parts of a bar, where they are no kinds of work."""


def line_look(turn: int) -> dict[str, str]:
    """Colour and dash of one of several lines: both differ from those of the lines before.

    >>> line_look(1)
    {'color': '#D55E00', 'dash': 'dash'}
    """
    return {"color": RANK_COLOURS[turn % len(RANK_COLOURS)], "dash": RANK_DASHES[turn % len(RANK_DASHES)]}


class Ground(NamedTuple):
    """The colours around the bars: text, edges of bars, grid, idle time, paper, a limit, and a line for each rank."""

    ink: str
    edge: str
    grid: str
    idle: str
    paper: str
    alarm: str
    ranks: tuple[str, ...]


LIGHT = Ground(INK, EDGE, GRID, IDLE, PAPER, "#B3380B", RANK_COLOURS)
DARK = Ground("#E8E8E8", "#101010", "#3A3A3A", "#2B2B2B", "#161616", "#FF8A5C", RANK_COLOURS_IN_THE_DARK)


def look(kind: str) -> Look:
    """The look of a kind; one grey look for any kind that is not work of a schedule.

    >>> look("F").words
    'forward'
    """
    return LOOKS.get(kind, OTHER)


def order(kind: str) -> tuple[int, str]:
    """The place of a kind in a legend: F, B, I, W, R, then all else.

    >>> sorted(["idle", "W", "F"], key=order)
    ['F', 'W', 'idle']
    """
    return (list(LOOKS).index(kind) if kind in LOOKS else len(LOOKS)), kind


def hatched(colour: str, hatch: str, ink: str = EDGE) -> dict[str, Any]:
    """Plotly's marker of bars that are told apart in grey, too.

    >>> hatched("#56B4E9", "/")["pattern"]["shape"]
    '/'
    """
    pattern = {"shape": hatch, "fgcolor": ink, "fgopacity": 0.4, "size": 7, "solidity": 0.17}
    return {"color": colour, "line": {"color": EDGE, "width": 0.7}, "pattern": pattern}


def lighter(colour: str, share: float = 0.5) -> str:
    """The colour mixed with `share` of white: a rank's second chunk.

    >>> lighter("#000000")
    '#808080'
    """
    channels = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(channel + (255 - channel) * share):02X}" for channel in channels)
