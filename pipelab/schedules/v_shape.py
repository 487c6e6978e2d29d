"""V-Half, V-Min, 1F1B-V: how little memory can a pipeline do with? Repeat a stable block, then squeeze its ends.

A *building block* says in which slots the ranks work on micro-batch 0, a slot being F, I or W of one chunk; micro-batch
m does the same 6 m slots later. Six slots are what a rank has to do for a micro-batch, so a block whose slots on each
rank differ modulo 6 keeps all ranks busy. What it holds is known before anything runs: an activation held for n slots
is held n/6 times over (Qi et al. 2024, Pipeline Parallelism with Controllable Memory, sections 3 and 4).

Read next: `dualpipe_v`.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from pipelab.action import B, F, I, W
from pipelab.placement import Placement
from pipelab.schedule import Letter, Schedule, refuse_too_many

PERIOD = 6
"""Slots from one micro-batch to the next: F, I and W of two chunks."""

CHANGE = {F: +1, I: 0, W: -1, B: -1}
"""What a letter does to the number of activations held."""

KEPT, RELEASED, BUSY = 1, 2, 3
MARKS = {F: bytes([KEPT]), I: bytes([BUSY]), W: bytes([RELEASED]), B: bytes([RELEASED, BUSY])}
"""The slots that a letter takes, one or two, as they are marked; a free one is 0."""

FREE = {kind: bytes(len(marks)) for kind, marks in MARKS.items()}


def v_half(ranks: int, microbatches: int) -> Schedule:
    """A V of two chunks a rank with half the memory of 1F1B, for half its bubble.

    In its block a micro-batch goes down the V at a rank in two slots and up at a rank a slot, forward and backward.
    That is 6P slots for the way there and back, where 1F1B with two chunks would hold 12P slots' worth.

    >>> print(v_half(2, 2))
    0F0 0F1 3F0 3I0 3F1 3I1 0I0 3W0 0I1 3W1 0W0 0W1
    1F0 2F0 1F1 2F1 2I0 1I0 2I1 1I1 2W0 1W0 2W1 1W1
    """
    turn = 3 * ranks - 1 + (3 if ranks % 2 == 0 else 0)  # the pause keeps I out of the slots of F
    there = [*range(0, 2 * ranks, 2), *range(2 * ranks - 1, 3 * ranks - 1)]
    back = [*range(turn, turn + 2 * ranks, 2), *range(turn + 2 * ranks, turn + 3 * ranks)]
    return _squeezed("v-half", ranks, microbatches, [*there, *back], I)


def v_min(ranks: int, microbatches: int) -> Schedule:
    """A V of two chunks a rank with a third of the memory of 1F1B, for two thirds of its bubble.

    Its block is the shortest there is: a micro-batch goes there and back without a pause, in 4P slots.

    >>> print(v_min(2, 2))
    0F0 0F1 3F0 3I0 3W0 3F1 0I0 3I1 0W0 3W1 0I1 0W1
    1F0 2F0 1F1 2F1 2I0 1I0 2W0 1W0 2I1 1I1 2W1 1W1
    """
    turn = 2 * ranks + (2 if ranks % 3 == 0 else 0)
    return _squeezed("v-min", ranks, microbatches, [*range(2 * ranks), *range(turn, turn + 2 * ranks)], I)


def one_f_one_b_v(ranks: int, microbatches: int) -> Schedule:
    """A V of two chunks a rank, the backward not split: two thirds of the memory of 1F1B and a smaller bubble.

    Its block goes there without a pause, and back in two slots a backward with a pause of three after every third.

    >>> print(one_f_one_b_v(2, 2))
    0F0 0F1 3F0 3B0 3F1 3B1 0B0 0B1
    1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1
    """
    turn = 2 * ranks + (3 if ranks % 3 == 0 else 0)
    back = (turn + 2 * n + 3 * ((n + 1 - ranks) // 3 - (1 - ranks) // 3) for n in range(2 * ranks))
    return _squeezed("1f1b-v", ranks, microbatches, [*range(2 * ranks), *back], B)


class Step(NamedTuple):
    """One letter of a building block: its first slot, its rank, and the letter before it on a micro-batch's way."""

    start: int
    rank: int
    letter: Letter
    after: Letter | None


