"""One library's variational fits in a process of its own: ``shared.worker`` with other jobs.

    python -m shared.variational_worker variational_with_numpyro     # in the folder benchmarks

A job {"density": true, ...} evaluates the target at given points. Any other fits, and saves the mean and the covariance
of the Gaussian as an array [1 + dim, dim]; with "is_warm" it has fitted once before, with another seed. Times are
medians of "repeats" fits with the same seed.
"""

import statistics
import time

import numpy as np

from shared import worker

STATIC = ("target", "family", "particles", "init_scale", "jit", "optimizer")
OF_A_RUN = ("lr", "steps", "decay")


def answer(library, prepared, job):
    """Do one job; what it took, in seconds of the processor and of the clock."""
    data = worker.load(job)
    if job.get("density"):
        np.save(job["result_path"], library.density(job["target"], data, np.load(job["points_path"])))
        return {}
    key = tuple(job.get(name) for name in STATIC + (("decay",) if job["is_search"] else OF_A_RUN))
    if key not in prepared:
        if not job["is_search"]:  # in which settings alternate
            prepared.clear()
        prepared[key] = library.prepare(job, data)
        if job["is_warm"]:
            prepared[key]({**job, "seed": 1000 + job["seed"]})
    times = [timed(prepared[key], job) for _ in range(job["repeats"])]
    loc, scale, note = times[0][2]
    loc, scale = np.asarray(loc, dtype=float), np.asarray(scale, dtype=float)
    covariance = np.diag(scale**2) if scale.ndim == 1 else scale @ scale.T
    np.save(job["result_path"], np.vstack([loc, covariance]))
    seconds, wall_seconds = (statistics.median(t[i] for t in times) for i in (0, 1))
    return {"seconds": seconds, "wall_seconds": wall_seconds, **note}


def timed(run, job):
    """Seconds of the processor, seconds of the clock, result."""
    begin, begin_wall = time.process_time(), time.perf_counter()
    result = run(job)
    return time.process_time() - begin, time.perf_counter() - begin_wall, result


if __name__ == "__main__":
    worker.main(answer)
