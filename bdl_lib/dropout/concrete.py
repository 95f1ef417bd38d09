r"""Concrete dropout: a rate that is learned, through masks that are almost zero or one, and so have a gradient in it.

Chapter: book/07-dropout.ipynb
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bdl_lib.dropout._checks import check_at_least
from bdl_lib.dropout.layers import MaskSource
from bdl_lib.mcmc._checks import check_between, check_positive

__all__ = ["ConcreteDropout", "concrete_regulariser"]


class ConcreteDropout(nn.Module):
    r"""A layer behind dropout of its inputs, at a rate that is a parameter: the sigmoid of ``rate_logit``.

    .. math:: z = \sigma\Big(\frac{\operatorname{logit} u - \operatorname{logit} p}{t}\Big), \qquad
              u \sim \operatorname{Uniform}(0, 1), \qquad y = \text{layer}\Big(\frac{z \odot x}{1 - p}\Big)

    As the temperature t goes to 0, z becomes 1 where u > p and 0 elsewhere: a dropout mask, without a gradient in p. At
    t = 0.1 few values are far from 0 and 1, and the gradient is of use. **Which mask**: the smooth one while gradients
    are recorded and the rate is trained; the exact one, 0 or 1, otherwise, so in prediction. Without masks it is the
    layer, as :class:`bdl_lib.dropout.Dropout` is nothing.

    Train it with :func:`concrete_regulariser`: without it, nothing keeps the rate from going to 0.

    Args:
        layer: ``nn.Linear``, whose every input is dropped on its own, or ``nn.Conv1d`` to ``nn.Conv3d``, whose input
            channels are dropped whole.
        initial_rate: p to start from, between 0 and 1.
        temperature: t > 0, the distance of u from p on the logit scale over which the mask turns from 0 to 1.

    Raises:
        ValueError: if ``layer`` is of another kind, or a number is out of range.

    Source: Gal, Hron and Kendall (2017), arXiv:1705.07832, section 3; Maddison, Mnih and
        Teh (2017), arXiv:1611.00712.
    Book: sec-concrete
    """

    mask_source: MaskSource | None = None
    shares_mask = False
    is_random = True

    def __init__(self, layer: nn.Module, initial_rate: float = 0.1, *, temperature: float = 0.1):
        if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            raise ValueError(f"layer must be nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d, got {type(layer).__name__}")
        check_between("initial_rate", initial_rate, 0, 1)
        check_positive("temperature", temperature)
        super().__init__()
        self.layer, self.temperature = layer, temperature
        self.rate_logit = nn.Parameter(layer.weight.new_tensor(math.log(initial_rate / (1 - initial_rate))))

    @property
    def rate(self) -> Float[Tensor, ""]:
        """p, as it is now."""
        return self.rate_logit.detach().sigmoid()

    @property
    def num_units(self) -> int:
        """K, how many inputs are dropped on their own, or input channels."""
        return self.layer.in_features if isinstance(self.layer, nn.Linear) else self.layer.in_channels

    def forward(self, inputs: Float[Tensor, "n *features"]) -> Float[Tensor, "m *out"]:
        """The layer, or that of masked inputs where the call brings masks."""
        return self.layer(inputs) if self.mask_source is None else self.mask_source(self, inputs)

    def mask_shape(self, stacked: Tensor) -> tuple[int, ...]:
        """One number an input of a linear layer, or a channel."""
        shape = tuple(stacked.shape[2:])
        return shape if isinstance(self.layer, nn.Linear) else (shape[0], *[1] * (len(shape) - 1))

    def draw_mask(self, shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator) -> Tensor:
        """Masks of this shape: smooth and differentiable in the rate while that is trained, exact otherwise."""
        uniform = torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)
        if not (torch.is_grad_enabled() and self.rate_logit.requires_grad):
            return (uniform >= self.rate) / (1 - self.rate)
        kept = ((uniform.logit() - self.rate_logit) / self.temperature).sigmoid()
        return kept * (1 + self.rate_logit.exp())  # 1 + exp(logit p) = 1 / (1 - p)

    def with_mask(self, stacked: Tensor, mask: Tensor) -> Tensor:
        """The layer's outputs for the masked inputs, [T, n, *out]."""
        masked = stacked * mask
        return self.layer(masked.flatten(0, 1)).unflatten(0, masked.shape[:2])

    def extra_repr(self) -> str:
        """The rate and the temperature."""
        return f"rate={self.rate:.3g}, temperature={self.temperature}"


def concrete_regulariser(
    model: nn.Module, *, length_scale: float, num_data: int, noise_prec: float = 1.0
) -> Float[Tensor, ""]:
    r"""What concrete dropout adds to the mean loss: the divergence from the prior, over N τ.

    .. math:: r = \frac{1}{N \tau} \sum_{\text{layers}} \Big( \frac{l^2}{2 (1 - p)} \lVert V \rVert^2 - K H(p) \Big),
              \qquad H(p) = -p \log p - (1 - p) \log (1 - p)

    This is :func:`bdl_lib.dropout.dropout_kl` as approximated, without its constant, and summed over the K inputs of
    each layer. The first term is the decay of :func:`bdl_lib.dropout.weight_decay_of`, and favours small rates; the
    entropy favours a rate of one half. It does not grow with the data, as the log likelihood does: with more data, the
    rate falls. The paper writes :math:`\tfrac12 l^2 (1 - p) \lVert M \rVert^2` for weights M that are not yet divided
    by 1 - p; here, as in its authors' code, :math:`V = (1 - p) M`.

    Args:
        model: with at least one :class:`ConcreteDropout`; weights behind none, and all biases, are left out.
        length_scale: l > 0, one over the prior's standard deviation.
        num_data: N, how many data points the loss averages over, at least 1.
        noise_prec: τ > 0, if the loss is the mean of half the squared error; 1 if it is the mean negative log
            likelihood in nats.

    Returns:
        r, differentiable in weights and rates: ``regulariser`` of :func:`bdl_lib.dropout.fit`, once
        ``functools.partial`` has set the rest. Leave that function's ``weight_decay`` at 0, or it comes on top.

    Raises:
        ValueError: if the model has no :class:`ConcreteDropout`, or a number is out of range.

    Source: Gal, Hron and Kendall (2017), arXiv:1705.07832, section 3.
    Book: sec-concrete
    """
    check_positive("length_scale", length_scale)
    check_at_least("num_data", num_data, 1)
    check_positive("noise_prec", noise_prec)
    layers = [module for module in model.modules() if isinstance(module, ConcreteDropout)]
    if not layers:
        raise ValueError("model must have a ConcreteDropout layer, has none")
    return sum(_divergence(layer, length_scale) for layer in layers) / (num_data * noise_prec)


def _divergence(layer: ConcreteDropout, length_scale: float) -> Tensor:
    logit, rate = layer.rate_logit, layer.rate_logit.sigmoid()
    entropy = rate * F.softplus(-logit) + (1 - rate) * F.softplus(logit)
    weights = 0.5 * length_scale**2 * (1 + logit.exp()) * layer.layer.weight.square().sum()
    return weights - layer.num_units * entropy
