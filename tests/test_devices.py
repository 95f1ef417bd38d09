"""Every public function on every device: nothing left on the CPU, nothing mixed, the CPU's results.

The rows are in device_examples.py. The second half tests the simulated device itself (sim_device.py).
"""

import functools
import inspect
import re

import library
import pytest
import sim_device
import torch
from device_examples import COPIES_TO_HOST, EXAMPLES, TensorMaker
from torch import nn

# ---- Every public function


def tensors_in(result, path="result"):
    """Name and value of every tensor in what a function returned."""
    if isinstance(result, torch.Tensor):
        yield path, result
    elif isinstance(result, nn.Module):
        yield from tensors_in(dict(result.state_dict(keep_vars=True)), path)
    elif isinstance(result, torch.distributions.Distribution | torch.distributions.Transform):
        yield from tensors_in(vars(result), f"{path}.{type(result).__name__}")
    elif isinstance(result, dict):
        for name, value in result.items():
            yield from tensors_in(value, f"{path}.{name}")
    elif hasattr(result, "_asdict"):
        yield from tensors_in(result._asdict(), path)
    elif isinstance(result, list | tuple):
        for i, value in enumerate(result):
            yield from tensors_in(value, f"{path}[{i}]")
    elif inspect.isroutine(result) or isinstance(result, functools.partial):
        raise TypeError(f"{path} is a function: what it makes is unknown until the row calls it")


def run(example, device, dtype):
    """The tensors that an example returns, and whether they are random. Global random numbers must not be touched."""
    maker = TensorMaker(device, dtype)
    state = torch.get_rng_state()
    found = dict(tensors_in(example(maker)))
    assert found, "the row returns no tensor"
    assert torch.equal(torch.get_rng_state(), state), "the function draws from the global generator"
    return found, maker.is_random


