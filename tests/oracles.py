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


# ---------------------------------------------------------------------------------------------------------------------
# scores
# ---------------------------------------------------------------------------------------------------------------------


def crps_by_quadrature(cdf, target, low, high):
    """The integral that defines the CRPS, split where the step is."""
    below = integrate.quad(lambda u: cdf(u) ** 2, low, target, epsabs=1e-12, limit=400)[0]
    return below + integrate.quad(lambda u: (1 - cdf(u)) ** 2, target, high, epsabs=1e-12, limit=400)[0]


def fair_energy_score(draws, target):
    """All pairs, one after the other: draws [m, dim], one target [dim]."""
    m = len(draws)
    to_target = sum(np.linalg.norm(x - target) for x in draws) / m
    pairs = sum(np.linalg.norm(x - y) for i, x in enumerate(draws) for j, y in enumerate(draws) if i != j)
    return to_target - pairs / (2 * m * (m - 1))


def gaussian_energy_score(std, distance, dim):
    """E|X - y| - E|X - X'| / 2 of a round Gaussian: moments of the noncentral and of the central chi distribution."""
    to_target = std * np.sqrt(np.pi / 2) * special.eval_genlaguerre(0.5, dim / 2 - 1, -((distance / std) ** 2) / 2)
    return to_target - std * special.gamma((dim + 1) / 2) / special.gamma(dim / 2)


def binned_calibration(prob, labels, edges):
    """Equal-width or other bins given by their edges: [plain squared error, its bias, unbiased, ECE], point by point.

    The unbiased one is the mean of products of two different residuals; bins with one point count for the ECE alone.
    """
    bins = [[] for _ in range(len(edges) - 1)]
    for p, y in zip(prob, labels, strict=True):
        bins[max(i for i in range(len(edges) - 1) if edges[i] <= p)].append(y - p)
    used = [np.array(r) for r in bins if len(r) >= 2]
    share = np.array([len(r) for r in used]) / sum(len(r) for r in used)
    plain = share @ [r.mean() ** 2 for r in used]
    bias = share @ [r.var(ddof=1) / len(r) for r in used]
    unbiased = share @ [np.mean([a * b for i, a in enumerate(r) for j, b in enumerate(r) if i != j]) for r in used]
    return plain, bias, unbiased, sum(abs(sum(r)) for r in bins) / len(prob)


def squared_mmd_of_gaussians(loc, cov, other_loc, other_cov, width):
    """Gaussian kernels between Gaussians are Gaussian densities, up to a constant."""
    dim = len(loc)

    def mean_kernel(shift, spread):
        total = spread + width**2 * np.eye(dim)
        return np.exp(-0.5 * shift @ np.linalg.solve(total, shift)) * width**dim / np.sqrt(np.linalg.det(total))

    shift = np.asarray(loc) - np.asarray(other_loc)
    zero = np.zeros(dim)
    return mean_kernel(zero, 2 * cov) + mean_kernel(zero, 2 * other_cov) - 2 * mean_kernel(shift, cov + other_cov)


def unbiased_squared_mmd(draws, reference, width):
    """All pairs, one after the other."""

    def kernel(x, y):
        return np.exp(-np.sum((x - y) ** 2) / (2 * width**2))

    def within(sample):
        return np.mean([kernel(x, y) for i, x in enumerate(sample) for j, y in enumerate(sample) if i != j])

    return within(draws) + within(reference) - 2 * np.mean([kernel(x, y) for x in draws for y in reference])


def mean_abs_coordinate(dim):
    """Of a point drawn evenly from the unit sphere."""
    return special.gamma(dim / 2) / (np.sqrt(np.pi) * special.gamma((dim + 1) / 2))


# ---------------------------------------------------------------------------------------------------------------------
# vi networks
# ---------------------------------------------------------------------------------------------------------------------


