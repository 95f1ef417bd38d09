"""Dropout's layers, masks and passes, against enumeration, closed forms and a plain loop."""

import contextlib
import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bdl_lib import dropout
from bdl_lib.dropout import _bits, passes
from bdl_lib.dropout.layers import Draw, giving_masks


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def set_weights(model, seed=2):
    """Double precision, weights from a seed, evaluation mode."""
    for i, parameter in enumerate(model.double().parameters()):
        with torch.no_grad():
            parameter.copy_(0.6 * randn(*parameter.shape, seed=100 * seed + i))
    return model.eval()


def mlp(rate=0.3):
    """Ten units to drop, in two layers."""
    layers = [nn.Linear(3, 6), nn.Tanh(), dropout.Dropout(rate), nn.Linear(6, 4), nn.ReLU(), dropout.Dropout(0.5)]
    return set_weights(nn.Sequential(*layers, nn.Linear(4, 2)))


# ---- Masks


@pytest.mark.parametrize(("rate", "bits"), [(0.5, 8), (0.25, 8), (255 / 256, 8), (0.1, 16), (0.3, 16), (1e-6, 32)])
def test_masks_have_the_rate_and_a_mean_of_one(rate, bits):
    assert _bits.lane_bits(rate) == bits
    num = 1_000_003  # not a multiple of a lane
    mask = _bits.bernoulli_mask(rate, (num,), like=torch.ones(1, dtype=torch.float64), generator=generator())
    dropped = (mask == 0).sum().item()
    assert abs(dropped - num * rate) < 4.5 * math.sqrt(num * rate * (1 - rate)) + 1e-9
    (scale,) = mask[mask > 0].unique()
    probability = round(rate * 2**bits) / 2**bits
    assert scale.item() == pytest.approx(1 / (1 - probability), rel=1e-15)
    assert probability == pytest.approx(rate, rel=1e-4)
    assert 1 - probability == pytest.approx(1 - rate, rel=1e-4)


@pytest.mark.parametrize("rate", [1e-12, 1 - 1e-12])
def test_extreme_rates_neither_keep_all_by_rounding_nor_divide_by_zero(rate):
    mask = _bits.bernoulli_mask(rate, (64,), like=torch.ones(1, dtype=torch.float64), generator=generator())
    assert mask.isfinite().all()


@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_neighbouring_lanes_passes_and_inputs_are_independent(rate):
    model = nn.Sequential(dropout.Dropout(rate))
    kept = (dropout.draw_passes(model, torch.ones(12, 64), num_passes=100, generator=generator()) > 0).double()
    centred = (kept - (1 - rate)) / math.sqrt(rate * (1 - rate))
    for dim, shift in itertools.product(range(3), (1, 2, 3, 4, 8)):  # units of one word, inputs, passes
        correlation = (centred * centred.roll(shift, dim)).mean()
        assert abs(correlation) < 4.5 / math.sqrt(kept.numel()), (dim, shift)


def test_channels_are_dropped_whole():
    model = nn.Sequential(dropout.ChannelDropout(0.25))
    draws = dropout.draw_passes(model, torch.ones(5, 8, 3, 2), num_passes=300, generator=generator())
    assert torch.equal(draws, draws[..., :1, :1].expand_as(draws))
    kept = (draws[..., 0, 0] > 0).double().mean().item()
    assert abs(kept - 0.75) < 4.5 * math.sqrt(0.25 * 0.75 / (300 * 5 * 8))


def test_dropconnect_has_the_moments_of_independent_weights():
    layer = set_weights(nn.Sequential(dropout.DropConnect(3, 2, 0.2)))
    x, num = randn(4, 3), 20_000
    draws = dropout.draw_passes(layer, x, num_passes=num, generator=generator())
    mean, centred = layer(x), draws - layer(x)
    # Cov[y_n, y_m] = p / (1 - p) sum_i w_i^2 x_ni x_mi: the inputs of a pass share its weights.
    expected = 0.25 * torch.einsum("oi,ni,mi->nmo", layer[0].weight.square(), x, x)
    products = centred[:, :, None] * centred[:, None]
    for found, exact in ((draws, mean), (products, expected)):
        z = (found.mean(0) - exact) / (found.std(0) / math.sqrt(num))
        assert z.abs().max() < 4.5


