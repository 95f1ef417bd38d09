"""Exact answers by an independent route: closed forms and brute force in NumPy and SciPy, in double precision.

Nothing here imports ``bdl_lib``. Each section serves one test module; add to the end.
"""

from fractions import Fraction
from itertools import pairwise, permutations
from math import log

import numpy as np
from scipy import integrate, special, stats

# ---------------------------------------------------------------------------------------------------------------------
# bayes
# ---------------------------------------------------------------------------------------------------------------------


def discrete_posterior(prior, likelihoods):
    """Bayes' theorem in exact rational arithmetic, after all steps: probabilities and log evidence."""
    weights = [Fraction(p) for p in prior]
    joint = [w / sum(weights) for w in weights]
    for step in likelihoods:
        joint = [p * Fraction(value) for p, value in zip(joint, step, strict=True)]
    evidence = sum(joint)
    return [float(p / evidence) for p in joint], log(evidence.numerator) - log(evidence.denominator)


def log_quad(log_density, low, high, *more):
    """Log of the integral of exp(log_density) over an interval, or over a rectangle given as four numbers."""
    if not more:
        return log(integrate.quad(lambda x: np.exp(log_density(x)), low, high, epsabs=0, epsrel=1e-11, limit=200)[0])
    value, _ = integrate.dblquad(lambda y, x: np.exp(log_density(x, y)), low, high, *more, epsabs=0, epsrel=1e-9)
    return log(value)


def beta_bernoulli_flip_by_flip(a, b, flips):
    """Log probability of a sequence of flips: each predicted from those before it."""
    total = 0.0
    for flip in flips:
        total += log(a / (a + b) if flip else b / (a + b))
        a, b = a + flip, b + 1 - flip
    return total


def gamma_poisson_count_by_count(concentration, rate, counts):
    """Log probability of a sequence of Poisson counts: each predicted from those before it."""
    total = 0.0
    for count in counts:
        total += stats.nbinom.logpmf(count, concentration, rate / (rate + 1))
        concentration, rate = concentration + count, rate + 1
    return total


def normal_known_std(prior_loc, prior_std, observations, noise_std):
    """Joint normal of mean and observations, conditioned: posterior mean and std, and log evidence."""
    n = len(observations)
    covariance = noise_std**2 * np.eye(n) + prior_std**2 * np.ones((n, n))
    gain = prior_std**2 * np.linalg.solve(covariance, np.ones(n))
    posterior_var = prior_std**2 * (1 - gain.sum())
    evidence = stats.multivariate_normal(np.full(n, prior_loc), covariance)
    return prior_loc + gain @ (observations - prior_loc), posterior_var**0.5, evidence.logpdf(observations)


def normal_unknown_std_log_evidence(loc, prec_scale, concentration, rate, observations):
    """With mean and precision averaged out, normal observations are one draw of a multivariate Student t."""
    n = len(observations)
    shape = rate / concentration * (np.eye(n) + np.ones((n, n)) / prec_scale)
    return stats.multivariate_t(np.full(n, loc), shape, df=2 * concentration).logpdf(observations)


def linear_in_function_space(prior_loc, prior_cov, features, targets, noise_std, new_features):
    """Bayesian linear regression as a joint normal of targets and function values, conditioned.

    Returns weight mean and covariance, mean and variance of the function at the new features, and log evidence.
    """
    covariance = features @ prior_cov @ features.T + noise_std**2 * np.eye(len(targets))
    gain = np.linalg.solve(covariance, features @ prior_cov).T
    weight_mean = prior_loc + gain @ (targets - features @ prior_loc)
    weight_cov = prior_cov - gain @ features @ prior_cov
    function_var = np.einsum("nd,de,ne->n", new_features, weight_cov, new_features)
    log_evidence = stats.multivariate_normal(features @ prior_loc, covariance).logpdf(targets)
    return weight_mean, weight_cov, new_features @ weight_mean, function_var, log_evidence


# ---------------------------------------------------------------------------------------------------------------------
# networks
# ---------------------------------------------------------------------------------------------------------------------


def mlp_outputs(weights, inputs, layer_sizes, activation, bias=True):
    """Outputs [n, k] of one weight vector: unit by unit, weights read off the vector one after the other."""
    place, hidden = 0, np.asarray(inputs)
    for layer, (fan_in, fan_out) in enumerate(pairwise(layer_sizes)):
        units = []
        for unit in range(fan_out):
            row = weights[place + unit * fan_in : place + (unit + 1) * fan_in]
            offset = weights[place + fan_out * fan_in + unit] if bias else 0.0
            units.append(sum(row[j] * hidden[:, j] for j in range(fan_in)) + offset)
        place += fan_out * fan_in + (fan_out if bias else 0)
        hidden = np.stack(units, axis=1)
        if layer < len(layer_sizes) - 2:
            hidden = activation(hidden)
    assert place == len(weights)
    return hidden


def log_likelihoods(kind, outputs, targets, noise_std=None):
    """Log probability of each target under outputs [n, k], from SciPy's distributions."""
    if kind == "gaussian":
        return stats.norm.logpdf(targets, outputs[:, 0], noise_std)
    if kind == "heteroscedastic":
        return stats.norm.logpdf(targets, outputs[:, 0], np.exp(outputs[:, 1]) ** 0.5)
    if kind == "bernoulli":
        return stats.bernoulli.logpmf(targets, 1 / (1 + np.exp(-outputs[:, 0])))
    prob = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    return np.array([stats.multinomial.logpmf(np.eye(len(p))[t], 1, p) for p, t in zip(prob, targets, strict=True)])


