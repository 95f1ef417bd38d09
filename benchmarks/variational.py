"""Variational fits side by side with Pyro SVI, NumPyro SVI and PyMC ADVI, on the same densities to the same bound.

    python benchmarks/variational.py            # a quarter of an hour; writes its section of benchmarks/RESULTS.md
    python benchmarks/variational.py --tune     # an hour or two: finds the peers' settings anew, variational.json
    python benchmarks/variational.py --quick    # minutes; one seed, two targets; prints only
    python benchmarks/variational.py --targets banana --only bdl numpyro    # a part of it; prints only

The claims, of ``vi.fit`` with its defaults against the best peer, for independent (mean-field) and for fully correlated
(full-rank) Gaussians:

- cold, from the start of a process (imports and compilation included) to the fitted family: at most half the time;
- warm, the same fit again in a process that has done it once: no slower.

The judge is one for all: the evidence lower bound (ELBO) of the returned Gaussian, its entropy in closed form and the
mean log density over 100,000 fresh draws (the same noise for everybody), in NumPy and float64. A fit has arrived if its
ELBO is within 0.5 % of the family's best, or within 0.05 nats where that is more. The best is known where the target is
Gaussian; elsewhere L-BFGS finds it on 8,192 fixed draws. It is never less than what a contestant reaches. A contestant
counts if four of five seeds arrive.

Every library runs in a process of its own (``shared/variational_worker.py``) with one thread, contestants in turn, seed
after seed; two targets at once, on a processor each, if there are two. Time is processor time.

The peers' settings are in ``variational.json``. For each target and family, ``--tune`` tries every combination of a
learning rate (0.003 to 0.3), particles (1, 10, 100; PyMC 1, 10), a constant learning rate or one that falls to a
hundredth, first standard deviations of 0.1 (the default) or 1, and the number of steps in factors of the square root of
two. Of each number of particles and way of cooling, the fewest steps with which three pilot seeds arrive are kept, with
more steps if fewer than nine of ten further seeds arrive; of those the quickest warm and the quickest cold. For PyMC,
adagrad_window (its default) with a constant and Adam with a falling rate. Pyro makes NumPyro's steps, which are quicker
to try: it gets NumPyro's settings, with more steps or a lower rate where its own seeds do not arrive.
"""

import argparse
import functools
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from shared import variational_targets as targets
from shared.processes import NUMPY, Worker, run_all
from shared.report import table, write_section

SETTINGS = Path(__file__).parent / "variational.json"
FAMILIES = ("mean-field", "full-rank")
LIBRARIES = ("bdl", "numpyro", "pyro", "pymc")
SEEDS, NUM_NEEDED = (0, 1, 2, 3, 4), 4
PILOT_SEEDS, FIRM_SEEDS, NUM_FIRM = (100, 101, 102), range(200, 210), 9
SHARE, LEAST = 0.005, 0.05  # of the best ELBO; in nats
NUM_DRAWS, NUM_PILOT_DRAWS = 100_000, 5_000
LEARNING_RATES, SCALES = (0.003, 0.01, 0.03, 0.1, 0.3), (0.1, 1.0)
STEPS = [round(50 * 2 ** (k / 2)) for k in range(22)]
LIMIT_SECONDS = 600
OURS = {"particles": 0, "init_scale": 1.0, "lr": 0.0, "steps": 0, "decay": 1.0}


class Run(NamedTuple):
    """One fit."""

    seconds: float  # of the processor
    wall_seconds: float
    elbo: float  # the judge's, in nats
    note: dict

    def gap(self, best: float) -> float:
        """What is missing, in nats."""
        return best - self.elbo


FAILED = Run(math.inf, math.inf, -math.inf, {})


@functools.cache
def noise(num_draws: int, dim: int) -> np.ndarray:
    """The judge's: the same for all."""
    return np.random.default_rng(7).standard_normal((num_draws, dim))