# ---- One pass


def test_the_call_decides_and_not_the_mode():
    model, x = mlp(), randn(5, 3)
    deterministic = model(x)
    assert torch.equal(model.train()(x), deterministic)
    for mode in (True, False):
        model.train(mode)
        with dropout.drawing(model, generator=generator()):
            first, second = model(x), model(x)
        assert not torch.equal(first, second)
        assert not torch.equal(first, deterministic)
        assert torch.equal(model(x), deterministic)


def test_drawing_nests_and_ends_with_an_error():
    model, x = mlp(), randn(5, 3)
    with dropout.drawing(model, generator=generator(1)):
        first = model(x)
    with dropout.drawing(model, generator=generator(1)):
        with contextlib.suppress(KeyError), dropout.drawing(model[:4], generator=generator(5)):
            raise KeyError
        assert torch.equal(model(x), first)
    assert torch.equal(model(x), model(x))


def test_gradients_flow_through_a_pass():
    model, x = set_weights(nn.Sequential(dropout.Dropout(0.5), dropout.DropConnect(3, 1, 0.5))), randn(4, 3)
    weight = model[1].weight

    def loss():
        with dropout.drawing(model, generator=generator(3)):
            return model(x).square().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    for i in range(3):
        with torch.no_grad():
            weight[0, i] += 1e-6
            above = loss()
            weight[0, i] -= 2e-6
            below = loss()
            weight[0, i] += 1e-6
        assert gradient[0, i].item() == pytest.approx(((above - below) / 2e-6).item(), abs=1e-6)


# ---- Many passes: the right distribution


def test_average_over_all_masks_is_the_limit_of_the_average_over_passes():
    model, x = mlp(), randn(3, 3)
    masks, log_prob = dropout.all_masks(model, x)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert len(log_prob) == 2**10
    outputs = dropout.apply_masks(model, x, masks).softmax(-1)
    exact = torch.einsum("t,tnc->nc", log_prob.exp(), outputs)
    exact_square = torch.einsum("t,tnc->nc", log_prob.exp(), outputs.square())
    num = 20_000
    for is_shared in (False, True):
        draws = dropout.draw_passes(model, x, num_passes=num, generator=generator(), is_shared=is_shared).softmax(-1)
        for found, expected in ((draws, exact), (draws.square(), exact_square)):
            z = (found.mean(0) - expected) / (found.std(0) / math.sqrt(num))
            assert z.abs().max() < 4.5


def test_inputs_share_masks_only_where_they_are_told_to():
    model = nn.Sequential(dropout.Dropout(0.5), set_weights(nn.Linear(3, 2)))
    x = randn(1, 3).repeat(6, 1)
    apart, shared = (
        dropout.draw_passes(model, x, num_passes=50, generator=generator(), is_shared=flag) for flag in (False, True)
    )
    assert torch.allclose(shared, shared[:, :1].expand_as(shared), rtol=0, atol=1e-14)
    assert (apart.std(1) > 0).double().mean() > 0.9


def test_linear_model_has_its_closed_form():
    """For y = w (z x) / (1 - p): E y = w x, Var y = p / (1 - p) sum w_i^2 x_i^2."""
    model, x, num = nn.Sequential(dropout.Dropout(0.3), set_weights(nn.Linear(4, 1))), randn(5, 4), 40_000
    draws = dropout.draw_passes(model, x, num_passes=num, generator=generator())[..., 0]
    var = 0.3 / 0.7 * (model[1].weight.square() @ x.square().T)[0]
    centred = (draws - model(x)[:, 0]).square()
    assert ((draws.mean(0) - model(x)[:, 0]).abs() < 4.5 * (var / num).sqrt()).all()
    assert ((centred.mean(0) - var).abs() < 4.5 * centred.std(0) / math.sqrt(num)).all()


# ---- Many passes: everything below the first mask once, everything else right


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(3, 3), dropout.Dropout(0.4), nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = h + self.second(self.drop(h)) * self.scale.exp()
        return h - x


