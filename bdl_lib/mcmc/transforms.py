r"""Change of variables: sample where every point is allowed, and map the draws to where the parameters live.

A standard deviation is positive, a mixture's weights sum to one, cut points are ordered: a sampler that steps over such
a border wastes its step. So let it move an unconstrained :math:`u \in \mathbb{R}^d`, with :math:`\theta = T(u)`.
Lengths change on the way, and the density must pay for it with the Jacobian of T.

Chapter: book/04-mcmc.ipynb
"""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from bdl_lib.evidence import LogProb

__all__ = ["ORDERED", "Bijection", "constrain", "unconstrained_log_prob"]


class _Ordered(constraints.Constraint):
    """Strictly increasing along the last axis."""

    event_dim = 1

    def check(self, value):
        return (value.diff() > 0).all(-1)


ORDERED = _Ordered()  # PyTorch has every other constraint of this chapter


class _OrderedTransform(Transform):
    """The first coordinate as it is, then steps upwards of exp(u)."""

    domain = constraints.real_vector
    codomain = ORDERED
    bijective = True

    def _call(self, x):
        return torch.cat([x[..., :1], x[..., 1:].exp()], -1).cumsum(-1)

    def _inverse(self, y):
        return torch.cat([y[..., :1], y.diff().log()], -1)

    def log_abs_det_jacobian(self, x, y):
        return x[..., 1:].sum(-1)


class Bijection(NamedTuple):
    """A one-to-one map from all of R^d onto the constrained parameters, and what it does to volumes.

    All three functions take any batch of vectors. ``slices["name"]`` is where a parameter lies in a constrained vector.

    Book: sec-funnel
    """

    forward: Callable[[Tensor], Tensor]  # unconstrained [*, dim] -> constrained [*, constrained_dim]
    inverse: Callable[[Tensor], Tensor]  # the way back
    log_abs_det: Callable[[Tensor], Tensor]  # unconstrained [*, dim] -> [*], log |det dT/du|
    dim: int
    constrained_dim: int
    slices: dict[str, slice]


def constrain(parameters: Mapping[str, tuple[constraints.Constraint, int]]) -> Bijection:
    r"""A map from :math:`\mathbb{R}^d` onto parameters of which each has its own constraint.

    .. math:: \theta_j = e^{u_j} \text{ (positive)}, \quad
              \theta_j = a + (b - a) \frac{1}{1 + e^{-u_j}} \text{ (interval)}, \quad
              \theta_1 = u_1,\; \theta_{j+1} = \theta_j + e^{u_{j+1}} \text{ (ordered)}

    and stick-breaking for a simplex, where the j-th coordinate says which share of what is left goes to entry j. A
    simplex of k entries has k - 1 coordinates; everything else has as many as entries.

    Args:
        parameters: for each name a constraint and how many entries it has, at least 1 (a simplex: 2), in the order in
            which they lie in the vector. Constraints are those of ``torch.distributions.constraints`` for numbers and
            vectors (``real``, ``positive``, ``interval(a, b)``, ``greater_than(a)``, ``simplex``), and ``ORDERED``.

    Returns:
        A :class:`Bijection`. The Jacobian of a simplex is that of its first k - 1 entries, the measure in which
        ``torch.distributions.Dirichlet`` has its density.

    Raises:
        ValueError: if there are no parameters, a size is too small, or PyTorch has no map onto the constraint.

    Source: Carpenter et al. (2017), Stan: A Probabilistic Programming Language, doi:10.18637/jss.v076.i01.
    Book: sec-funnel
    """
    if not parameters:
        raise ValueError(f"parameters must name at least one parameter, got {dict(parameters)}")
    transforms = [_transform(name, *spec) for name, spec in parameters.items()]
    sizes = [size for _, size in parameters.values()]
    free_sizes = [size - (constraint is constraints.simplex) for constraint, size in parameters.values()]

    def forward(unconstrained):
        parts = zip(transforms, unconstrained.split(free_sizes, -1), strict=True)
        return torch.cat([transform(part) for transform, part in parts], -1)

    def inverse(constrained):
        parts = zip(transforms, constrained.split(sizes, -1), strict=True)
        return torch.cat([transform.inv(part) for transform, part in parts], -1)

    def log_abs_det(unconstrained):
        parts = zip(transforms, unconstrained.split(free_sizes, -1), strict=True)
        return sum(_log_abs_det(transform, part) for transform, part in parts)

    ends = list(itertools.accumulate(sizes))
    slices = {name: slice(end - size, end) for name, size, end in zip(parameters, sizes, ends, strict=True)}
    return Bijection(forward, inverse, log_abs_det, sum(free_sizes), sum(sizes), slices)


def unconstrained_log_prob(log_prob: LogProb, bijection: Bijection) -> LogProb:
    r"""The density of u that makes :math:`\theta = T(u)` have the density π.

    .. math:: \log \pi_u(u) = \log \pi(T(u)) + \log \left| \det \frac{\partial T}{\partial u} \right|

    Probability is density times volume: where T stretches a volume, u must be denser by the factor by which it does.

    Args:
        log_prob: log π of constrained parameters, [chains, constrained_dim] to [chains], nats.
        bijection: T, from :func:`constrain`.

    Returns:
        A log density for any sampler, [chains, dim] to [chains], nats. ``bijection.inverse`` maps a start to it,
        ``bijection.forward`` its draws back to constrained parameters.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, equation 1.27.
    Book: sec-funnel
    """

    def log_prob_of_unconstrained(position: Float[Tensor, "chains dim"]) -> Float[Tensor, " chains"]:
        return log_prob(bijection.forward(position)) + bijection.log_abs_det(position)

    return log_prob_of_unconstrained


def _transform(name, constraint, size):
    smallest = 2 if constraint is constraints.simplex else 1
    if not size >= smallest:
        raise ValueError(f"parameters[{name!r}] must have at least {smallest} entries, got {size}")
    if constraint is ORDERED:
        return _OrderedTransform()
    try:
        transform = biject_to(constraint)
    except NotImplementedError:
        raise ValueError(f"parameters[{name!r}] must have a constraint with a bijection, got {constraint}") from None
    if transform.domain.event_dim > 1 or transform.codomain.event_dim > 1 or transform.codomain.is_discrete:
        raise ValueError(f"parameters[{name!r}] must be numbers or a vector, got {constraint}")
    return transform


def _log_abs_det(transform, unconstrained):
    log_abs_det = transform.log_abs_det_jacobian(unconstrained, transform(unconstrained))
    return log_abs_det if transform.domain.event_dim else log_abs_det.sum(-1)