def check_example(example, device, dtype, *, may_copy=False):
    """Run on the device and on the CPU; compare place, dtype, shape and values."""
    with sim_device.count() as counts:
        found, is_random = run(example, device, dtype)
    expected, _ = run(example, "cpu", dtype)

    elsewhere = {path: str(x.device) for path, x in found.items() if x.device != device}
    assert not elsewhere, f"not on {device}: {elsewhere}"
    assert may_copy or counts.copies_to_host == 0, "the function copies tensors to the host"
    other_dtype = {path: x.dtype for path, x in found.items() if x.is_floating_point() and x.dtype != dtype}
    assert not other_dtype, f"not {dtype}, as the inputs: {other_dtype}"
    assert found.keys() == expected.keys()
    for path, x in found.items():
        assert (x.shape, x.dtype) == (expected[path].shape, expected[path].dtype), path
        if not is_random or device.type == "sim":  # other devices have random streams of their own
            torch.testing.assert_close(x.detach().cpu(), expected[path].detach(), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_runs_on_every_device(name, device, dtype):
    if device.type == "mps" and dtype == torch.float64:
        pytest.skip("MPS has no float64")
    check_example(EXAMPLES[name], device, dtype, may_copy=name in COPIES_TO_HOST)


def test_every_public_function_has_an_example():
    names = {name for name, found in library.public_objects(library.chapter_modules()) if not library.is_record(found)}
    assert names - EXAMPLES.keys() == set(), "public functions without a row in device_examples.py"
    assert EXAMPLES.keys() - names == set(), "rows without a public function"
    assert COPIES_TO_HOST.keys() - EXAMPLES.keys() == set(), "excuses without a row"


@pytest.mark.parametrize("name", COPIES_TO_HOST)
def test_what_may_copy_to_the_host_does(name):
    with sim_device.count() as counts:
        run(EXAMPLES[name], sim_device.DEVICE, torch.float64)
    assert counts.copies_to_host > 0, "needs no excuse in COPIES_TO_HOST"


PLANTED = {
    "a constant made on the CPU, returned": (lambda t: (t([1.0]), torch.ones(1, dtype=t.like["dtype"])), "not on sim"),
    "a constant made on the CPU, used": (lambda t: t([1.0]) + torch.ones(1, dtype=t.like["dtype"]), "same device"),
    "a result left on the CPU": (lambda t: t([1.0]).cpu(), "not on sim"),
    "a round trip over the CPU": (lambda t: torch.sin(t([1.0]).cpu()).to(**t.like), "copies tensors to the host"),
    "a list made of the numbers": (lambda t: torch.tensor(t([1.0]).tolist(), **t.like), "copies tensors to the host"),
    "a parameter of a distribution on the CPU": (lambda t: torch.distributions.Poisson(torch.ones(1)), "not on sim"),
    "a module on the CPU": (lambda t: nn.utils.skip_init(nn.Linear, 2, 1), "not on sim"),
    "the default dtype": (lambda t: torch.ones(1, device=t.like["device"]) * t([1, 2]), "not torch.float64"),
    "the global generator": (lambda t: torch.randn(3, **t.like), "global generator"),
    "the CPU's generator": (lambda t: torch.randn(3, generator=torch.Generator(), **t.like), "for generator"),
    "its generator on the CPU": (lambda t: torch.randn(3, generator=t.generator).to(**t.like), "for generator"),
    "another result on the device": (lambda t: t([2.0 if t.like["device"].type == "sim" else 1.0]), "not close"),
    "a function": (lambda t: (t([1.0]), lambda: torch.ones(3)), "is a function"),
    "nothing": (lambda t: None, "no tensor"),
}


@pytest.mark.parametrize("device", [sim_device.DEVICE], indirect=True, ids=str)
@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_caught(fault, device):
    example, message = PLANTED[fault]
    with pytest.raises((AssertionError, RuntimeError, TypeError), match=re.compile(message, re.IGNORECASE)):
        check_example(example, device, torch.float64)


# ---- The simulated device

sim = torch.device("sim")


@pytest.fixture
def x():
    return torch.linspace(-1.0, 1.0, 6, device=sim).reshape(2, 3)


FACTORIES = {
    "zeros": lambda like: torch.zeros(3, **like),
    "ones": lambda like: torch.ones(2, 3, **like),
    "full": lambda like: torch.full((3,), 2.0, **like),
    "eye": lambda like: torch.eye(3, **like),
    "arange": lambda like: torch.arange(5, **like),
    "linspace": lambda like: torch.linspace(0, 1, 5, **like),
    "tensor": lambda like: torch.tensor([[1.0, 2.0], [3.0, 4.0]], **like),
    "scalar tensor": lambda like: torch.tensor(3.0, **like),
    "as_tensor of a list": lambda like: torch.as_tensor([1.0, 2.0], **like),
    "as_tensor of a tensor": lambda like: torch.as_tensor(torch.ones(3), **like),
    "to": lambda like: torch.ones(3).to(**like),
    "zeros_like": lambda like: torch.zeros_like(torch.ones(3), **like),
    "new_tensor": lambda like: torch.ones(3, **like).new_tensor([1.0]),
    "new_zeros": lambda like: torch.ones(3, **like).new_zeros(4),
    "tril_indices": lambda like: torch.tril_indices(3, 3, device=like["device"]),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_factories_make_tensors_on_the_device(name):
    made = FACTORIES[name](dict(device=sim))
    assert made.device == sim_device.DEVICE
    assert isinstance(made, sim_device.SimTensor)
    torch.testing.assert_close(made.cpu(), FACTORIES[name](dict(device="cpu")), rtol=0.0, atol=0.0)


RANDOM_FACTORIES = {
    "rand": lambda generator, device: torch.rand(4, generator=generator, device=device),
    "randn": lambda generator, device: torch.randn(4, generator=generator, device=device),
    "randint": lambda generator, device: torch.randint(0, 9, (4,), generator=generator, device=device),
    "randperm": lambda generator, device: torch.randperm(9, generator=generator, device=device),
    "normal_": lambda generator, device: torch.empty(4, device=device).normal_(generator=generator),
    "bernoulli": lambda generator, device: torch.bernoulli(torch.full((9,), 0.5, device=device), generator=generator),
    "multinomial": lambda generator, device: torch.multinomial(torch.ones(9, device=device), 4, generator=generator),
}


@pytest.mark.parametrize("name", RANDOM_FACTORIES)
def test_random_numbers_are_the_cpus_and_generators_stay_home(name):
    draw = RANDOM_FACTORIES[name]
    generator = torch.Generator(device=sim).manual_seed(3)
    draws = draw(generator, sim)
    assert generator.device == draws.device == sim_device.DEVICE
    assert torch.equal(draws.cpu(), draw(torch.Generator().manual_seed(3), "cpu"))
    with pytest.raises(RuntimeError, match="Expected a 'sim' device type for generator but found 'cpu'"):
        draw(torch.Generator(), sim)
    with (
        sim_device.GeneratorCheck(),
        pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator but found 'sim'"),
    ):
        draw(generator, "cpu")


def test_generator_keeps_its_place_and_its_stream():
    generator = torch.Generator(sim).manual_seed(0)
    copy = generator.clone_state()
    assert copy.device == sim_device.DEVICE
    assert torch.equal(torch.rand(3, generator=generator, device=sim), torch.rand(3, generator=copy, device=sim))
    assert all(isinstance(g, torch.Generator) for g in (generator, torch.Generator(), torch.default_generator))
    assert not isinstance(3, torch.Generator)


MIXED = {
    "add": lambda x: x + torch.ones(3),
    "a scalar of the device and a CPU vector": lambda x: torch.ones(3) * x[0, 0],
    "matmul": lambda x: x @ torch.ones(3, 2),
    "where": lambda x: torch.where(torch.ones(2, 3) > 0, x, 0.0),
    "cat": lambda x: torch.cat([x, torch.ones(1, 3)]),
    "stack of scalars": lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
    "out": lambda x: torch.add(x, x, out=torch.empty(2, 3)),
    "in place on a CPU scalar": lambda x: torch.tensor(1.0).add_(x[0, 0]),
    "index a CPU tensor": lambda x: torch.ones(3)[torch.tensor([0, 1], device=sim)],
    "values of an index": lambda x: x.index_put_((torch.tensor([0], device=sim),), torch.ones(3)),
    "gather": lambda x: x.gather(1, torch.tensor([[0]])),
    "linear": lambda x: nn.Linear(3, 1)(x),
    "distribution": lambda x: torch.distributions.Normal(torch.zeros(3), 1.0).log_prob(x),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_devices_raise(name, x):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        MIXED[name](x)


def test_what_cuda_allows_between_devices_is_allowed(x):
    as_on_cpu = x.cpu()
    assert torch.equal((x + torch.tensor(1.0)).cpu(), as_on_cpu + 1)
    assert torch.equal(torch.where(x > 0, torch.tensor(0.0), x).cpu(), as_on_cpu.clamp(max=0))
    assert torch.equal(x[torch.tensor([1, 0])].cpu(), as_on_cpu[[1, 0]])
    assert torch.equal(x.clone().copy_(torch.ones(2, 3)).cpu(), torch.ones(2, 3))
    assert torch.equal(torch.zeros(2, 3).copy_(x), as_on_cpu)
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
        x.numpy()


COUNTED = {  # what, [host_syncs, copies_to_host, kernel_launches]
    "arithmetic": (lambda x: (x * 2 + 1).sum(), [0, 0, 3]),
    "views": (lambda x: x.T[None].expand(4, 3, 2)[0, 1:].detach(), [0, 0, 0]),
    "a copy hidden in reshape": (lambda x: x.T.reshape(-1), [0, 0, 1]),
    "factories": (lambda x: (torch.empty_like(x), torch.zeros_like(x), torch.randn(2, device=sim)), [0, 0, 2]),
    "in place": (lambda x: x.add_(1).mul_(2), [0, 0, 2]),
    "item": (lambda x: x[0, 0].item(), [1, 0, 0]),
    "a branch": (lambda x: 1 if (x > 5).any() else 2, [1, 0, 2]),
    "float": (lambda x: float(x.mean()), [1, 0, 1]),
    "cpu": (lambda x: x.cpu(), [1, 1, 0]),
    "tolist": (lambda x: x.tolist(), [1, 1, 0]),
    "a constant sent over": (lambda x: x + torch.tensor(2.0, device=sim), [1, 0, 1]),
    "a constant made there": (lambda x: x + torch.full((), 2.0, device=sim), [0, 0, 2]),
    "sent without waiting": (lambda x: torch.ones(3).to(sim, non_blocking=True), [0, 0, 0]),
    "select by mask": (lambda x: x[x > 0], [1, 0, 2]),
    "fill by mask": (lambda x: x.masked_fill_(x > 0, 1.0), [0, 0, 2]),
    "assign a number by mask": (lambda x: x.__setitem__(x > 0, 1.0), [0, 0, 3]),
    "select by index": (lambda x: x.index_select(0, torch.zeros(1, dtype=torch.long, device=sim)), [0, 0, 2]),
    "select by CPU index": (lambda x: x[torch.tensor([0])], [1, 0, 1]),
    "nonzero": (lambda x: x.nonzero(), [1, 0, 1]),
    "equal": (lambda x: torch.equal(x, x), [1, 0, 1]),
    "cholesky, checked": (lambda x: torch.linalg.cholesky(torch.eye(2, device=sim)), [1, 0, 3]),
    "cholesky_ex": (lambda x: torch.linalg.cholesky_ex(torch.eye(2, device=sim)), [0, 0, 2]),
    "change of dtype": (lambda x: x.double(), [0, 0, 1]),
    "linear layer": (lambda x: nn.functional.linear(x, x, x[:, 0]), [0, 0, 1]),
    "another device": (lambda x: torch.ones(3).sum().item(), [0, 0, 0]),
}


@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_exact(name, x):
    call, expected = COUNTED[name]
    with sim_device.count() as counts:
        call(x)
    assert counts == sim_device.Counts(*expected)


def test_counts_nest_and_include_the_backward_pass(x):
    weight = torch.ones(3, device=sim, requires_grad=True)
    with sim_device.count() as outer:
        loss = (x @ weight).square().sum()
        with sim_device.count() as inner:
            loss.backward()
    assert outer.kernel_launches == inner.kernel_launches + 3
    assert inner.kernel_launches >= 3
    assert outer.host_syncs == 0


def on_both(compute):
    """Compute on the simulated device and on the CPU; the results must be equal and in their places."""
    with sim_device.GeneratorCheck():
        found, expected = (dict(tensors_in(compute(device))) for device in (sim, "cpu"))
    assert found
    for path, value in found.items():
        assert (value.device, value.shape) == (sim_device.DEVICE, expected[path].shape), path
        torch.testing.assert_close(value.detach().cpu(), expected[path].detach())


def train(device):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(2 * 4 * 4, 3)
    network = nn.Sequential(*layers).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.1)
    images, labels = torch.randn(5, 1, 6, 6).to(device), torch.tensor([0, 1, 2, 0, 1], device=device)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimiser.step()
    return network


def matrix(device):
    return torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 3.0]], device=device)