def elbo_of(name: str, data: dict, mean: np.ndarray, covariance: np.ndarray, num_draws: int = NUM_DRAWS) -> float:
    """The bound of a Gaussian, in nats."""
    try:
        root = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return -math.inf
    log_probs = []
    for part in np.array_split(noise(num_draws, len(mean)), num_draws // 5000):
        log_probs.append(targets.LOG_PROBS[name](NUMPY, data, mean + part @ root.T))
    entropy = np.log(root.diagonal()).sum() + 0.5 * len(mean) * math.log(2 * math.pi * math.e)
    elbo = float(np.mean(np.concatenate(log_probs)) + entropy)
    return elbo if math.isfinite(elbo) else -math.inf


def tolerance(best: float) -> float:
    """How far from the best ELBO a fit has arrived, in nats."""
    return max(SHARE * abs(best), LEAST)


class Contest:
    """What all runs on one target share: its data in a file, its processes."""

    def __init__(self, name: str, processor: int, folder: Path):
        self.name, self.processor = name, processor
        self.data = targets.make_data(name)
        self.result_path, self.points_path = (str(folder / f"{name}_{kind}.npy") for kind in ("result", "points"))
        self.data_path = str(folder / f"{name}.npz")
        np.savez(self.data_path, **self.data)
        self.workers = {}

    def worker(self, library: str) -> Worker:
        """A new process."""
        return Worker(f"variational_with_{library}", self.processor, "shared.variational_worker")

    def job(self, family: str, setting: dict, seed: int, **more) -> dict:
        """What a worker is told."""
        paths = {"data_path": self.data_path, "result_path": self.result_path, "points_path": self.points_path}
        common = {"target": self.name, "family": family, "seed": seed, "is_warm": False, "is_search": False}
        return {**common, "repeats": 1, **setting, **more, **paths}

    def warm(self, library: str, job: dict, num_draws: int = NUM_DRAWS) -> Run:
        """A fit in a process that has done it before."""
        worker = self.workers.get(library)
        if worker is None or worker.process.poll() is not None:
            worker = self.workers[library] = self.worker(library)
        result = worker.ask(job, LIMIT_SECONDS)
        return self.judged(library, result, result.get("seconds"), result.get("wall_seconds"), num_draws)

    def cold(self, library: str, job: dict, num_draws: int = NUM_DRAWS) -> Run:
        """A fit from the start of its process to the end of it."""
        begin = time.perf_counter()
        worker = self.worker(library)
        result = worker.ask(job, LIMIT_SECONDS)
        seconds = worker.close()
        return self.judged(library, result, seconds, time.perf_counter() - begin, num_draws)

    def judged(self, library, result, seconds, wall_seconds, num_draws) -> Run:
        """The run with its ELBO; infinitely slow if it failed."""
        if "error" in result:
            print(self.name, library, result["error"].strip()[-300:], file=sys.stderr, flush=True)
            return FAILED
        fitted = np.load(self.result_path)
        elbo = (
            elbo_of(self.name, self.data, fitted[0], fitted[1:], num_draws) if np.isfinite(fitted).all() else -math.inf
        )
        return Run(
            seconds, wall_seconds, elbo, {key: result[key] for key in ("steps", "is_converged") if key in result}
        )

    def largest_difference(self, library: str) -> float:
        """How far a library's density is from NumPy's in float64, constants included, relative to its size."""
        points = 0.5 * np.random.default_rng(0).standard_normal((20, targets.DIMS[self.name]))
        np.save(self.points_path, points)
        worker = self.worker(library)
        result = worker.ask({**self.job("", {}, 0), "density": True}, 180)
        worker.close()
        if "error" in result:
            raise RuntimeError(f"{library} on {self.name}: {result['error']}")
        ours = targets.LOG_PROBS[self.name](NUMPY, self.data, points)
        return float(np.abs(np.load(self.result_path) - ours).max() / max(1.0, np.abs(ours).max()))

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.close()
        self.workers = {}


# ---- the best ELBO of a family ---------------------------------------------------------------------------------------


def best_elbo(name: str, family: str, data: dict, num_draws: int = 8192) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the best Gaussian: exact, or by L-BFGS on fixed draws from five starts."""
    exact = targets.exact_optimum(name, family, data)
    if exact is not None:
        return exact
    fits = [fixed_draws_fit(name, family, data, num_draws, seed) for seed in range(5)]
    return max(fits, key=lambda fit: elbo_of(name, data, *fit))


def fixed_draws_fit(name: str, family: str, data: dict, num_draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """L-BFGS in float64 from a random mean."""
    import torch

    dim, generator = targets.DIMS[name], torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    half = torch.randn(num_draws // 2, dim, **options)
    epsilon = torch.cat([half, -half])
    loc, log_std = torch.randn(dim, **options), torch.full((dim,), -1.0, dtype=torch.float64)
    below = torch.zeros(dim, dim, dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in ([loc, log_std, below] if family == "full-rank" else [loc, log_std])]
    arrays = {key: torch.as_tensor(value) for key, value in data.items()}

    class Ops:
        exp, tanh, softplus = torch.exp, torch.tanh, torch.nn.functional.softplus

    def root():
        return log_std.exp().diag() + below.tril(-1) if family == "full-rank" else log_std.exp().diag()

    optimizer = torch.optim.LBFGS(leaves, max_iter=500, history_size=20, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -targets.LOG_PROBS[name](Ops, arrays, loc + epsilon @ root().mT).mean() - log_std.sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return loc.numpy(), (root() @ root().mT).numpy()


# ---- the peers' settings ---------------------------------------------------------------------------------------------


def groups(library: str) -> list[dict]:
    """What is kept fixed while the fewest steps are looked for."""
    if library == "pymc":
        kinds = ({"optimizer": "adagrad_window", "decay": 1.0}, {"optimizer": "adam", "decay": 0.01})
        return [{**kind, "particles": particles} for kind in kinds for particles in (1, 10)]
    return [{"decay": decay, "particles": particles} for decay in (0.01, 1.0) for particles in (1, 10, 100)]


def arrives(contest: Contest, library: str, family: str, setting: dict, best: float, is_search: bool) -> tuple:
    """Whether all pilot seeds do, and the seconds of the last of them that was tried."""
    for seed in PILOT_SEEDS:
        run = contest.warm(library, contest.job(family, setting, seed, is_search=is_search), NUM_PILOT_DRAWS)
        if not run.gap(best) < tolerance(best):
            return False, run.seconds
    return True, run.seconds


def fewest_steps(contest: Contest, library: str, family: str, group: dict, best: float, limit: float) -> tuple:
    """The first setting of a group with which the pilots arrive, steps going up, and its seconds."""
    scales = (1.0,) if library == "pymc" else SCALES  # which PyMC does not offer for both families
    for steps in STEPS:
        seconds = []
        for lr, scale in itertools.product(LEARNING_RATES, scales):
            setting = {**group, "lr": lr, "init_scale": scale, "steps": steps}
            has_arrived, took = arrives(contest, library, family, setting, best, True)
            if has_arrived:
                return setting, took
            seconds.append(took)
        if statistics.median(seconds) > limit:
            break
    return None, math.inf


def tune_alone(contest: Contest, library: str, family: str, best: float, limit: float) -> list[dict]:
    """One setting a group, for NumPyro and PyMC; none where it takes three times as long as another group."""
    found = []
    for group in groups(library):
        setting, seconds = fewest_steps(contest, library, family, group, best, limit)
        limit = min(limit, 3 * seconds)
        found += [setting] if setting else []
        print(contest.name, family, library, setting, seconds, flush=True)
    contest.close()
    return found


def tune_pyro(contest: Contest, family: str, best: float, settings: list[dict], limit: float) -> list[dict]:
    """NumPyro's settings, with more steps or a lower rate if need be, plain and compiled."""
    found = []
    for setting in settings:
        for steps in [s for s in STEPS if s >= setting["steps"]][:4]:
            for lr in (setting["lr"], setting["lr"] / 3):
                longer = {**setting, "steps": steps, "lr": lr, "jit": False}
                has_arrived, seconds = arrives(contest, "pyro", family, longer, best, False)
                if has_arrived:
                    break
            if has_arrived or seconds > limit:
                break
        found += [longer, {**longer, "jit": True}] if has_arrived else []
    contest.close()
    return found


def firm(contest: Contest, library: str, family: str, setting: dict, best: float) -> dict:
    """The setting, with as many more steps as it takes for nine of ten further seeds to arrive."""
    for steps in [s for s in STEPS if s >= setting["steps"]]:
        longer, missed = {**setting, "steps": steps}, 0
        for seed in FIRM_SEEDS:
            job = contest.job(family, longer, seed, is_search=library != "pyro")
            missed += not contest.warm(library, job, NUM_PILOT_DRAWS).gap(best) < tolerance(best)
            if missed > len(FIRM_SEEDS) - NUM_FIRM:
                break
        else:
            return longer
    return setting


def quickest(contest: Contest, library: str, family: str, settings: list[dict]) -> dict:
    """Of the settings that arrive, the one for warm and the one for cold figures."""
    warm, cold = [], []
    for setting in settings:
        job = contest.job(family, setting, PILOT_SEEDS[0])
        runs = [contest.warm(library, {**job, "is_warm": True}, 5000) for _ in range(3)]
        warm.append(min(run.seconds for run in runs))
        contest.close()
        cold.append(min(contest.cold(library, job, 5000).seconds for _ in range(2)))
    print(contest.name, family, library, *zip(settings, warm, cold, strict=True), sep="\n    ", flush=True)
    if not settings:
        return {}
    return {"warm": settings[int(np.argmin(warm))], "cold": settings[int(np.argmin(cold))]}


def tune(contests: dict[str, Contest], families: list, only: list, num_processors: int, limit: float) -> None:
    """Search, and keep what is found after every library."""
    lock = threading.Lock()

    def one(name):
        contest = contests[name]
        for family in families:
            fitted = best_elbo(name, family, contest.data)
            best = elbo_of(name, contest.data, *fitted, NUM_PILOT_DRAWS)
            found = {"best_elbo": elbo_of(name, contest.data, *fitted)}
            keep(name, family, found, lock)
            for library in [library for library in only if library != "bdl"]:
                if library == "pyro":
                    of_numpyro = read_settings()[name][family]["numpyro"].values()
                    candidates = tune_pyro(contest, family, best, list(of_numpyro), limit)
                else:
                    candidates = tune_alone(contest, library, family, best, limit)
                candidates = [firm(contest, library, family, setting, best) for setting in candidates]
                keep(name, family, {library: quickest(contest, library, family, candidates)}, lock)

    run_all(one, contests, num_processors)


def keep(name: str, family: str, found: dict, lock: threading.Lock) -> None:
    """Put something into the file of settings."""
    with lock:
        settings = read_settings()
        settings.setdefault(name, {}).setdefault(family, {}).update(found)
        SETTINGS.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")


def read_settings() -> dict:
    """What tuning has found: target, family, library."""
    return json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}


