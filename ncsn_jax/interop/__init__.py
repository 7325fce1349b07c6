"""Readers of the official PyTorch code's checkpoints, and converters in both directions, without PyTorch."""

from ncsn_jax.interop.torch_checkpoint import load_torch_checkpoint
from ncsn_jax.interop.torch_networks import average_of, from_torch, to_torch

__all__ = ["average_of", "from_torch", "load_torch_checkpoint", "to_torch"]
