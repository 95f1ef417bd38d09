"""Who imports whom, what an import costs, and a few words that must not occur in ``bdl_lib``."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import library
import pytest

# ---- What an import costs

HEAVY = {
    "IPython", "arviz", "blackjax", "ipykernel", "ipywidgets", "jax", "matplotlib", "numba", "pandas", "pyro", "scipy",
    "seaborn", "sklearn", "sympy", "torchvision", "xarray",
}  # fmt: skip

REPORT = """
import importlib, json, sys
import torch
heavy, cost = set(json.loads(sys.argv[1])), {}
for name in json.loads(sys.argv[2]):
    before = set(sys.modules)
    importlib.import_module(name)
    cost[name] = sorted(heavy & (set(sys.modules) - before))
print(json.dumps(cost))
"""


def import_costs(names, path="."):
    """Heavy packages that each import adds, one after the other, to those that torch brings along."""
    command = [sys.executable, "-c", REPORT, json.dumps(sorted(HEAVY)), json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=path)
    return {name: heavy for name, heavy in json.loads(done.stdout).items() if heavy}


def test_import_costs_torch_and_little_else():
    names = ["bdl_lib", *(f"bdl_lib.{name}" for name in library.module_names())]
    assert import_costs(names, library.ROOT.parent) == {}


FIRST_DRAW = """
import sys
import torch
from bdl_lib import mcmc
run = {"num_warmup": 1, "num_samples": 1, "generator": torch.Generator()}
mcmc.sample_chees(lambda x: -x.square().sum(1), torch.ones(2, 2), **run)
sys.exit("sympy" in sys.modules)
"""


FIRST_PASSES = """
import sys
import torch
from bdl_lib import dropout
model = torch.nn.Sequential(dropout.Dropout(0.5), torch.nn.Linear(2, 2))
dropout.draw_passes(model, torch.ones(2, 2), num_passes=2, generator=torch.Generator())
sys.exit("sympy" in sys.modules)
"""


@pytest.mark.parametrize("program", [FIRST_DRAW, FIRST_PASSES], ids=["sample_chees", "draw_passes"])
def test_a_first_draw_does_not_wait_for_sympy(program):
    """PyTorch imports it where autograd is given the gradients to begin with, and for a mode that it may compile."""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=library.ROOT.parent)


def test_a_heavy_import_is_seen(tmp_path):
    (tmp_path / "planted.py").write_text("import scipy.stats\n")
    assert import_costs(["planted"], tmp_path) == {"planted": ["scipy"]}


# ---- Who imports whom

EARLIER = {name: set(library.CHAPTERS[:i]) for i, name in enumerate(library.CHAPTERS)}
MAY_IMPORT = EARLIER | {
    # These take numbers, never a model.
    "scores": set(),
    "uncertainty": {"scores"},
    "plots": set(),
    "widgets": {"plots"},
    "data": set(),
    "check": {"data", *library.CHAPTERS},
}
EXCEPTIONS = {Path("uncertainty", "scene_network.py"): {"dropout"}}  # a network, not a measure


def imported_modules(tree: ast.AST, package: str) -> set[str]:
    """First names below ``bdl_lib`` that a file of the package ``bdl_lib[.x]`` imports, wherever in the file."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("bdl_lib.")}


def forbidden_imports(source: str, path: Path) -> set[str]:
    """Modules that the file at ``path``, relative to ``bdl_lib``, must not import but does."""
    package = ".".join(["bdl_lib", *path.parent.parts])
    module = path.parts[0].removesuffix(".py")
    allowed = {module, *MAY_IMPORT.get(module, ()), *EXCEPTIONS.get(path, ()), "__version__"}
    return imported_modules(ast.parse(source), package) - allowed


# ---- Words that must not occur

