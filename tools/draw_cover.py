"""Draw the picture of the landing page and the README: one fit against a posterior. Writes book/_static/cover.png."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from bdl_lib import bayes, data, plots

NOISE_STD = 0.1


def bumps(x):
    return torch.cat([torch.ones_like(x)[:, None], bayes.radial_features(x, torch.linspace(-1, 1, 9), width=0.25)], 1)


def main():
    plots.use_style()
    torch.set_default_dtype(torch.float64)
    sine = data.sine_with_gap(30, noise_std=NOISE_STD, generator=torch.Generator().manual_seed(0))
    prior = bayes.gaussian_prior(10, prior_std=1.0)
    posterior = bayes.linear_posterior(prior, bumps(sine.inputs[:, 0]), sine.targets, noise_std=NOISE_STD)
    x = torch.linspace(-1.3, 1.3, 300)
    predictive = bayes.linear_predictive(posterior, bumps(x), noise_std=NOISE_STD)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    plots.band(left, x, predictive.mean, predictive.noise_var.sqrt(), label="mean ± 2 std, noise only")
    plots.band(right, x, predictive.mean, predictive.std, label="mean ± 2 std, weights and noise")
    left.set_title("one best set of weights")
    right.set_title("all plausible sets of weights")
    for ax in (left, right):
        ax.plot(x, predictive.mean, label="mean")
        ax.plot(x, data.sine_mean(x), "--", color=plots.ORANGE, label="truth")
        plots.points(ax, sine.inputs[:, 0], sine.targets)
        ax.set(xlabel="x", ylim=(-2, 2.8))
        ax.legend(loc="upper left", ncols=2)
    left.set_ylabel("y")
    figure.savefig(
        Path(__file__).parent.parent / "book" / "_static" / "cover.png", dpi=130, metadata={"Software": None}
    )


if __name__ == "__main__":
    main()
