"""Markov chain Monte Carlo: draws from a density that is known up to a constant, for many chains at once.

One file an algorithm. A kernel, such as ``hmc``, moves every chain once; an entry point, such as ``sample_chees``,
tunes a kernel and runs it::

    draws = sample_chees(log_prob, initial_position, num_warmup=200, num_samples=500, generator=generator)

Chapter: book/04-mcmc.ipynb
"""

from bdl_lib.mcmc.adaptation import (
    DualAveraging,
    dual_averaging_start,
    dual_averaging_step,
    pooled_inverse_mass_matrix,
)
from bdl_lib.mcmc.calibration import Calibration, calibrate
from bdl_lib.mcmc.chees import CheesState, chees, sample_chees
from bdl_lib.mcmc.density import Density, differentiable
from bdl_lib.mcmc.diagnostics import Diagnosis, bfmi, diagnose, nested_rhat
from bdl_lib.mcmc.hmc import HmcInfo, HmcState, Metric, PhasePoint, gaussian_momentum, hmc, leapfrog, sample_hmc
from bdl_lib.mcmc.mala import mala, sample_mala
from bdl_lib.mcmc.meads import GhmcInfo, GhmcState, generalized_hmc, largest_eigenvalue, sample_meads
from bdl_lib.mcmc.metropolis import MetropolisInfo, MetropolisState, metropolis, sample_metropolis
from bdl_lib.mcmc.microcanonical import (
    MicrocanonicalEnd,
    MicrocanonicalInfo,
    MicrocanonicalState,
    microcanonical,
    microcanonical_leapfrog,
    sample_microcanonical,
)
from bdl_lib.mcmc.nuts import NutsInfo, nuts, sample_nuts
from bdl_lib.mcmc.parallel_tempering import (
    TemperingInfo,
    TemperingState,
    adapt_ladder,
    parallel_tempering,
    sample_parallel_tempering,
)
from bdl_lib.mcmc.run import Draws, collect, load_draws, resume, save_draws
from bdl_lib.mcmc.stochastic_gradient import (
    SghmcState,
    SgldState,
    StochasticInfo,
    sample_sghmc,
    sample_sgld,
    sghmc,
    sgld,
)
from bdl_lib.mcmc.trajectory_length import halton
from bdl_lib.mcmc.transforms import ORDERED, Bijection, constrain, unconstrained_log_prob

__all__ = [
    "ORDERED",
    "Bijection",
    "Calibration",
    "CheesState",
    "Density",
    "Diagnosis",
    "Draws",
    "DualAveraging",
    "GhmcInfo",
    "GhmcState",
    "HmcInfo",
    "HmcState",
    "Metric",
    "MetropolisInfo",
    "MetropolisState",
    "MicrocanonicalEnd",
    "MicrocanonicalInfo",
    "MicrocanonicalState",
    "NutsInfo",
    "PhasePoint",
    "SghmcState",
    "SgldState",
    "StochasticInfo",
    "TemperingInfo",
    "TemperingState",
    "adapt_ladder",
    "bfmi",
    "calibrate",
    "chees",
    "collect",
    "constrain",
    "diagnose",
    "differentiable",
    "dual_averaging_start",
    "dual_averaging_step",
    "gaussian_momentum",
    "generalized_hmc",
    "halton",
    "hmc",
    "largest_eigenvalue",
    "leapfrog",
    "load_draws",
    "mala",
    "metropolis",
    "microcanonical",
    "microcanonical_leapfrog",
    "nested_rhat",
    "nuts",
    "parallel_tempering",
    "pooled_inverse_mass_matrix",
    "resume",
    "sample_chees",
    "sample_hmc",
    "sample_mala",
    "sample_meads",
    "sample_metropolis",
    "sample_microcanonical",
    "sample_nuts",
    "sample_parallel_tempering",
    "sample_sghmc",
    "sample_sgld",
    "save_draws",
    "sghmc",
    "sgld",
    "unconstrained_log_prob",
]
