"""Score-based generative modeling after Song & Ermon (2019), one concept a module."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ncsn-core")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0.1.0"