def mixture_moments(densities, low, high, num_points=100_001):
    """Mean and variance of an equal mixture of smooth densities that vanish at the ends, by the trapezoidal rule."""
    y = np.linspace(low, high, num_points)
    mixture = np.mean([density(y) for density in densities], axis=0)
    mean = integrate.trapezoid(y * mixture, y)
    return mean, integrate.trapezoid((y - mean) ** 2 * mixture, y)


def log_gauss_legendre(log_density, low, high, num_points=300):
    """Log of the integral of exp(log_density) over a square, by the product of two Gauss–Legendre rules."""
    nodes, weights = np.polynomial.legendre.leggauss(num_points)
    axis, weights = low + (high - low) * (nodes + 1) / 2, weights * (high - low) / 2
    values = log_density(*np.meshgrid(axis, axis, indexing="ij"))
    return special.logsumexp(values, b=np.outer(weights, weights))


def entropies(prob):
    """Total, expected and mutual information of class probabilities [samples, classes], by adding up terms in pairs."""

    def entropy(p):
        return -sum(float(x) * log(x) for x in p if x > 0)

    prob = np.asarray(prob)
    samples, classes = prob.shape
    mean = prob.mean(0)
    joint = prob / samples  # of sample and class; the information between them, from its definition
    information = sum(
        joint[s, c] * log(joint[s, c] / (mean[c] / samples))
        for s in range(samples)
        for c in range(classes)
        if joint[s, c] > 0
    )
    return entropy(mean), float(np.mean([entropy(p) for p in prob])), information


def best_action(prob, cost, refuse_cost):
    """Action of least expected loss and that loss, -1 for refusing, by trying all of them."""
    losses = {a: sum(row[c] * prob[c] for c in range(len(prob))) for a, row in enumerate(cost)}
    action = min(losses, key=losses.get)
    return (-1, refuse_cost) if refuse_cost is not None and losses[action] > refuse_cost else (action, losses[action])


def risk_coverage(confidence, loss):
    """The risk at each coverage: the average over every order of the cases in which the confidence never rises."""
    orders = [
        order
        for order in permutations(range(len(loss)))
        if all(confidence[a] >= confidence[b] for a, b in pairwise(order))
    ]
    risks = [np.cumsum([loss[i] for i in order]) / np.arange(1, len(loss) + 1) for order in orders]
    return np.mean(risks, axis=0)


# ---------------------------------------------------------------------------------------------------------------------
# evidence
# ---------------------------------------------------------------------------------------------------------------------


def shifted_gaussian_log_evidence(dim, shift, noise_std):
    """One observation of every coordinate, at the shift; each coordinate standard normal before it."""
    return dim * stats.norm.logpdf(shift, 0.0, np.hypot(1.0, noise_std))


def two_modes_log_evidence(shares, centres, width):
    """The likelihood is a mixture of round normals, the prior standard normal: a sum of one product a mode."""
    dim = len(centres[0])
    cov = (1 + width**2) * np.eye(dim)
    return log(
        sum(s * stats.multivariate_normal(c, cov).pdf(np.zeros(dim)) for s, c in zip(shares, centres, strict=True))
    )


def logistic_log_evidence(features, labels, prior_std):
    """Two weights, normal beforehand, by Gauss–Legendre on a square of eight prior standard deviations each way."""

    def log_joint(a, b):
        logit = a[..., None] * features[:, 0] + b[..., None] * features[:, 1]
        log_likelihood = np.where(labels, special.log_expit(logit), special.log_expit(-logit)).sum(-1)
        return log_likelihood + stats.norm.logpdf(a, 0, prior_std) + stats.norm.logpdf(b, 0, prior_std)

    return log_gauss_legendre(log_joint, -8 * prior_std, 8 * prior_std, 200)


def conditional_ess(step, log_likelihoods, log_weights):
    """Zhou, Johansen and Aston (2016), in plain numbers: of weights that add up to one, and factors that do not."""
    weights = np.exp(log_weights) / np.exp(log_weights).sum()
    factors = np.exp(step * np.asarray(log_likelihoods))
    return (weights * factors).sum() ** 2 / (weights * factors**2).sum()


def optimal_bridge(log_ratios, log_ratios_there, num_effective):
    """Meng and Wong (1996), equation (4.1): the fixed point of their iteration, in plain numbers.

    The ratios are of the joint density to the proposal's, at posterior draws and at proposals.
    """
    largest = max(np.max(log_ratios), np.max(log_ratios_there))
    ratios, ratios_there = np.exp(log_ratios - largest), np.exp(log_ratios_there - largest)
    share = num_effective / (num_effective + len(ratios_there))
    evidence, before = 1.0, 0.0
    while abs(evidence / (before or 1e-300) - 1) > 1e-14:
        before = evidence
        above = np.mean(ratios_there / (share * ratios_there + (1 - share) * before))
        below = np.mean(1 / (share * ratios + (1 - share) * before))
        evidence = above / below
    return log(evidence) + largest


def finite_difference_hessian(function, position, step=1e-4):
    """Second central differences of a function of a vector."""
    dim = len(position)
    shifts = step * np.eye(dim)
    return np.array(
        [
            [
                sum(
                    sign_i * sign_j * function(position + sign_i * shifts[i] + sign_j * shifts[j])
                    for sign_i in (-1, 1)
                    for sign_j in (-1, 1)
                )
                / (4 * step**2)
                for j in range(dim)
            ]
            for i in range(dim)
        ]
    )