def noise_gradient_moments(kind, noise_per_std, residuals):
    """Mean and variance of the gradient of Σ ½(residual + noise)² in the log stds of one output.

    ``noise_per_std[n, i]`` is input i of example n (1 for a bias), times the standard deviation of weight i.
    """
    c, a = np.asarray(noise_per_std), np.asarray(residuals)[:, None]
    products = c.T @ c
    own = np.diag(products).copy()
    if kind == "shared_weights":
        var = (a * c).sum(0) ** 2 + own**2 + (products**2).sum(1)
    elif kind == "flipout":  # squares of the noise keep no sign: they stay common to all examples
        var = (a**2 * c**2).sum(0) + own**2 + own**2 + (c**2 * ((c**2).sum(1, keepdims=True) - c**2)).sum(0)
    else:
        total = (c**2).sum(1, keepdims=True)
        var = ((a**2 + 2 * total) * c**4 / total).sum(0)
    return own, var


def mean_gradient_moments(kind, inputs, stds, residuals):
    """The same in the means: column i of the inputs times (residual + noise)."""
    x, c = np.asarray(inputs), np.asarray(inputs) * np.asarray(stds)
    noise_cov = c @ c.T
    if kind != "shared_weights":
        noise_cov = np.diag(np.diag(noise_cov))
    return x.T @ residuals, np.diag(x.T @ noise_cov @ x).copy()


def gaussian_kl(loc, cov, other_loc, other_cov):
    """KL(N(loc, cov) || N(other_loc, other_cov)) in nats."""
    shift = np.asarray(other_loc) - loc
    quadratic = np.trace(np.linalg.solve(other_cov, cov)) + shift @ np.linalg.solve(other_cov, shift)
    return 0.5 * (quadratic - len(shift) + np.linalg.slogdet(other_cov)[1] - np.linalg.slogdet(cov)[1])


def linear_elbo(loc, std, features, targets, noise_std, prior_std):
    """ELBO of independent Gaussian weights in linear regression, every expectation in closed form."""
    residual_var = (features**2) @ (std**2)
    misfit = ((targets - features @ loc) ** 2 + residual_var).sum() / noise_std**2
    log_likelihood = -0.5 * misfit - len(targets) * log(noise_std * (2 * np.pi) ** 0.5)
    return log_likelihood - gaussian_kl(loc, np.diag(std**2), np.zeros(len(loc)), prior_std**2 * np.eye(len(loc)))


# ---------------------------------------------------------------------------------------------------------------------
# vi judging
# ---------------------------------------------------------------------------------------------------------------------


def walk_reaches(distance, num_steps):
    """Probability that a fair walk of ±1 steps gets that far from zero, step by step."""
    inside = np.zeros(2 * distance + 1)
    inside[distance] = 1.0
    for _ in range(num_steps):
        inside = 0.5 * (np.roll(inside, 1) + np.roll(inside, -1))
        inside[[0, -1]] = 0.0
    return 1 - inside.sum()


# ---------------------------------------------------------------------------------------------------------------------
# vi
# ---------------------------------------------------------------------------------------------------------------------


def gauss_hermite(num_nodes):
    """Nodes and weights whose weighted sum is the mean under a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return nodes, weights / weights.sum()


# ---------------------------------------------------------------------------------------------------------------------
# vae
# ---------------------------------------------------------------------------------------------------------------------


def ppca_log_likelihood(vectors, latent_dim):
    """Probabilistic PCA at its maximum, by the eigenvalues of the covariance and the full Gaussian density."""
    eigenvalues, directions = np.linalg.eigh(np.cov(vectors.T, bias=True))
    noise_var = eigenvalues[:-latent_dim].mean()
    top = directions[:, -latent_dim:]
    covariance = top @ np.diag(eigenvalues[-latent_dim:] - noise_var) @ top.T + noise_var * np.eye(vectors.shape[1])
    return stats.multivariate_normal(vectors.mean(0), covariance).logpdf(vectors)
