"""XLA settings for CPUs, whose defaults are slow or use much memory (docs/notes/performance-log.md)."""

import ctypes
import os
import sys
import warnings

import jax
import jax.monitoring
import platformdirs

from ncsn_jax.runtime.files import limit_size

XLA_FLAGS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
"""Flags that let Eigen convolve instead of YNNPACK, which is slow at gradients of kernels."""

NOT_KEPT = "Error writing persistent compilation cache entry .*MemoryError"
"""Pattern of jax's warning about oneDNN's convolutions, which XLA can't write to the compilation cache."""

MAX_COMPILATIONS = 4 * 2**30
"""Largest size of the cache of compiled programs, in bytes."""

LONG = 1.0
"""Shortest compilation, in seconds, after which memory is returned; returning it takes 0.05 s."""


def set_xla_flags() -> None:
    """Put `XLA_FLAGS` before the user's own flags; call this before jax computes anything."""
    os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}".rstrip()


def inference_options() -> dict[str, bool]:
    """Return the `compiler_options` of `jax.jit` for programs without gradients of kernels.

    They select oneDNN's convolutions. These are faster than Eigen's (by far in bfloat16), but slower at
    gradients of kernels.
    """
    return {"xla_cpu_experimental_onednn_custom_call": True} if jax.default_backend() == "cpu" else {}


def give_memory_back_after_compilations() -> None:
    """Give freed memory back to the system after every long compilation.

    XLA's compiler frees hundreds of MiB, which the C library would otherwise keep until the process ends.
    Only glibc can give them back.
    """
    jax.monitoring.register_event_duration_secs_listener(_give_memory_back)


def _give_memory_back(event: str, duration_secs: float, **_: str | int) -> None:
    compiled = event == "/jax/core/compile/backend_compile_duration"
    if compiled and duration_secs >= LONG and sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def keep_compilations() -> None:
    """Keep compiled programs in the user's cache directory, unless jax already has a directory for them."""
    directory = platformdirs.user_cache_path("ncsn_jax") / "compilations"
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Not jax's own limit: with it, every write reads a file of each cached program.
        limit_size(directory, MAX_COMPILATIONS)
    except OSError:
        return  # a read-only home costs only time
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        warnings.filterwarnings("ignore", NOT_KEPT)
