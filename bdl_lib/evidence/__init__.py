"""The evidence p(x), an integral over all settings of the parameters: estimated in many ways, each with its error.

One file an idea: ``quadrature``, ``importance``, ``laplace``, ``annealing``, ``sequential``, ``thermodynamic``,
``bridge``. ``tempering`` is the walk that three of them share; ``results`` says what all of them return, ``moves`` and
``densities`` what they take.

Chapter: book/03-evidence.ipynb
"""

from bdl_lib.evidence.annealing import annealed_importance_sampling
from bdl_lib.evidence.bridge import bridge_sampling
from bdl_lib.evidence.densities import draw, log_density
from bdl_lib.evidence.importance import harmonic_mean, importance_sampling, prior_sampling
from bdl_lib.evidence.laplace import find_mode, laplace, negative_hessian
from bdl_lib.evidence.moves import Kernel, LogProb, Move, gaussian_move
from bdl_lib.evidence.quadrature import GridCost, grid_cost, grid_quadrature
from bdl_lib.evidence.results import LogEvidence, Particles, UnreliableEvidence, pareto_k
from bdl_lib.evidence.sequential import sequential_monte_carlo
from bdl_lib.evidence.tempering import conditional_ess, next_temperature
from bdl_lib.evidence.thermodynamic import thermodynamic_integration

__all__ = [
    "GridCost",
    "Kernel",
    "LogEvidence",
    "LogProb",
    "Move",
    "Particles",
    "UnreliableEvidence",
    "annealed_importance_sampling",
    "bridge_sampling",
    "conditional_ess",
    "draw",
    "find_mode",
    "gaussian_move",
    "grid_cost",
    "grid_quadrature",
    "harmonic_mean",
    "importance_sampling",
    "laplace",
    "log_density",
    "negative_hessian",
    "next_temperature",
    "pareto_k",
    "prior_sampling",
    "sequential_monte_carlo",
    "thermodynamic_integration",
]
