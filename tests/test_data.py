"""Texts need no download, batches can be drawn again, and the best loss on arithmetic is derived."""

import importlib.util
import itertools
import math
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelab.data import SOURCES, Batches, arithmetic, arithmetic_entropy, load_text, stdlib_source

ARITHMETIC = Path(__file__).parents[1] / "datasets" / "arithmetic"
SIZES = {"microbatches": 4, "rows": 2, "context": 16, "seed": 0}


@pytest.mark.parametrize("name", SOURCES)
def test_every_named_text_is_large_utf8_and_the_same_twice(name):
    text = load_text(name)
    assert len(text) >= 100_000 and 0 not in text and text.decode()
    assert load_text(name) == text


def test_the_committed_file_is_what_the_generator_writes(tmp_path):
    script = tmp_path / "generate.py"
    script.write_bytes((ARITHMETIC / "generate.py").read_bytes())
    spec = importlib.util.spec_from_file_location("__main__", script)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    written = (tmp_path / "arithmetic.txt").read_bytes()
    assert written == (ARITHMETIC / "arithmetic.txt").read_bytes() == load_text("arithmetic")
    assert len(written) <= 100_000


def test_arithmetic_holds_every_sum_once():
    sentences = arithmetic().decode().splitlines()
    assert len(sentences) == len(set(sentences)) == 10_000
    assert {len(sentence) for sentence in sentences} == {9}
    for sentence in sentences:
        operands, answer = sentence.split("=")
        assert sum(map(int, operands.split("+"))) == int(answer)
    assert arithmetic(seed=1) != arithmetic(seed=0)


def test_best_loss_is_four_free_digits_in_ten_bytes():
    assert arithmetic_entropy() == pytest.approx(4 * math.log(10) / 10, abs=1e-12)


@pytest.mark.parametrize("context", [3, 5])
def test_best_loss_of_a_window_equals_summing_an_ideal_predictors_losses(context):
    sentences = arithmetic().decode().splitlines(keepends=True)
    probability: Counter[str] = Counter()
    for phase in range(10):
        first = Counter(sentence[phase : phase + context + 1] for sentence in sentences)
        rest = Counter(sentence[: max(0, context + 1 - (10 - phase))] for sentence in sentences)
        for (a, n), (b, m) in itertools.product(first.items(), rest.items()):
            probability[a + b] += n * m / 10**9
    prefixes: Counter[str] = Counter()
    for window, p in probability.items():
        for length in range(1, context + 1):
            prefixes[window[:length]] += p
    prefixes.update(probability)
    losses = sum(
        -p * math.log(prefixes[window[: t + 1]] / prefixes[window[:t]])
        for window, p in probability.items()
        for t in range(1, context + 1)
    )
    assert arithmetic_entropy(context=context) == pytest.approx(losses / context, rel=1e-9)


def test_best_loss_of_windows_falls_towards_that_of_whole_sentences():
    each = [arithmetic_entropy(context) for context in (8, 64, 512)]
    assert each == sorted(each, reverse=True)
    assert arithmetic_entropy() < each[-1] < arithmetic_entropy() + 0.01
    with pytest.raises(ValueError, match="at least 3 bytes: got 2"):
        arithmetic_entropy(context=2)


@given(
    text=st.binary(min_size=9, max_size=60),
    microbatches=st.integers(1, 3),
    rows=st.integers(1, 3),
    context=st.integers(1, 8),
    seed=st.integers(0, 2**40),
    k=st.integers(0, 10**6),
)
def test_a_batch_is_windows_of_the_text_and_the_same_windows_one_byte_later(text, microbatches, rows, context, seed, k):
    batches = Batches(text=text, microbatches=microbatches, rows=rows, context=context, seed=seed)
    inputs, targets = batches[k]
    assert inputs.shape == targets.shape == (microbatches * rows, context)
    assert inputs.dtype == targets.dtype == torch.int64
    for row, following in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert row[1:] == following[:-1]
        assert bytes([*row, following[-1]]) in text
    assert all(map(torch.equal, batches[k], (inputs, targets)))


def test_a_batch_depends_on_seed_and_number_only():
    text = load_text("arithmetic")
    batches = Batches(text=text, **SIZES, steps=5)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    backwards = [batches[k] for k in reversed(range(5))][::-1]
    assert torch.equal(torch.get_rng_state(), state)
    for forwards, again in zip(batches, backwards, strict=True):
        assert all(map(torch.equal, forwards, again))
    runs = [Batches(text=text, **SIZES | {"seed": seed}) for seed in range(4)]
    assert len({bytes(run[k][0].flatten().tolist()) for run in runs for k in range(4)}) == 16


def test_windows_start_anywhere_in_the_text_including_its_end():
    batches = Batches(text=bytes(range(20)), microbatches=1, rows=400, context=16, seed=0)
    assert set(batches[0][0][:, 0].tolist()) == {0, 1, 2, 3}


def test_iteration_ends_after_steps_or_never():
    three = Batches(text=b"x" * 17, **SIZES, steps=3)
    assert len(three) == len(list(three)) == 3
    endless = Batches(text=b"x" * 17, **SIZES)
    assert len(list(itertools.islice(endless, 7))) == 7
    with pytest.raises(TypeError, match="never end"):
        len(endless)
    with pytest.raises(IndexError, match="counting starts at 0"):
        endless[-1]
    with pytest.raises(IndexError, match="no batch 3: steps is 3"):
        three[3]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text": b"x" * 16}, "text has 16 bytes, but a context of 16 needs 17"),
        ({"text": "x" * 17}, "text must be bytes, not str"),
        ({"rows": 0}, "rows must be a whole number of at least 1: got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0: got -1"),
        ({"steps": -1}, "steps must be a whole number of at least 0"),
    ],
)
def test_impossible_batches_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Batches(**{"text": b"x" * 17} | SIZES | change)


def test_a_text_file_of_ones_own_is_read_as_it_is(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes("déjà vu\r\n".encode())
    assert load_text(path) == load_text(str(path)) == "déjà vu\r\n".encode()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty; give a file with text"),
        (b"GIF\0\1", r"is not a UTF-8 text \(byte 3 is NUL"),
        ("naïve".encode("latin-1"), r"is not a UTF-8 text \(byte 2 cannot be decoded\); save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, sentence):
    path = tmp_path / "own.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        load_text(path)


def test_a_missing_text_names_the_known_ones(tmp_path):
    for source in ("stdlib-doc", str(tmp_path / "none.txt")):
        with pytest.raises(ValueError, match="neither a text file nor one of stdlib-docs, stdlib-sou"):
            load_text(source)
    with pytest.raises(ValueError, match="is a directory; give one UTF-8 text file or one of stdlib-docs"):
        load_text(tmp_path)


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "own.txt"
    path.write_bytes(b"text")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    # By hand, because a file mode of 000 does not stop root.
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        load_text(path)


def test_a_python_without_its_documentation_or_sources_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="installed without its documentation topics"):
        load_text("stdlib-docs")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ValueError, match="there are no Python sources in"):
        load_text("stdlib-source")


def test_library_sources_are_whole_files_up_to_a_limit_without_tests():
    whole, part = stdlib_source(), stdlib_source(limit=200_000)
    assert len(part) <= 200_000 and whole.startswith(part) and part.endswith(b"\n")
    assert len(whole) <= 4_000_000 and b"class ArgumentParser" in whole
