"""Bayes' theorem for a list of hypotheses: probabilities, logs, odds; one piece of evidence or many.

The last axis is always the hypotheses. Every axis before it is a batch: a call does what a loop over it would do.

Chapter: book/01-bayes.ipynb
"""

from math import inf
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ._checks import as_float, check_broadcast, require

__all__ = [
    "DiscretePosterior",
    "LogDiscretePosterior",
    "log_odds",
    "update",
    "update_log",
    "update_log_odds",
    "update_sequence",
]


class DiscretePosterior(NamedTuple):
    """What the evidence left of a belief, as probabilities.

    Book: sec-bayes-theorem
    """

    prob: Float[Tensor, "*batch hypotheses"]
    log_evidence: Float[Tensor, "*batch"]  # log p(E), nats


class LogDiscretePosterior(NamedTuple):
    """What the evidence left of a belief, as log probabilities.

    Book: sec-bayes-theorem
    """

    log_prob: Float[Tensor, "*batch hypotheses"]  # nats
    log_evidence: Float[Tensor, "*batch"]  # log p(E), nats


def update(
    prior_prob: Float[Tensor, "*#batch hypotheses"], likelihood: Float[Tensor, "*#batch hypotheses"]
) -> DiscretePosterior:
    r"""Posterior probability of each hypothesis after one piece of evidence.

    .. math:: p(H_k \mid E) = \frac{p(E \mid H_k)\, p(H_k)}{p(E)}, \qquad p(E) = \sum_j p(E \mid H_j)\, p(H_j)

    Args:
        prior_prob: p(H), or weights in proportion to it: finite, non-negative, not all zero. Normalised here.
        likelihood: p(E | H), each in [0, 1]. Over the hypotheses it need not sum to one.

    Returns:
        The probabilities after the evidence, and log p(E) in nats. Nothing underflows on the way, however small the
        numbers; gradients are exact, also where a prior or a likelihood is 0.

    Raises:
        ValueError: if a prior or a likelihood is out of range or NaN, if the shapes do not match, or if the evidence is
            impossible under every hypothesis that the prior allows.

    Source: Bayes (1763), doi:10.1098/rstl.1763.0053; Jaynes (2003), Probability Theory, chapter 4.
    Book: sec-bayes-theorem
    """
    _check_hypotheses(prior_prob=prior_prob, likelihood=likelihood)
    after = _update_each_step(prior_prob, likelihood.unsqueeze(-2), "likelihood")
    return DiscretePosterior(after.prob.squeeze(-2), after.log_evidence.squeeze(-1))


def update_log(
    log_prior: Float[Tensor, "*#batch hypotheses"], log_likelihood: Float[Tensor, "*#batch hypotheses"]
) -> LogDiscretePosterior:
    r"""Log posterior of each hypothesis, for a likelihood given as a log: of a probability or of a density.

    .. math:: \log p(H_k \mid E) = \log p(E \mid H_k) + \log p(H_k) - \log p(E)

    Args:
        log_prior: log p(H) in nats, up to a constant; −∞ rules a hypothesis out. Normalised here.
        log_likelihood: log p(E | H) in nats. Positive values are fine: a density may exceed one.

    Returns:
        The log probabilities after the evidence, and log p(E), both in nats.

    Raises:
        ValueError: if an entry is NaN or +∞, if the shapes do not match, if the prior rules every hypothesis out, or if
            the evidence is impossible under every hypothesis that the prior allows.

    Source: Jaynes (2003), Probability Theory, chapter 4.
    Book: sec-bayes-theorem
    """
    _check_hypotheses(log_prior=log_prior, log_likelihood=log_likelihood)
    require(log_prior < inf, "log_prior must be finite or -inf", log_prior)
    require(log_likelihood < inf, "log_likelihood must be finite or -inf", log_likelihood)
    log_prior_total = log_prior.logsumexp(-1, keepdim=True)
    require(log_prior_total > -inf, "log_prior must allow at least one hypothesis", log_prior_total)
    log_joint = log_prior - log_prior_total + log_likelihood
    log_evidence = log_joint.logsumexp(-1, keepdim=True)
    require(log_evidence > -inf, "log_likelihood must allow a hypothesis that log_prior allows", log_evidence)
    return LogDiscretePosterior(log_joint - log_evidence, log_evidence.squeeze(-1))


def update_sequence(
    prior_prob: Float[Tensor, "*#batch hypotheses"], likelihoods: Float[Tensor, "*#batch steps hypotheses"]
) -> DiscretePosterior:
    r"""Posterior after each of several pieces of evidence that are independent given the hypothesis.

    .. math:: p(H_k \mid E_1, \dots, E_t) \propto p(H_k) \prod_{s \le t} p(E_s \mid H_k)

    Args:
        prior_prob: p(H) before any evidence, or weights in proportion to it: finite, non-negative, not all zero.
        likelihoods: p(E_t | H), each in [0, 1], at least one step.

    Returns:
        ``prob`` of shape [..., steps, hypotheses], after steps 1, 2, …; ``log_evidence`` of shape [..., steps], the log
        probability in nats of everything seen so far. The last entry does not depend on the order of the steps.

    Raises:
        ValueError: if there is no step, if a prior or a likelihood is out of range or NaN, if the shapes do not match,
            or if a step is impossible under every hypothesis that is left.

    Source: Jaynes (2003), Probability Theory, chapter 4.
    Book: sec-two-tests
    """
    if likelihoods.ndim < 2 or likelihoods.shape[-2] == 0:
        raise ValueError(f"likelihoods must be [..., steps >= 1, hypotheses], got shape {tuple(likelihoods.shape)}")
    _check_hypotheses(prior_prob=prior_prob, likelihoods=likelihoods[..., 0, :])
    return _update_each_step(prior_prob, likelihoods, "likelihoods")


