"""Monte Carlo dropout on tables: the regression protocol of Gal and Ghahramani (2016), with its errors over splits.

    python benchmarks/mc_dropout_uci.py                    # diabetes, half an hour; writes its section of RESULTS.md
    python benchmarks/mc_dropout_uci.py --quick            # diabetes, few splits and epochs; prints only
    python benchmarks/mc_dropout_uci.py concrete kin8nm    # tables that OpenML serves (names: --help)

What the protocol says (arXiv:1506.02142, section 5.4 and appendix, and the authors' code): 20 random splits, 90 % to
learn from; one hidden layer of 50 units with ReLU, dropout before both weight layers; prior length scale 0.01; Adam,
minibatches of 128, ten times 40 epochs; the rate and the noise precision that give a validation part, a fifth of what
there is to learn from, the highest log likelihood; 10,000 passes; RMSE of their mean, and log likelihood of their
mixture, with standard errors over the splits. Inputs and targets are standardised on what there is to learn from, and
the scores are in the units of the data.

What differs here. The splits are drawn anew, not the paper's. The noise precision enters training through a weight
decay of about 1e-7 alone, so one network is trained for each rate, with the decay of a first guess (one over the
residual variance of linear regression), and judged with every noise precision; the final network, trained on all rows
that there are to learn from, has the decay that belongs to its own. The step size falls to zero during training.

Beside it, with the same splits: linear regression, exactly Bayesian, whose prior and noise have the largest evidence;
and a deep ensemble of five networks of the same size that predict mean and variance, for as long a training, of 40, 120
or 400 epochs, as the validation part prefers.

The table of Boston house prices, the first in the paper, is left out: scikit-learn removed it for what one of its
columns assumes about people. What OpenML serves is checked by scikit-learn against OpenML's checksum.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from shared.report import write_section
from torch import Tensor, nn

from bdl_lib import bayes, dropout

OPENML = {"concrete": 44959, "energy": 44960, "protein": 44963, "naval": 44969, "wine": 44972, "kin8nm": 44980}
RATES = (0.005, 0.01, 0.05, 0.1)
NOISE_PREC_FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 8.0, 16.0, 32.0)  # of the first guess
LENGTH_SCALE = 0.01
NUM_MEMBERS = 5


class Effort(NamedTuple):
    """How much to run."""

    num_splits: int
    num_epochs: int
    num_passes: int


FULL, QUICK = Effort(20, 400, 10_000), Effort(3, 40, 1_000)


class Part(NamedTuple):
    """Rows of a table."""

    inputs: Tensor  # [n, features]
    targets: Tensor  # [n]


class Scores(NamedTuple):
    """How well one method predicted one split, in the units of the data."""

    rmse: float
    log_likelihood: float  # nats a row


Method = Callable[[Part, Part, Effort, torch.Generator], tuple[Tensor, Tensor]]  # -> mean and log density of each row


def load(name: str) -> Part:
    """A table; the program ends with a sentence where OpenML cannot be reached."""
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        table = load_diabetes(scaled=False)
        return Part(torch.as_tensor(table.data).float(), torch.as_tensor(table.target).float())
    from sklearn.datasets import fetch_openml

    try:
        table = fetch_openml(data_id=OPENML[name], as_frame=False, parser="liac-arff")
    except OSError as error:
        sys.exit(f"{name}: table {OPENML[name]} of OpenML could not be fetched ({error}); diabetes needs no network")
    return Part(torch.as_tensor(table.data.astype(float)).float(), torch.as_tensor(table.target.astype(float)).float())


def split(part: Part, fraction: float, generator: torch.Generator) -> tuple[Part, Part]:
    """All but a fraction of the rows at random, and that fraction."""
    order = torch.randperm(len(part.inputs), generator=generator)
    num_last = round(fraction * len(order))
    first, last = order[:-num_last], order[-num_last:]
    return Part(part.inputs[first], part.targets[first]), Part(part.inputs[last], part.targets[last])


def standardised(train: Part, test: Part) -> tuple[Part, Part, Tensor]:
    """Both in standard units of the first, and how many units of the data a unit of the targets is."""
    loc, scale = train.inputs.mean(0), train.inputs.std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    target_loc, target_scale = train.targets.mean(), train.targets.std()
    parts = [Part((p.inputs - loc) / scale, (p.targets - target_loc) / target_scale) for p in (train, test)]
    return *parts, target_scale


# ---- Linear regression


def with_ones(inputs: Tensor) -> Tensor:
    """Features of a straight line."""
    return nn.functional.pad(inputs, (0, 1), value=1.0).double()


def linear(train: Part, test: Part, effort: Effort, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Exactly Bayesian; prior and noise from a grid, by the evidence."""
    features, targets = with_ones(train.inputs), train.targets.double()
    prior_std = torch.logspace(-2, 1, 31, dtype=torch.float64)[:, None]
    noise_std = torch.logspace(-2.5, 0.3, 57, dtype=torch.float64)
    prior = bayes.gaussian_prior(features.shape[1], prior_std=prior_std)
    evidence = bayes.linear_log_evidence(prior, features, targets, noise_std=noise_std)
    best_prior, best_noise = divmod(int(evidence.argmax()), len(noise_std))
    prior = bayes.gaussian_prior(features.shape[1], prior_std=prior_std[best_prior, 0])
    noise_std = noise_std[best_noise]
    posterior = bayes.linear_posterior(prior, features, targets, noise_std=noise_std)
    found = bayes.linear_predictive(posterior, with_ones(test.inputs), noise_std=noise_std)
    return found.mean, torch.distributions.Normal(found.mean, found.std).log_prob(test.targets.double())


