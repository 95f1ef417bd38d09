"""Monte Carlo dropout: a hundred passes as one batch that shares what it can, against a plain loop.

    python benchmarks/dropout.py             # some minutes; writes its section of benchmarks/RESULTS.md
    python benchmarks/dropout.py --quick     # half a minute; prints only

The claims, for T = 100 passes over 1,000 images of 28 x 28, in float32 on a CPU, with one thread and with all:

- an MLP 784-512-512-10 with dropout before its last two layers: at least 1.8 times faster than T calls in a loop;
- a small convolutional network (two convolutions, then two linear layers with dropout): at least 5 times;
- both within 1.5 times the bare matrix products that remain: the shared layers once, the others T times, without
  masks, biases and activations;
- for no number of images from 1 to 1,000 slower than the loop.

The loop is the network with ``nn.Dropout`` in training mode, called T times. torch-uncertainty's wrapper, where it is
installed (``pip install torch-uncertainty lightning rich torchvision``; its ``cpu`` extra and ``constraints.txt`` want
different versions of fsspec and rich), runs the same network, in its loop and, for few images, as one batch.
"""

import argparse
import copy
import functools

import torch
from shared.report import table, write_section
from shared.timing import median_ratios
from torch import Tensor, nn

from bdl_lib import dropout

NUM_PASSES = 100
BATCH_SIZES = (1, 2, 5, 10, 30, 100, 300, 1000)
CLAIMS = {"MLP": 1.8, "CNN": 5.0}


def mlp() -> nn.Sequential:
    """Layers 0 to 2 are what the passes share."""
    hidden = [nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 10)]
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), *hidden)


def cnn() -> nn.Sequential:
    """Layers 0 to 6 are what the passes share."""
    convolutions = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *convolutions, nn.Flatten(), nn.Dropout(0.25), nn.Linear(1600, 128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, 10),
    )  # fmt: skip


MODELS = {"MLP": (mlp, 3), "CNN": (cnn, 7)}  # and how many layers are shared


def loop(model: nn.Module, inputs: Tensor) -> Tensor:
    """What one writes first."""
    return torch.stack([model(inputs) for _ in range(NUM_PASSES)])


def bare_products(model: nn.Sequential, num_shared: int, inputs: Tensor) -> None:
    """The shared layers once, then the matrix products of the others alone, pass by pass."""
    shared = model[:num_shared](inputs)
    first, second = (layer.weight.T for layer in model[num_shared:] if isinstance(layer, nn.Linear))
    for _ in range(NUM_PASSES):
        shared @ first @ second


def torch_uncertainty(model: nn.Module, inputs: Tensor) -> dict:
    """Its wrapper, where it is installed: in a loop, and as one batch where that fits the memory."""
    try:
        from torch_uncertainty.methods import mc_dropout
    except ImportError:
        return {}
    ways = {"torch-uncertainty, loop": False} | ({"torch-uncertainty, batch": True} if len(inputs) <= 100 else {})
    wrapped = {way: mc_dropout(copy.deepcopy(model), NUM_PASSES, on_batch=on_batch) for way, on_batch in ways.items()}
    return {way: functools.partial(each.eval(), inputs) for way, each in wrapped.items()}


def check_moments(model: nn.Module, converted: nn.Module, inputs: Tensor) -> None:
    """The contestants must estimate the same mean and variance."""
    generator = torch.Generator().manual_seed(1)
    ours, theirs = dropout.draw_passes(converted, inputs, num_passes=400, generator=generator), loop(model, inputs)
    error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
    if not ((ours.mean(0) - theirs.mean(0)).abs() < 5.5 * error).all():
        raise RuntimeError("the passes and the loop have different means")


def ratios(name: str, num_inputs: int, num_rounds: int, *, with_peers: bool) -> dict[str, float]:
    """Every other way against ``draw_passes``."""
    make, num_shared = MODELS[name]
    model = make().train()
    converted = dropout.convert(model)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(num_inputs, 1, 28, 28, generator=generator)
    with torch.no_grad():
        check_moments(model, converted, inputs[:10])
        contestants = {
            "passes": lambda: dropout.draw_passes(converted, inputs, num_passes=NUM_PASSES, generator=generator),
            "loop": lambda: loop(model, inputs),
        }
        if with_peers:
            contestants["bare products"] = lambda: bare_products(converted, num_shared, inputs)
            contestants |= torch_uncertainty(model, inputs)
        return median_ratios(contestants, num_rounds)


def report(num_threads: int, num_rounds: int, batch_sizes: tuple[int, ...]) -> list[str]:
    """The tables for one number of threads, as Markdown."""
    torch.set_num_threads(num_threads)
    rows = []
    for name, claim in CLAIMS.items():
        found = ratios(name, batch_sizes[-1], num_rounds, with_peers=True)
        rows += [[name, way, f"{ratio:.2f}", f"≥ {claim}" if way == "loop" else ""] for way, ratio in found.items()]
        rows[-len(found) + 1][3] = "≥ 0.67"
    rounds = {n: num_rounds if n > 100 else 5 * num_rounds for n in batch_sizes}  # short calls need more of them
    by_size = [
        [name, *(f"{ratios(name, n, rounds[n], with_peers=False)['loop']:.2f}" for n in batch_sizes)] for name in CLAIMS
    ]
    return [
        f"T = {NUM_PASSES} passes, float32, {num_threads} thread(s), medians of {num_rounds} interleaved rounds: how "
        f"many times the time of `draw_passes` each of the others takes, on {batch_sizes[-1]:,} images.",
        "",
        *table(["network", "way", "ratio", "claim"], rows),
        "",
        "The loop's time over that of `draw_passes`, by the number of images (claim: ≥ 1 everywhere):",
        "",
        *table(["network", *(f"{n:,}" for n in batch_sizes)], by_size),
        "",
    ]


def main() -> None:
    """Print the tables; write them unless they are quick ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds; writes nothing")
    arguments = parser.parse_args()
    num_rounds, batch_sizes = (1, (1, 10, 100)) if arguments.quick else (3, BATCH_SIZES)
    torch.manual_seed(0)
    threads = dict.fromkeys((1, torch.get_num_threads()))
    text = "\n".join(line for number in threads for line in report(number, num_rounds, batch_sizes)).rstrip()
    print(text)
    if not arguments.quick:
        write_section("Monte Carlo dropout", text)


if __name__ == "__main__":
    main()
