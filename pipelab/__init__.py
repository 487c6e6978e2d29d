"""pipelab: one schedule, four ways - by formula, in the simulator, for real on a laptop, for real on many GPUs.

Importing it loads neither torch nor plotly: `train` and the figures fetch them when they are first used.

>>> import pipelab as pl
>>> schedule = pl.build("1f1b", ranks=4, microbatches=8)
>>> pl.simulate(schedule, pl.Costs.uniform()).bubble("step") == pl.formula("1f1b", "bubble_step", P=4, M=8)
True
"""

import importlib
from typing import TYPE_CHECKING, Any

from pipelab.action import Action, Pair
from pipelab.costs import Costs, Link
from pipelab.explain import explain
from pipelab.formulas import formula
from pipelab.lower import lower
from pipelab.mesh import Mesh
from pipelab.placement import Placement
from pipelab.schedule import Schedule, ScheduleError
from pipelab.schedules import SCHEDULES, build
from pipelab.score import score
from pipelab.simulate import simulate
from pipelab.trace import Span, Trace
from pipelab.validate import validate

if TYPE_CHECKING:
    from pipelab.frontier import choose_checkpointing
    from pipelab.launcher import launch
    from pipelab.reshaping import reshape
    from pipelab.run import Run
    from pipelab.show.timeline import compare, timeline
    from pipelab.training import train

__version__ = "0.1.0"

__all__ = [
    "SCHEDULES",
    "Action",
    "Costs",
    "Link",
    "Mesh",
    "Pair",
    "Placement",
    "Run",
    "Schedule",
    "ScheduleError",
    "Span",
    "Trace",
    "build",
    "choose_checkpointing",
    "compare",
    "explain",
    "formula",
    "launch",
    "lower",
    "reshape",
    "score",
    "simulate",
    "timeline",
    "train",
    "validate",
]

_FETCHED_ON_USE = {
    "Run": "pipelab.run",
    "choose_checkpointing": "pipelab.frontier",
    "launch": "pipelab.launcher",
    "reshape": "pipelab.reshaping",
    "train": "pipelab.training",
    "compare": "pipelab.show.timeline",
    "timeline": "pipelab.show.timeline",
}


def __getattr__(name: str) -> Any:
    if name not in _FETCHED_ON_USE:
        raise AttributeError(f"pipelab has no {name!r}; its names are {', '.join(__all__)}")
    return getattr(importlib.import_module(_FETCHED_ON_USE[name]), name)


def __dir__() -> list[str]:
    return __all__