# ---- the contest -----------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A library on one target and family, cold or warm."""

    library: str
    setting: dict
    runs: list[Run]

    @property
    def seconds(self) -> float:
        """Median."""
        return statistics.median(run.seconds for run in self.runs)

    def arrived(self, best: float) -> int:
        """How many seeds."""
        return sum(run.gap(best) < tolerance(best) for run in self.runs)

    def counts(self, best: float) -> bool:
        """Whether nearly all seeds arrived."""
        return self.arrived(best) >= min(NUM_NEEDED, len(self.runs))

    def row(self, best: float, unit: float, digits: int) -> list[str]:
        """Of the table."""
        wall = statistics.median(run.wall_seconds for run in self.runs)
        times = [f"{unit * seconds:,.{digits}f}" for seconds in (self.seconds, wall)]
        gap = f"{max(run.gap(best) for run in self.runs):.3f}"
        return [self.library, *self.words(), *times, gap, f"{self.arrived(best)} of {len(self.runs)}"]

    def words(self) -> list[str]:
        """The setting."""
        if self.library == "bdl":
            return [f"defaults, {statistics.median(run.note.get('steps', math.nan) for run in self.runs):.0f} steps"]
        s = self.setting
        name = s.get("optimizer", "Adam").replace("adam", "Adam")
        parts = [f"{s['steps']:,} steps", f"{name}({s['lr']:g}{', falling' if s['decay'] < 1 else ''})"]
        parts += [f"{s['particles']} particle{'s' * (s['particles'] > 1)}"]
        parts += [f"first std {s['init_scale']:g}"] if self.library != "pymc" else []
        return [", ".join(parts + ["JIT"] * s.get("jit", False))]


