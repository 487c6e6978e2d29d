"""A checkpoint is whole or not there; what is resumed under another layout goes on to the same numbers."""

import dataclasses
import json
import os
import random
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pipelab as pl
from pipelab import checkpoint
from pipelab.checkpoint import ABOUT, MODEL, OPTIMIZER, Saving, checkpoints, read
from pipelab.cli import main
from pipelab.data import Batches
from pipelab.failure import RunError
from pipelab.live import Live
from pipelab.models import GPT, GPTConfig, build_model
from pipelab.reference import train_uncut
from pipelab.resume import continued
from pipelab.state import State, values_of

CONFIG = GPTConfig(vocabulary=17, width=8, heads=2, layers=10, context=5, dropout=0.1)
STEPS = 6
WORDS = [*"abcdef"]
pytestmark = pytest.mark.usefixtures("one_intra_op_thread", "travelling")


def gpt(config: GPTConfig = CONFIG) -> GPT:
    torch.manual_seed(1)
    return GPT(config).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(CONFIG.vocabulary, (STEPS, 8, CONFIG.context + 1), generator=generator)
    return [(batch[:, :-1].contiguous(), batch[:, 1:].clone()) for batch in tokens]


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


@pytest.fixture(scope="module")
def whole():
    """Losses and model of a run that nobody interrupts, on one device (dropout included)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = gpt()
    losses = train_uncut(model, batches(), 4, seed=7)
    torch.set_num_threads(before)
    return losses, model


@pytest.fixture
def saved(tmp_path):
    """A folder with the steps 2 and 3 of a run of four ranks."""
    pl.train(gpt(), batches(), pl.build("1f1b", 4, 4), steps=3, seed=7, save=Saving(tmp_path / "kept", every=2))
    return tmp_path / "kept"


def small(step: int = 1, size: int = 4) -> State:
    entries = {"0.weight": {"exp_avg": torch.full((size,), float(step)), "step": torch.tensor(float(step))}}
    return State(step, 0, (0.5,) * step, {"0.weight": torch.full((size,), float(step))}, entries, "Adam")


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(values_of(ours).values(), values_of(theirs).values(), strict=True))


# ------------------------------------------------------------------------------------------------ the same numbers

LAYOUTS = [
    (pl.build("1f1b", 2, 4), "memory"),
    (pl.build("zb-v", 2, 4), "memory"),
    (pl.build("interleaved", 2, 4, 2), "memory"),
    (pl.build("zb-h1", 3, 4), "gloo"),
]


@pytest.mark.parametrize(("schedule", "transport"), LAYOUTS, ids=lambda value: getattr(value, "name", value))
def test_a_run_resumed_under_another_layout_goes_on_bit_equal_to_one_that_was_never_interrupted(
    schedule, transport, saved, whole
):
    model, told, live = gpt(), [], Live()
    run = pl.train(
        model, batches(), schedule, seed=7, transport=transport, resume=saved,
        on_step=lambda *step: told.append(step), feed=live,
    )  # fmt: skip
    assert run.losses == whole[0][3:]
    assert told == list(enumerate(run.losses, 3))
    assert (live.step, live.losses, live.trace) == (STEPS - 1, run.losses, run.traces[-1])
    assert run.state.losses == tuple(whole[0]) and run.state.step == STEPS
    assert same(model, whole[1])


def test_processes_save_what_threads_do(tmp_path, saved):
    run = pl.train(
        gpt(), batches(), pl.build("zb-v", 2, 4), steps=3, seed=7, transport="gloo", save=Saving(tmp_path / "theirs", 1)
    )
    assert list(checkpoints(tmp_path / "theirs")) == [1, 2, 3]
    ours, theirs = read(saved), read(tmp_path / "theirs")
    assert ours.losses == theirs.losses == run.state.losses
    assert all(torch.equal(ours.model[name], tensor) for name, tensor in theirs.model.items())
    for name, entry in theirs.optimizer.items():
        assert all(torch.equal(ours.optimizer[name][key], value) for key, value in entry.items()), name


def test_a_run_reshaped_twice_in_one_session_is_bit_equal_to_one_that_was_never_changed(whole):
    model = gpt()
    run = pl.train(model, batches(), pl.build("1f1b", 4, 4), steps=2, seed=7)
    second = pl.reshape(run, schedule=pl.build("zb-v", 2, 4), steps=2)
    third = pl.reshape(second, mesh=pl.Mesh(pp=3), schedule=pl.build("gpipe", 3, 4))
    assert run.losses + second.losses + third.losses == list(third.state.losses) == whole[0]
    assert same(model, whole[1])
    again = pl.reshape(run, schedule=pl.build("naive", 1, 4))  # the model has been trained on since
    assert again.losses == whole[0][2:] and same(model, whole[1])


def test_without_a_schedule_the_run_s_own_is_built_for_the_mesh():
    run = pl.train(gpt(), batches(), pl.build("interleaved", 2, 4, 2), steps=1)
    assert pl.reshape(run, mesh=pl.Mesh(pp=3), steps=1).schedule == pl.build("interleaved", 3, 4, 2)
    assert pl.reshape(run, steps=1).schedule == run.schedule
    mine = pl.train(gpt(), batches(), dataclasses.replace(pl.build("1f1b", 2, 4), name="mine"), steps=1)
    with pytest.raises(ValueError, match=r"mine is not a schedule by name alone, .* give schedule="):
        pl.reshape(mine, mesh=pl.Mesh(pp=4), steps=1)
    with pytest.raises(ValueError, match="4 micro-batches are not shared evenly by dp=3"):
        pl.reshape(run, mesh=pl.Mesh(pp=2, dp=3), steps=1)


def test_reshaping_keeps_loss_optimizer_and_seed():
    def loss(scores, targets):
        return nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), label_smoothing=0.3)

    given = {"loss": loss, "optimizer": momentum, "seed": 3}
    uncut = train_uncut(gpt(), batches(), 4, **given)
    run = pl.train(gpt(), batches(), pl.build("1f1b", 4, 4), steps=3, **given)
    assert run.losses + pl.reshape(run, schedule=pl.build("1f1b", 2, 4)).losses == uncut


WIDE = GPTConfig(vocabulary=24, width=16, heads=4, layers=4, context=8)
ONE = ("1f1b", (4, 1, 1), {})
"""A schedule, how many (pp, tp, dp), and more."""
MESHES = [
    (ONE, ("zb-v", (1, 2, 1), {})),
    (("1f1b", (2, 2, 1), {}), ONE),
    (("gpipe", (1, 2, 1), {}), ("1f1b", (1, 4, 1), {"sequence_parallel": True})),
    (("1f1b", (2, 1, 2), {}), ONE),
    (ONE, ("zb-h1", (2, 1, 3), {})),
    (("1f1b", (2, 1, 2), {"zero": True}), ("zb-v", (2, 1, 1), {})),
    (("1f1b", (2, 1, 2), {"zero": True}), ("zb-v", (1, 1, 3), {"zero": True})),
    (ONE, ("1f1b", (2, 1, 2), {"zero": True})),
    (("interleaved", (2, 2, 2), {"zero": True}), ("gpipe", (2, 1, 2), {})),
    (("1f1b", (1, 2, 2), {"zero": True, "sequence_parallel": True}), ("zb-v", (2, 2, 2), {"zero": True})),
]


def trained(model, layout, **more):
    """Some steps on a mesh; six micro-batches a step are shared by the replicas."""
    name, (pp, tp, dp), options = layout
    chunks = 2 if name == "interleaved" else None
    return pl.train(
        model, Batches(text=TEXT, microbatches=6, rows=1, context=8, seed=0), pl.build(name, pp, 6 // dp, chunks),
        pl.Mesh(pp=pp, tp=tp, dp=dp), clip=0.5, rate=rate, timeout=60, **options, **more,
    )  # fmt: skip


TEXT = bytes(random.Random(0).randrange(24) for _ in range(500))


def rate(step):
    return 1 / (1 + step)


def assert_goes_on(before, after, folder, tied, **more):
    config = dataclasses.replace(WIDE, tied=tied)
    model, uncut = build_model(config, dtype=torch.float64), build_model(config, dtype=torch.float64)
    first = trained(build_model(config, dtype=torch.float64), before, steps=2, save=folder, **more)
    second = trained(model, after, steps=2, resume=folder, **more)
    batches = Batches(text=TEXT, microbatches=6, rows=1, context=8, seed=0, steps=4)
    assert first.losses + second.losses == pytest.approx(train_uncut(uncut, batches, 6, clip=0.5, rate=rate), rel=1e-9)
    for (name, ours), theirs in zip(model.named_parameters(), uncut.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12), name
    return read(folder), second.state


@pytest.mark.parametrize(("before", "after", "tied"), [(*pair, number % 2 == 1) for number, pair in enumerate(MESHES)])
def test_a_run_resumed_on_another_mesh_goes_on_as_one_that_was_never_interrupted(before, after, tied, tmp_path):
    state, last = assert_goes_on(before, after, tmp_path, tied)
    one = trained(build_model(dataclasses.replace(WIDE, tied=tied), dtype=torch.float64), ONE, steps=2).state
    assert set(state.model) == set(one.model) and set(state.optimizer) == set(one.optimizer) == set(last.optimizer)
    for name, entry in one.optimizer.items():
        for kind, value in entry.items():
            assert torch.allclose(state.optimizer[name][kind], value, rtol=1e-9, atol=1e-12), (name, kind)


def test_processes_of_any_mesh_resume_each_other(tmp_path):
    before, after = ("1f1b", (2, 1, 2), {"zero": True}), ("gpipe", (1, 2, 2), {"zero": True})
    assert_goes_on(before, after, tmp_path, tied=True, transport="gloo")


def test_reshaping_changes_replicas_and_shards_and_leaves_out_what_needs_several():
    model = build_model(WIDE, dtype=torch.float64)
    run = trained(model, ("1f1b", (2, 2, 2), {"zero": True, "sequence_parallel": True}), steps=2)
    one = pl.reshape(run, mesh=pl.Mesh(pp=2), steps=2)
    two = pl.reshape(one, mesh=pl.Mesh(pp=1, tp=2, dp=3), steps=1)
    assert (one.schedule, two.schedule) == (pl.build("1f1b", 2, 6), pl.build("1f1b", 1, 2))
    batches = Batches(text=TEXT, microbatches=6, rows=1, context=8, seed=0, steps=5)
    losses = train_uncut(build_model(WIDE, dtype=torch.float64), batches, 6, clip=0.5, rate=rate)
    assert list(two.state.losses) == pytest.approx(losses, rel=1e-9)


def test_the_command_resumes_and_checks_against_the_uncut_model(tmp_path, capsys):
    shape = ["--model", "tiny", "--layers", "4", "--microbatches", "4", "--json", "--steps", "2"]
    assert (
        main(["train", "--schedule", "1f1b", "--pp", "4", "--dtype", "float64", "--save", f"{tmp_path / 'a'}", *shape])
        == 0
    )
    capsys.readouterr()
    assert main(["train", "--schedule", "zb-v", "--pp", "2", "--check", "--resume", f"{tmp_path / 'a'}", *shape]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert resumed["max_parameter_difference"] == 0
    assert main(["train", "--schedule", "gpipe", "--pp", "1", "--dtype", "float64", *shape[:-1], "4"]) == 0
    assert json.loads(capsys.readouterr().out)["losses"][2:] == resumed["losses"]


def test_what_can_be_indexed_is_continued_at_the_cursor_and_an_iterator_is_what_is_to_come():
    assert list(continued(WORDS, 4)) == list(continued(iter(WORDS[4:]), 4)) == ["e", "f"]
    assert list(continued(WORDS, 0)) == WORDS
    with pytest.raises(ValueError, match=r"the batches end before number 6, .* iter"):
        continued(WORDS, 6)


# ------------------------------------------------------------------------------------------------ on disk


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path):
    entries = {"0.weight": {"a": torch.ones(2, dtype=torch.bfloat16), "n": 3, "none": None, "x": 0.1}, "1.weight": {}}
    state = State(
        12, 5, (0.1, float("nan")), {"0.weight": torch.zeros(()), "ü": torch.arange(3)}, entries, "Mine", {"pp": 2}
    )
    folder = Saving(tmp_path).write(state)
    assert sorted(path.name for path in folder.iterdir()) == [ABOUT, MODEL, OPTIMIZER]
    back = read(tmp_path)
    assert back.source == str(folder) and folder.name == "step-000012"
    assert (back.step, back.seed, str(back.losses), back.kind, back.written_by) == (
        12,
        5,
        "(0.1, nan)",
        "Mine",
        {"pp": 2},
    )
    for name, tensor in state.model.items():
        assert torch.equal(back.model[name], tensor) and back.model[name].dtype == tensor.dtype
    assert torch.equal(back.optimizer["0.weight"].pop("a"), entries["0.weight"].pop("a"))
    assert back.optimizer == entries


def test_an_optimizer_that_keeps_what_is_no_number_is_refused_and_nothing_is_left(tmp_path):
    state = dataclasses.replace(small(), optimizer={"0.weight": {"old": [1, 2]}})
    with pytest.raises(ValueError, match=r"keeps a list as old of 0\.weight, which cannot be saved"):
        Saving(tmp_path).write(state)
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10):
        Saving(tmp_path, keep=2).write(small(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000010"]
    assert read(tmp_path).step == 10 and read(tmp_path / "step-000002").step == 2


def save_until_killed(folder, seconds, line, size):
    """Within a rank: save step after step, and die by signal 9 after some time, or at the n-th line of this work."""
    executed = 0

    def each_line(frame, event, _):
        nonlocal executed
        if frame.f_code.co_filename != checkpoint.__file__:
            return None
        executed += event == "line"
        if executed == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return each_line

    first = max(checkpoints(folder), default=0) + 1
    if seconds is not None:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    else:
        sys.settrace(each_line)
    for step in range(first, first + 1000):
        Saving(folder, keep=2).write(small(step, size))


def test_a_kill_at_any_moment_leaves_the_last_good_checkpoint(tmp_path):
    Saving(tmp_path).write(small(1))
    chance = random.Random(0)
    lines = [(None, chance.randrange(1, 300), 4) for _ in range(20)]
    moments = [(chance.uniform(0.005, 0.05), None, 200_000) for _ in range(8)]
    for seconds, line, size in lines + moments:
        before = max(checkpoints(tmp_path))
        with pytest.raises(RunError, match="was killed by signal 9"):
            pl.launch(save_until_killed, tmp_path, seconds, line, size, ranks=1, preload=["pipelab.training"])
        state = read(tmp_path)
        assert state.step >= before
        assert set(state.model["0.weight"].tolist()) == {float(state.step)}
        for path in checkpoints(tmp_path).values():
            assert read(path).step == int(path.name[5:])
    Saving(tmp_path, keep=2).write(small(state.step + 1))
    assert [path.name[0] for path in tmp_path.iterdir()] == ["s", "s"], "what kills have left is gone"


@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_a_run_that_fails_leaves_what_it_has_saved(transport, tmp_path, whole):
    class Breaks(torch.optim.AdamW):
        def step(self, closure=None):
            super().step()
            if next(iter(self.state.values()))["step"] == 4:
                raise OSError("no more power")

    def breaks(parameters):
        return Breaks(parameters, lr=1e-3)

    with pytest.raises((RunError, OSError), match="no more power"):
        pl.train(
            gpt(),
            batches(),
            pl.build("1f1b", 2, 4),
            seed=7,
            optimizer=breaks,
            transport=transport,
            save=Saving(tmp_path, 2),
        )
    state = dataclasses.replace(read(tmp_path), kind="AdamW")
    run = pl.train(gpt(), batches(), pl.build("zb-v", 2, 4), seed=7, resume=state)
    assert [*state.losses, *run.losses] == whole[0] and state.step == 2


# ------------------------------------------------------------------------------------------------ a sentence each


def spoil(folder: Path, name: str, how) -> None:
    path = max(checkpoints(folder).items())[1] / name
    how(path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def later(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 9}))


@pytest.mark.parametrize(
    ("name", "how", "sentence"),
    [
        (MODEL, flip, "step-000003/model.safetensors is damaged: it is not what was written, by its SHA-256"),
        (OPTIMIZER, cut_off, "step-000003/optimizer.safetensors is damaged"),
        (OPTIMIZER, Path.unlink, "step-000003/optimizer.safetensors is missing"),
        (ABOUT, flip, "step-000003(/checkpoint.json is damaged| is no checkpoint of pipelab)"),
        (ABOUT, cut_off, "step-000003 is no checkpoint of pipelab, or its checkpoint.json is damaged"),
        (ABOUT, Path.unlink, "step-000003 is no checkpoint of pipelab, or its checkpoint.json is damaged"),
        (ABOUT, later, "step-000003 has version 9, and this pipelab reads 1"),
    ],
)
def test_a_damaged_checkpoint_is_told_with_the_older_one_and_left_as_it_is(name, how, sentence, saved):
    spoil(saved, name, how)
    found = {path: path.read_bytes() for path in saved.rglob("*.*") if path.is_file()}
    model = gpt()
    with pytest.raises(ValueError, match=f"{sentence}.*; an older one is .*step-000002"):
        pl.train(model, batches(), pl.build("1f1b", 2, 4), seed=7, resume=saved, save=saved)
    assert same(model, gpt()) and found == {path: path.read_bytes() for path in found}
    assert read(saved / "step-000002").step == 2


def another(**changes):
    return lambda: gpt(dataclasses.replace(CONFIG, **changes))


def rmsprop(parameters):
    return torch.optim.RMSprop(parameters)


def amsgrad(parameters):
    return torch.optim.AdamW(parameters, amsgrad=True)


@pytest.mark.parametrize(
    ("build", "more", "sentence"),
    [
        (gpt, {"seed": 8}, "was trained with seed 7, not 8"),
        (gpt, {"optimizer": rmsprop}, "was trained with AdamW, not RMSprop"),
        (gpt, {"optimizer": amsgrad}, "this AdamW and that of .* differ in max_exp_avg_sq of"),
        (another(layers=9), {}, "step-000003 has 10.attention.norm.bias and this model has not"),
        (another(layers=12), {}, "step-000003 has 11.norm.bias and this model has not"),
        (another(vocabulary=18), {}, r"is \[17, 8\] in .*step-000003 and \[18, 8\] in this model"),
        (lambda: gpt().float(), {}, "is float64 in .*step-000003 and float32 in this model; build it in float64"),
        (gpt, {"at": [1, 1, 1]}, "at"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_is_touched(build, more, sentence, saved):
    model = build()
    with pytest.raises(ValueError, match=sentence):
        pl.train(model, batches(), pl.build("1f1b", 2, 4), **{"seed": 7, "resume": saved, **more})
    assert same(model, build())


def test_folders_that_are_none_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder, sentence in [
        ("nowhere", "there is no folder"),
        ("file", "there is no folder"),
        (".", "no checkpoint in"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            read(tmp_path / folder)
    for folder, sentence in [
        ("file", "is a file"),
        ("file/in", "is a file"),
        (".", "holds file, which is no checkpoint"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            Saving(tmp_path / folder).prepare(0)
    (tmp_path / "theirs" / "step-000001").mkdir(parents=True)
    with pytest.raises(ValueError, match="step-000001 is no checkpoint of pipelab"):
        Saving(tmp_path / "theirs").prepare(0)


def test_two_parameters_are_not_taken_for_one(saved):
    tied = gpt(dataclasses.replace(CONFIG, tied=True))
    with pytest.raises(ValueError, match=r"0\.token\.weight and .*vocabulary\.weight are one parameter in this model"):
        pl.train(tied, batches(), pl.build("1f1b", 2, 4), seed=7, resume=saved)


def test_two_runs_are_never_mixed_in_one_folder(saved):
    with pytest.raises(ValueError, match="holds step 3 and this run begins at step 0, which would mix two runs"):
        pl.train(gpt(), batches(), pl.build("1f1b", 2, 4), save=saved)
    with pytest.raises(ValueError, match="holds step 3 and this run begins at step 2"):
        pl.train(gpt(), batches(), pl.build("1f1b", 2, 4), seed=7, save=saved, resume=saved / "step-000002")
    assert list(checkpoints(saved)) == [2, 3]


def test_without_a_flush_there_is_nothing_to_save_or_to_go_on_from(tmp_path):
    run = pl.train(gpt(), batches(), pl.build("pipedream", 2, 4), steps=1)
    for more in ({"save": tmp_path / "new"}, {"resume": run}):
        with pytest.raises(ValueError, match="pipedream has nothing between them"):
            pl.train(gpt(), batches(), pl.build("pipedream", 2, 4), **more)
    with pytest.raises(ValueError, match="a run of pipedream cannot go on"):
        pl.reshape(run, schedule=pl.build("1f1b", 2, 4))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--resume", "nowhere"], "--resume: there is no folder nowhere"),
        (["--save", __file__], "--save: .*test_checkpoint.py is a file"),
        (["--save-every", "2"], "--save-every says how to save; add --save"),
        (["--save", "new", "--save-keep", "0"], "--save-keep"),
    ],
)
def test_the_command_refuses_in_a_sentence(given, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["train", "--schedule", "1f1b", "--pp", "2", "--microbatches", "2", "--model", "tiny", *given])
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    assert status == 2 and not said.out and list(tmp_path.iterdir()) == []
    assert re.search(sentence, said.err)
