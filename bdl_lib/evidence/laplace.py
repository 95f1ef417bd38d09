r"""A Gaussian through the posterior's highest point: Laplace's approximation of the integral.

Chapter: book/03-evidence.ipynb
"""

from math import log, nan, pi

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap

from bdl_lib.evidence.moves import LogProb
from bdl_lib.evidence.results import LogEvidence, Watch, warn_unreliable

__all__ = ["find_mode", "laplace", "negative_hessian"]

_CHUNK_SIZE = 64  # columns of the Hessian computed at once
_MAX_DECREMENT = 0.01  # nats that a Newton step would still gain


def find_mode(
    log_joint: LogProb, initial_position: Float[Tensor, " dim"], *, max_steps: int = 500
) -> Float[Tensor, " dim"]:
    r"""The nearest summit of a log density, by L-BFGS.

    Args:
        log_joint: log density in nats, differentiable, for rows of [n, dim].
        initial_position: where to start; the density must be finite there.
        max_steps: at most how many iterations, at least 1.

    Returns:
        The position of the summit; of one of them, if there are several. Stops when the gradient or the change is as
        small as the precision of the numbers allows. The line search makes the host wait for the device.

    Raises:
        ValueError: if ``max_steps`` is below 1, or the density is not finite at the start.

    Source: Nocedal and Wright (2006), Numerical Optimization, chapter 7.
    Book: sec-laplace
    """
    if not max_steps >= 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    position = initial_position.detach().clone().requires_grad_()
    if not log_joint(position.detach()[None]).isfinite().all():
        raise ValueError(f"log_joint must be finite at initial_position, got {log_joint(position.detach()[None])}")
    eps = torch.finfo(position.dtype).eps
    optimizer = torch.optim.LBFGS(
        [position], max_iter=max_steps, line_search_fn="strong_wolfe", tolerance_grad=eps**0.75, tolerance_change=eps
    )

    def loss():
        value = -log_joint(position[None]).squeeze(0)
        (position.grad,) = torch.autograd.grad(value, position)
        return value

    optimizer.step(loss)
    return position.detach()


def laplace(log_joint: LogProb, mode: Float[Tensor, " dim"], *, is_diagonal: bool = False) -> LogEvidence:
    r"""The evidence if the posterior were Gaussian: its height at the mode times the volume of that Gaussian.

    .. math:: \log p(x) \approx \log p(x \mid \hat\theta)\, p(\hat\theta) + \frac d2 \log 2\pi
              - \frac12 \log |H|, \qquad H = -\nabla^2 \log p(x \mid \theta)\, p(\theta) \big|_{\hat\theta}

    Exact for a linear model with Gaussian noise and prior.

    Args:
        log_joint: log p(x | θ) + log p(θ) in nats for rows of [n, dim], twice differentiable.
        mode: :math:`\hat\theta`, from :func:`find_mode` or another optimiser.
        is_diagonal: True keeps only the diagonal of H, which is cheaper and overlooks correlations. By Hadamard's
            inequality :math:`|H| \le \prod_j H_{jj}`, so it never gives more than the full H.

    Returns:
        The estimate; ``std_error`` is NaN, since nothing is random: the error is the posterior's departure from a
        Gaussian, and nothing here measures it. A point that is no summit (a Newton step would gain more than 0.01
        nats) gives an :class:`UnreliableEvidence` warning.

    Raises:
        ValueError: if the density is not finite at ``mode``, or H is not positive definite there.

    Source: MacKay (2003), Information Theory, Inference, and Learning Algorithms, chapter 27; Tierney and Kadane
        (1986), doi:10.1080/01621459.1986.10478240.
    Book: sec-laplace
    """
    watched = Watch("log_joint", log_joint)
    height = watched(mode.detach()[None]).squeeze(0)
    if not height.isfinite():
        raise ValueError(f"log_joint must be finite at mode, got {height.item()}")
    prec = negative_hessian(log_joint, mode, is_diagonal=is_diagonal)
    cholesky, info = torch.linalg.cholesky_ex(torch.diag_embed(prec) if is_diagonal else prec)
    if info != 0 or not cholesky.isfinite().all():
        raise ValueError(
            f"mode must be a summit, where minus the Hessian is positive definite, got {mode.tolist()[:8]}"
        )
    slope = grad(lambda position: log_joint(position[None]).squeeze(0))(mode.detach())
    decrement = 0.5 * torch.linalg.solve_triangular(cholesky, slope[:, None], upper=False).square().sum()
    if not decrement <= _MAX_DECREMENT:
        warn_unreliable(f"mode is not a summit: a Newton step would still gain {decrement:.3g} nats")
    value = height + 0.5 * len(mode) * log(2 * pi) - cholesky.diagonal().log().sum()
    return LogEvidence(value, value.new_tensor(nan), watched.num_evaluations, watched.num_excluded)


def negative_hessian(
    log_prob: LogProb, position: Float[Tensor, " dim"], *, is_diagonal: bool = False
) -> Float[Tensor, "dim dim"] | Float[Tensor, " dim"]:
    r"""The curvature of a log density, :math:`H = -\nabla^2 \log p(\theta)`: a precision, if p is Gaussian.

    Args:
        log_prob: log density in nats for rows of [n, dim], twice differentiable.
        position: where.
        is_diagonal: True computes the diagonal alone, [dim], in memory that does not grow with dim².

    Returns:
        H, or its diagonal.

    Source: Pearlmutter (1994), doi:10.1162/neco.1994.6.1.147 (Hessian-vector products, used for the diagonal).
    Book: sec-laplace
    """
    position = position.detach()

    def at(position):
        return log_prob(position[None]).squeeze(0)

    if not is_diagonal:
        return -hessian(at)(position)
    index = torch.arange(len(position), device=position.device)

    def entry(i):
        direction = (index == i).to(position.dtype)
        return (jvp(grad(at), (position,), (direction,))[1] * direction).sum()

    return -vmap(entry, chunk_size=_CHUNK_SIZE)(index)
