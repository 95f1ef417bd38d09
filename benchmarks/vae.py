"""Variational autoencoders: an epoch of training, and log p(x) of test images, beside a plain loop, Pyro and pythae.

    python benchmarks/vae.py             # some minutes; writes its section of benchmarks/RESULTS.md
    python benchmarks/vae.py --quick     # a minute; prints only

The claims, in float32 on a CPU with one thread, every contestant with the same layers, likelihood, minibatches of 128
and Adam, on the 5,000 embedded digits made black and white beforehand:

- an epoch of ``vae.fit`` costs at most 1.1 times a hand-written loop of the same operations;
- it is not slower than Pyro's ``SVI`` or pythae's trainer;
- log p(x) of 1,000 images with K = 5,000 samples each stays below 4 GB, and is not slower than pythae's ``get_nll``.

Peers, which the extra ``bench`` brings, are compared where they are installed.
"""

import argparse
import contextlib
import copy
import functools
import io
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from shared.report import table, write_section
from shared.timing import median_ratios
from torch import Tensor, nn
from torch.nn import functional as F

from bdl_lib import data, vae

BATCH_SIZE, LATENT_DIM, LR = 128, 16, 1e-3
MODELS = {"MLP": vae.mlp_vae, "CNN": vae.conv_vae}
CLAIM_LOOP, CLAIM_GIGABYTES = 1.1, 4.0


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own for each use."""
    return torch.Generator().manual_seed(seed)


def black_and_white(images: Tensor) -> Tensor:
    """Each pixel drawn once, with the probability that its grey gives."""
    return torch.bernoulli(images, generator=seeded())


# ---- An epoch


def by_hand(model: vae.Vae, images: Tensor) -> vae.Vae:
    """What one writes first, with all that the library does and nothing else."""
    model, generator = copy.deepcopy(model).train(), seeded()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    for rows in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
        batch = images[rows]
        loc, log_var = model.encoder(batch).chunk(2, dim=1)
        latents = loc + (0.5 * log_var).exp() * torch.randn(loc.shape, generator=generator)
        logits = model.decoder(latents)[:, 0]
        reconstruction = -F.binary_cross_entropy_with_logits(logits, batch, reduction="none").sum((1, 2))
        kl = 0.5 * (loc.square() + log_var.exp() - 1 - log_var).sum(1)
        optimizer.zero_grad()
        (kl - reconstruction).mean().backward()
        optimizer.step()
    return model


def by_library(model: vae.Vae, images: Tensor) -> vae.Vae:
    """The same by one call."""
    settings = {"num_epochs": 1, "batch_size": BATCH_SIZE, "lr": LR, "is_binarised": False, "generator": seeded()}
    return vae.fit(model, images, **settings).model


def by_pyro(model: vae.Vae, images: Tensor) -> vae.Vae:
    """Pyro's variational inference, as its own example of a VAE writes it."""
    import pyro
    from pyro import distributions, infer

    def generative(batch):
        pyro.module("decoder", model.decoder)
        with pyro.plate("images", len(batch)):
            prior = distributions.Normal(batch.new_zeros(len(batch), LATENT_DIM), 1.0).to_event(1)
            logits = model.decoder(pyro.sample("latents", prior))[:, 0]
            pyro.sample("pixels", distributions.Bernoulli(logits=logits, validate_args=False).to_event(2), obs=batch)

    def guide(batch):
        pyro.module("encoder", model.encoder)
        with pyro.plate("images", len(batch)):
            loc, log_var = model.encoder(batch).chunk(2, dim=1)
            pyro.sample("latents", distributions.Normal(loc, (0.5 * log_var).exp()).to_event(1))

    model = copy.deepcopy(model).train()
    pyro.clear_param_store()
    pyro.enable_validation(False)
    svi = infer.SVI(generative, guide, pyro.optim.Adam({"lr": LR}), infer.TraceMeanField_ELBO())
    for rows in torch.randperm(len(images), generator=seeded()).split(BATCH_SIZE):
        svi.step(images[rows])
    return model


def pythae_model(model: vae.Vae):
    """pythae's VAE around the same encoder and decoder."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self, encoder: nn.Module):
            BaseEncoder.__init__(self)
            self.encoder = encoder

        def forward(self, images):
            loc, log_var = self.encoder(images[:, 0]).chunk(2, dim=1)
            return ModelOutput(embedding=loc, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self, decoder: nn.Module):
            BaseDecoder.__init__(self)
            self.decoder = decoder

        def forward(self, latents):
            return ModelOutput(reconstruction=self.decoder(latents).sigmoid())

    model = copy.deepcopy(model).train()
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT_DIM, reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(model.encoder), decoder=Decoder(model.decoder))


def by_pythae(model: vae.Vae, images: Tensor, folder: str) -> vae.Vae:
    """pythae's trainer, without its files."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    wrapped = pythae_model(model)
    sizes = {"per_device_train_batch_size": BATCH_SIZE, "learning_rate": LR, "num_epochs": 1}
    settings = BaseTrainerConfig(output_dir=folder, no_cuda=True, **sizes)
    logging.disable(logging.WARNING)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        trainer = BaseTrainer(wrapped, BaseDataset(images[:, None], torch.zeros(len(images))), training_config=settings)
        trainer.prepare_training()
        trainer.train_step(1)
    return Trained(wrapped.encoder.encoder, wrapped.decoder.decoder)