def residual_var(part: Part) -> float:
    """What least squares leaves: a first guess of the variance of the noise."""
    features = with_ones(part.inputs)
    weights = torch.linalg.lstsq(features, part.targets.double()[:, None]).solution
    return max(1e-4, float((part.targets - (features @ weights)[:, 0]).square().mean()))


# ---- Monte Carlo dropout


def network(rate: float, num_features: int, num_outputs: int, generator: torch.Generator) -> nn.Sequential:
    """50 hidden units, with dropout before both weight layers if there is any; PyTorch's usual start."""
    layers = [nn.Linear(num_features, 50), nn.Linear(50, num_outputs)]
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.uniform_(-(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)
    first, second = ([dropout.Dropout(rate)] if rate else [] for _ in layers)
    return nn.Sequential(*first, layers[0], nn.ReLU(), *second, layers[1])


def train_dropout(part: Part, rate: float, noise_prec: float, effort: Effort, generator: torch.Generator) -> nn.Module:
    """A network for half the squared error, with the decay of the prior."""
    decay = dropout.weight_decay_of(
        length_scale=LENGTH_SCALE, rate=rate, num_data=len(part.inputs), noise_prec=noise_prec
    )
    start = network(rate, part.inputs.shape[1], 1, generator)
    settings = {"num_epochs": effort.num_epochs, "weight_decay": decay, "generator": generator}
    return dropout.fit(
        start, part.inputs, part.targets[:, None], lambda f, y: 0.5 * (f - y).square().mean(), **settings
    ).model


def passes(model: nn.Module, part: Part, num_passes: int, generator: torch.Generator) -> Tensor:
    """Outputs [passes, n]."""
    return dropout.draw_passes(model, part.inputs, num_passes=num_passes, generator=generator)[..., 0]


def mixture_log_prob(outputs: Tensor, targets: Tensor, noise_prec: float) -> Tensor:
    """Log density of each target under the equal mixture of the passes."""
    log_prob = 0.5 * math.log(noise_prec / (2 * math.pi)) - 0.5 * noise_prec * (outputs - targets).square()
    return log_prob.logsumexp(0) - math.log(len(outputs))


def mc_dropout(train: Part, test: Part, effort: Effort, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rate and noise precision by validation, then one network on all rows."""
    small, validation = split(train, 0.2, generator)
    guess, tried = 1 / residual_var(small), {}
    for rate in RATES:
        model = train_dropout(small, rate, guess, effort, generator)
        outputs = passes(model, validation, 1000, generator)
        for factor in NOISE_PREC_FACTORS:
            log_prob = mixture_log_prob(outputs, validation.targets, factor * guess)
            tried[rate, factor * guess] = float(log_prob.mean())
    rate, noise_prec = max(tried, key=tried.get)
    model = train_dropout(train, rate, noise_prec, effort, generator)
    outputs = passes(model, test, effort.num_passes, generator)
    return outputs.mean(0), mixture_log_prob(outputs, test.targets, noise_prec)


# ---- Deep ensemble


def gaussian_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log likelihood, up to a constant; the two outputs are mean and log variance."""
    mean, log_var = outputs.unbind(-1)
    return 0.5 * ((targets - mean).square() * (-log_var).exp() + log_var).mean()


def ensemble_moments(train: Part, test: Part, num_epochs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mean and variance of the members' mixture, the variance kept above 1e-6 as in the paper."""
    start = network(0, train.inputs.shape[1], 2, generator)
    settings = {"num_members": NUM_MEMBERS, "num_epochs": num_epochs, "generator": generator}
    found = dropout.fit_ensemble(start, train.inputs, train.targets, gaussian_loss, **settings)
    mean, log_var = dropout.predict_ensemble(found, test.inputs).unbind(-1)
    return mean.mean(0), log_var.exp().mean(0) + mean.var(0, correction=0) + 1e-6


def deep_ensemble(train: Part, test: Part, effort: Effort, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Length of training by validation; one Gaussian with the mixture's moments."""
    small, validation = split(train, 0.2, generator)
    lengths = [max(1, effort.num_epochs * share // 10) for share in (1, 3, 10)]

    def density(part, rows, num_epochs):
        mean, var = ensemble_moments(part, rows, num_epochs, generator)
        return mean, torch.distributions.Normal(mean, var.sqrt()).log_prob(rows.targets)

    best = max(lengths, key=lambda length: float(density(small, validation, length)[1].mean()))
    return density(train, test, best)


METHODS = {"linear regression, exact": linear, "Monte Carlo dropout": mc_dropout, "deep ensemble of 5": deep_ensemble}


# ---- The protocol


def judge(method: Method, part: Part, effort: Effort, seed: int) -> Scores:
    """One split: the same for every method."""
    train, test, unit = standardised(*split(part, 0.1, torch.Generator().manual_seed(seed)))
    mean, log_prob = method(train, test, effort, torch.Generator().manual_seed(1000 + seed))
    rmse = (mean - test.targets).square().mean().sqrt() * unit
    return Scores(float(rmse), float(log_prob.mean() - unit.log()))


def table_row(name: str, part: Part, method_name: str, effort: Effort) -> str:
    """Mean and standard error over the splits."""
    start = time.perf_counter()
    scores = [judge(METHODS[method_name], part, effort, seed) for seed in range(effort.num_splits)]
    minutes = (time.perf_counter() - start) / 60
    values = torch.tensor(scores, dtype=torch.float64)
    means, errors = values.mean(0).tolist(), (values.std(0) / len(scores) ** 0.5).tolist()
    cells = " | ".join(f"{mean:.4g} ± {error:.2g}" for mean, error in zip(means, errors, strict=True))
    return f"| {name} | {len(part.inputs):,} × {part.inputs.shape[1]} | {method_name} | {cells} | {minutes:.1f} |"


def report(names: list[str], effort: Effort) -> str:
    """The table, as Markdown."""
    lines = [
        "Protocol of Gal and Ghahramani (2016), one hidden layer of 50 units, "
        f"{effort.num_splits} random splits, 90 % to 10 %, {effort.num_epochs} epochs, {effort.num_passes:,} passes; "
        "mean ± standard error over the splits, in the units of the data and in nats. What differs from the paper is "
        "said in `benchmarks/mc_dropout_uci.py`.",
        "",
        "| table | size | method | RMSE (lower is better) | test log likelihood (higher is better) | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        part = load(name)
        lines += [table_row(name, part, method_name, effort) for method_name in METHODS]
    return "\n".join(lines)


def main() -> None:
    """Print the table; write it unless it is a quick one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=["diabetes"], help=f"of {['diabetes', *OPENML]}; default diabetes")
    parser.add_argument("--quick", action="store_true", help="few splits, epochs and passes; writes nothing")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - {"diabetes", *OPENML}:
        parser.error(f"unknown tables {sorted(unknown)}; there are {['diabetes', *OPENML]}")
    torch.set_num_threads(arguments.threads)
    text = report(arguments.tables, QUICK if arguments.quick else FULL)
    print(text)
    if not arguments.quick:
        write_section("Monte Carlo dropout on tables", text)


if __name__ == "__main__":
    main()