def log_odds(prob: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    r"""Log odds of a probability, :math:`\log \frac{p}{1 - p}`, in nats; ``torch.sigmoid`` leads back.

    Args:
        prob: p in [0, 1].

    Returns:
        Log odds of the same shape: −∞ at 0 and +∞ at 1.

    Raises:
        ValueError: if a probability is outside [0, 1] or NaN.

    Source: Jaynes (2003), Probability Theory, chapter 4.
    Book: sec-odds
    """
    require((prob >= 0) & (prob <= 1), "prob must be in [0, 1]", prob)
    return prob.log() - (-prob).log1p()


def update_log_odds(
    prior_log_odds: Float[Tensor, "*#batch"],
    likelihood_if_true: float | Float[Tensor, "*#batch"],
    likelihood_if_false: float | Float[Tensor, "*#batch"],
) -> Float[Tensor, "*#batch"]:
    r"""Log odds of a hypothesis after one piece of evidence: the evidence adds the log of the Bayes factor.

    .. math:: \log \frac{p(H \mid E)}{p(\bar H \mid E)}
              = \log \frac{p(H)}{p(\bar H)} + \log \frac{p(E \mid H)}{p(E \mid \bar H)}

    Args:
        prior_log_odds: log odds before the evidence, in nats; ±∞ is certainty.
        likelihood_if_true: p(E | H) in [0, 1].
        likelihood_if_false: p(E | not H) in [0, 1].

    Returns:
        Log odds after the evidence, in nats; ±∞ where a likelihood is 0.

    Raises:
        ValueError: if a likelihood is outside [0, 1] or NaN, if the prior is NaN, if the shapes do not broadcast, or if
            the evidence is impossible either way.

    Source: Jaynes (2003), Probability Theory, chapter 4.
    Book: sec-odds
    """
    if_true = as_float(likelihood_if_true, prior_log_odds)
    if_false = as_float(likelihood_if_false, prior_log_odds)
    check_broadcast(
        prior_log_odds=prior_log_odds.shape, likelihood_if_true=if_true.shape, likelihood_if_false=if_false.shape
    )
    require(~prior_log_odds.isnan(), "prior_log_odds must be a number", prior_log_odds)
    require((if_true >= 0) & (if_true <= 1), "likelihood_if_true must be in [0, 1]", if_true)
    require((if_false >= 0) & (if_false <= 1), "likelihood_if_false must be in [0, 1]", if_false)
    posterior_log_odds = prior_log_odds + (if_true.log() - if_false.log())
    rule = "likelihood_if_true or likelihood_if_false must be positive where the prior allows it"
    require(~posterior_log_odds.isnan(), rule, posterior_log_odds)
    return posterior_log_odds


def _check_hypotheses(**arguments: Tensor) -> None:
    """Check that prior and likelihood share their last axis, the hypotheses, and that the axes before it broadcast."""
    (prior_name, prior), (name, likelihood) = arguments.items()
    if prior.ndim == 0 or prior.shape[-1] == 0 or prior.shape[-1:] != likelihood.shape[-1:]:
        rule = f"{prior_name} and {name} must have the same number of hypotheses, at least one"
        raise ValueError(f"{rule}, got shapes {tuple(prior.shape)} and {tuple(likelihood.shape)}")
    check_broadcast(**{prior_name: prior.shape[:-1], name: likelihood.shape[:-1]})


def _update_each_step(prior_prob: Tensor, likelihoods: Tensor, name: str) -> DiscretePosterior:
    """Posterior after each step; ``name`` is what the caller calls the likelihoods."""
    require((prior_prob >= 0) & (prior_prob < inf), "prior_prob must be finite and non-negative", prior_prob)
    prior_max = prior_prob.amax(-1)
    require(prior_max > 0, "prior_prob must be positive for at least one hypothesis", prior_max)
    require((likelihoods >= 0) & (likelihoods <= 1), f"{name} must be in [0, 1]", likelihoods)

    batch = torch.broadcast_shapes(prior_prob.shape[:-1], likelihoods.shape[:-2])
    prior_prob, likelihoods = prior_prob.expand(*batch, -1), likelihoods.expand(*batch, -1, -1)
    factors = torch.cat([prior_prob.unsqueeze(-2), likelihoods], -2)  # step 0 is the prior

    # p(E_1, ..., E_t, H) is a product of factors. A zero has no log: it stands aside, a 0 among ones; the others add
    # up as logs. So nothing underflows, and gradients are exact, also at a zero.
    log_product = torch.where(factors > 0, factors, 1).log().cumsum(-2)
    is_possible = torch.where(factors > 0, 1, factors).cumprod(-2)
    largest = torch.where(is_possible > 0, log_product, -inf).amax(-1, keepdim=True)
    require(largest > -inf, f"{name} must be positive for a hypothesis that is still possible", largest.exp())

    bound = torch.finfo(log_product.dtype).max ** 0.5  # lest 0 * inf become NaN
    joint = is_possible * (log_product - largest).exp().clamp(max=bound)
    total = joint.sum(-1, keepdim=True)
    log_total = (total.log() + largest).squeeze(-1)
    return DiscretePosterior((joint / total)[..., 1:, :], log_total[..., 1:] - log_total[..., :1])
