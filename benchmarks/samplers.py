"""Samplers side by side with BlackJAX, NumPyro and nutpie, on the same densities, from a warm and from a cold process.

    python benchmarks/samplers.py            # tens of minutes; writes its section of benchmarks/RESULTS.md
    python benchmarks/samplers.py --tune     # hours: finds everybody's settings anew, samplers.json
    python benchmarks/samplers.py --quick    # minutes; one seed, short runs; prints only
    python benchmarks/samplers.py --targets funnel banana --only with_bdl with_numpyro    # a part of it; prints only

The claims, with the project's best sampler against the best peer:

- warm: twice the effective draws a second, in geometric mean over the targets, and never under 0.8 times;
- cold, from the start of a process (imports and compilation included) to convergence: at most half the time on each.

Every library runs in a process of its own (``shared/worker.py``) with one thread, contestants in turn, seed after seed.
Two targets are run at once, on a processor each, if there are two. Time is processor time, so that other work counts
little. The judge is ArviZ: R-hat (rank-normalised, split) < 1.01 and bulk effective sample size (ESS) > 400 for every
parameter and every square of one; of the network, whose weights may swap places, for its predictions. It sees the
first 128 chains, and the ESS is scaled to all. Warm ESS a second counts the smallest, after warm-up; the table has it
with warm-up too. Where moments are known, a contestant whose means are off by more than five Monte Carlo standard
errors is marked, and does not count.

Settings are in ``samplers.json``. Those that are there come from a short look with one seed that is not used
afterwards, one thread and a machine that had other work: the project's samplers with 256 and 1,024 chains (ChEES with
closed forms on the two smallest targets with 4,096 as well), BlackJAX's ChEES and MEADS with 256 and 1,024,
BlackJAX's and NumPyro's NUTS with 64, nutpie with 4. Of what converged, the one with the most ESS a second is there,
with more draws where R-hat was near its limit; what did not converge is left out, except on the funnel and the
centred hierarchy, where nothing did, and where the nearest are shown. ``--tune`` searches more widely, in the same
way for all: the number of chains goes up in fours for as long as ESS a second does, and runs are made longer until
R-hat is below 1.008.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from shared import targets
from shared.processes import NUMPY, Worker, run_all
from shared.report import table, write_section

SETTINGS = Path(__file__).parent / "samplers.json"
MANY, SOME = (64, 256, 1024, 4096), (16, 64, 256)
LENGTHS = ((100, 100), (200, 200), (400, 400), (400, 1600), (400, 6400))  # warm-up, draws
NUM_JUDGED = 128  # chains
CONTESTANTS = {
    "with_bdl": {
        "ChEES": MANY,
        "ChEES, closed form": MANY,
        "MEADS, closed form": MANY,
        "microcanonical, closed form": MANY,
    },
    "with_blackjax": {"ChEES": MANY, "ChEES, diagonal": MANY, "MEADS": MANY},
    "with_numpyro": {"NUTS, diagonal": SOME, "NUTS, dense": SOME},
    "with_nutpie": {"NUTS": (4,), "NUTS, low rank": (4,)},
}
TUNING_SEED, SEEDS = 100, (0, 1, 2, 3, 4)


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
    values = targets.judged(name, data, draws[:NUM_JUDGED].astype(float))
    both = np.concatenate([values, values**2], axis=-1)
    dataset = az.convert_to_dataset(xarray.DataArray(both, dims=("chain", "draw", "number"), name="x").to_dataset())
    ess, rhat = (f(dataset)["x"].to_numpy() for f in (az.ess, az.rhat))
    exact, offset = targets.exact_moments(name, data), math.nan
    if exact is not None:
        error = np.abs(both.mean((0, 1)) - np.concatenate(exact))
        offset = float(np.nanmax(error / az.mcse(dataset)["x"].to_numpy()))
    return Verdict(float(np.min(ess)) * max(1.0, len(draws) / NUM_JUDGED), float(np.max(rhat)), offset)


class Contest:
    """What all runs on one target share: its data in a file, the clock, the limit."""

    def __init__(self, name: str, processor: int, limit_seconds: float, folder: Path):
        self.name, self.processor, self.limit_seconds = name, processor, limit_seconds
        self.data = targets.make_data(name)
        self.draws_path, self.points_path = (str(folder / f"{name}_{kind}.npy") for kind in ("draws", "points"))
        self.data_path = str(folder / f"{name}.npz")
        np.savez(self.data_path, **self.data)
        self.workers = {}

    def job(self, sampler: str, setting: Setting, seed: int, is_warm: bool) -> dict:
        """What a worker is told."""
        paths = {"data_path": self.data_path, "draws_path": self.draws_path, "points_path": self.points_path}
        job = {"target": self.name, "sampler": sampler, "seed": seed, "is_warm": is_warm}
        return {**job, **setting._asdict(), **paths}

    def warm(self, library: str, sampler: str, setting: Setting, seed: int) -> tuple[dict, Verdict | None]:
        """One run of a contestant whose process has run before."""
        worker = self.workers.get((library, sampler))
        if worker is None or worker.process.poll() is not None:
            worker = self.workers[library, sampler] = Worker(library, self.processor)
        result = worker.ask(self.job(sampler, setting, seed, True), 3 * self.limit_seconds + 60)
        return result, None if "error" in result else judge(self.name, self.data, np.load(self.draws_path))

    def cold(self, library: str, sampler: str, setting: Setting, seed: int) -> tuple[float, Verdict | None]:
        """One run from the start of its process; seconds, and what the draws are worth."""
        worker = Worker(library, self.processor)
        result = worker.ask(self.job(sampler, setting, seed, False), 3 * self.limit_seconds + 60)
        seconds = worker.close()
        verdict = None if "error" in result else judge(self.name, self.data, np.load(self.draws_path))
        return seconds, verdict

    def largest_difference(self, library: str) -> float:
        """How far a library's density is from NumPy's in float64, constants aside, in nats."""
        points = 0.5 * np.random.default_rng(0).standard_normal((20, targets.DIMS[self.name]))
        np.save(self.points_path, points)
        worker = Worker(library, self.processor)
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


def tune(contest: Contest, library: str, sampler: str) -> dict:
    """The best settings for warm and for cold figures."""
    found, rung = [], 0
    for num_chains in CONTESTANTS[library][sampler]:
        one, rung = shortest(contest, library, sampler, num_chains, max(0, rung - 1))
        if not one or (found and one["ess_rate"] < found[-1]["ess_rate"]):
            found += [one] if one else []
            break
        found.append(one)
    if not found:
        return {}
    warm, cold = max(found, key=lambda f: f["ess_rate"]), min(found, key=lambda f: f["seconds"])
    return {"warm": warm["setting"], "ess_rate": warm["ess_rate"], "cold": cold["setting"], "seconds": cold["seconds"]}


def shortest(contest: Contest, library: str, sampler: str, num_chains: int, first_rung: int) -> tuple[dict, int]:
    """The shortest run with this number of chains that converges with a margin, if any, and how long it is."""
    for rung in range(first_rung, len(LENGTHS)):
        setting = Setting(num_chains, *LENGTHS[rung])
        result, verdict = contest.warm(library, sampler, setting, TUNING_SEED)
        print(contest.name, library, sampler, tuple(setting), verdict or result["error"][-300:], result, flush=True)
        if verdict is None:
            break
        seconds = result["warmup_seconds"] + result["sampling_seconds"]
        if verdict.is_converged and verdict.rhat < 1.008:
            return {"setting": setting, "ess_rate": ess_rate((result, verdict)), "seconds": seconds}, rung
        longer = LENGTHS[min(rung + 1, len(LENGTHS) - 1)][1] / setting.num_samples
        if longer * seconds > contest.limit_seconds:
            break
    return {}, first_rung


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
    contestants = []
    for library, samplers in settings.items():
        by_rate = sorted((s for s in samplers if samplers[s]), key=lambda s: samplers[s]["ess_rate"], reverse=True)
        best = by_rate[: 2 if library == "with_bdl" else 1]
        contestants += [(library, sampler, Setting(*samplers[sampler]["warm"])) for sampler in best]
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
    return lines, warm_ratio, cold_ratio if cold_ratio < math.inf else 0.0


def report(contests: dict[str, Contest], settings: dict, seeds: tuple[int, ...], num_processors: int) -> str:
    """Everything, as Markdown."""

    def one(name):
        warm = run_warm(contests[name], settings[name], seeds)
        lines, *ratios = report_target(
            contests[name], warm, run_cold(contests[name], settings[name], seeds), len(seeds)
        )
        print("\n".join(lines), *ratios, flush=True)
        return lines, ratios

    results = dict(zip(contests, run_all(one, contests, num_processors), strict=True))
    rows = [[targets.TITLES[name], *map(in_words, ratios)] for name, (_, ratios) in results.items()]
    finite = [warm for _, (warm, _) in results.values() if 0 < warm < math.inf]
    rows.append([f"geometric mean of {len(finite)}", f"{statistics.geometric_mean(finite):.2f}" if finite else "", ""])
    lead = (
        f"Medians of {len(seeds)} seeds, contestants in turn, one thread for each, processor time. Ratios of the "
        "project's best sampler to the best peer: warm, ESS a second; cold, seconds from the start of a process to "
        "convergence. Settings come from a short look with one seed (256 to 4,096 chains for the project, 256 and "
        "1,024 for BlackJAX's many-chain samplers, 64 for NUTS, 4 for nutpie), and each library shows its best "
        "contestant (the project its best two), if it converged in that look. z is the largest error of a known moment "
        "in Monte Carlo standard errors. A contestant counts if all seeds converge (R-hat < 1.01, ESS > 400) and z "
        "stays below 5."
    )
    header = ["target", "warm (claim: ≥ 2 in the mean, each ≥ 0.8)", "cold (claim: ≤ 0.5)"]
    details = [line for lines, _ in results.values() for line in lines]
    return "\n".join([lead, "", *table(header, rows), "", *details])


def in_words(ratio: float) -> str:
    """A ratio, or why there is none."""
    if math.isnan(ratio):
        return "nobody counts"
    return f"{ratio:.2f}" if 0 < ratio < math.inf else "the project alone counts" if ratio else "a peer alone counts"


def quick_settings(only: list[str]) -> dict:
    """Something short for everyone."""
    return {
        library: {
            sampler: {"warm": (chains[0], 200, 200), "ess_rate": 1.0, "cold": (chains[0], 200, 200), "seconds": 1.0}
            for sampler, chains in CONTESTANTS[library].items()
        }
        for library in only
    }


def read_settings() -> dict:
    """What tuning has found so far: target, number of threads, library, sampler."""
    return json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}


def run_tuning(contests: dict[str, Contest], only: list[str], num_processors: int) -> None:
    """Search, and keep what is found after every contestant."""
    lock = threading.Lock()

    def one(name):
        for library in only:
            for sampler in CONTESTANTS[library]:
                found = tune(contests[name], library, sampler)
                contests[name].close()
                with lock:
                    settings = read_settings()
                    settings.setdefault(name, {}).setdefault(library, {})[sampler] = found
                    SETTINGS.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")

    run_all(one, contests, num_processors)


def check_densities(contests: dict[str, Contest], only: list[str], num_processors: int) -> None:
    """All libraries must have the same."""

    def one(name):
        for library in only:
            difference = contests[name].largest_difference(library)
            if not difference < 1e-4:
                raise RuntimeError(f"{library} has another density for {name}: off by {difference:.1e}")

    run_all(one, contests, num_processors)


def main() -> None:
    """Print the tables; write them if they are whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=targets.DIMS, default=list(targets.DIMS))
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="libraries")
    parser.add_argument("--tune", action="store_true", help="search for everybody's best settings")
    parser.add_argument("--quick", action="store_true", help="one seed, short runs; writes nothing")
    parser.add_argument("--limit", type=float, default=30, help="seconds that one run may take in tuning (default 30)")
    arguments = parser.parse_args()
    num_processors = min(2, os.cpu_count())
    with tempfile.TemporaryDirectory() as folder:
        contests = {
            name: Contest(name, i % num_processors, arguments.limit, Path(folder))
            for i, name in enumerate(arguments.targets)
        }
        if arguments.tune:
            return run_tuning(contests, arguments.only, num_processors)
        check_densities(contests, arguments.only, num_processors)
        tuned = read_settings()
        settings = {
            name: quick_settings(arguments.only)
            if arguments.quick
            else {library: tuned[name][library] for library in arguments.only}
            for name in contests
        }
        text = report(contests, settings, SEEDS[:1] if arguments.quick else SEEDS, num_processors)
    print(text)
    if not arguments.quick and contests.keys() == targets.DIMS.keys() and len(arguments.only) == len(CONTESTANTS):
        write_section("Samplers", text)


if __name__ == "__main__":
    main()
