"""Measurements: of images, of samples of a known law, and of what a computation costs."""
