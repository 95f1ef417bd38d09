"""Samplers side by side with BlackJAX, NumPyro and nutpie, on the same densities, from a warm and from a cold process.

    python benchmarks/samplers.py --tune     # hours, once: finds every contestant's best setting, samplers.json
    python benchmarks/samplers.py            # with those settings; writes its section of benchmarks/RESULTS.md
    python benchmarks/samplers.py --quick    # minutes; one seed, short runs; prints only
    python benchmarks/samplers.py --targets funnel banana --only with_bdl with_numpyro    # a part of it; prints only

The claims, with the project's best sampler against the best peer:

- warm: twice the effective draws a second, in geometric mean over the targets, and never under 0.8 times;
- cold, from the start of a process (imports and compilation included) to convergence: at most half the time on each.

Every library runs in a process of its own (``shared/worker.py``) on the same processors, contestants in turn, seed
after seed. The judge is ArviZ: R-hat (rank-normalised, split) < 1.01 and bulk effective sample size (ESS) > 400 for
every parameter and every square of one; of the network, whose weights may swap places, for its predictions. Warm ESS
a second counts the smallest of these, after warm-up; the table has it with warm-up too. Settings: number of chains,
steps of warm-up and draws are searched for each contestant and target alike (powers of two times 100, a few numbers of
chains), with two seeds that are not used afterwards: for warm figures, the most ESS a second among those that
converge; for cold ones, the least time. Where moments are known, a contestant whose means are off by more than five
Monte Carlo standard errors is marked, and loses.

Time is processor time where there is one thread, so that other work on the machine counts little, and time on the
clock where there are more.
"""

import argparse
import json
import math
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from shared import targets
from shared.report import table, write_section

HERE = Path(__file__).parent
SETTINGS = HERE / "samplers.json"
MANY, SOME = (64, 256, 1024), (16, 64, 256)
CONTESTANTS = {
    "with_bdl": {
        "ChEES": MANY,
        "ChEES, closed form": MANY,
        "NUTS, closed form": SOME,
        "MEADS, closed form": MANY,
        "microcanonical, closed form": MANY,
    },
    "with_blackjax": {
        "NUTS, diagonal": SOME,
        "NUTS, dense": SOME,
        "ChEES": MANY,
        "ChEES, diagonal": MANY,
        "MEADS": MANY,
        "MEADS, low rank": MANY,
    },
    "with_numpyro": {"NUTS, diagonal": SOME, "NUTS, dense": SOME},
    "with_nutpie": {"NUTS": (4,), "NUTS, low rank": (4,)},
}
TUNING_SEEDS, SEEDS = (100, 101), (0, 1, 2, 3, 4)


class Setting(NamedTuple):
    """How much a contestant runs."""

    num_chains: int
    num_warmup: int
    num_samples: int


class Verdict(NamedTuple):
    """What ArviZ says of the draws, worst case over parameters and their squares."""

    ess: float
    rhat: float
    offset: float  # largest distance from a known moment in Monte Carlo standard errors; NaN where none is known

    @property
    def is_converged(self) -> bool:
        """The rule for all."""
        return self.rhat < 1.01 and self.ess > 400


def judge(name: str, data: dict, draws: np.ndarray) -> Verdict:
    """Smallest ESS, largest R-hat, largest error."""
    import arviz as az
    import xarray

    if not np.isfinite(draws).all():
        return Verdict(0.0, math.inf, math.nan)
    values = targets.judged(name, data, draws.astype(float))
    both = np.concatenate([values, values**2], axis=-1)
    dataset = az.convert_to_dataset(xarray.DataArray(both, dims=("chain", "draw", "number"), name="x").to_dataset())
    ess, rhat = (f(dataset)["x"].to_numpy() for f in (az.ess, az.rhat))
    exact, offset = targets.exact_moments(name, data), math.nan
    if exact is not None:
        error = np.abs(both.mean((0, 1)) - np.concatenate(exact))
        offset = float((error / az.mcse(dataset)["x"].to_numpy()).max())
    return Verdict(float(np.min(ess)), float(np.max(rhat)), offset)


class Worker:
    """A library in a process of its own."""

    def __init__(self, library: str, num_threads: int):
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "BENCH_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(num_threads)), "JAX_PLATFORMS": "cpu"}
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
        self.begin = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shared.worker", library],
            cwd=HERE,
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

    def close(self) -> tuple[float, float]:
        """End it; seconds on the clock and of the processor since its start."""
        self.process.stdin.close()
        usage = os.wait4(self.process.pid, 0)[2] if self.process.returncode is None else None
        self.process.returncode = 0 if self.process.returncode is None else self.process.returncode
        return time.perf_counter() - self.begin, usage.ru_utime + usage.ru_stime if usage else math.nan


