"""How XLA compiles for a CPU, where its defaults are slow or large (docs/notes/performance-log.md)."""

import ctypes
import os
import sys

import jax
import jax.monitoring

XLA_FLAGS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
"""Eigen convolves, not YNNPACK, which is slow at the gradients of kernels."""

NOT_KEPT = "Error writing persistent compilation cache entry .*MemoryError"
"""What jax warns of programs with oneDNN's convolutions, which XLA can't write to the compilation cache."""

LONG = 1.0
"""Seconds of a compilation after which memory is given back: that takes 0.05."""


def set_xla_flags() -> None:
    """Puts `XLA_FLAGS` before the user's own; to be called before jax computes anything."""
    os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}".rstrip()


def inference_options() -> dict[str, bool]:
    """The `compiler_options` of `jax.jit` for programs without gradients of kernels.

    oneDNN convolves in them: faster than Eigen there, in bfloat16 by far, and slower at those gradients.
    """
    return {"xla_cpu_experimental_onednn_custom_call": True} if jax.default_backend() == "cpu" else {}


def give_memory_back_after_compilations() -> None:
    """Has the system get back, after every long compilation, the memory that XLA's compiler has freed.

    The C library would keep it, hundreds of MiB, as long as the process lives. Only glibc can give it back.
    """
    jax.monitoring.register_event_duration_secs_listener(_give_memory_back)


def _give_memory_back(event: str, duration_secs: float, **_: str | int) -> None:
    compiled = event == "/jax/core/compile/backend_compile_duration"
    if compiled and duration_secs >= LONG and sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
