"""Speed of training steps, forward passes and sampling on one accelerator, beside PyTorch if it is installed.

    python -m benchmarks.accelerator --minutes 8 --out accelerator.json
    python -m benchmarks.accelerator --tiny       # small networks, for a CPU

Needs jax, flax and optax alone. The cases come in the order of their value. A case starts only if the longest
case so far still fits in the budget; the others are named. The JSON file is written after each case.

Every time is a median of repeated calls after one that compiles. The peak is a measured matrix product in the
same type. Operations are XLA's count of the compiled program. On NVIDIA GPUs, float32 products and
convolutions of both frameworks run in TF32, which is jax's default there. Memory is XLA's own figure of a
program: its arguments, results and temporaries.
"""

import argparse
import functools
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.stages import Compiled

from ncsn_jax import NCSN, NCSNv2, annealed_langevin_dynamics, as_score_fn, geometric_sigmas
from ncsn_jax.training.objective import denoising_objective
from ncsn_jax.training.parallel import pmap_step, replicate
from ncsn_jax.training.state import create_state
from ncsn_jax.training.step import example_loss

TYPES = ("float32", "bfloat16")


class Size(NamedTuple):
    """Size of the cases, and the length of a measurement.

    Attributes:
      filters: F of the networks.
      side: the height and width of the images.
      batch: the number of images.
      scales: the number of noise levels of the sampling, with one step each.
      product: the side of the matrices whose product is the peak.
      seconds: the least duration of a measurement.
    """

    filters: int
    side: int
    batch: int
    scales: int
    product: int
    seconds: float


FULL = Size(filters=128, side=32, batch=128, scales=10, product=8192, seconds=3.0)
TINY = Size(filters=4, side=8, batch=2, scales=2, product=64, seconds=0.01)


class Work(NamedTuple):
    """A call to time, the number of its images, and its compiled programs, if XLA made them."""

    run: Callable[[], Any]
    images: int
    programs: tuple[Compiled, ...] = ()


def network(name: str, size: Size, dtype: str) -> Any:
    """Return NCSN or NCSNv2 of this size."""
    own = {"num_filters": size.filters, "dtype": None if dtype == "float32" else dtype}
    if name == "NCSNv2":
        return NCSNv2(**own)
    return NCSN(tuple(geometric_sigmas(1.0, 0.01, 10).tolist()), **own)


def images(size: Size) -> jax.Array:
    """Return a batch of random images."""
    return jax.random.uniform(jax.random.key(0), (size.batch, size.side, size.side, 3))


def step_work(name: str, size: Size, dtype: str) -> Work:
    """Return a training step of `ncsn_jax.training`, with Adam, on this process's first device."""
    model, device = network(name, size, dtype), jax.local_devices()[:1]
    optimizer = optax.adam(1e-3)
    sigmas = tuple(geometric_sigmas(1.0, 0.01, 10).tolist())
    step = pmap_step(
        loss=example_loss(model, denoising_objective(sigmas)),
        optimizer=optimizer,
        ema_rate=0.999,
        devices=device,
    )
    x = images(size)[None]
    state = replicate(create_state(jax.random.key(1), model, x.shape[2:], optimizer), device)
    batch = {"examples": x, "index": jnp.arange(size.batch)[None]}
    batch = jax.device_put(batch, device[0])
    key = jax.random.key(2)
    programs = tuple(program.compile() for program in step.lowered(state, batch, key))

    def run() -> Any:
        nonlocal state
        state, values = step(state, batch, key)
        return values

    return Work(run, size.batch, programs)


def forward_work(name: str, size: Size, dtype: str) -> Work:
    """Return a forward pass of the batch."""
    model, x, sigma = network(name, size, dtype), images(size), jnp.full(size.batch, 0.1)
    params = jax.jit(model.init)(jax.random.key(1), x[:1], sigma[:1])
    compiled = jax.jit(model.apply).lower(params, x, sigma).compile()
    return Work(lambda: compiled(params, x, sigma), size.batch, (compiled,))


def sampling_work(name: str, size: Size, dtype: str) -> Work:
    """Return annealed Langevin dynamics of the batch, one step per level."""
    model, x = network(name, size, dtype), images(size)
    params = jax.jit(model.init)(jax.random.key(1), x[:1], jnp.ones(1))
    sigmas = geometric_sigmas(1.0, 0.01, size.scales)
    chain = functools.partial(annealed_langevin_dynamics, sigmas=sigmas, step_size=2e-5, steps_per_scale=1)
    chains = jax.jit(jax.vmap(chain, (0, None, 0)))
    arguments = jax.random.split(jax.random.key(2), size.batch), as_score_fn(model, params), x
    compiled = chains.lower(*arguments).compile()
    return Work(lambda: compiled(*arguments), size.batch, (compiled,))


def peak_work(size: Size, dtype: str) -> Work:
    """Return a product of square matrices, whose operations stand for the chip's peak."""
    matrix = jnp.ones((size.product, size.product), dtype)
    compiled = jax.jit(jnp.dot).lower(matrix, matrix).compile()
    return Work(lambda: compiled(matrix, matrix), 1, (compiled,))


