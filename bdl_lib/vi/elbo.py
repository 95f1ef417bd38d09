r"""Bounds on the evidence, as averages over draws whose gradient moves the family.

.. math:: \log p(x) = \underbrace{E_q[\log p(x, \theta) - \log q(\theta)]}_{\text{ELBO}}
          + \mathrm{KL}(q(\theta) \,\|\, p(\theta \mid x))

All estimate the same bound, or a tighter one; they differ in the noise of their gradients.

Chapter: book/05-vi.ipynb
"""

from math import log
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence import LogProb
from bdl_lib.vi._checks import check_at_least, check_num_samples
from bdl_lib.vi.families import Family

__all__ = [
    "Elbo",
    "importance_weighted_elbo",
    "reparameterised_elbo",
    "score_function_elbo",
    "sticking_the_landing_elbo",
]


class Elbo(NamedTuple):
    """An estimate of a lower bound of log p(x), in nats.

    Book: sec-elbo
    """

    value: Float[Tensor, ""]  # the mean of the terms; its gradient in the family's parameters is that of the bound
    terms: Float[Tensor, " samples"]  # one a draw, without gradients

    @property
    def std_error(self) -> Float[Tensor, ""]:
        """Monte Carlo standard error of the value, in nats; somewhat too large for a mixture, which is stratified."""
        return self.terms.std() / len(self.terms) ** 0.5


def reparameterised_elbo(log_prob: LogProb, family: Family, *, num_samples: int, generator: torch.Generator) -> Elbo:
    r"""The bound, with the gradient that goes through the draws: :math:`\theta = g_\lambda(\epsilon)`.

    .. math:: \nabla_\lambda \text{ELBO} = E_\epsilon\big[\nabla_\lambda \big(\log p(x, g_\lambda(\epsilon))
              - \log q_\lambda(g_\lambda(\epsilon))\big)\big]

    Args:
        log_prob: log p(x, θ) in nats for rows of [n, dim], differentiable. A ``value_and_grad`` of it is used.
        family: q, whose tensors may require gradients.
        num_samples: how many draws, at least 1.
        generator: the only source of randomness.

    Returns:
        An :class:`Elbo`.

    Raises:
        ValueError: if ``num_samples`` is below 1, or ``log_prob`` does not fit the family.

    Source: Kingma and Welling (2014), arXiv:1312.6114, section 2.4; Rezende, Mohamed and Wierstra (2014),
        arXiv:1401.4082.
    Book: sec-gradients
    """
    position, weights = _draw(family, num_samples, generator)
    return _mean(weights, joint(log_prob, position) - family.log_prob(position))


def sticking_the_landing_elbo(
    log_prob: LogProb, family: Family, *, num_samples: int, generator: torch.Generator
) -> Elbo:
    r"""The bound, with a gradient that goes through the draws alone, not through the parameters of log q.

    What is left out is the score, :math:`E_q[\nabla_\lambda \log q_\lambda(\theta)] = 0`: nothing on average, but
    noise. Where q equals the posterior, the two densities cancel draw by draw, and the gradient's variance is zero.

    Args:
        log_prob: log p(x, θ) in nats for rows of [n, dim], differentiable. A ``value_and_grad`` of it is used.
        family: q, whose tensors may require gradients.
        num_samples: how many draws, at least 1.
        generator: the only source of randomness.

    Returns:
        An :class:`Elbo`.

    Raises:
        ValueError: if ``num_samples`` is below 1, or ``log_prob`` does not fit the family.

    Source: Roeder, Wu and Duvenaud (2017), arXiv:1703.09194, section 3.
    Book: sec-gradients
    """
    position, weights = _draw(family, num_samples, generator)
    still = type(family)(*[tensor.detach() for tensor in family])
    return _mean(weights, joint(log_prob, position) - still.log_prob(position))


