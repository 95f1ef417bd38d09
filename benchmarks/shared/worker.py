"""One library in a process of its own: jobs come in as lines of JSON, results go out the same way.

    python -m shared.worker with_numpyro     # in the folder benchmarks

A job {"density": true, ...} evaluates the target at given points. Any other runs a sampler and saves its draws
[chains, draws, dim]; with "is_warm" once beforehand with another seed, so that everything is compiled. Nothing is
imported that the library does not need: a cold process is timed from its start.
"""

import importlib
import json
import os
import sys
import time
import traceback

import numpy as np


def answer(library, prepared, job):
    """Do one job; what it took, in seconds of the processor."""
    if job.get("density"):
        np.save(job["draws_path"], library.density(job["target"], load(job), np.load(job["points_path"])))
        return {}
    key = tuple(job[name] for name in ("sampler", "target", "num_chains", "num_warmup", "num_samples"))
    if key not in prepared:
        prepared.clear()
        prepared[key] = library.prepare(job, load(job))
        if job["is_warm"]:
            prepared[key](1000 + job["seed"], time.process_time)
    draws, warmup_seconds, sampling_seconds = prepared[key](job["seed"], time.process_time)
    np.save(job["draws_path"], np.asarray(draws, dtype=np.float32))
    return {"warmup_seconds": warmup_seconds, "sampling_seconds": sampling_seconds}


def load(job):
    """The data of the job's target."""
    with np.load(job["data_path"]) as arrays:
        return dict(arrays)


def main(answer=answer):
    """Serve until the input ends."""
    if hasattr(os, "sched_setaffinity"):  # Linux; elsewhere the libraries' own settings must do
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[int(os.environ["BENCH_PROCESSOR"]) % len(processors)]})
    results, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no result
    library = importlib.import_module(f"shared.{sys.argv[1]}")
    prepared = {}
    for line in sys.stdin:
        try:
            result = answer(library, prepared, json.loads(line))
        except Exception:
            result = {"error": traceback.format_exc()}
        print(json.dumps(result), file=results, flush=True)


if __name__ == "__main__":
    main()
