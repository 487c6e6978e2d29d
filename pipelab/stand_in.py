"""A stand-in for the launcher: local ranks by forkserver."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any


def launch(function: Callable[..., Any], *arguments: Any, ranks: int) -> list[Any]:
    import cloudpickle
    from torch.distributed import TCPStore

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "pipelab.training"])
    work = cloudpickle.dumps((function, arguments))
    pipes, processes = [], []
    for rank in range(ranks):
        ours, theirs = context.Pipe()
        process = context.Process(target=_rank, args=(theirs, rank, ranks, store.port, work), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    answers: dict[int, Any] = {}
    failures = []
    while len(answers) < ranks:
        for pipe in wait([p for r, p in enumerate(pipes) if r not in answers], timeout=600):
            rank = pipes.index(pipe)
            try:
                ok, value = cloudpickle.loads(pipe.recv_bytes())
            except EOFError:
                ok, value = False, RuntimeError(f"rank {rank} died")
            answers[rank] = value
            if not ok:
                failures.append(value)
    for process in processes:
        process.join(10)
    if failures:
        raise next((f for f in failures if type(f).__name__ != "Aborted"), failures[0])
    return [answers[rank] for rank in range(ranks)]


def _rank(pipe: Any, rank: int, ranks: int, port: int, work: bytes) -> None:
    import cloudpickle

    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="localhost", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True",
    )  # fmt: skip
    function, arguments = cloudpickle.loads(work)
    try:
        answer = True, function(*arguments)
    except BaseException as error:
        answer = False, error
    pipe.send_bytes(cloudpickle.dumps(answer))
    os._exit(0)