def score_function_elbo(
    log_prob: LogProb,
    family: Family,
    *,
    num_samples: int,
    generator: torch.Generator,
    control_variate: bool = True,
) -> Elbo:
    r"""The bound, with a gradient that never differentiates the model: for densities that have none.

    .. math:: \nabla_\lambda \text{ELBO} = E_q\big[(\log p(x, \theta) - \log q_\lambda(\theta) - b)\,
              \nabla_\lambda \log q_\lambda(\theta)\big]

    for any b that does not depend on θ. Here b is the mean of the bracket over the other draws.

    Args:
        log_prob: log p(x, θ) in nats for rows of [n, dim].
        family: q, whose tensors may require gradients.
        num_samples: how many draws, at least 1, or 2 with the control variate.
        generator: the only source of randomness.
        control_variate: False leaves b at 0, to be seen failing.

    Returns:
        An :class:`Elbo`.

    Raises:
        ValueError: if ``num_samples`` is too small, or ``log_prob`` does not fit the family.

    Source: Williams (1992), doi:10.1007/BF00992696; Mnih and Rezende (2016), arXiv:1602.06725, for the mean of the
        others.
    Book: sec-gradients
    """
    check_num_samples(num_samples, 2 if control_variate else 1)
    with torch.no_grad():
        position = family.rsample(num_samples, generator=generator)
    log_q = family.log_prob(position)
    terms = (checked(log_prob, position) - log_q).detach()
    others = (terms.sum() - terms) / (num_samples - 1) if control_variate else 0
    surrogate = ((terms - others) * log_q).mean()
    return Elbo(terms.mean() + surrogate - surrogate.detach(), terms)


def importance_weighted_elbo(
    log_prob: LogProb, family: Family, *, num_importance: int, num_samples: int, generator: torch.Generator
) -> Elbo:
    r"""A tighter bound: the logarithm of an average of K weights, averaged over repetitions.

    .. math:: \mathcal L_K = E\left[\log \frac1K \sum_{k=1}^K \frac{p(x, \theta_k)}{q(\theta_k)}\right], \qquad
              \text{ELBO} = \mathcal L_1 \le \mathcal L_K \le \log p(x)

    Args:
        log_prob: log p(x, θ) in nats for rows of [n, dim], differentiable. A ``value_and_grad`` of it is used.
        family: q, whose tensors may require gradients, unless it is a mixture.
        num_importance: K, at least 1.
        num_samples: how many repetitions are averaged, at least 1: ``num_samples`` × K draws in all.
        generator: the only source of randomness.

    Returns:
        An :class:`Elbo` with one term a repetition.

    Raises:
        ValueError: if a number is below 1, ``log_prob`` does not fit the family, or the gradient of a mixture is asked
            for: its draws have none in the shares.

    Source: Burda, Grosse and Salakhutdinov (2016), arXiv:1509.00519, equation 8.
    Book: sec-importance-weighted
    """
    check_at_least("num_importance", num_importance, 1)
    check_num_samples(num_samples)
    if hasattr(family, "rsample_stratified") and any(tensor.requires_grad for tensor in family):
        raise ValueError("family must have draws that are differentiable in all its parameters, got a mixture")
    position = family.rsample(num_samples * num_importance, generator=generator)
    log_weights = (joint(log_prob, position) - family.log_prob(position)).unflatten(0, (num_samples, num_importance))
    terms = log_weights.logsumexp(1) - log(num_importance)
    return Elbo(terms.mean(), terms.detach())


def joint(log_prob: LogProb, position: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
    """The log density, with its closed-form gradient where it has one and somebody wants it."""
    if not (position.requires_grad and hasattr(log_prob, "value_and_grad")):
        return checked(log_prob, position)
    value, grad = log_prob.value_and_grad(position.detach())
    return value + ((position - position.detach()) * grad).sum(-1)


def checked(log_prob: LogProb, position: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
    """The log density, or a ``ValueError`` if it does not give one number a row."""
    try:
        value = log_prob(position)
    except (RuntimeError, IndexError) as error:
        rule = f"log_prob must take positions of the family's dimension, {position.shape[1]}"
        raise ValueError(f"{rule}, but failed: {error}") from error
    if value.shape != position.shape[:1]:
        raise ValueError(f"log_prob must return one number a row, [{len(position)}], got shape {list(value.shape)}")
    return value


def _draw(family, num_samples, generator):
    """Draws and their weights, which are 1 but for a mixture."""
    check_num_samples(num_samples)
    if hasattr(family, "rsample_stratified"):
        return family.rsample_stratified(num_samples, generator=generator)
    return family.rsample(num_samples, generator=generator), 1.0


def _mean(weights, terms):
    weighted = weights * terms
    return Elbo(weighted.mean(), weighted.detach())
