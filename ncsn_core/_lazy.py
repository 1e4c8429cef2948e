"""Packages that gather the names of their modules, and import each when it is asked for (PEP 562).

Whoever needs one network or sampler loads that one, and depends on no other.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def names_of(
    package: str, modules: dict[str, str], submodules: str = "", registry: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package.

    Args:
        package: its `__name__`.
        modules: the names that the package gets from each of its modules, separated by spaces.
        submodules: modules that are attributes without having been imported, likewise.
        registry: which of the names is a dictionary that the modules fill when they are imported.
            To ask for it is to import them all, and what it holds needs no other mention to be a
            name of the package, and in its `__all__`.
    """
    home = {name: module for module, names in modules.items() for name in names.split()}

    def registered() -> dict[str, Any]:
        for module in iter_modules(sys.modules[package].__path__, f"{package}."):
            import_module(module.name)
        return getattr(import_module(f"{package}.{home[registry]}"), registry)

    def find(name: str) -> Any:
        if name in submodules.split():
            return import_module(f"{package}.{name}")
        if registry and name == registry:
            return registered()
        if registry and name == "__all__":
            return sorted({*home, *registered()}, key=str.swapcase)  # functions first
        if name in home:
            return getattr(import_module(f"{package}.{home[name]}"), name)
        if registry and not name.startswith("_") and name in registered():
            return getattr(sys.modules[registered()[name].__module__], name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: sorted({*sys.modules[package].__all__, *submodules.split()})
