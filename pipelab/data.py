"""What does the model read? Bytes of a text that needs no download, in batches that can be drawn again.

A token is a byte, so the vocabulary is 256 and nothing has to be tokenised. Three texts are always at hand
(`SOURCES`), and any UTF-8 file of yours is a fourth; the dataset cards in datasets/ say what each holds and
how well it can be predicted. Read `models.py` next: it is what learns from these batches.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
import random
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelab.counts import count

STDLIB_SOURCE_LIMIT = 4_000_000  # bytes


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of a training run: `batches[k]` is batch number k, the same whenever it is asked for.

    A batch is `(inputs, targets)`, two int64 tensors of shape [microbatches x rows, context]: random windows
    of the text, and the same windows one byte later. Micro-batch m is rows m x `rows` up to (m + 1) x
    `rows`. Batch k depends on the text, the sizes, `seed` and k only, so the number k alone is the data
    cursor that a checkpoint has to keep. Iteration ends after `steps` batches, or never without `steps`.

    Raises ValueError for sizes below 1, a negative seed or a text shorter than `context` + 1 bytes.

    >>> batches = Batches(text=b"abcdefgh" * 9, microbatches=4, rows=2, context=16, seed=0, steps=10)
    >>> inputs, targets = batches[3]
    >>> inputs.shape, bool((inputs[:, 1:] == targets[:, :-1]).all()), len(batches)
    (torch.Size([8, 16]), True, 10)
    """

    text: bytes = field(repr=False)
    microbatches: int
    rows: int
    context: int
    seed: int
    steps: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, bytes):
            raise ValueError(f"text must be bytes, not {type(self.text).__name__}; a str becomes bytes by .encode()")
        for name in ("microbatches", "rows", "context"):
            count(name, getattr(self, name))
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0: got {self.seed!r}")
        if self.steps is not None and (not isinstance(self.steps, int) or self.steps < 0):
            raise ValueError(f"steps must be a whole number of at least 0, or None for no end: got {self.steps!r}")
        if len(self.text) < self.context + 1:
            raise ValueError(
                f"the text has {len(self.text)} bytes, but a context of {self.context} needs "
                f"{self.context + 1}, one more for the last target; give a longer text or a smaller context"
            )

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        if k < 0 or (self.steps is not None and k >= self.steps):
            reason = "counting starts at 0" if k < 0 else f"steps is {self.steps}"
            raise IndexError(f"there is no batch {k}: {reason}")
        # Mixed, not added: seed 0 at batch 1 and seed 1 at batch 0 must have nothing in common.
        mixed = np.random.SeedSequence((self.seed, k)).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        windows, last_start = self.microbatches * self.rows, len(self.text) - self.context - 1
        starts = torch.randint(last_start + 1, (windows, 1), generator=generator, device="cpu").numpy()
        text = np.frombuffer(self.text, dtype=np.uint8)
        tokens = text[starts + np.arange(self.context + 1)].astype(np.int64)
        return torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(tokens[:, 1:].copy())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[k] for k in (itertools.count() if self.steps is None else range(self.steps)))

    def __len__(self) -> int:
        if self.steps is None:
            raise TypeError("these batches never end; give steps= for a number of them")
        return self.steps


def load_text(source: str | os.PathLike[str]) -> bytes:
    """Read a text by its name in `SOURCES`, or else the UTF-8 text file at that path.

    A name wins over a file of the same name in the working directory; write `./arithmetic` for the file.
    Raises ValueError, with the remedy, where there is no such text or where the file is empty or is no text.

    >>> load_text("arithmetic")[:20]
    b'57+55=112\\n26+07=033\\n'
    >>> load_text("novel.txt")
    Traceback (most recent call last):
    ValueError: 'novel.txt' is neither a text file nor one of stdlib-docs, stdlib-source, arithmetic
    """
    if source in SOURCES:
        return SOURCES[str(source)]()
    return _read_text_file(Path(source).expanduser())


def stdlib_docs() -> bytes:
    """English prose: the reference topics of Python's own `help()`, in alphabetical order of their names.

    About 450 KB; the text differs from one Python version to the next. Raises ValueError where the
    installation comes without it, as some minimal Linux packages do.

    >>> b"assert" in stdlib_docs()[:100]
    True
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise ValueError(
            "this Python was installed without its documentation topics (pydoc_data); install the full "
            "standard library (on Debian and Ubuntu: libpython3-stdlib) or choose stdlib-source, "
            "arithmetic or a text file"
        ) from None
    return "\n".join(topics[name] for name in sorted(topics)).encode()


def stdlib_source(limit: int = STDLIB_SOURCE_LIMIT) -> bytes:
    """Program text: the sources of the standard library that belong to the running Python.

    The modules that are a single file, in alphabetical order; files that are not UTF-8 are left out,
    packages and with them the tests are too. Whole files, up to the first that would exceed `limit` bytes (4
    MB). Raises ValueError where the sources are not installed as files.

    >>> 50_000 < len(stdlib_source(limit=100_000)) <= 100_000
    True
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    text = bytearray()
    # The interpreter's own list of modules leaves out what else lies in that folder, such as build settings.
    for path in (root / f"{module}.py" for module in sorted(sys.stdlib_module_names)):
        content = path.read_bytes().replace(b"\r\n", b"\n") if path.is_file() else b""
        if _why_no_text(content):
            continue
        if len(text) + len(content) > limit:
            break
        text += content
    if not text:
        raise ValueError(f"there are no Python sources in {root}; choose stdlib-docs, arithmetic or a text file")
    return bytes(text)