def torch_work(kind: str, name: str, size: Size, dtype: str) -> Work:
    """Return the same work in PyTorch: channels last, TF32 or bf16 autocast, compiled."""
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks import torch_peer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    sigmas = torch_peer.SIGMAS.to(device)
    network = {"NCSN": torch_peer.NCSN, "NCSNv2": torch_peer.NCSNv2}[name]
    model = network(3, size.filters).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = torch.rand(size.batch, 3, size.side, size.side, device=device)
    x = x.to(memory_format=torch.channels_last)
    level = torch.randint(len(sigmas), (size.batch,), device=device)
    compiled = torch.compile(model) if device == "cuda" else model

    def score(x, level):
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return compiled(x, level).float()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def step() -> None:
        sigma = sigmas[level][:, None, None, None]
        noise = torch.randn_like(x)
        loss = ((score(x + sigma * noise, level) * sigma + noise) ** 2).sum((1, 2, 3)).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wait()

    @torch.inference_mode()
    def forward() -> None:
        score(x, level)
        wait()

    @torch.inference_mode()
    def sampling() -> None:
        chains = torch.rand_like(x)
        for c in range(size.scales):
            step_size = 2e-5 * (sigmas[c] / sigmas[-1]) ** 2
            move = step_size * score(chains, torch.full_like(level, c))
            chains = chains + move + torch.sqrt(2 * step_size) * torch.randn_like(x)
        wait()

    return Work({"step": step, "forward": forward, "sampling": sampling}[kind], size.batch)


WORKS = {"step": step_work, "forward": forward_work, "sampling": sampling_work}


def cases(size: Size, has_torch: bool) -> Iterator[tuple[str, str, Callable[[], Work]]]:
    """Yield the cases in the order of their value: the name, the type, and a function that prepares it."""
    for dtype in TYPES:
        yield "matrix product", dtype, functools.partial(peak_work, size, dtype)
    order = [("NCSN", "step"), ("NCSN", "forward"), ("NCSN", "sampling")]
    order += [("NCSNv2", "step"), ("NCSNv2", "forward"), ("NCSNv2", "sampling")]
    for name, kind in order:
        for dtype in TYPES:
            yield f"{name} {kind}", dtype, functools.partial(WORKS[kind], name, size, dtype)
            if has_torch:
                yield f"{name} {kind}, PyTorch", dtype, functools.partial(torch_work, kind, name, size, dtype)


def measured(work: Work, seconds: float) -> dict[str, float]:
    """Time the work after one call: at least three calls, for at least so many seconds."""
    jax.block_until_ready(work.run())
    times = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.perf_counter()
        jax.block_until_ready(work.run())
        times.append(time.perf_counter() - began)
    median = float(np.median(times))
    found = {"seconds": median, "fastest": min(times), "slowest": max(times), "calls": len(times)}
    found["images_per_second"] = work.images / median
    if work.programs:
        flops = sum((program.cost_analysis() or {}).get("flops", 0.0) for program in work.programs)
        found["flops_per_second"] = flops / median
        found["memory_bytes"] = max(map(_memory, work.programs))
    return found


def _memory(program: Compiled) -> int:
    analysis = program.memory_analysis()
    if analysis is None:
        return 0
    whole = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return whole - analysis.alias_size_in_bytes


def run(size: Size, minutes: float, out: Path | None) -> dict[str, Any]:
    """Measure the cases that fit in the budget; print and write each as it ends, and return all of them."""
    has_torch = importlib.util.find_spec("torch") is not None
    device, began, longest = jax.devices()[0], time.perf_counter(), 0.0
    report: dict[str, Any] = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "size": size._asdict(),
        "precision": "TF32 on NVIDIA GPUs, jax's default for float32",
        "cases": [],
        "left_out": [] if has_torch else ["PyTorch, which is not installed"],
    }
    peaks: dict[str, float] = {}
    for name, dtype, prepare in cases(size, has_torch):
        started = time.perf_counter()
        if started - began + longest > 60 * minutes:
            report["left_out"].append(f"{name}, {dtype}: no time left")
            continue
        try:
            found = measured(prepare(), size.seconds)
        except Exception as error:  # such as out of memory; the other cases are still run
            reason = " ".join(str(error).split())[:200]
            report["left_out"].append(f"{name}, {dtype}: {type(error).__name__}: {reason}")
        else:
            if name == "matrix product":
                peaks[dtype] = found["flops_per_second"]
            elif "flops_per_second" in found and dtype in peaks:
                found["share_of_peak"] = found["flops_per_second"] / peaks[dtype]
            report["cases"].append({"case": name, "type": dtype} | found)
            print(row(report["cases"][-1]), flush=True)
        longest = max(longest, time.perf_counter() - started)
        if out is not None:
            out.write_text(json.dumps(report, indent=1))
    for reason in report["left_out"]:
        print(f"left out: {reason}")
    return report


def row(case: dict[str, Any]) -> str:
    """Return one line of the table."""
    rest = f"{case['images_per_second']:10.1f} images/s"
    if "share_of_peak" in case:
        rest += f"  {case['share_of_peak']:6.1%} of the peak"
    elif case["case"] == "matrix product":
        rest = f"{case['flops_per_second'] / 1e12:10.2f} Tflop/s"
    if "memory_bytes" in case:
        rest += f"  {case['memory_bytes'] / 2**30:6.2f} GiB"
    return f"{case['case']:26} {case['type']:9} {rest}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed on one accelerator.")
    parser.add_argument("--minutes", type=float, default=8.0, help="the budget")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument("--tiny", action="store_true", help="small networks, for a CPU")
    arguments = parser.parse_args()
    run(TINY if arguments.tiny else FULL, arguments.minutes, arguments.out)


if __name__ == "__main__":
    main()
