"""The library of the course "Bayesian Deep Learning, a course that runs".

One module a chapter (``bayes``, …), and four shared ones: ``data``, ``plots``, ``widgets``, ``check``.
Import what you need: ``from bdl_lib import bayes, plots``.
"""

__version__ = "0.1.0"
