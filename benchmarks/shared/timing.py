"""How times are compared: in turn, round after round, in one process, as ratios within a round."""

import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["median_ratios"]


def median_ratios(contestants: dict[str, Callable], num_rounds: int) -> dict[str, float]:
    """How many times the first one's time each of the others takes; all run once a round, busy machine or not.

    Time is processor time where there is one thread, so that other work on the machine counts little, and time on the
    clock where there are more.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for call in contestants.values():
        call()
    seconds = {name: [] for name in contestants}
    for _ in range(num_rounds):
        for name, call in contestants.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    first, *others = seconds
    return {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds[first], strict=True)) for name in others
    }