class Contest:
    """What all runs on one target share: its data in a file, the clock, the limit."""

    def __init__(self, name: str, num_threads: int, limit_seconds: float, folder: Path):
        self.name, self.num_threads, self.limit_seconds = name, num_threads, limit_seconds
        self.data = targets.make_data(name)
        self.draws_path, self.points_path = str(folder / "draws.npy"), str(folder / "points.npy")
        self.data_path = str(folder / f"{name}.npz")
        np.savez(self.data_path, **self.data)
        self.workers = {}

    def job(self, sampler: str, setting: Setting, seed: int, is_warm: bool) -> dict:
        """What a worker is told."""
        clock = "process_time" if self.num_threads == 1 else "perf_counter"
        paths = {"data_path": self.data_path, "draws_path": self.draws_path, "points_path": self.points_path}
        job = {"target": self.name, "sampler": sampler, "seed": seed, "clock": clock, "is_warm": is_warm}
        return {**job, **setting._asdict(), **paths}

    def warm(self, library: str, sampler: str, setting: Setting, seed: int) -> tuple[dict, Verdict | None]:
        """One run of a contestant whose process has run before."""
        worker = self.workers.get((library, sampler))
        if worker is None or worker.process.poll() is not None:
            worker = self.workers[library, sampler] = Worker(library, self.num_threads)
        result = worker.ask(self.job(sampler, setting, seed, True), 3 * self.limit_seconds + 60)
        return result, None if "error" in result else judge(self.name, self.data, np.load(self.draws_path))

    def cold(self, library: str, sampler: str, setting: Setting, seed: int) -> tuple[float, Verdict | None]:
        """One run from the start of its process; seconds, and what the draws are worth."""
        worker = Worker(library, self.num_threads)
        result = worker.ask(self.job(sampler, setting, seed, False), 3 * self.limit_seconds + 60)
        on_clock, of_processor = worker.close()
        verdict = None if "error" in result else judge(self.name, self.data, np.load(self.draws_path))
        return of_processor if self.num_threads == 1 else on_clock, verdict

    def largest_difference(self, library: str) -> float:
        """How far a library's density is from NumPy's in float64, constants aside, in nats."""
        points = 0.5 * np.random.default_rng(0).standard_normal((20, targets.DIMS[self.name]))
        np.save(self.points_path, points)
        worker = Worker(library, self.num_threads)
        job = {**self.job("", Setting(1, 1, 1), 0, False), "density": True}
        result = worker.ask(job, 180)
        worker.close()
        if "error" in result:
            raise RuntimeError(f"{library} on {self.name}: {result['error']}")
        ours = targets.LOG_PROBS[self.name](NUMPY, self.data, points)
        difference = np.load(self.draws_path) - ours
        return float(np.abs(difference - difference.mean()).max() / max(1.0, np.abs(ours).max()))

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.close()


class NUMPY:
    """The functions that a density needs, of NumPy."""

    exp, tanh = np.exp, np.tanh

    @staticmethod
    def softplus(x):
        """log(1 + exp x)."""
        return np.logaddexp(0, x)


def tune(contest: Contest, library: str, sampler: str) -> dict:
    """The best settings for warm and for cold figures, of those at which both tuning seeds converge."""
    found, first_rung = [], 0
    for num_chains in CONTESTANTS[library][sampler]:
        for rung in range(first_rung, 7):
            setting = Setting(num_chains, 100 * 2**rung, 100 * 2**rung)
            runs = [contest.warm(library, sampler, setting, seed) for seed in TUNING_SEEDS]
            print(f"  {library} {sampler} {tuple(setting)}", *[v or r["error"][-300:] for r, v in runs], flush=True)
            if any(verdict is None for _, verdict in runs):  # too slow, or not there: more chains will not help
                return best_of(found)
            seconds = statistics.mean(result["warmup_seconds"] + result["sampling_seconds"] for result, _ in runs)
            if all(verdict.is_converged for _, verdict in runs):
                found.append({"setting": setting, "ess_rate": statistics.mean(map(ess_rate, runs)), "seconds": seconds})
                first_rung = max(0, rung - 1)  # more chains need no more steps
                break
            if 2 * seconds > contest.limit_seconds:
                break
    return best_of(found)