def arithmetic(seed: int = 0) -> bytes:
    r"""All 10,000 sums of two two-digit numbers, as `17+25=042` and a line end, each once, in random order.

    Every sentence has ten bytes (100,000 in all), the four operand digits are exactly uniform, and
    everything else follows from them. So the best reachable loss is known: see `arithmetic_entropy`.

    >>> text = arithmetic()
    >>> len(text), text.count(b"17+25=042\n")
    (100000, 1)
    """
    sentences = _arithmetic_sentences()
    shuffled = random.Random(seed)  # .random() is promised to give the same numbers in every Python version
    return "".join(sorted(sentences, key=lambda _: shuffled.random())).encode()


def arithmetic_entropy(context: int | None = None) -> float:
    """The best reachable loss on `arithmetic`, in nats per byte as cross-entropy is, derived by counting.

    Without `context`: for an ideal model that reads every sentence from its beginning and no other one,
    averaged over its ten bytes: four uniform digits cost ln 10 each, the sign, the answer and the line end
    are certain. With `context`: for `Batches` of that context. A window starts at any byte of a sentence, so
    its first bytes leave open where in the sentence they stand, and an answer whose operands were cut off
    has to be guessed.

    Both take sentences as independent. In fact each occurs once, so a model that knows which ones have been
    used up, or that remembers their order, can go lower. Raises ValueError for a context below 3, which may
    not show where in a sentence it stands.

    >>> round(arithmetic_entropy(), 4), round(arithmetic_entropy(context=64), 4)
    (0.921, 0.9846)
    """
    sentences = _arithmetic_sentences()
    width = len(sentences[0])
    if context is None:
        return _entropy(sentences) / width
    if context < 3:
        raise ValueError(f"the best loss is derived for a context of at least 3 bytes: got {context}")
    # The chain rule: the losses of a window's targets add up to H(window) - H(its first byte). Four bytes
    # always hold a + or = or line end and so tell the phase: H(window) = H(phase) + mean H(window | phase).
    given_phase = [_window_entropy(sentences, phase, context + 1) for phase in range(width)]
    window = math.log(width) + sum(given_phase) / width
    first_byte = _entropy("".join(sentences))
    return (window - first_byte) / context


SOURCES: dict[str, Callable[[], bytes]] = {
    "stdlib-docs": stdlib_docs,
    "stdlib-source": stdlib_source,
    "arithmetic": arithmetic,
}


def _arithmetic_sentences() -> list[str]:
    return [f"{a:02}+{b:02}={a + b:03}\n" for a in range(100) for b in range(100)]


def _window_entropy(sentences: list[str], phase: int, length: int) -> float:
    """Entropy in nats of `length` bytes that start at byte `phase` of a sentence and run on into the next."""

    def part(start: int, end: int) -> float:
        return _entropy([sentence[start:end] for sentence in sentences])

    width = len(sentences[0])
    head = min(length, width - phase)
    whole, tail = divmod(length - head, width)
    return part(phase, phase + head) + whole * part(0, width) + part(0, tail)


def _entropy(outcomes: list[str] | str) -> float:
    counts = Counter(outcomes).values()
    return math.log(len(outcomes)) - math.fsum(n * math.log(n) for n in counts) / len(outcomes)


def _read_text_file(path: Path) -> bytes:
    names = ", ".join(SOURCES)
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a directory; give one UTF-8 text file or one of {names}")
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is neither a text file nor one of {names}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read: {error.strerror}; give a readable file or one of {names}"
        ) from None
    if not content:
        raise ValueError(f"{str(path)!r} is empty; give a file with text or one of {names}")
    if reason := _why_no_text(content):
        raise ValueError(f"{str(path)!r} is not a UTF-8 text ({reason}); save it as UTF-8 or give one of {names}")
    return content


def _why_no_text(content: bytes) -> str | None:
    if 0 in content:
        return f"byte {content.index(0)} is NUL, so it looks binary"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"byte {error.start} cannot be decoded"
    return None
