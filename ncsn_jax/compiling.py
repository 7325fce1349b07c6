"""How XLA compiles convolutions for a CPU, where its defaults are slow; figures: docs/performance.md."""

import os

import jax

XLA_FLAGS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
"""Eigen convolves, not YNNPACK, which is slow at the gradients of kernels."""

NOT_KEPT = "Error writing persistent compilation cache entry .*MemoryError"
"""What jax warns of programs with oneDNN's convolutions, which XLA can't write to the compilation cache."""


def set_xla_flags() -> None:
    """Puts `XLA_FLAGS` before the user's own; to be called before jax computes anything."""
    os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}".rstrip()


def inference_options() -> dict[str, bool]:
    """The `compiler_options` of `jax.jit` for programs without gradients of kernels.

    oneDNN convolves in them: faster than Eigen there, in bfloat16 by far, and slower at those gradients.
    """
    return {"xla_cpu_experimental_onednn_custom_call": True} if jax.default_backend() == "cpu" else {}
