r"""The other direction: fit q to the posterior by :math:`\mathrm{KL}(p \,\|\, q)`, which covers where the ELBO seeks.

.. math:: \mathrm{KL}(p \,\|\, q_\lambda) = -E_p[\log q_\lambda(\theta)] + \text{const}

Chapter: book/05-vi.ipynb
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence import LogProb
from bdl_lib.vi._checks import check_at_least, check_positive
from bdl_lib.vi.ascent import ascend
from bdl_lib.vi.elbo import Elbo, checked
from bdl_lib.vi.families import Family, FullRankGaussian, MeanFieldGaussian
from bdl_lib.vi.fit import not_finite
from bdl_lib.vi.results import Fit, judged

__all__ = ["fit_forward_kl", "fit_to_draws"]


def fit_forward_kl(
    log_prob: LogProb,
    family: Family,
    *,
    generator: torch.Generator,
    num_steps: int = 5000,
    num_mc_samples: int = 256,
    lr: float = 0.02,
    progress: bool = False,
) -> Fit:
    r"""The member of a family with the smallest :math:`\mathrm{KL}(p \,\|\, q_\lambda)`, without draws from p.

    .. math:: \nabla_\lambda \mathrm{KL}(p \,\|\, q_\lambda) \approx -\sum_i w_i\, \nabla_\lambda \log q_\lambda,
              \quad w_i \propto \frac{p(x, \theta_i)}{q_\lambda(\theta_i)}, \quad \theta_i \sim q_\lambda

    The weights sum to one, which biases the gradient; the more of p lies outside q, the more. Start wide.

    Args:
        log_prob: log density in nats for rows of [n, dim], up to a constant. Its gradient is not needed.
        family: where to start.
        generator: the only source of randomness.
        num_steps: at most how many, at least 1.
        num_mc_samples: draws a step, at least 2.
        lr: Adam's first learning rate, positive.
        progress: True shows a bar.

    Returns:
        A :class:`Fit`. Its history holds the estimates of :math:`E_p[\log q_\lambda]`, which rise; its ``elbo`` is the
        usual one.

    Raises:
        ValueError: if an argument is out of range, or ``log_prob`` does not take the family's draws.
        FailedFit: if a gradient is not finite.

    Source: Bornschein and Bengio (2015), arXiv:1406.2751, the wake-phase update of q.
    Book: sec-two-kls
    """
    check_at_least("num_steps", num_steps, 1)
    check_at_least("num_mc_samples", num_mc_samples, 2)
    check_positive("lr", lr)

    def bound(family):
        with torch.no_grad():
            position = family.rsample(num_mc_samples, generator=generator)
            weights = (checked(log_prob, position) - family.log_prob(position)).softmax(0)
        terms = num_mc_samples * weights * family.log_prob(position)
        return Elbo(terms.mean(), terms.detach())

    end = ascend(bound, family, num_steps=num_steps, lr=lr, progress=progress)
    result = judged(log_prob, end.family, end.history, end.is_converged, generator)
    if end.bad is not None:
        raise not_finite(result, *end.bad)
    return result


def fit_to_draws(
    draws: Float[Tensor, "n dim"],
    family: Family,
    *,
    generator: torch.Generator | None = None,
    num_steps: int = 5000,
    batch_size: int = 256,
    lr: float = 0.01,
    progress: bool = False,
) -> Family:
    r"""The member of a family under which draws from p are likeliest: forward KL when p can be sampled.

    .. math:: \hat\lambda = \arg\max_\lambda \frac1N \sum_{i=1}^N \log q_\lambda(\theta_i)

    For the two Gaussian families that is the mean and the (diagonal of the) covariance of the draws, in closed form.

    Args:
        draws: from p, one a row; more than dim + 1 for a full covariance.
        family: which family; for others than those two also where to start.
        generator: chooses minibatches; needed by the other families alone.
        num_steps: at most how many steps of Adam, at least 1.
        batch_size: draws a step, at least 1.
        lr: Adam's first learning rate, positive.
        progress: True shows a bar.

    Returns:
        The family.

    Raises:
        ValueError: if the draws do not fit the family, are not finite or too few, ``generator`` is missing, or another
            argument is out of range.
        RuntimeError: if a gradient is not finite.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, section 10.1.2.
    Book: sec-two-kls
    """
    check_at_least("num_steps", num_steps, 1)
    check_at_least("batch_size", batch_size, 1)
    check_positive("lr", lr)
    if draws.shape[1] != family.dim or not draws.isfinite().all():
        raise ValueError(f"draws must be finite, with {family.dim} columns, got shape {list(draws.shape)}")
    check_at_least("the number of draws", len(draws), family.dim + 2 if isinstance(family, FullRankGaussian) else 2)
    if isinstance(family, MeanFieldGaussian):
        return MeanFieldGaussian(draws.mean(0), draws.std(0, correction=0).log())
    if isinstance(family, FullRankGaussian):
        return FullRankGaussian(
            draws.mean(0), torch.linalg.cholesky(torch.cov(draws.mT, correction=0).reshape(family.dim, -1))
        )
    if generator is None:
        raise ValueError(f"generator must be given for a {type(family).__name__}, got None")

    def bound(family):
        rows = torch.randint(len(draws), (batch_size,), generator=generator, device=draws.device)
        terms = family.log_prob(draws[rows])
        return Elbo(terms.mean(), terms.detach())

    end = ascend(bound, family, num_steps=num_steps, lr=lr, progress=progress)
    if end.bad is not None:
        raise RuntimeError(f"the gradient of {end.bad[1]} is not finite at step {end.bad[0]}")
    return end.family