def best_of(found: list[dict]) -> dict:
    """The setting with the most ESS a second, and the one that is done first."""
    if not found:
        return {}
    warm, cold = max(found, key=lambda f: f["ess_rate"]), min(found, key=lambda f: f["seconds"])
    return {"warm": warm["setting"], "cold": cold["setting"], "seconds": cold["seconds"]}


def ess_rate(run: tuple[dict, Verdict]) -> float:
    """Effective draws a second, after warm-up."""
    result, verdict = run
    return verdict.ess / result["sampling_seconds"]


def ess_rate_in_all(run: tuple[dict, Verdict]) -> float:
    """Effective draws a second, warm-up included."""
    result, verdict = run
    return verdict.ess / (result["warmup_seconds"] + result["sampling_seconds"])


class Warm(NamedTuple):
    """A contestant's warm figures on one target."""

    library: str
    sampler: str
    setting: Setting
    runs: list[tuple[dict, Verdict]]

    @property
    def counts(self) -> bool:
        """Whether all seeds converged, to where the moments are known to be."""
        return all(verdict.is_converged and not verdict.offset > 5 for _, verdict in self.runs)

    def row(self) -> list[str]:
        """Of the table."""
        worst = max((verdict.offset for _, verdict in self.runs), key=lambda offset: (not math.isnan(offset), offset))
        rates = [f"{statistics.median(map(rate, self.runs)):,.0f}" for rate in (ess_rate, ess_rate_in_all)]
        marks = [f"{max(verdict.rhat for _, verdict in self.runs):.3f}", "" if math.isnan(worst) else f"{worst:.1f}"]
        name = f"{self.library.removeprefix('with_')}, {self.sampler}"
        return [name + ("" if self.counts else " (does not count)"), *map(str, self.setting), *rates, *marks]


def run_warm(contest: Contest, settings: dict, seeds: tuple[int, ...]) -> list[Warm]:
    """All contestants in turn, seed after seed."""
    contestants = [
        (library, sampler, Setting(*found["warm"]))
        for library, samplers in settings.items()
        for sampler, found in samplers.items()
        if found
    ]
    runs = {contestant: [] for contestant in contestants}
    for seed in seeds:
        for contestant in contestants:
            result, verdict = contest.warm(*contestant, seed)
            if verdict is None:
                print(contest.name, contestant, result["error"], file=sys.stderr)
                result, verdict = (
                    {"warmup_seconds": math.inf, "sampling_seconds": math.inf},
                    Verdict(0, math.inf, math.nan),
                )
            runs[contestant].append((result, verdict))
    contest.close()
    return [Warm(*contestant, runs[contestant]) for contestant in contestants]


def run_cold(contest: Contest, settings: dict, seeds: tuple[int, ...]) -> dict[str, tuple[str, Setting, float, int]]:
    """Of each library the contestant that tuning found quickest: its setting, median seconds, seeds that converged."""
    contestants = {}
    for library, samplers in settings.items():
        found = {sampler: f for sampler, f in samplers.items() if f}
        if found:
            sampler = min(found, key=lambda s: found[s]["seconds"])
            contestants[library] = (sampler, Setting(*found[sampler]["cold"]))
    runs = {library: [] for library in contestants}
    for seed in (seeds[0], *seeds):  # the first round only brings the files into memory
        for library, (sampler, setting) in contestants.items():
            runs[library].append(contest.cold(library, sampler, setting, seed))
    return {
        library: (
            *contestants[library],
            statistics.median(seconds for seconds, _ in timed[1:]),
            sum(verdict is not None and verdict.is_converged for _, verdict in timed[1:]),
        )
        for library, timed in runs.items()
    }


def report_target(contest: Contest, warm: list[Warm], cold: dict, num_seeds: int) -> tuple[list[str], float, float]:
    """The section's lines on one target, and the two ratios: warm (ours over best peer), cold (ours over best peer)."""
    header = ["contestant", "chains", "warm-up", "draws", "ESS/s", "with warm-up", "R-hat", "z"]
    lines = [f"### {targets.TITLES[contest.name]}", "", *table(header, [w.row() for w in warm]), ""]
    best = {True: 0.0, False: 0.0}
    for w in warm:
        if w.counts:
            is_ours = w.library == "with_bdl"
            best[is_ours] = max(best[is_ours], statistics.median(map(ess_rate, w.runs)))
    rows = [
        [f"{library.removeprefix('with_')}, {sampler}", *map(str, setting), f"{seconds:.2f}", f"{good} of {num_seeds}"]
        for library, (sampler, setting, seconds, good) in cold.items()
    ]
    lines += [*table(["from a cold process", "chains", "warm-up", "draws", "seconds", "converged"], rows), ""]
    valid = {library: seconds for library, (*_, seconds, good) in cold.items() if good == num_seeds}
    peers = [seconds for library, seconds in valid.items() if library != "with_bdl"]
    warm_ratio = best[True] / best[False] if best[False] else math.inf if best[True] else math.nan
    cold_ratio = valid.get("with_bdl", math.inf) / min(peers) if peers else math.nan
    return lines, warm_ratio, cold_ratio