DRAWS = {
    "bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "kaiming_normal_", "kaiming_uniform_",
    "log_normal_", "multinomial", "normal", "normal_", "orthogonal_", "poisson", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "random_", "randperm", "rsample", "sample", "sample_n", "trunc_normal_",
    "uniform_", "xavier_normal_", "xavier_uniform_",
}  # fmt: skip
GLOBAL_RANDOMNESS = {
    "torch.default_generator", "torch.initial_seed", "torch.manual_seed", "torch.random", "torch.seed",
    "torch.set_rng_state", "np.random", "numpy.random",
}  # fmt: skip
DROPS = {"alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "gumbel_softmax", "rrelu"}


def dotted(node: ast.AST) -> str:
    """``a.b.c`` as text; whatever is not a name in it becomes nothing."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Assert):
        return "assert: raise ValueError, which python -O keeps"
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
        return "the module random has global state" if "random" in names else None
    if isinstance(node, ast.Attribute) and dotted(node) in GLOBAL_RANDOMNESS:
        return f"{dotted(node)}: global random state"
    if not isinstance(node, ast.Call):
        return None
    name, keywords = dotted(node.func).split(".")[-1], {k.arg: k.value for k in node.keywords}
    if name in DROPS and dotted(node.func).split(".")[0] in {"F", "nn", "torch"}:
        return f"{name} takes no generator"
    if name in DRAWS and isinstance(node.func, ast.Attribute) and not {"generator", None} & keywords.keys():
        return f"{name} without generator="
    if dotted(node.func) == "torch.load" and getattr(keywords.get("weights_only"), "value", None) is not True:
        return "torch.load without weights_only=True"
    return None


def faults(source: str) -> list[str]:
    """What a source file must not say, with line numbers."""
    tree = ast.parse(source)
    excused = {call for block in ast.walk(tree) if gives_generator(block) for call in ast.walk(block)}
    found = [(node, faults_of(node)) for node in ast.walk(tree)]
    found = [(node, fault) for node, fault in found if fault and not (fault.endswith("generator=") and node in excused)]
    return [f"line {getattr(node, 'lineno', 0)}: {fault}" for node, fault in found]


def gives_generator(node: ast.AST) -> bool:
    """``with _WithGenerator(generator):``, which hands it to every draw of PyTorch within."""
    return isinstance(node, ast.With) and any(
        isinstance(item.context_expr, ast.Call) and dotted(item.context_expr.func) == "_WithGenerator"
        for item in node.items
    )


# ---- Every file of the library

FILES = sorted(path.relative_to(library.ROOT) for path in library.ROOT.rglob("*.py"))


def test_every_module_has_its_place():
    tops = {name.split(".")[0] for name in library.module_names()}
    assert tops <= MAY_IMPORT.keys(), "unknown modules: add them to CHAPTERS or SHARED in tests/library.py"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_only_what_it_may(path):
    assert forbidden_imports((library.ROOT / path).read_text(), path) == set()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_says_nothing_that_it_must_not(path):
    assert faults((library.ROOT / path).read_text()) == []


# ---- The rules themselves


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("evidence.py", "from bdl_lib import bayes, networks", set()),
        ("evidence.py", "from bdl_lib.mcmc import sample_nuts", {"mcmc"}),
        ("mcmc/hmc.py", "import bdl_lib.vi.families", {"vi"}),
        ("mcmc/hmc.py", "from . import kernels\nfrom .kernels import leapfrog\nfrom ..bayes import update", set()),
        ("mcmc/hmc.py", "from ..vi import fit", {"vi"}),
        ("bayes.py", "def f():\n    from . import plots", {"plots"}),
        ("scores.py", "from bdl_lib.networks import mlp", {"networks"}),
        ("uncertainty/calibration.py", "from bdl_lib import dropout", {"dropout"}),
        ("uncertainty/scene_network.py", "from bdl_lib import dropout, vi", {"vi"}),
        ("plots.py", "from bdl_lib.bayes import update", {"bayes"}),
        ("widgets/page.py", "from bdl_lib import plots", set()),
        ("data/curves.py", "from bdl_lib.bayes import update", {"bayes"}),
        ("__init__.py", "from bdl_lib import bayes", {"bayes"}),
    ],
)
def test_import_rule(path, source, expected):
    assert forbidden_imports(source, Path(path)) == expected


@pytest.mark.parametrize(
    "source",
    [
        "assert x > 0",
        "torch.manual_seed(0)",
        "torch.randn(3)",
        "torch.rand_like(x)",
        "x.normal_()",
        "nn.init.normal_(x)",
        "Normal(0.0, 1.0).sample()",
        "with open(path):\n    Normal(0.0, 1.0).sample()",
        "with _WithGenerator(generator):\n    torch.manual_seed(0)",
        "q.rsample((3,))",
        "torch.multinomial(p, 2)",
        "F.dropout(x)",
        "torch.default_generator",
        "np.random.default_rng(0)",
        "import random",
        "from random import choice",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
    ],
)
def test_fault_is_found(source):
    assert len(faults(source)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.randn(3, generator=generator)",
        "torch.rand(3, **like)",
        "prior.sample(3, generator=generator)",
        "with _WithGenerator(generator):\n    prior.sample((3,))",
        "x.normal_(generator=generator)",
        "torch.load(path, weights_only=True)",
        "Normal(loc, scale)",
        "sample(state, generator)",
    ],
)
def test_what_is_allowed_passes(source):
    assert faults(source) == []
