"""A library in a process of its own, which ``shared.worker`` or ``shared.variational_worker`` serves."""

import concurrent.futures
import json
import math
import os
import select
import subprocess
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent.parent


class NUMPY:
    """The functions that a density needs, of NumPy."""

    exp, tanh = np.exp, np.tanh

    @staticmethod
    def softplus(x):
        """log(1 + exp x)."""
        return np.logaddexp(0, x)


class Worker:
    """A process with one thread on one processor, which takes jobs."""

    def __init__(self, library: str, processor: int, module: str = "shared.worker"):
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, "1"), "JAX_PLATFORMS": "cpu"}
        environment["BENCH_PROCESSOR"] = str(processor)
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, library],
            cwd=FOLDER,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, job: dict, limit_seconds: float) -> dict:
        """The result of one job; the process is ended if it takes too long."""
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], limit_seconds)[0]:
            self.process.kill()
            self.process.wait()
            return {"error": f"more than {limit_seconds:.0f} s"}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "the process died"}

    def close(self) -> float:
        """End it; seconds of the processor since its start."""
        self.process.stdin.close()
        usage = os.wait4(self.process.pid, 0)[2] if self.process.returncode is None else None
        self.process.returncode = 0 if self.process.returncode is None else self.process.returncode
        return usage.ru_utime + usage.ru_stime if usage else math.nan


def run_all(do, contests: dict, num_processors: int) -> list:
    """``do`` for every target's name, the targets of one processor one after the other; a contest says which."""

    def in_turn(processor):
        return {name: do(name) for name, contest in contests.items() if contest.processor == processor}

    with concurrent.futures.ThreadPoolExecutor(num_processors) as pool:
        done = {name: result for part in pool.map(in_turn, range(num_processors)) for name, result in part.items()}
    return [done[name] for name in contests]
