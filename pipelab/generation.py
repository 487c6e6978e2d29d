"""How fast does a pipeline write? Each token needs the one before, so a sequence keeps one rank at a time busy.

Several groups of sequences in flight fill the others: with m groups on P ranks each rank works min(1, m/P) of the time.
Read first: `schedules/inference` (the order), `kv_cache` (what a stage keeps). What the tokens must be:
`reference.generate_uncut`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from pipelab.costs import Costs, Link
from pipelab.counts import count
from pipelab.evaluation import in_evaluation_mode
from pipelab.job import Job, usable_device
from pipelab.kv_cache import KVCache
from pipelab.lower import lower
from pipelab.mesh import Mesh
from pipelab.microbatches import Microbatches
from pipelab.models import Block, Embedding, Head
from pipelab.record import trace_of
from pipelab.schedule import Schedule
from pipelab.schedules import build
from pipelab.simulate import simulate
from pipelab.stage import Stage
from pipelab.trace import Trace
from pipelab.virtual_ranks import VirtualRanks


@dataclass(frozen=True, repr=False)
class Generation:
    """What was generated, and when. N sequences in m groups, each with as many new tokens as were asked for.

    `tokens` [N, new tokens] and the `logits` [N, new tokens, vocabulary] that each was taken from. `groups` are their
    sizes. First all prompts are read (`prefill`), then the tokens go round (`decode`, whose order is `schedule`): two
    traces, one after the other. `cache_bytes`: the keys and values that each rank holds at the end.
    """

    tokens: Tensor
    logits: Tensor
    groups: tuple[int, ...]
    schedule: Schedule | None
    prefill: Trace
    decode: Trace
    cache_bytes: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """From the first prompt to the last token, in seconds of the traces' clock."""
        return float(self.prefill.makespan + self.decode.makespan)

    @property
    def throughput(self) -> float:
        """New tokens a second, of all sequences together."""
        return self.tokens.numel() / self.seconds

    @cached_property
    def latencies(self) -> tuple[float, ...]:
        """For each sequence the seconds until its last token is there; all requests come at the beginning."""
        if not self.decode.spans:
            return self.first_token
        return self._of_sequences(float(self.prefill.makespan), self.decode)

    @cached_property
    def first_token(self) -> tuple[float, ...]:
        """For each sequence the seconds until its first token is there."""
        return self._of_sequences(0.0, self.prefill)

    def _of_sequences(self, before: float, trace: Trace) -> tuple[float, ...]:
        """The end of each group's last forward on the last rank, for each of its sequences."""
        ends = [before + float(span.end) for span in trace.compute[-1][-len(self.groups) :]]
        return tuple(end for end, rows in zip(ends, self.groups, strict=True) for _ in range(rows))

    def replay(self) -> Trace:
        """The decoding, simulated with its own median times. Raises ValueError where one token was all."""
        if self.schedule is None:
            raise ValueError("one new token comes from reading the prompt alone; ask for 2 or more to see decoding")
        return simulate(self.schedule, Costs.measured(self.decode))

    def __repr__(self) -> str:
        shape = f"{len(self.tokens)} sequences in {len(self.groups)} groups, {self.tokens.shape[1]} new tokens each"
        return f"<Generation: {shape}, {self.throughput:.0f} tokens/s in {self.prefill.clock} time>"