class Reshaped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.drop, self.last = nn.Conv2d(1, 2, 2), dropout.ChannelDropout(0.5), nn.Linear(8, 2)

    def forward(self, x):
        n = x.size(0)
        h = self.drop(self.conv(x.view(-1, 1, 3, 3)))
        return self.last(h.view(n if h.size(0) == n else h.size(0), -1))


class KnowsItsSize(nn.Module):
    """The number of inputs crosses the cut."""

    def __init__(self):
        super().__init__()
        self.drop, self.last = dropout.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x):
        n = x.size(0)
        return self.last(self.drop(x.view(n, 2, 2)).view(n, -1))


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.last = dropout.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x):
        x = self.drop(x.view(x.size(0), 2, 2))
        return self.last(x.view(x.size(0), -1))


class WritesBelow(nn.Module):
    """What the dropout reads is overwritten after it."""

    def __init__(self):
        super().__init__()
        self.first, self.drop = nn.Linear(3, 3), dropout.Dropout(0.5)

    def forward(self, x):
        h = self.first(x)
        dropped = self.drop(h)
        h.mul_(2)
        return dropped + h


class AddsInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop = nn.Linear(3, 3), dropout.Dropout(0.5)

    def forward(self, x):
        h = self.first(x)
        dropped = self.drop(h)
        h += dropped
        return torch.relu_(h)


class AddsInPlaceToTwo(AddsInPlace):
    """Two names of one tensor, which tracing takes for two tensors."""

    def forward(self, x):
        h = same = self.first(x)
        h += self.drop(h)
        return h + same


class Branches(nn.Module):
    """Control flow that depends on values."""

    def __init__(self):
        super().__init__()
        self.first, self.drop = nn.Linear(3, 3), dropout.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.first(x)) if x.isfinite().all() else x


