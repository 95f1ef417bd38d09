r"""Training: the bound raised by Adam, with what keeps the latent in use, and a state that can be stored and resumed.

Chapter: book/10-vae.ipynb
"""

import copy
import math
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.dropout._training import check_model, show
from bdl_lib.dropout.layers import Draw, giving_masks, stochastic_layers
from bdl_lib.vae._checkpoint import Progress, fingerprint, resume, save
from bdl_lib.vae._checks import check_at_least, check_condition, check_positive
from bdl_lib.vae.elbo import check_images, elbo, gaussian_kl
from bdl_lib.vae.importance import importance_weighted_bound, log_weights, pick, slices
from bdl_lib.vae.likelihoods import seen
from bdl_lib.vae.model import Vae
from bdl_lib.vi import FailedFit

__all__ = ["VaeFit", "VaeHistory", "fit"]


class VaeHistory(NamedTuple):
    """How training went: one entry an epoch, means over images, in nats an image.

    Book: sec-vae-training
    """

    reconstruction: Float[Tensor, " epochs"]  # E_q[log p(x | z)] on the training images, as they passed
    kl: Float[Tensor, " epochs"]  # KL(q(z | x) ‖ p(z)) on the training images
    bound: Float[Tensor, " epochs"]  # the bound on the training images, with β = 1 and no free bits
    validation_bound: Float[Tensor, " epochs"]  # after the epoch, with the same noise every time; NaN without images


class VaeFit(NamedTuple):
    """A trained model, and how it was reached.

    Book: sec-vae-training
    """

    model: Vae  # a copy, in evaluation mode
    history: VaeHistory
    best_epoch: int  # the epoch, counted from 0, whose weights the model has; −1 for those before training


