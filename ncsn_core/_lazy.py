"""Packages that gather the names of their modules, and import each when it is asked for (PEP 562).

Whoever needs one network or sampler loads that one, and depends on no other.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def names_of(
    package: str, modules: dict[str, str], submodules: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package.

    Args:
        package: its `__name__`.
        modules: the names that the package gets from each of its modules, separated by spaces.
        submodules: modules that are attributes without having been imported, likewise.
    """
    home = {name: module for module, names in modules.items() for name in names.split()}

    def find(name: str) -> Any:
        if name in submodules.split():
            return import_module(f"{package}.{name}")
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return find, lambda: sorted({*sys.modules[package].__all__, *submodules.split()})
