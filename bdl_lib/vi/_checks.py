"""How variational inference refuses what it cannot run: in one wording, before it computes.

Chapter: book/05-vi.ipynb
"""

from bdl_lib.mcmc._checks import check_at_least, check_positive

__all__ = ["check_at_least", "check_loc", "check_num_samples", "check_positive"]


def check_num_samples(num_samples: int, least: int = 1) -> None:
    """Raise ``ValueError`` unless there are enough draws."""
    check_at_least("num_samples", num_samples, least)


def check_loc(loc) -> None:
    """Raise ``ValueError`` unless this is a vector of finite floating-point numbers."""
    if loc.ndim != 1 or len(loc) < 1 or not loc.is_floating_point():
        raise ValueError(f"loc must be a floating-point vector, [dim >= 1], got {loc.dtype} of shape {list(loc.shape)}")
    if not loc.isfinite().all():
        raise ValueError(f"loc must be finite, got {loc[~loc.isfinite()][0].item()}")