def fit(
    model: Vae,
    images: Float[Tensor, "n height width"],
    *,
    condition: Float[Tensor, "n condition_dim"] | None = None,
    is_observed: Bool[Tensor, "n height width"] | None = None,
    validation_images: Float[Tensor, "validation height width"] | None = None,
    validation_condition: Float[Tensor, "validation condition_dim"] | None = None,
    num_epochs: int = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    beta: float = 1.0,
    num_warmup_epochs: int = 0,
    free_bits: float = 0.0,
    num_importance_samples: int = 1,
    is_binarised: bool = True,
    patience: int | None = None,
    checkpoint_path: str | os.PathLike | None = None,
    generator: torch.Generator,
    progress: bool = False,
) -> VaeFit:
    r"""Train a copy of a variational autoencoder by Adam on minibatches.

    .. math:: \max_{\theta, \phi} \; \frac1N \sum_{i=1}^N \mathrm{E}_{q_\phi(z \mid x_i)}\big[\log p_\theta(x_i \mid z)
              \big] - \beta_t \sum_d \max\big(\lambda,\, \overline{\mathrm{KL}}_d\big)

    with one draw of z for each image and step. During the warm-up :math:`\beta_t` rises in a straight line from 0 to β.
    :math:`\overline{\mathrm{KL}}_d` is the divergence of dimension d, averaged over the minibatch, and λ the free bits:
    below them a dimension costs nothing more. With K > 1 importance samples the objective is
    :math:`\mathrm{E}[\log \frac1K \sum_k w_k]` instead.

    **Validation**: after each epoch, the bound on other images, with the same noise every time. **Early stop**: when
    it has not risen for ``patience`` epochs, training ends and the weights of the best epoch are returned.
    **Checkpoint**: after each epoch the whole state goes to a file, first under another name and then moved into place.
    A call with the same arguments goes on from there, and ends at the numbers of an uninterrupted run; only
    ``num_epochs`` may differ, and the weights of ``model``, which are those of the file.

    Args:
        model: where to start; it stays as it is.
        images: x, with pixels that the likelihood allows.
        condition: one row an image, if the model takes one.
        is_observed: True where a pixel was seen: learning from images with holes, as in :func:`bdl_lib.vae.elbo`.
        validation_images: others, for the history and the early stop; all their pixels count as seen.
        validation_condition: their condition.
        num_epochs: how often to go through the images, at least 1.
        batch_size: at least 1; all images, if there are fewer. An epoch's last minibatch may be smaller.
        lr: Adam's step size, positive.
        beta: β ≥ 0, the weight of the divergence. Only 1 gives a bound.
        num_warmup_epochs: how many epochs β takes to rise; 0 for none.
        free_bits: λ ≥ 0, nats for each dimension of the latent.
        num_importance_samples: K ≥ 1. With K > 1, ``beta``, ``num_warmup_epochs`` and ``free_bits`` stay as they are
            by default: the terms are not apart.
        is_binarised: True draws, for a Bernoulli likelihood, black and white pixels with the probabilities that the
            grey ones give, anew in every epoch; once for the validation images. Ignored for other likelihoods.
        patience: how many epochs without a better validation bound end training, at least 1; None goes on.
        checkpoint_path: a file to resume from if it is there, and to write.
        generator: draws minibatches, pixels and latents; on the device of the images.
        progress: True shows a bar.

    Returns:
        A :class:`VaeFit`. The host waits for the device once an epoch.

    Raises:
        ValueError: if a setting is out of range, the images do not fit the model, or the checkpoint is damaged or of
            another architecture, other images or other settings; the file then stays as it is.
        FailedFit: if the bound or a weight is not finite after an epoch. It names the epoch, and its ``fit`` is a
            :class:`VaeFit` from before it.

    Source: Kingma and Welling (2014), arXiv:1312.6114, algorithm 1; β: Higgins et al. (2017), beta-VAE, ICLR; warm-up:
        Bowman et al. (2016), arXiv:1511.06349, and Sønderby et al. (2016), arXiv:1602.02282; free bits: Kingma et al.
        (2016), arXiv:1606.04934; K > 1: Burda et al. (2016), arXiv:1509.00519.
    Book: sec-vae-training
    """
    _check_settings(num_epochs, batch_size, lr, beta, num_warmup_epochs, free_bits, num_importance_samples)
    _check_data(model, images, condition, is_observed, validation_images, validation_condition, patience)
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    data, validation = (images, condition, is_observed), (validation_images, validation_condition)
    done, store = Progress.start(generator), None
    if checkpoint_path is not None:
        settings = [batch_size, lr, beta, num_warmup_epochs, free_bits, num_importance_samples, is_binarised, patience]
        state = checkpoint_path, fingerprint(model, [*data, *validation], settings), model, optimizer, generator
        done, store = resume(*state, num_epochs) or done, partial(save, *state)
    is_binarised = is_binarised and model.likelihood.name == "bernoulli"
    loss = partial(_loss, free_bits=free_bits, num_samples=num_importance_samples, is_binarised=is_binarised)
    weight = partial(_kl_weight, beta=beta, num_warmup_steps=num_warmup_epochs * math.ceil(len(images) / batch_size))
    validate = _validator(*validation, is_binarised, num_importance_samples, done.seed)
    for epoch in show(range(len(done.rows), num_epochs), "fit", progress):
        if patience is not None and epoch - 1 - done.best_epoch >= patience:
            break
        before = copy.deepcopy(model.state_dict())
        terms = _train(model.train(), optimizer, data, batch_size, loss, weight, epoch, generator)
        row = torch.cat([terms, validate(model.eval()).to(terms)[None]])
        _check_finite(epoch, row, model, before, done)
        done = done.add(row, model, keeps_best=patience is not None)
        if store:
            store(done)
    return _record(model, done)


def binarise(images: Float[Tensor, "n height width"], generator: torch.Generator) -> Float[Tensor, "n height width"]:
    """Pixels of 0 or 1, each 1 with the probability that its grey gives."""
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype, device=images.device)
    return (noise < images).to(images.dtype)


def _check_settings(num_epochs, batch_size, lr, beta, num_warmup_epochs, free_bits, num_importance_samples) -> None:
    """Raise ``ValueError`` unless one can train with these."""
    check_at_least("num_epochs", num_epochs, 1)
    check_at_least("batch_size", batch_size, 1)
    check_positive("lr", lr)
    check_at_least("num_warmup_epochs", num_warmup_epochs, 0)
    check_at_least("num_importance_samples", num_importance_samples, 1)
    for name, value in {"beta": beta, "free_bits": free_bits}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value}")
    if num_importance_samples > 1 and (beta, num_warmup_epochs, free_bits) != (1, 0, 0):
        rule = "num_importance_samples must be 1 with beta, num_warmup_epochs or free_bits"
        raise ValueError(f"{rule}, got {num_importance_samples}")