class CachedStage(Stage):
    """A stage that generates: it keeps keys and values, and on the last stage picks the most likely token."""

    def __init__(
        self, layers: nn.Sequential, *, cache: KVCache, groups: int, picked: list[Tensor], **rest: Any
    ) -> None:
        super().__init__(layers, **rest)
        self.cache, self.groups, self.picked = cache, groups, picked

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The context in which the stage may run: its layers use the cache."""
        with self.cache.attached():
            yield

    @torch.no_grad()
    def forward(self, microbatch: int, x: Tensor, step: int, target: Tensor | None = None, total: int = 1) -> Tensor:
        """Features for the next stage [R, T, D]; on the last stage the new tokens [R, 1]."""
        self.cache.group = microbatch % self.groups
        y = self.layers(x)
        if not isinstance(self.layers[-1], Head):
            return y
        logits = y[:, -1].clone()  # not a view that keeps the logits of the whole prompt
        self.picked.append(logits)
        return logits.argmax(-1, keepdim=True)


def generate(
    model: nn.Sequential,
    prompts: Tensor,
    *,
    tokens: int,
    ranks: int,
    in_flight: int | None = None,
    device: str | torch.device = "cpu",
    clock: str = "virtual",
    link: Link = Link(),  # noqa: B008 (a frozen value)
    at: list[int] | None = None,
    timeout: float = 600.0,
) -> Generation:
    """Go on with each prompt [N, T] by `tokens` new tokens, always the most likely one, through a pipeline of `ranks`.

    The N sequences are shared among `in_flight` groups (each its own, if not said), which take turns in the pipeline.
    The model is a GPT of `pipelab.models`, and the last new token but one must fit into its context.
    Raises ValueError before any work when something does not fit, RunError when a rank fails.

    >>> from pipelab.models import build_model
    >>> generation = generate(build_model("tiny"), torch.zeros(2, 3, dtype=torch.int64), tokens=4, ranks=2)
    >>> generation.tokens.shape, generation.decode.ranks, len(generation.latencies)
    (torch.Size([2, 4]), 2, 2)
    """
    groups = _checked(model, prompts, tokens, len(prompts) if in_flight is None else in_flight)
    device = usable_device(device)
    model.to(device)
    caches: dict[str, KVCache] = {}
    read = build("inference", ranks, groups)
    job = Job(
        model=model, program=lower(read), mesh=Mesh(pp=ranks), device=device, clock=clock, link=link,
        at=at, timeout=timeout,
    )  # fmt: skip
    through = partial(_through, job, caches)
    going_on = partial(build, "inference", ranks, groups=groups)
    with in_evaluation_mode(model):
        cold, _ = through(read, prompts)
        if tokens > 1:
            through(going_on(microbatches=groups), _most_likely(cold))
        for cache in caches.values():  # that was the warm-up
            cache.clear()
        logits, prefill = through(read, prompts)
        schedule = going_on(microbatches=groups * (tokens - 1)) if tokens > 1 else None
        decode = Trace("inference", clock, prefill.chunks, ())
        if schedule is not None:
            more, decode = through(schedule, _most_likely(logits))
            logits = torch.cat([logits, more], dim=1)
    held = [0] * ranks
    for rank, cache in zip(read.placement.rank_of, caches.values(), strict=True):
        held[rank] += cache.bytes
    sizes = tuple(len(rows) for rows in torch.tensor_split(prompts, groups))
    return Generation(logits.argmax(-1), logits, sizes, schedule, prefill, decode, tuple(held))


def _through(job: Job, caches: dict[str, KVCache], schedule: Schedule, inputs: Tensor) -> tuple[Tensor, Trace]:
    """Send the groups' next tokens [N, T] through the pipeline: logits of all new tokens [N, rounds, vocabulary]."""
    groups = schedule.groups or schedule.microbatches
    picked: list[Tensor] = []

    def make_stage(layers: nn.Sequential, **rest: Any) -> Stage:
        cache = caches.setdefault(next(iter(layers._modules)), KVCache(layers))  # slices keep their layers' names
        return CachedStage(layers, cache=cache, groups=groups, picked=picked, **rest)

    rows = torch.tensor_split(inputs.to(job.device), groups)
    batch = Microbatches(0, rows, rows, totals=())
    with VirtualRanks(replace(job, program=lower(schedule), make_stage=make_stage)) as ranks:
        trace = trace_of(schedule, job.clock, ranks.run(batch))
    rounds = [torch.cat(picked[first : first + groups]) for first in range(0, len(picked), groups)]
    return torch.stack(rounds, dim=1), trace


def _most_likely(logits: Tensor) -> Tensor:
    """The new token of each sequence, [N, 1]."""
    return logits[:, -1].argmax(-1, keepdim=True)


def _checked(model: nn.Sequential, prompts: Tensor, tokens: int, groups: int) -> int:
    """The number of groups, once all fits together."""
    layers = list(model)
    if not (len(layers) > 1 and isinstance(layers[0], Embedding) and isinstance(layers[-1], Head)) or not all(
        isinstance(layer, Block) for layer in layers[1:-1]
    ):
        raise ValueError("only a GPT of pipelab.models can generate, for it knows how to keep keys and values")
    if prompts.dim() != 2 or not prompts.numel() or prompts.dtype != torch.int64:
        got = f"{prompts.dtype} {list(prompts.shape)}"
        raise ValueError(f"prompts are token ids, int64 [sequences, tokens], at least one of each: got {got}")
    count("tokens", tokens)
    if type(groups) is not int or not 1 <= groups <= len(prompts):
        raise ValueError(f"in_flight must be from 1 to {len(prompts)}, the number of prompts: got {groups!r}")
    needed, context = prompts.shape[1] + tokens - 1, layers[0].position.num_embeddings
    if needed > context:
        raise ValueError(
            f"prompts of {prompts.shape[1]} tokens and {tokens} new ones need {needed} places, and the context has "
            f"{context}; ask for fewer tokens, or give shorter prompts"
        )
    return groups