def gradients(device):
    w = matrix(device).requires_grad_()
    (gradient,) = torch.autograd.grad(w.logdet().exp() + w.square().sum(), w, create_graph=True)
    gradient.sum().backward()
    return gradient, w.grad


def views_in_place(device):
    w = matrix(device).requires_grad_()
    y = w * 2
    y[0].mul_(3)
    y.view(-1)[4:].add_(1)
    y.sum().backward()
    w.data = w.data.clone().mul_(2)
    return w, y, w.grad, matrix(device).t_(), torch.add(matrix(device), 1, out=torch.empty(0, device=device))


def sample(device):
    a = torch.tensor([0.5, 2.0], device=device)
    torch.manual_seed(0)
    distributions = torch.distributions
    return [
        (x := d.sample((3,)), d.log_prob(x))
        for d in [
            distributions.Normal(a, a),
            distributions.Beta(a, a),
            distributions.Gamma(a, a),
            distributions.Categorical(a),
            distributions.StudentT(a, a, a),
            distributions.NegativeBinomial(a, a / 4),
            distributions.MultivariateNormal(a, precision_matrix=torch.diag(a)),
            distributions.Independent(distributions.Bernoulli(a / 4), 1),
        ]
    ] + [distributions.kl_divergence(distributions.Beta(a, a), distributions.Beta(a, 2 * a))]