def run_one(contest: Contest, family: str, settings: dict, seeds: tuple[int, ...], is_cold: bool) -> list[Result]:
    """All libraries in turn, seed after seed."""
    kind = "cold" if is_cold else "warm"
    results = [Result(library, setting[kind], []) for library, setting in settings.items() if setting]
    for seed in seeds:
        for result in results:
            if is_cold:
                run = contest.cold(result.library, contest.job(family, result.setting, seed))
            else:
                repeats = 1 if result.library == "pyro" else 3
                job = contest.job(family, result.setting, seed, is_warm=True, repeats=repeats)
                run = contest.warm(result.library, job)
            result.runs.append(run)
    contest.close()
    return results


def ratio(results: list[Result], best: float) -> float:
    """Our seconds over the best peer's, of those that count."""
    counting = {r.library: r.seconds for r in results if r.counts(best)}
    peers = [seconds for library, seconds in counting.items() if library != "bdl"]
    if "bdl" not in counting:
        return math.inf if peers else math.nan
    return counting["bdl"] / min(peers) if peers else 0.0


def in_words(value: float) -> str:
    """A ratio, or why there is none."""
    if math.isnan(value):
        return "nobody counts"
    return f"{value:.2f}" if 0 < value < math.inf else "a peer alone counts" if value else "the project alone counts"