def _check_data(model, images, condition, is_observed, validation_images, validation_condition, patience) -> None:
    """Raise ``ValueError`` unless the model learns, the images fit it, and an early stop has something to watch."""
    check_model(model)
    check_images(model, images, condition, is_observed)
    if validation_images is not None:
        check_condition(validation_condition, len(validation_images), model.condition_dim, "validation_condition")
        check_images(model, validation_images, validation_condition, None, "validation_images")
    if patience is not None:
        check_at_least("patience", patience, 1)
        if validation_images is None:
            raise ValueError(f"patience must be None without validation_images, got {patience}")


def _train(model, optimizer, data, batch_size, loss, weight, epoch, generator) -> Float[Tensor, "3"]:
    """One epoch: means over the images of reconstruction, divergence and bound."""
    images, terms = data[0], 0.0
    order = torch.randperm(len(images), generator=generator, device=images.device).split(batch_size)
    with giving_masks(stochastic_layers(model), Draw(generator)):
        for step, rows in enumerate(order, epoch * len(order)):
            value, sums = loss(model, *(pick(part, rows) for part in data), weight(step), generator)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            terms = terms + sums
    return terms / len(images)


def _loss(
    model, images, condition, is_observed, kl_weight, generator, *, free_bits, num_samples, is_binarised
) -> tuple[Float[Tensor, ""], Float[Tensor, "3"]]:
    """What to make small, and sums over the minibatch of reconstruction, divergence and bound."""
    images = binarise(images, generator) if is_binarised else images
    q = model.encode(seen(images, is_observed), condition)
    log_w, reconstruction = log_weights(model, images, q, num_samples, generator, condition, is_observed)
    divergences, reconstruction = gaussian_kl(*q), reconstruction.mean(0)
    kl = divergences.sum(-1)
    if num_samples > 1:
        bound = log_w.logsumexp(0) - math.log(num_samples)
        value = -bound.mean()
    else:
        bound = reconstruction - kl
        paid = divergences.mean(0).clamp(min=free_bits).sum() if free_bits else kl.mean()
        value = kl_weight * paid - reconstruction.mean()
    return value, torch.stack([reconstruction, kl, bound]).detach().sum(1)


def _kl_weight(step: int, *, beta: float, num_warmup_steps: int) -> float:
    return beta * min(1.0, step / num_warmup_steps) if num_warmup_steps else beta


def _validator(images, condition, is_binarised, num_samples, seed) -> Callable[[Vae], Tensor]:
    """A function from a model to its bound on the validation images; NaN if there are none."""
    if images is None:
        return lambda model: torch.tensor(math.nan)
    if is_binarised:
        images = binarise(images, torch.Generator(images.device).manual_seed(seed))

    @torch.no_grad()
    def validate(model):
        noise = torch.Generator(images.device).manual_seed(seed + 1)
        if num_samples > 1:
            settings = {"num_samples": num_samples, "generator": noise, "condition": condition}
            return importance_weighted_bound(model, images, **settings).mean()
        parts = [
            elbo(model, images[rows], generator=noise, condition=pick(condition, rows)).value
            for rows in slices(len(images))
        ]
        return torch.cat(parts).mean()

    return validate


def _check_finite(epoch: int, row: Tensor, model: Vae, before: dict, done: Progress) -> None:
    """Raise :class:`FailedFit` unless the bound and all parameters are finite; waits for the device once."""
    if torch.stack([row[2], *(parameter.detach().sum() for parameter in model.parameters())]).isfinite().all():
        return
    bad = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    model.load_state_dict(before)
    names = ", ".join(bad)
    what = f"the bound of epoch {epoch} is {row[2].item():.4g}; parameters that are not finite: {names or 'none yet'}"
    found = _record(model, done)
    raise FailedFit(f"{what}. Try a smaller lr; .fit has what was before it", fit=found, step=epoch, parameter=names)


def _record(model: Vae, done: Progress) -> VaeFit:
    if done.best_state is not None:
        model.load_state_dict(done.best_state)
    best_epoch = len(done.rows) - 1 if done.best_state is None else done.best_epoch
    rows = torch.stack(done.rows) if done.rows else next(model.parameters()).new_empty(0, 4)
    model.zero_grad()
    return VaeFit(model.eval(), VaeHistory(*rows.unbind(1)), best_epoch)