def report(contests: dict[str, Contest], settings: dict, seeds: tuple[int, ...], num_threads: int) -> str:
    """Everything, as Markdown."""
    details, ratios = [], {}
    for name, contest in contests.items():
        warm = run_warm(contest, settings[name], seeds)
        cold = run_cold(contest, settings[name], seeds)
        lines, *ratios[name] = report_target(contest, warm, cold, len(seeds))
        details += lines
        print("\n".join(lines), flush=True)
    rows = [[targets.TITLES[name], *(f"{ratio:.2f}" for ratio in both)] for name, both in ratios.items()]
    finite = [warm for warm, _ in ratios.values() if 0 < warm < math.inf]
    rows.append(["geometric mean", f"{statistics.geometric_mean(finite):.2f}" if finite else "", ""])
    clock = "processor" if num_threads == 1 else "clock"
    lead = (
        f"Medians of {len(seeds)} seeds, contestants in turn, {num_threads} processor(s) for each, {clock} time. "
        "Ratios of the project's best sampler to the best peer: warm, ESS a second; cold, seconds from the start of a "
        "process to convergence. Everybody's settings are the best of a search (`samplers.json`); z is the largest "
        "error of a known moment in Monte Carlo standard errors."
    )
    return "\n".join(
        [lead, "", *table(["target", "warm (claim: ≥ 2, each ≥ 0.8)", "cold (≤ 0.5)"], rows), "", *details]
    )


def quick_settings(only: list[str]) -> dict:
    """Something short for everyone."""
    return {
        library: {
            sampler: {"warm": (chains[0], 200, 200), "cold": (chains[0], 200, 200), "seconds": 1.0}
            for sampler, chains in CONTESTANTS[library].items()
        }
        for library in only
    }


def read_settings() -> dict:
    """What tuning has found so far: target, number of threads, library, sampler."""
    return json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}


def run_tuning(contests: dict[str, Contest], only: list[str], num_threads: int) -> None:
    """Search, and keep what is found after every contestant."""
    for name, contest in contests.items():
        for library in only:
            for sampler in CONTESTANTS[library]:
                found = tune(contest, library, sampler)
                contest.close()
                settings = read_settings()
                place = settings.setdefault(str(num_threads), {}).setdefault(name, {}).setdefault(library, {})
                place[sampler] = found
                SETTINGS.write_text(json.dumps(settings, indent=1) + "\n")


def main() -> None:
    """Print the tables; write them if they are whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=targets.DIMS, default=list(targets.DIMS))
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="libraries")
    parser.add_argument("--tune", action="store_true", help="search for everybody's best settings")
    parser.add_argument("--quick", action="store_true", help="one seed, short runs; writes nothing")
    parser.add_argument("--threads", type=int, default=2, help="processors for every library (default 2)")
    parser.add_argument("--limit", type=float, default=30, help="seconds that one run may take in tuning (default 30)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        contests = {name: Contest(name, arguments.threads, arguments.limit, Path(folder)) for name in arguments.targets}
        for contest in contests.values():
            for library in arguments.only:
                difference = contest.largest_difference(library)
                if not difference < 1e-4:
                    raise RuntimeError(f"{library} has another density for {contest.name}: off by {difference:.1e}")
        if arguments.tune:
            return run_tuning(contests, arguments.only, arguments.threads)
        tuned = read_settings().get(str(arguments.threads), {})
        if not arguments.quick:
            missing = {n: c for n, c in contests.items() if set(arguments.only) - set(tuned.get(n, {}))}
            run_tuning(missing, arguments.only, arguments.threads)
            tuned = read_settings().get(str(arguments.threads), {})
        settings = {
            name: quick_settings(arguments.only)
            if arguments.quick
            else {lib: tuned[name][lib] for lib in arguments.only}
            for name in contests
        }
        text = report(contests, settings, SEEDS[:1] if arguments.quick else SEEDS, arguments.threads)
    print(text)
    if not arguments.quick and contests.keys() == targets.DIMS.keys() and len(arguments.only) == len(CONTESTANTS):
        write_section(f"Samplers, {arguments.threads} thread(s)", text)


if __name__ == "__main__":
    main()