COMPUTED = {
    "training": train,
    "gradients": gradients,
    "views and in-place operations": views_in_place,
    "distributions": sample,
    "func.grad": lambda device: torch.func.grad(lambda w: w.sin().sum())(matrix(device)),
    "func.vmap of grad": lambda device: torch.func.vmap(torch.func.grad(lambda w: w.logsumexp(0)))(matrix(device)),
    "func.hessian": lambda device: torch.func.hessian(lambda w: w.pow(3).sum())(matrix(device)[0]),
    "func.jvp": lambda device: torch.func.jvp(torch.exp, (matrix(device),), (matrix(device),)),
    "func.functional_call": lambda device: torch.func.functional_call(
        nn.Linear(3, 1, device="meta"), {"weight": matrix(device)[:1], "bias": matrix(device)[0, :1]}, matrix(device)
    ),
    "linalg": lambda device: (
        torch.linalg.cholesky(matrix(device)),
        torch.linalg.solve_triangular(matrix(device).tril(), matrix(device), upper=False),
        torch.linalg.qr(matrix(device)),
        torch.linalg.eigh(matrix(device)),
        torch.cholesky_solve(matrix(device), matrix(device)),
    ),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computes_as_the_cpu_does(name):
    on_both(COMPUTED[name])


def test_save_and_load(x, tmp_path):
    torch.save({"x": x}, tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True)["x"].device == sim_device.DEVICE
    on_cpu = torch.load(tmp_path / "x.pt", weights_only=True, map_location="cpu")["x"]
    assert torch.equal(on_cpu, x.cpu())


# ---- The check of shapes at run time (conftest.py) sees these tensors too


def test_broken_annotation_is_caught_unless_the_library_refuses_first(device):
    from bdl_lib import bayes, data

    with pytest.raises(TypeError, match="Type-check error"):
        bayes.polynomial_features(torch.ones(3, dtype=torch.long, device=device), 2)
    with pytest.raises(ValueError, match="same number of hypotheses"):
        bayes.update(torch.ones(2, device=device), torch.ones(3, device=device))
    data.line_mean(torch.ones(3, 1, device=device))
