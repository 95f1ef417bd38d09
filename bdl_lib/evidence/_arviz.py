"""ArviZ, loaded where it is first needed, and without what version 0.23 announces about 1.0 on import."""

import warnings

__all__ = ["import_arviz"]


def import_arviz():
    """The module, of ArviZ 0.2x or 1.x."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz
