"""Weights to compare networks with, and how far apart two tensors are."""

import torch


def randomized(network):
    """Move every parameter away from where it starts, so that each one matters to the output."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def relative_error(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())
