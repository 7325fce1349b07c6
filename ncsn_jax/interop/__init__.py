"""Reading what the official PyTorch code wrote, and writing what it reads, without PyTorch."""

from ncsn_jax.interop.torch_checkpoint import load_torch_checkpoint
from ncsn_jax.interop.torch_networks import from_torch, to_torch

__all__ = ["from_torch", "load_torch_checkpoint", "to_torch"]
