"""What an import brings along: the heavy packages come when something needs them."""

import subprocess
import sys

import pytest

import ncsn_core
from ncsn_core import data, networks, samplers

# Training and distances need these, and they take two to ten seconds each.
HEAVY = {"lightning_fabric", "torchmetrics", "torchvision", "torch._dynamo", "torch._inductor"}
HEAVY |= {"torch_fidelity", "scipy.signal", "scipy.stats", "sympy", "matplotlib", "nbformat"}
EVERYTHING = """
import importlib, pkgutil, ncsn_core
for module in pkgutil.iter_modules(ncsn_core.__path__, "ncsn_core."):
    if module.name != "ncsn_core.__main__":
        importlib.import_module(module.name)
"""


def loaded(statements: str, *arguments: str) -> set[str]:
    """The modules that a fresh process has loaded after these statements."""
    report = "import atexit, sys; atexit.register(lambda: print('\\n', *sys.modules))\n"
    command = [sys.executable, "-c", report + statements, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_needs_none_of_the_packages_that_compute(arguments):
    found = loaded("from ncsn_core.cli import main; main()", *arguments)
    assert "ncsn_core.cli" in found
    assert not found & (HEAVY | {"torch", "numpy", "yaml", "IPython"})


@pytest.mark.slow
def test_a_claim_is_checked_with_none_of_them_and_without_what_makes_the_pages():
    found = loaded("from ncsn_core.book import claims")
    assert not found & (HEAVY | {"torch", "numpy", "IPython"})
    book = {name for name in found if name.startswith("ncsn_core.book.")}
    assert book == {f"ncsn_core.book.{name}" for name in ("claims", "ledger")}


@pytest.mark.slow
def test_no_module_of_the_package_needs_what_only_some_of_its_functions_do():
    found = loaded(EVERYTHING)
    assert {"torch", "ncsn_core.training", "ncsn_core.generation"} <= found
    assert not found & HEAVY
    assert not found & {f"ncsn_core.baselines.{name}" for name in ("gan", "pixelcnn")}
    assert "ncsn_core.networks.residual_autoencoder" not in found
    assert not found & {f"ncsn_core.samplers.{name}" for name in ("ode", "reverse", "inpainting")}


@pytest.mark.slow
def test_fabric_comes_without_the_package_whose_version_it_asks_for():
    start = "import torch; from ncsn_core.distributed import fabric; "
    found = loaded(start + "fabric(torch.device('cpu'), '32-true')")
    assert "lightning_fabric" in found
    assert not found & {"torchmetrics", "torchvision"}


@pytest.mark.slow
def test_a_trained_score_is_loaded_and_evaluated_with_none_of_them():
    load = "from ncsn_core import pretrained; s = pretrained.load('mnist14_continuous').score()"
    found = loaded(f"import torch; {load}; s(torch.zeros(1, 1, 14, 14), s.sigmas[:1])")
    assert "ncsn_core.networks.refinenet" in found
    assert not found & HEAVY


@pytest.mark.slow
def test_the_package_itself_loads_nothing_and_one_network_little():
    assert "torch" not in loaded("import ncsn_core as nc; assert 'load' in dir(nc)")
    ours = {name for name in loaded("import ncsn_core.networks.mlp") if "ncsn_core" in name}
    modules = ("", "._lazy", "._types", ".networks", ".networks.mlp")
    assert ours == {f"ncsn_core{name}" for name in modules}


@pytest.mark.parametrize("package", [ncsn_core, data, networks, samplers])
def test_every_name_of_a_package_is_there_once_it_is_asked_for(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018
