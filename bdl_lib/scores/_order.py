"""Quantiles of draws: values between neighbours in a sorted column.

Chapter: book/06-mcmc-versus-vi.ipynb
"""

from jaxtyping import Float
from torch import Tensor

__all__ = ["order_statistic"]


def order_statistic(
    ordered: Float[Tensor, "n columns"], position: Float[Tensor, "k columns"]
) -> Float[Tensor, "k columns"]:
    """Read sorted columns at fractional positions from 0 to n - 1, by straight lines between neighbours."""
    below = position.floor().clamp(0, len(ordered) - 1)
    above = (below + 1).clamp(max=len(ordered) - 1)
    low, high = ordered.gather(0, below.long()), ordered.gather(0, above.long())
    return low + (position - below) * (high - low)
