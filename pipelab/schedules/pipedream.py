"""PipeDream: 1F1B that is never flushed. It fills and drains once; what is the price? Read next: `inference`."""

from dataclasses import replace

from pipelab.schedule import Schedule
from pipelab.schedules.one_f_one_b import one_f_one_b


def pipedream(ranks: int, microbatches: int) -> Schedule:
    """1F1B without a flush: weights change after each micro-batch, whose backward uses the weights of its forward.

    The rows are those of 1F1B. A run of K steps is one schedule of K x M micro-batches, so that the pipeline fills
    once and drains once: the idle share of the step, (P-1) / (KM + P-1), goes to 0. The price: rank r holds
    P-r versions of its weights (fewer in a run of less than 2(P-1-r) micro-batches), and its gradients are up to P-1-r
    updates old (Narayanan et al. 2019, "PipeDream", section 3.3).

    >>> schedule = pipedream(4, 8)
    >>> schedule.rows == one_f_one_b(4, 8).rows, schedule.flush
    (True, False)
    """
    return replace(one_f_one_b(ranks, microbatches), name="pipedream", flush=False)