class Trained(nn.Module):
    """An encoder and a decoder."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def is_installed(name: str) -> bool:
    """Whether a peer can be imported."""
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def bound_after(trained: nn.Module, model: vae.Vae, images: Tensor) -> float:
    """Mean bound on some images: all contestants must have learnt the same."""
    judged = copy.deepcopy(model)
    judged.encoder.load_state_dict(trained.encoder.state_dict())
    judged.decoder.load_state_dict(trained.decoder.state_dict())
    with torch.no_grad():
        return vae.elbo(judged, images, generator=seeded(1)).value.mean().item()


def epochs(name: str, images: Tensor, num_rounds: int) -> list[list[str]]:
    """Rows of the table: the time of an epoch over that of the hand-written loop."""
    model = MODELS[name](LATENT_DIM, generator=seeded())
    ways = {"by hand": by_hand, "bdl_lib": by_library}
    if is_installed("pyro"):
        ways["Pyro"] = by_pyro
    with tempfile.TemporaryDirectory() as folder:
        if is_installed("pythae"):
            ways["pythae"] = functools.partial(by_pythae, folder=folder)
        found = median_ratios({way: functools.partial(run, model, images) for way, run in ways.items()}, num_rounds)
        bounds = {way: bound_after(run(model, images), model, images[:1000]) for way, run in ways.items()}
    claims = {"by hand": "", "bdl_lib": f"≤ {CLAIM_LOOP}"}
    return [
        [name, way, f"{found.get(way, 1.0):.2f}", claims.get(way, "≥ bdl_lib"), f"{bounds[way]:.1f}"] for way in ways
    ]


# ---- log p(x)


def evidence_ratio(name: str, images: Tensor, num_samples: int, num_rounds: int) -> list[str]:
    """pythae's time over ours for log p(x) of a few images, and the two answers."""
    model = MODELS[name](LATENT_DIM, generator=seeded())
    model = by_library(model, images)
    few, wrapped = images[:5], pythae_model(model).eval()
    ours = functools.partial(vae.log_evidence, model, few, num_samples=num_samples, generator=seeded())
    with torch.no_grad():
        theirs = functools.partial(wrapped.get_nll, few[:, None], n_samples=num_samples, batch_size=100)
        ratio = median_ratios({"ours": ours, "theirs": theirs}, num_rounds)["theirs"]
        values = [f"{ours().value.mean().item():.1f}", f"{-theirs():.1f}"]
    return [name, f"{ratio:.1f}", *values]


def peak_gigabytes(num_images: int, num_samples: int) -> float:
    """Peak memory of a process that asks for log p(x) of so many images, PyTorch included."""
    command = [sys.executable, __file__, "--measure", str(num_images), str(num_samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure(num_images: int, num_samples: int) -> None:
    """Ask once, and print the peak of this process alone in GB, as Linux has it."""
    torch.set_num_threads(1)
    images = black_and_white(data.digits(dtype=torch.float32).test.images[:num_images])
    vae.log_evidence(vae.mlp_vae(LATENT_DIM, generator=seeded()), images, num_samples=num_samples, generator=seeded())
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1e6)


def main() -> None:
    """Print the tables; write them unless they are quick ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images, samples and rounds; writes nothing")
    parser.add_argument("--measure", nargs=2, type=int, metavar=("IMAGES", "SAMPLES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    torch.set_num_threads(1)
    num_rounds, num_images, num_samples = (3, 100, 500) if arguments.quick else (7, 1000, 5000)
    images = black_and_white(data.digits(dtype=torch.float32).train.images)
    rows = [row for name in MODELS for row in epochs(name, images, num_rounds)]
    lines = [
        f"An epoch over {len(images):,} images, one thread, float32, medians of {num_rounds} interleaved rounds of "
        "processor time: how many times that of the hand-written loop. The last column is the bound after the epoch.",
        "",
        *table(["network", "way", "ratio", "claim", "nats an image"], rows),
        "",
        f"log p(x) of {num_images:,} images with {num_samples:,} samples each: at most "
        f"{peak_gigabytes(num_images, num_samples):.2f} GB, PyTorch included (claim: ≤ {CLAIM_GIGABYTES:.0f} GB).",
    ]
    if is_installed("pythae"):
        beside = [evidence_ratio(name, images, num_samples, min(3, num_rounds)) for name in MODELS]
        title = f"The time of pythae's `get_nll` over that of `log_evidence`, 5 images, {num_samples:,} samples each:"
        lines += ["", title, "", *table(["network", "ratio", "nats, ours", "nats, theirs"], beside)]
    text = "\n".join(lines)
    print(text)
    if not arguments.quick:
        write_section("Variational autoencoders", text)


if __name__ == "__main__":
    main()