def contest_on(contest: Contest, family: str, settings: dict, best: float, seeds: tuple) -> tuple[list[str], list[str]]:
    """A line of the first table, and the lines of the details."""
    warm, cold = (run_one(contest, family, settings, seeds, is_cold) for is_cold in (False, True))
    best = max(best, *(run.elbo for result in warm + cold for run in result.runs))
    header = ["contestant", "settings", "wall", "largest gap (nats)", "arrived"]
    lines = [f"### {targets.TITLES[contest.name]}: {family}", ""]
    for title, results, unit, digits in (("warm, ms", warm, 1000, 1), ("cold, s", cold, 1, 2)):
        rows = [result.row(best, unit, digits) for result in results]
        lines += [*table([*header[:2], title, *header[2:]], rows), ""]
    missing = [library for library in LIBRARIES if library in settings and not settings[library]]
    if missing:
        lines += [f"No setting in reach for {', '.join(missing)}.", ""]
    ratios = [in_words(ratio(results, best)) for results in (cold, warm)]
    return [targets.TITLES[contest.name], family, f"{best:.2f}", f"{tolerance(best):.2f}", *ratios], lines


def report(contests: dict, families: list, settings: dict, seeds: tuple, num_processors: int) -> str:
    """Everything, as Markdown."""

    def one(name):
        done = []
        for family in families:
            of_libraries = {k: v for k, v in settings[name][family].items() if k != "best_elbo"}
            done.append(contest_on(contests[name], family, of_libraries, settings[name][family]["best_elbo"], seeds))
            print("\n".join([*done[-1][1], str(done[-1][0])]), flush=True)
        return done

    done = [part for parts in run_all(one, contests, num_processors) for part in parts]
    lead = (
        f"Seconds of the processor, medians of {len(seeds)} seeds, contestants in turn, one thread for each. Ratios of "
        "the project's time to the best peer's. Cold: from the start of a process, imports and compilation included. "
        "Warm: the same fit again in a process that has done it. A fit has arrived if the evidence lower bound (ELBO) "
        "of its Gaussian, which one judge estimates for all from 100,000 fresh draws, is within 0.5 % of the family's "
        "best, or within 0.05 nats where that is more; a contestant counts if four of five seeds arrive. The project "
        "runs with its defaults, which aim at 0.01 nats whatever is asked for. The peers run with the cheapest of a "
        "ladder of settings with which nine of ten pilot seeds arrive, and stop there. The gradient of logistic "
        "regression is the library's closed form; the others come from autograd, as the peers' do. NumPyro's run is "
        "compiled whole and PyMC's compiled step is kept for warm fits, which neither does by itself."
    )
    header = ["target", "family", "best ELBO", "tolerance (nats)", "cold (claim: ≤ 0.5)", "warm (claim: ≤ 1)"]
    return "\n".join([lead, "", *table(header, [row for row, _ in done]), "", *[x for _, lines in done for x in lines]])


def warm_up(contests: dict[str, Contest], only: list[str], num_processors: int) -> None:
    """All libraries must have the same densities; and their files are in memory afterwards."""

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
    parser.add_argument("--only", nargs="+", choices=LIBRARIES, default=list(LIBRARIES), help="libraries")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--tune", action="store_true", help="search for the peers' best settings")
    parser.add_argument("--quick", action="store_true", help="one seed, two targets; writes nothing")
    parser.add_argument("--limit", type=float, default=10, help="seconds that a fit may take in a search")
    arguments = parser.parse_args()
    names = ["schools", "regression"] if arguments.quick else arguments.targets
    num_processors = min(2, os.cpu_count())
    with tempfile.TemporaryDirectory() as folder:
        contests = {name: Contest(name, i % num_processors, Path(folder)) for i, name in enumerate(names)}
        warm_up(contests, arguments.only, num_processors)
        if arguments.tune:
            return tune(contests, arguments.families, arguments.only, num_processors, arguments.limit)
        settings = with_ours(read_settings(), arguments.only)
        text = report(contests, arguments.families, settings, SEEDS[:1] if arguments.quick else SEEDS, num_processors)
    print(text)
    if (
        contests.keys() == targets.DIMS.keys()
        and len(arguments.only) == len(LIBRARIES)
        and len(arguments.families) == 2
    ):
        write_section("Variational fits", text)


def with_ours(settings: dict, only: list[str]) -> dict:
    """The settings of the chosen libraries, our defaults among them."""
    ours = {"bdl": {"warm": OURS, "cold": OURS}} if "bdl" in only else {}
    return {
        name: {
            family: ours | {key: value for key, value in found.items() if key in (*only, "best_elbo")}
            for family, found in of_families.items()
        }
        for name, of_families in settings.items()
    }


if __name__ == "__main__":
    main()
