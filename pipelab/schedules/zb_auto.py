"""Zero bubble by search: given costs and memory, which order is the shortest? The search itself is `pipelab.search`."""

from collections.abc import Sequence

from pipelab import search
from pipelab.costs import Costs
from pipelab.schedule import Schedule
from pipelab.trace import Number


def zb_auto(
    ranks: int,
    microbatches: int,
    costs: Costs | None = None,
    memory_limit: Number | Sequence[Number] | None = None,
    weight_memory: Number = 1,
    objective: str = "span",
    chunks: int = 1,
) -> Schedule:
    """The shortest order found for given costs and within a memory limit for each rank, with V chunks a rank.

    The same question as ZB-1p and ZB-2p (Qi et al. 2024, section 3), answered for any costs and limits. One stage a
    rank unless `chunks` says otherwise; two can be shorter. Options, length, lower bound: `pipelab.search.find`.

    >>> print(zb_auto(2, 3, memory_limit=3))
    0F0 0F1 0F2 0I0 0W0 0I1 0W1 0I2 0W2
    1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2
    """
    return search.find(ranks, microbatches, costs, memory_limit, weight_memory, objective, chunks).schedule