class TwiceTheSame(nn.Module):
    """One dropout module in two places."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(3, 3), nn.Linear(3, 2), dropout.Dropout(0.5)

    def forward(self, x):
        return self.second(self.drop(torch.tanh(self.first(self.drop(x)))))


MODELS = {
    "sequential": (mlp, 3, True),
    "residual": (Residual, 3, True),
    "reshaped": (Reshaped, 9, False),
    "knows its size": (KnowsItsSize, 4, False),
    "views": (Views, 4, True),
    "writes below": (WritesBelow, 3, False),
    "adds in place": (AddsInPlace, 3, True),
    "adds in place to two": (AddsInPlaceToTwo, 3, False),
    "branches": (Branches, 3, False),
    "twice the same": (TwiceTheSame, 3, True),
    "dropconnect": (lambda: nn.Sequential(nn.Linear(3, 4), dropout.DropConnect(4, 2, 0.5), nn.ReLU(True)), 3, True),
    "in place after": (lambda: nn.Sequential(nn.Linear(3, 4), dropout.Dropout(0.5), nn.ReLU(True)), 3, True),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Sequential(mlp())), nn.Tanh()), 3, True),
    "a layer by itself": (lambda: dropout.Dropout(0.5), 3, False),
}


@pytest.mark.parametrize("name", MODELS)
def test_many_passes_are_what_passes_one_by_one_give_with_the_same_masks(name):
    make, num_features, is_cut = MODELS[name]
    model, x = set_weights(make()), randn(5, num_features)
    masks = dropout.draw_masks(model, x, num_draws=4, generator=generator())
    together = dropout.apply_masks(model, x, masks)
    for t in range(4):
        places = iter(masks.values())

        def one_pass(layer, inputs, t=t, places=places):
            mask = next(places)[t]
            return F.linear(inputs, layer.weight * mask, layer.bias) if name == "dropconnect" else inputs * mask

        if name == "dropconnect":
            assert masks["1"].shape == (4, 2, 4)
        with giving_masks(dropout.stochastic_layers(model), one_pass):
            torch.testing.assert_close(together[t], model(x.clone()), rtol=0, atol=1e-12)
    assert dropout.share(model, x).is_cut == is_cut
    assert (together.std(0) > 0).any()


@pytest.mark.parametrize("name", MODELS)
def test_passes_average_to_what_single_passes_average_to(name):
    """``draw_passes`` against ``drawing`` in a loop: two samples of one distribution."""
    make, num_features, _ = MODELS[name]
    model, x, num = set_weights(make()), randn(3, num_features), 100
    batch = dropout.draw_passes(model, x, num_passes=20 * num, generator=generator(1))
    with torch.no_grad(), dropout.drawing(model, generator=generator(2)):
        loop = torch.stack([model(x.clone()) for _ in range(num)])
    for found, single in ((batch, loop), (batch.square(), loop.square())):
        error = (single.var(0) / num + found.var(0) / (20 * num)).sqrt()
        assert ((found.mean(0) - single.mean(0)).abs() <= 4.5 * error + 1e-12).all()


def count_calls(module):
    rows = []
    module.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    return rows


def test_what_passes_share_runs_once():
    model, x = mlp(), randn(7, 3)
    below, above = count_calls(model[0]), count_calls(model[3])
    dropout.draw_passes(model, x, num_passes=50, generator=generator())
    assert [rows for rows in below if rows != 2] == [7]  # two are for measuring
    assert [rows for rows in above if rows != 2] == [350]


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize(("name", "memory_bytes"), [("sequential", 4000), ("dropconnect", 2000), ("branches", 4000)])
def test_small_memory_cuts_inputs_and_passes_into_parts(name, memory_bytes, is_shared):
    make, num_features, _ = MODELS[name]
    model, x, num = set_weights(make()), randn(1, num_features).repeat(23, 1), 40
    plan = passes._plan(model, x, num, is_shared, memory_bytes)
    assert plan.block_size < 23
    assert plan.chunk_size < num
    draws = dropout.draw_passes(
        model, x, num_passes=num, generator=generator(), is_shared=is_shared, memory_bytes=memory_bytes
    )
    chunks = list(dropout.iterate_passes(model, x, num_passes=num, generator=generator(), memory_bytes=memory_bytes))
    assert len(chunks) > 1
    assert sum(map(len, chunks)) == num
    mean = dropout.draw_passes(model, x[:1], num_passes=20 * num, generator=generator(3))[:, 0]
    error = (draws.var(0) / num + mean.var(0) / (20 * num)).sqrt()
    assert ((draws.mean(0) - mean.mean(0)).abs() <= 4.5 * error + 1e-12).all()
    spread = draws.std(1).amax(-1)  # equal inputs: no spread within a pass if they share masks
    assert spread.max() < 1e-12 if is_shared or name == "dropconnect" else spread.median() > 0.01


def test_same_seed_same_draws_and_chunks_are_the_same_passes():
    model, x = mlp(), randn(5, 3)
    first, again, other = (dropout.draw_passes(model, x, num_passes=9, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    iterated = torch.cat(list(dropout.iterate_passes(model, x, num_passes=9, generator=generator(1))))
    assert torch.equal(first, iterated)
    assert first.requires_grad is False


def test_inputs_and_model_stay_as_they_are():
    model, x = set_weights(nn.Sequential(nn.ReLU(), dropout.Dropout(0.5), nn.Linear(3, 2))).train(), randn(5, 3)
    before, weights = x.clone(), [p.clone() for p in model.parameters()]
    dropout.draw_passes(model, x, num_passes=3, generator=generator())
    assert torch.equal(x, before)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert model.training
    assert model[1].mask_source is None


MEMORY = """
import torch
from torch import nn
from bdl_lib import dropout
dropout.passes._CACHE_BYTES = 2**40
torch.set_num_threads(1)
MODEL
draw = lambda: [dropout.draw_passes(model, x, num_passes=T, generator=torch.Generator(), memory_bytes=BUDGET)
                for T in (1, 1)]
