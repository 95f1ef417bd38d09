"""The figures that several chapters draw. Each function takes numbers and an axes, never a model.

One look for all: ``use_style`` loads ``bdl.mplstyle``. Colours are the Okabe-Ito set, and nothing is told by colour
alone: lines differ in dash, areas in hatching, points in shape.
"""

from pathlib import Path

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "band",
    "bayes_square",
    "classes",
    "plane_map",
    "points",
    "regions",
    "share_bar",
    "two_bands",
    "use_style",
]

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6e6e6e"


def use_style():
    """Load the book's look into matplotlib's settings; figures drawn from here on have it."""
    import matplotlib.pyplot as plt

    plt.style.use(Path(__file__).parent / "bdl.mplstyle")


def band(ax, x, mean, std, *, label, color=BLUE, alpha=0.2, num_std=2):
    """Draw mean ± ``num_std`` standard deviations as a filled band.

    Args:
        ax: matplotlib axes.
        x: where, [n], ascending.
        mean: centre of the band, [n].
        std: standard deviation, [n], in the units of ``mean``.
        label: what the band contains; it becomes the legend's text.
        color: of the band.
        alpha: its opacity.
        num_std: half of the band's width in standard deviations.
    """
    x, mean, std = _numbers(x), _numbers(mean), _numbers(std)
    ax.fill_between(x, mean - num_std * std, mean + num_std * std, color=color, alpha=alpha, linewidth=0, label=label)


def two_bands(ax, x, mean, parameter_std, total_std):
    """Draw a predictive distribution as mean ± 2 std twice: the parameters' part inside, noise included outside.

    Args:
        ax: matplotlib axes.
        x: where, [n], ascending.
        mean: of the predictive, [n].
        parameter_std: standard deviation that comes from the parameters alone, [n].
        total_std: standard deviation with noise included, [n].
    """
    band(ax, x, mean, total_std, label="± 2 std, noise included", color=GREY)
    band(ax, x, mean, parameter_std, label="± 2 std, parameters only", alpha=0.45)


def points(ax, x, y, *, label="data"):
    """Draw observations as black dots with a white rim, so that they stand out from any band."""
    ax.plot(
        _numbers(x),
        _numbers(y),
        "o",
        color="black",
        markeredgecolor="white",
        markeredgewidth=0.6,
        label=label,
        zorder=5,
    )


def bayes_square(ax, prior_prob, likelihood, *, hypotheses, evidence):
    """Draw Bayes' theorem as areas in a square of area one.

    A column a hypothesis, as wide as its prior probability; its lower part, hatched, as high as its likelihood. The
    hatched area is the evidence, and a column's share of it the posterior probability.

    Args:
        ax: matplotlib axes.
        prior_prob: p(H), [hypotheses], summing to one.
        likelihood: p(E|H), [hypotheses].
        hypotheses: their names, in the same order.
        evidence: what was observed, for the legend.
    """
    left = 0.0
    for i, (width, height, name) in enumerate(zip(_numbers(prior_prob), _numbers(likelihood), hypotheses, strict=True)):
        style = _hatched(i)
        ax.bar(left, 1, width, align="edge", facecolor="white", edgecolor=style["edgecolor"], linewidth=1.4)
        ax.bar(left, height, width, align="edge", label=f"{name}, {evidence}", **style)
        left += width
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="width: prior probability", ylabel="height: likelihood")
    ax.legend(loc="upper right", framealpha=0.9, frameon=True)
    ax.grid(False)


def share_bar(ax, prob, *, names):
    """Draw probabilities that sum to one as a stacked bar, in the colours and hatching of ``bayes_square``.

    Args:
        ax: matplotlib axes.
        prob: [hypotheses], summing to one.
        names: what they are the probabilities of, in the same order.
    """
    bottom = 0.0
    for i, (height, name) in enumerate(zip(_numbers(prob), names, strict=True)):
        ax.bar(0, height, 1, bottom, **_hatched(i))
        ax.annotate(f"{name}: {height:.0%}", (0, bottom + height / 2), ha="center", va="center", bbox=_LABEL_BOX)
        bottom += height
    ax.set(xlim=(-0.5, 0.5), ylim=(0, 1), xticks=[], ylabel="probability")
    ax.grid(False)


def classes(ax, inputs, labels, names, *, is_seen=True):
    """Draw labelled points of the plane, one marker a class.

    Args:
        ax: matplotlib axes.
        inputs: [n, 2].
        labels: class of each point, [n].
        names: of the classes.
        is_seen: filled markers for classes of the training data, open ones for strangers.
    """
    inputs, labels = _numbers(inputs), _numbers(labels)
    colors, markers = ((ORANGE, BLUE, GREEN), "os^") if is_seen else ((PURPLE, GREY, "black"), "DPX")
    for i, name in enumerate(names):
        face = colors[i] if is_seen else "white"
        style = dict(marker=markers[i], markerfacecolor=face, markeredgecolor="white" if is_seen else colors[i])
        ax.plot(*inputs[labels == i].T, linestyle="", markeredgewidth=0.6 if is_seen else 1.2, label=name, **style)


def plane_map(ax, x, y, values, *, label, limits):
    """Draw a function of the plane as colours, with a colour bar.

    Args:
        ax: matplotlib axes.
        x: first coordinate, [rows, columns].
        y: second coordinate, [rows, columns].
        values: of the function, [rows, columns].
        label: what the colours mean.
        limits: the values at the two ends of the colour bar.
    """
    x, y, values = _numbers(x), _numbers(y), _numbers(values)
    picture = ax.pcolormesh(x, y, values, vmin=limits[0], vmax=limits[1], shading="nearest", rasterized=True)
    ax.figure.colorbar(picture, ax=ax, label=label)
    ax.grid(False)


def regions(ax, x, y, choices, *, names):
    """Draw which of a few choices is made at each point of the plane: coloured, hatched and named regions.

    Args:
        ax: matplotlib axes.
        x: first coordinate, [rows, columns].
        y: second coordinate, [rows, columns].
        choices: whole numbers, [rows, columns].
        names: from choice to name; choices that do not occur in ``choices`` are left out of the legend.
    """
    x, y, choices = _numbers(x), _numbers(y), _numbers(choices)
    for i, (choice, name) in enumerate(names.items()):
        if (choices == choice).any():
            color, hatch = (GREY, ORANGE, BLUE, GREEN)[i % 4], ("xx", "///", "\\\\\\", "..")[i % 4]
            chosen = (choices == choice).astype(float)
            ax.contourf(x, y, chosen, levels=[0.5, 1.5], colors=[color + "30"], hatches=[hatch])
            ax.fill_between([], [], facecolor=color + "30", hatch=hatch, edgecolor="black", linewidth=0, label=name)
    ax.legend(loc="upper left", framealpha=0.9, frameon=True)
    ax.grid(False)


def _hatched(i):
    """Face, hatching and rim of the i-th hypothesis."""
    color = (ORANGE, BLUE, GREEN, PURPLE)[i % 4]
    return dict(facecolor=color + "40", edgecolor=color, hatch=("///", "\\\\\\", "...", "xxx")[i % 4], linewidth=1.4)


_LABEL_BOX = dict(boxstyle="round,pad=0.25", facecolor="white", edgecolor="none", alpha=0.9)


def _numbers(values):
    """A tensor from any device, or anything array-like, as NumPy sees it."""
    import numpy as np

    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
