"""Measurements: of images, of samples of a known law, and of what a computation costs."""

from ncsn_core._lazy import names_of

__all__: list[str] = []

__getattr__, __dir__ = names_of(__name__, {}, "classifier cost features images samples")
