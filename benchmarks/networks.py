"""Many weight samples of one small network: what batched matrix products buy, against a loop, vmap and autograd.

    python benchmarks/networks.py            # about a minute; writes its section of benchmarks/RESULTS.md
    python benchmarks/networks.py --quick    # a few seconds; prints only

The claims, for 1,000 weight samples of an MLP 2-50-50-3 with ReLU, in float32 on a CPU:

- at least 10 times faster than a Python loop over the samples with ``functional_call`` on 100 inputs, and 2 times on
  1,000;
- never slower than ``vmap`` over ``functional_call``;
- at most 1.5 times the time of the same matrix products alone, without biases and activations.

All contestants run in turn, round after round, in one process with a fixed number of threads; a ratio is the median,
over the rounds, of the ratio within a round. Time is processor time where there is one thread, so that other work on
the machine counts little, and time on the clock where there are more. With tanh, the activation itself costs more than
the products: shown, not claimed.
"""

import argparse

import torch
from shared.report import write_section
from shared.timing import median_ratios
from torch import Tensor, nn
from torch.func import functional_call

from bdl_lib import networks

SIZES = [2, 50, 50, 3]
ACTIVATIONS = {"ReLU": (torch.relu, nn.ReLU), "tanh": (torch.tanh, nn.Tanh)}


def loop(module: nn.Module, network: networks.Network, weights: Tensor, inputs: Tensor) -> Tensor:
    """What one writes first: one forward pass a sample."""
    named = [networks.unflatten_weights(network, sample) for sample in weights]
    return torch.stack([functional_call(module, parameters, (inputs,)) for parameters in named])


def bare_products(weights: Tensor, inputs: Tensor, chunk_size: int) -> None:
    """The matrix products of the fast path alone, in chunks of the same size."""
    for chunk in weights.split(chunk_size):
        first, _, second, _, third, _ = chunk.split([100, 50, 2500, 50, 150, 3], dim=1)
        hidden = (first.reshape(-1, 2) @ inputs.mT).view(-1, 50, len(inputs))
        hidden = torch.bmm(second.view(-1, 50, 50), hidden)
        torch.bmm(third.view(-1, 3, 50), hidden)


def forward_ratios(name: str, num_inputs: int, num_samples: int, num_rounds: int) -> dict[str, float]:
    """Every other way to evaluate all samples on all inputs against the fast path, after a check that they agree."""
    activation, layer = ACTIVATIONS[name]
    module = nn.Sequential(nn.Linear(2, 50), layer(), nn.Linear(50, 50), layer(), nn.Linear(50, 3))
    fast, general = networks.mlp(SIZES, activation=activation), networks.from_module(module)
    generator = torch.Generator().manual_seed(0)
    weights = networks.gaussian_prior(fast, prior_std=0.3).sample(num_samples, generator=generator)
    inputs = torch.randn(num_inputs, 2, generator=generator)
    chunk_size = max(1, 2**21 // (4 * 50 * num_inputs))  # the fast path's own choice
    with torch.no_grad():
        torch.testing.assert_close(fast.apply(weights, inputs), loop(module, general, weights, inputs))
        contestants = {
            "fast": lambda: fast.apply(weights, inputs),
            "loop": lambda: loop(module, general, weights, inputs),
            "vmap": lambda: general.apply(weights, inputs),
            "bare products": lambda: bare_products(weights, inputs, chunk_size),
            "fast, one chunk": lambda: networks.mlp(SIZES, activation=activation, chunk_size=num_samples).apply(
                weights, inputs
            ),
        }
        return median_ratios(contestants, num_rounds)


def gradient_ratio(name: str, num_inputs: int, num_samples: int, num_rounds: int) -> float:
    """Value and gradient of the log posterior: autograd's time over that of the way by hand."""
    network = networks.mlp([2, 10, 3], activation=ACTIVATIONS[name][0])
    generator = torch.Generator().manual_seed(0)
    prior = networks.gaussian_prior(network, prior_std=1.0)
    inputs, labels = torch.randn(num_inputs, 2, generator=generator), torch.arange(num_inputs) % 3
    log_prob = networks.log_posterior(network, prior, networks.categorical_likelihood(3), inputs, labels)
    weights = prior.sample(num_samples, generator=generator)

    def autograd():
        leaf = weights.clone().requires_grad_()
        value = log_prob(leaf)
        return value, torch.autograd.grad(value.sum(), leaf)

    contestants = {"by hand": lambda: log_prob.value_and_grad(weights), "autograd": autograd}
    return median_ratios(contestants, num_rounds)["autograd"]


def report(num_samples: int, num_rounds: int, num_threads: int) -> str:
    """The tables, as Markdown."""
    lines = [
        f"{num_samples:,} weight samples of an MLP 2-50-50-3, float32, {num_threads} thread(s), medians of "
        f"{num_rounds} interleaved rounds: how many times the fast path's time each of the others takes.",
        "",
        "| activation | inputs | loop (claim: ≥ 10, ≥ 2) | vmap (≥ 1) | bare products (≥ 0.67) | one chunk |",
        "|---|---|---|---|---|---|",
    ]
    for name in ACTIVATIONS:
        for num_inputs in (100, 1000):
            ratios = forward_ratios(name, num_inputs, num_samples, num_rounds)
            lines.append(f"| {name} | {num_inputs:,} | " + " | ".join(f"{r:.2f}" for r in ratios.values()) + " |")
    lines += [
        "",
        "Log posterior of an MLP 2-10-3 on 100 rows, value and gradient: autograd's time over that of the way by hand.",
        "",
        "| activation | 16 samples | 256 samples |",
        "|---|---|---|",
    ]
    for name in ACTIVATIONS:
        ratios = [gradient_ratio(name, 100, samples, 5 * num_rounds) for samples in (16, 256)]
        lines.append(f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables; write them unless they are quick ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples and rounds; writes nothing")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    num_samples, num_rounds = (200, 3) if arguments.quick else (1000, 7)
    text = report(num_samples, num_rounds, arguments.threads)
    print(text)
    if not arguments.quick:
        write_section("Many weight samples of one network", text)


if __name__ == "__main__":
    main()