def _block(ranks: int, starts: Sequence[int], back: str) -> list[Step]:
    """The block in which a micro-batch goes there and back at these `starts`; each W takes the next slot left free."""
    rank_of = Placement.vee(ranks).rank_of
    stages = range(2 * ranks)
    way = [*((stage, F) for stage in stages), *((stage, back) for stage in reversed(stages))]
    steps = [
        Step(start, rank_of[letter[0]], letter, before)
        for start, letter, before in zip(starts, way, [None, *way], strict=False)
    ]
    taken = [{step.start % PERIOD for step in steps if step.rank == rank} for rank in range(ranks)]
    for start, rank, (stage, kind), _ in sorted(steps):
        if kind == I:
            free = next(slot for slot in range(start + 1, start + PERIOD) if slot % PERIOD not in taken[rank])
            taken[rank].add(free % PERIOD)
            steps.append(Step(free, rank, (stage, W), (stage, I)))
    return sorted(steps)


def _squeezed(name: str, ranks: int, microbatches: int, starts: Sequence[int], back: str) -> Schedule:
    """Repeat the block and squeeze its ends; the steady state between them is repeated for what there is more."""
    refuse_too_many(2 * ranks, microbatches)
    block = _block(ranks, starts, back)
    steady = block[-1].start  # from here on every rank has all its letters, until the last micro-batch starts
    enough = -(-steady // PERIOD) + 2
    lanes = _squeeze(block, ranks, min(microbatches, enough))

    def word(rank: int) -> list[Letter]:
        lane = sorted(lanes[rank].letters)
        if microbatches <= enough:
            return [letter for _, letter in lane]
        before = [letter for slot, letter in lane if slot < steady]
        period = [letter for slot, letter in lane if steady <= slot < steady + PERIOD]
        return before + period * (microbatches - enough) + [letter for slot, letter in lane if slot >= steady]

    return Schedule.from_words(name, Placement.vee(ranks), microbatches, word)


def _squeeze(block: list[Step], ranks: int, microbatches: int) -> list["_Lane"]:
    """The slots of every rank for M blocks; those before and after the steady state go to the first slot they may.

    An F goes no further than where the rank would hold more than in the steady state. A W after the steady state waits
    for what is left over by all else, for nobody waits for it.
    """
    first_is_back = max(step.start for step in block if step.letter[1] != W)
    last_leaves = PERIOD * (microbatches - 1)
    most = max(_held_in_steady_state(block, rank) for rank in range(ranks))
    lanes = [_Lane(block[-1].start + PERIOD * microbatches + 2 * len(block)) for _ in range(ranks)]
    done: dict[Letter | None, list[int]] = {None: [0] * microbatches, **{step.letter: [] for step in block}}

    def turn(step: Step, m: int) -> int:
        slot = step.start + PERIOD * m
        return slot + len(lanes[0].slots) if slot > last_leaves and step.letter[1] == W else slot

    moves = [(turn(step, m), m, step) for m in range(microbatches) for step in block]
    for slot, m, (_, rank, letter, after) in sorted(moves, key=itemgetter(0)):
        lane, kind, ends = lanes[rank], letter[1], done[letter]
        if not first_is_back <= slot <= last_leaves:
            earliest = max(done[after][m], ends[-1] if ends else 0)
            if kind == F:
                earliest = lane.room(earliest, slot, most)
            slot = lane.slots.find(FREE[kind], earliest)
        lane.put(slot, letter)
        ends.append(slot + len(MARKS[kind]))
    return lanes


def _held_in_steady_state(block: list[Step], rank: int) -> int:
    """The most that a rank holds once it has all its letters: each F since its start, less each B or W."""
    changes = [(CHANGE[step.letter[1]], step.start) for step in block if step.rank == rank]
    return max(sum(change * ((slot - start) // PERIOD) for change, start in changes) for slot in range(PERIOD))


class _Lane:
    """The slots of one rank, the letters in them, and how many activations it holds after the last."""

    def __init__(self, slots: int) -> None:
        self.slots = bytearray(slots)
        self.letters: list[tuple[int, Letter]] = []
        self._held = 0

    def room(self, earliest: int, slot: int, most: int) -> int:
        """The first slot from which on, until `slot`, it holds fewer than `most`; all letters are before `slot`."""
        full, held = slot - 1, self._held
        if held + self.slots.count(RELEASED, earliest, slot) < most:
            return earliest  # the common case: it never held so many
        while held < most:
            back = most - held  # a slot holds at most one more than the next, so none of those between is full
            if full - back < earliest:
                return earliest
            between = full - back + 1, full + 1
            held += self.slots.count(RELEASED, *between) - self.slots.count(KEPT, *between)
            full -= back
        return full + 1

    def put(self, slot: int, letter: Letter) -> None:
        """Take a slot, or two."""
        marks = MARKS[letter[1]]
        self.slots[slot : slot + len(marks)] = marks
        self.letters.append((slot, letter))
        self._held += CHANGE[letter[1]]