draw()
def resident(name):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return 1024 * int(lines[name].split()[0])
open("/proc/self/clear_refs", "w").write("5")  # starts the peak afresh
before = resident("VmRSS")
result = dropout.draw_passes(model, x, num_passes=1000, generator=torch.Generator(), memory_bytes=BUDGET)
print(resident("VmHWM") - before - result.nbytes)
"""
MEMORY_MODELS = {
    "mlp": "model = nn.Sequential(nn.Linear(50, 400), dropout.Dropout(0.5), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), "
    "nn.Linear(400, 2)); x = torch.randn(20, 50, generator=torch.Generator())",
    "cnn": "model = nn.Sequential(nn.Conv2d(1, 8, 3), dropout.ChannelDropout(0.5), nn.Conv2d(8, 8, 3), nn.ReLU(), "
    "nn.Flatten(), nn.Linear(288, 2)); x = torch.randn(10, 1, 10, 10, generator=torch.Generator())",
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own account")
@pytest.mark.parametrize("name", MEMORY_MODELS)
def test_peak_memory_of_a_thousand_passes_stays_within_the_budget(name):
    """What the process grew by at its peak, as the operating system saw it, and that the budget is put to use."""
    budget = 24 * 2**20
    source = MEMORY.replace("MODEL", MEMORY_MODELS[name]).replace("BUDGET", str(budget))
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert budget / 8 < int(done.stdout) < budget


# ---- Conversion


class WithEverything(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3))
        self.drop = nn.Dropout(0.5, inplace=True)
        self.blocks = nn.ModuleList([nn.Linear(16, 16), self.drop, nn.Dropout(0.0)])
        self.last = nn.Linear(16, 2)

    def forward(self, x):
        h = self.conv(x).flatten(1)
        for block in self.blocks:
            h = h + block(h) if isinstance(block, nn.Linear) else block(h)
        return self.last(self.drop(h))


def test_converted_model_predicts_what_the_original_does_with_dropout_off():
    model, x = set_weights(WithEverything()), randn(5, 1, 4, 4)
    expected = model(x)
    model.train()
    converted = dropout.convert(model)
    assert torch.equal(converted(x), expected)
    assert not any(m.training for m in converted.modules())
    assert model.training
    assert isinstance(model.drop, nn.Dropout)
    found = {name: (type(m), m.rate) for name, m in dropout.stochastic_layers(converted).items()}
    assert found == {"conv.3": (dropout.ChannelDropout, 0.3), "drop": (dropout.Dropout, 0.5)}
    assert converted.blocks[1] is converted.drop  # one module in two places stays one


def test_converted_model_draws_what_the_original_draws():
    model, x, num = set_weights(WithEverything()), randn(3, 1, 4, 4), 4000
    draws = dropout.draw_passes(dropout.convert(model), x, num_passes=num, generator=generator())
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        rows = model(x.repeat(num, 1, 1, 1)).unflatten(0, (num, 3))
    for ours, theirs in ((draws, rows), (draws.square(), rows.square())):
        z = (ours.mean(0) - theirs.mean(0)) / ((ours.var(0) + theirs.var(0)) / num).sqrt()
        assert z.abs().max() < 4.5


def test_transformer_is_not_passed_over_by_its_fused_path():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
    layer.self_attn.dropout = 0.0
    model, x = dropout.convert(set_weights(nn.Sequential(layer))), randn(3, 5, 4)
    draws = dropout.draw_passes(model, x, num_passes=20, generator=generator())
    assert (draws.std(0) > 0).all()


def test_dropconnect_of_a_model():
    model, x = set_weights(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))), randn(5, 3)
    converted = dropout.dropconnect(model, 0.1)
    assert torch.equal(converted(x), model(x))
    assert list(dropout.stochastic_layers(converted)) == ["0", "2"]
    assert list(converted.state_dict()) == list(model.state_dict())
    converted[0].weight.data.zero_()
    assert model[0].weight.abs().min() > 0  # its own copy


# ---- Masks that stay


def test_a_function_draw_gives_every_input_the_same_function():
    model, x = mlp(), randn(8, 3)
    masks = dropout.draw_masks(model, x[:1], num_draws=6, generator=generator())
    together = dropout.apply_masks(model, x, masks)
    apart = torch.cat([dropout.apply_masks(model, row[None], masks) for row in x], dim=1)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)


def test_fixed_masks_stay_as_they_are():
    model, x = mlp(), randn(1, 3)
    masks = dropout.draw_masks(model, x, num_draws=6, generator=generator())
    before = {name: mask.clone() for name, mask in masks.items()}
    with torch.no_grad():
        dropout.apply_masks(model, x, masks)
    assert all(torch.equal(masks[name], before[name]) for name in before)


def test_a_layer_that_is_met_twice_has_two_masks():
    model = set_weights(TwiceTheSame())
    masks = dropout.draw_masks(model, randn(2, 3), num_draws=5, generator=generator())
    assert list(masks) == ["drop", "drop:2"]
    assert not torch.equal(masks["drop"], masks["drop:2"])


def test_all_masks_are_all_masks():
    model = nn.Sequential(dropout.Dropout(0.2), nn.Linear(2, 2), dropout.ChannelDropout(0.5), nn.Linear(2, 1)).double()
    model = nn.Sequential(nn.Unflatten(1, (2, 1)), nn.Flatten(), *model)
    masks, log_prob = dropout.all_masks(model, torch.zeros(1, 2, dtype=torch.float64))
    rows = torch.cat([masks["2"] * 0.8, masks["4"] * 0.5], dim=1)
    assert sorted(map(tuple, rows.tolist())) == sorted(itertools.product((0.0, 1.0), repeat=4))
    expected = 0.25 * torch.where(rows[:, :2] > 0, 0.8, 0.2).prod(1).double()
    torch.testing.assert_close(log_prob.exp(), expected, rtol=1e-6, atol=0)


def test_masks_carry_gradients():
    model, x = mlp(), randn(4, 3)
    masks, log_prob = dropout.all_masks(model, x)
    kept = {name: mask.requires_grad_() for name, mask in masks.items()}
    loss = (log_prob.exp() @ dropout.apply_masks(model, x, kept).square().sum((1, 2))).sum()
    gradients = torch.autograd.grad(loss, [model[0].weight, *kept.values()])
    assert all((gradient != 0).any() for gradient in gradients)


# ---- Bad input


class Functional(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.drop, self.call = dropout.Dropout(0.5), call

    def forward(self, x):
        return self.call(self.drop(x))


def draw(model, x=None, **changes):
    arguments = {"num_passes": 2, "generator": generator()} | changes
    return dropout.draw_passes(model, torch.ones(3, 4) if x is None else x, **arguments)


D = dropout.Dropout(0.5)
BAD_INPUT = {
    "rate of one": (lambda: dropout.Dropout(1.0), r"rate must be in \[0, 1\), got 1.0"),
    "negative rate": (lambda: dropout.ChannelDropout(-0.1), r"rate must be in \[0, 1\), got -0.1"),
    "rate not a number": (lambda: dropout.DropConnect(2, 2, math.nan), r"rate must be in \[0, 1\), got nan"),
    "no passes": (lambda: draw(D, num_passes=0), "num_passes must be at least 1, got 0"),
    "half a pass": (lambda: draw(D, num_passes=1.5), "num_passes must be at least 1, got 1.5"),
    "passes not a number": (lambda: draw(D, num_passes=math.nan), "num_passes must be at least 1, got nan"),
    "no memory": (lambda: draw(D, memory_bytes=0), "memory_bytes must be at least 1, got 0"),
    "too little memory": (lambda: draw(D, memory_bytes=50), r"memory_bytes must be at least \d+ for one pass"),
    "no inputs": (lambda: draw(D, torch.ones(0, 4)), "inputs must have at least one example"),
    "inputs not finite": (lambda: draw(D, torch.tensor([[math.nan, 1.0]])), "inputs must be finite, got 1 non-finite"),
    "nothing to draw": (lambda: draw(nn.Linear(4, 2)), "model must have a stochastic layer"),
    "rate zero only": (lambda: draw(nn.Sequential(dropout.Dropout(0.0))), "model must have a stochastic layer"),
    "nothing to draw in drawing": (
        lambda: dropout.drawing(nn.Linear(4, 2), generator=generator()).__enter__(),
        "model must have a stochastic layer",
    ),
    "not on the way": (lambda: draw(NotOnTheWay()), "stochastic layer that its outputs depend on"),
    "never met": (lambda: draw(NeverMet()), "got an output that met none"),
    "batch norm in training mode": (
        lambda: draw(nn.Sequential(nn.BatchNorm1d(4), D)),
        r"batch normalisation '0' must use its running statistics: call model.eval\(\)",
    ),
    "batch norm without statistics": (
        lambda: draw(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), D).eval()),
        "batch normalisation '0' must use its running statistics",
    ),
    "not converted": (lambda: draw(nn.Sequential(D, nn.Dropout(0.1))), r"got Dropout at '1': dropout.convert"),
    "functional": (lambda: draw(Functional(F.dropout)), r"must not call torch.nn.functional.dropout itself.*rate 0.5"),
    "functional, off": (lambda: draw(Functional(lambda x: F.dropout(x, 0.2, False))), r"functional.dropout.*rate 0.2"),
    "functional, below": (
        lambda: draw(nn.Sequential(Functional(lambda x: F.dropout2d(x[:, None], p=0.3)[:, 0]), D)),
        "functional.dropout2d",
    ),
    "functional, in a pass": (lambda: one_pass(Functional(F.dropout)), "must not call torch.nn.functional.dropout"),
    "functional, fixed masks": (
        lambda: dropout.draw_masks(Functional(F.dropout), torch.ones(2, 4), num_draws=1, generator=generator()),
        "must not call torch.nn.functional.dropout",
    ),
    "attention's own": (
        lambda: draw(Functional(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1))),
        "functional.scaled_dot_product_attention",
    ),
    "no example a row": (
        lambda: draw(nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 2)), D)),
        r"inputs of a stochastic layer must be \[n, \*features\]",
    ),
    "two outputs": (lambda: draw(Functional(lambda x: (x, x))), "model must return one tensor"),
    "converted attention": (
        lambda: dropout.convert(nn.Sequential(nn.MultiheadAttention(4, 2, dropout=0.1), nn.Dropout())),
        "MultiheadAttention at '0': its dropout is inside",
    ),
    "converted recurrence": (
        lambda: dropout.convert(nn.Sequential(nn.LSTM(4, 4, num_layers=2, dropout=0.1), nn.Dropout())),
        "LSTM at '0': its dropout is inside",
    ),
    "converted alpha dropout": (
        lambda: dropout.convert(nn.Sequential(nn.AlphaDropout(), nn.Dropout())),
        "AlphaDropout at '0': it shifts and scales",
    ),
    "nothing to convert": (lambda: dropout.convert(nn.Linear(2, 2)), "model must have a stochastic layer"),
    "converted rate of one": (lambda: dropout.convert(nn.Dropout(1.0)), r"rate must be in \[0, 1\), got 1.0"),
    "dropconnect at zero": (lambda: dropout.dropconnect(nn.Linear(2, 2), 0), "rate must be above 0, got 0"),
    "dropconnect of nothing": (lambda: dropout.dropconnect(nn.ReLU(), 0.1), r"linear layer \(nn.Linear\), got none"),
    "no masks": (
        lambda: dropout.draw_masks(D, torch.ones(1, 2), num_draws=0, generator=generator()),
        "num_draws must be at least 1, got 0",
    ),
    "too many units": (lambda: dropout.all_masks(D, torch.ones(1, 21)), "at most 20 units to drop, got 21"),
    "masks of another model": (
        lambda: dropout.apply_masks(D, torch.ones(1, 2), {"0": torch.ones(3, 2)}),
        r"masks must be those of the model, \['model'\], got \['0'\]",
    ),
    "masks of another size": (
        lambda: dropout.apply_masks(D, torch.ones(1, 2), {"model": torch.ones(3, 1)}),
        r"masks\['model'\] must have shape \[3, 2\], got \[3, 1\]",
    ),
}


class NotOnTheWay(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = dropout.Dropout(0.5)

    def forward(self, x):
        self.drop(x)
        return x


class NeverMet(NotOnTheWay):
    def forward(self, x):
        return x if x.isfinite().all() else self.drop(x)


def one_pass(model):
    with dropout.drawing(model, generator=generator()):
        model(torch.ones(2, 4))


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_refused(name):
    call, message = BAD_INPUT[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_shared_draw_uses_a_generator_of_its_own():
    draw = Draw(generator(1), 3, 2, shared_generator=generator(2))
    layer = dropout.DropConnect(2, 2, 0.5)
    before = draw.generator.get_state()
    draw(layer, torch.ones(2, 2))
    assert torch.equal(draw.generator.get_state(), before)
