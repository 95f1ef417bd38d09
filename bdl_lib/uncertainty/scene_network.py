r"""A small network for scenes: for every pixel what it shows, how far away it is, and how noisy that distance is.

The one file of this folder that makes a model, so that there is something to be uncertain.

Chapter: book/08-uncertainty.ipynb
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bdl_lib.dropout import ChannelDropout
from bdl_lib.uncertainty._checks import check_at_least, check_same_shape
from bdl_lib.uncertainty.losses import gaussian_nll

__all__ = ["scene_loss", "scene_network"]

_MIDDLE = 3.0  # metres: what an untrained network takes every depth to be


class _Level(nn.Module):
    """What one resolution sees by itself, and what the coarser one below makes of it, added."""

    def __init__(self, here: nn.Module, below: nn.Module):
        super().__init__()
        self.here, self.below = here, below

    def forward(self, inputs):
        coarse = self.below(F.max_pool2d(inputs, 2))
        return F.relu(self.here(inputs) + F.interpolate(coarse, scale_factor=2.0))


def scene_network(
    num_classes: int,
    *,
    width: int = 8,
    rate: float = 0.1,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    r"""A fully convolutional network with dropout: an image in, for each pixel class logits and a depth out.

    Four resolutions, each half the one before. On the way down, 3×3 convolutions look at ever larger patches, in the
    end at whole objects; on the way up, 1×1 convolutions add what was found to what each pixel shows by itself. Whole
    channels are dropped on the way up only, so that many passes share the way down, which is nine tenths of the work.

    Args:
        num_classes: C, at least 2.
        width: w, at least 1; there are w, 3w, 8w and 8w channels at the four resolutions.
        rate: probability of dropping a channel, from 0 to below 1; see :class:`bdl_lib.dropout.ChannelDropout`.
        generator: draws the weights, Gaussian with variance 2 / fan-in; its device is the network's.
        dtype: of the weights, PyTorch's default dtype if not given.

    Returns:
        A module from images [n, 1, H, W], with H and W multiples of 8, to [n, C + 2, H, W]: C logits, the mean of the
        depth in metres, and the logarithm of its noise variance. Called, it is the deterministic network; masks come
        from ``bdl_lib.dropout``. It has batch normalisation: call ``eval()`` before asking one that was not fitted.

    Raises:
        ValueError: if a number is out of range.

    Source: Ronneberger, Fischer and Brox (2015), arXiv:1505.04597, and Lin et al. (2017), arXiv:1612.03144, for the
        shape; Kendall and Gal (2017), arXiv:1703.04977, for the outputs.
    Book: sec-scenes
    """
    check_at_least("num_classes", num_classes, 2)
    check_at_least("width", width, 1)
    like = {"dtype": dtype or torch.get_default_dtype(), "device": generator.device}

    def mix(fan_in, fan_out, size=1):
        """A convolution."""
        layer = nn.utils.skip_init(nn.Conv2d, fan_in, fan_out, size, padding=size // 2, **like)
        nn.init.zeros_(layer.bias)
        nn.init.kaiming_normal_(layer.weight, generator=generator)
        return layer

    def look(fan_in, fan_out):
        return mix(fan_in, fan_out, 3), nn.BatchNorm2d(fan_out, **like), nn.ReLU()

    def drop():
        return ChannelDropout(rate)

    w, w3, w8 = width, 3 * width, 8 * width
    eighth = nn.Sequential(*look(w8, w8), drop(), mix(w8, w8))
    quarter = nn.Sequential(*look(w3, w8), *look(w8, w8), _Level(mix(w8, w8), eighth), drop(), mix(w8, w3))
    half = nn.Sequential(*look(w, w3), *look(w3, w3), _Level(mix(w3, w3), quarter), drop(), mix(w3, w3))
    last = mix(w3, num_classes + 2)
    with torch.no_grad():
        last.weight.mul_(0.1)  # to start without an opinion: large outputs would first have to be unlearned
        last.bias[-2] = _MIDDLE
    return nn.Sequential(*look(1, w), _Level(mix(w, w3), half), drop(), last)


def scene_loss(
    outputs: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n height width"],
    depth: Float[Tensor, "n height width"],
) -> Float[Tensor, ""]:
    r"""Minus the log likelihood of class and depth, averaged over the pixels.

    .. math:: \ell = -\frac{1}{P_+} \sum_{p:\, c_p \ge 0} \log \operatorname{softmax}(f_p)_{c_p}
              - \frac1P \sum_p \log N\big( z_p \mid \mu_p, e^{s_p} \big)

    Args:
        outputs: f, μ and s of :func:`scene_network`, [n, C + 2, H, W].
        labels: c, from 0 to C - 1; -1 where there is none, and the class does not count.
        depth: z, measured, in metres.

    Returns:
        A number, in nats a pixel. On an accelerator, each call waits for the checks.

    Raises:
        ValueError: if the shapes do not fit each other, a label is out of range, or a depth is not finite.

    Source: Kendall and Gal (2017), arXiv:1703.04977, equation 8.
    Book: sec-scenes
    """
    num_classes = outputs.shape[1] - 2 if outputs.ndim == 4 else 0
    if num_classes < 2:
        raise ValueError(f"outputs must have shape [n, classes + 2 >= 4, height, width], got {list(outputs.shape)}")
    check_same_shape(labels=labels, depth=depth, **{"the depths in outputs": outputs[:, -2]})
    is_valid = (labels >= -1) & (labels < num_classes)
    if not is_valid.all():
        raise ValueError(f"labels must be from -1 to {num_classes - 1}, got {labels[~is_valid][0].item()}")
    logits, (loc, log_var) = outputs[:, :-2], outputs[:, -2:].unbind(1)
    is_labelled = labels >= 0
    each = F.cross_entropy(logits, labels.long(), ignore_index=-1, reduction="sum")
    return each / is_labelled.sum().clamp(min=1) + gaussian_nll(loc, log_var, depth).mean()
