"""How does a run survive its process? As a folder of tensors and one JSON, complete or not there at all.

    FOLDER/step-000010/
        model.safetensors       parameters and buffers, as 3.attention.qkv.weight
        optimizer.safetensors   what the optimizer remembers, as exp_avg/3.attention.qkv.weight
        checkpoint.json         step (= batches consumed), seed, losses, numbers of the optimizer, checksums, version

It is written beside under a hidden name, forced to the disk and renamed, so a kill at any moment leaves the one before
whole; nothing is ever overwritten. Nothing is unpickled on reading: safetensors holds numbers only. Tensors are whole
(gathered to one process, which a laptop can hold), hence resuming under another cut is loading by name.
torch.distributed.checkpoint can write safetensors, too, from shards that say themselves where they belong (DTensors);
ours are joined already (`parts`), and what it lacks is what this file is about: checksums, and all or nothing. Read
first: `state`.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from pipelab.state import Entries, State

FORMAT, VERSION = "pipelab checkpoint", 1
ABOUT, MODEL, OPTIMIZER = "checkpoint.json", "model.safetensors", "optimizer.safetensors"
_STEP = re.compile(r"step-(\d{6,})")
_UNFINISHED = re.compile(r"\.step-\d{6,}-.*")


@dataclass(frozen=True)
class Saving:
    """Where a run is saved and how often: after every `every` steps (None: only after the last), the newest `keep`.

    Raises ValueError for numbers below 1 and where the package safetensors is missing.

    >>> Saving("runs/mine", every=10, keep=2).due(20)
    True
    """

    folder: str | os.PathLike[str]
    every: int | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            number = getattr(self, name)
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, or None: got {number!r}")
        object.__setattr__(self, "folder", os.path.abspath(os.path.expanduser(self.folder)))
        _safetensors()

    def due(self, step: int) -> bool:
        """Whether the state after so many steps is to be saved."""
        return self.every is not None and step % self.every == 0

    def prepare(self, start: int) -> None:
        """Raise ValueError where a run that begins at step `start` cannot or must not save; nothing is made yet.

        That is a file, a folder with anything but checkpoints in it, or one that holds a later step.
        """
        folder = Path(self.folder)
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            raise ValueError(f"{there} is a file, and a checkpoint is a folder; save to another path")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ValueError(f"{there} takes no files; save to another path")
        if there != folder:
            return
        for path in folder.iterdir():
            if not path.name.startswith(".") and not _STEP.fullmatch(path.name):
                raise ValueError(f"{folder} holds {path.name}, which is no checkpoint; save to a folder of its own")
        found = checkpoints(folder)
        for path in found.values():
            _read_about(path)
        if found and max(found) > start:
            raise ValueError(
                f"{folder} holds step {max(found)} and this run begins at step {start}, which would mix two runs;"
                " resume from it, or save to another folder"
            )

    def write(self, state: State) -> Path:
        """Save the state as the newest checkpoint, remove those beyond `keep`, and give its folder."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        final = folder / f"step-{state.step:06}"
        if not final.exists():  # else it is this very state, saved when it was due
            for left in folder.iterdir():
                if _UNFINISHED.fullmatch(left.name):
                    shutil.rmtree(left)
            unfinished = folder / f".{final.name}-{os.getpid()}"
            unfinished.mkdir()
            try:
                _write(state, unfinished)
                os.rename(unfinished, final)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            _to_disk(folder)
        found = checkpoints(folder)
        for step in sorted(found)[: -self.keep] if self.keep else ():
            hidden = folder / f".{found[step].name}-old"
            os.rename(found[step], hidden)  # so that one that is half removed is not taken for one
            shutil.rmtree(hidden)
        return final


def checkpoints(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """The folder of each step that was saved there, by its number."""
    named = ((path, _STEP.fullmatch(path.name)) for path in Path(folder).iterdir())
    return dict(sorted((int(match[1]), path) for path, match in named if match))


def read(folder: str | os.PathLike[str]) -> State:
    """The newest state that was saved in a folder, or that of one of its step-... folders.

    Raises ValueError, in a sentence, where there is none, where it is not ours, of a later version, or not what was
    written: every file is compared with its checksum, and an older checkpoint is named but never silently taken.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give one that a run was saved to")
    if (folder / ABOUT).exists() or _STEP.fullmatch(folder.absolute().name):
        return _read(folder)
    found = checkpoints(folder)
    if not found:
        raise ValueError(f"there is no checkpoint in {folder}; give a folder that a run was saved to")
    newest = found.pop(max(found))
    try:
        return _read(newest)
    except ValueError as error:
        if not found:
            raise
        raise ValueError(f"{error}; an older one is {found[max(found)]}") from error


def _write(state: State, folder: Path) -> None:
    save_file = _safetensors().torch.save_file
    tensors, numbers = _flat(state.optimizer)
    for name, values in ((MODEL, state.model), (OPTIMIZER, tensors)):
        save_file(values, folder / name, metadata={"format": "pt"})
        _to_disk(folder / name)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "step": state.step,
        "seed": state.seed,
        "losses": state.losses,
        "optimizer": {"kind": state.kind, "numbers": numbers},
        "tensors": {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in state.model.items()},
        "files": {name: _checksum(folder / name) for name in (MODEL, OPTIMIZER)},
        "written_by": state.written_by,
    }
    (folder / ABOUT).write_text(json.dumps({**about, "sha256": _digest(about)}, indent=1), encoding="utf-8")
    _to_disk(folder / ABOUT)
    _to_disk(folder)


def _read(folder: Path) -> State:
    about = _read_about(folder)
    safetensors = _safetensors()
    for name, checksum in about["files"].items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing, so this checkpoint cannot be resumed")
        if _checksum(folder / name) != checksum:
            raise ValueError(f"{folder / name} is damaged: it is not what was written, by its SHA-256")
    entries: Entries = {name: dict(numbers) for name, numbers in about["optimizer"]["numbers"].items()}
    for key, tensor in safetensors.torch.load_file(folder / OPTIMIZER).items():
        kind, name = key.split("/", 1)
        entries.setdefault(name, {})[kind] = tensor
    return State(
        step=about["step"],
        seed=about["seed"],
        losses=tuple(about["losses"]),
        model=safetensors.torch.load_file(folder / MODEL),
        optimizer=entries,
        kind=about["optimizer"]["kind"],
        written_by=about["written_by"],
        source=str(folder),
    )


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        about = None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{folder} is no checkpoint of pipelab, or its {ABOUT} is damaged")
    if about.get("version") != VERSION:
        raise ValueError(f"{folder} has version {about.get('version')}, and this pipelab reads {VERSION}; use that one")
    if about.pop("sha256", None) != _digest(about):
        raise ValueError(f"{folder / ABOUT} is damaged: it is not what was written, by its SHA-256")
    return about


def _flat(entries: Entries) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The tensors of an optimizer by `kind/name`, and its plain numbers by name and kind."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        numbers[name] = {kind: value for kind, value in entry.items() if not isinstance(value, Tensor)}
        tensors |= {f"{kind}/{name}": value for kind, value in entry.items() if isinstance(value, Tensor)}
        for kind, value in numbers[name].items():
            if not isinstance(value, int | float | str | None):
                what = f"the optimizer keeps a {type(value).__name__} as {kind} of {name}"
                raise ValueError(f"{what}, which cannot be saved; tensors and numbers can")
    return tensors, numbers


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _to_disk(path: Path) -> None:
    """Force a file, or the names in a folder, out of the memory of the system."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _safetensors() -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError:
        raise ValueError("a checkpoint needs the package safetensors: pip install safetensors") from None
    return safetensors
