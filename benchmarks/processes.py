"""Processes of main.py: one alone, or several as a small pod."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(
    arguments: Sequence[str],
    *,
    processes: int = 1,
    devices: int = 1,
    of_last: Sequence[str] = (),
    **environment: str,
) -> list[subprocess.Popen]:
    """Start main.py in `processes` processes of `devices` fake devices; only the last one gets `of_last`."""
    fake_devices = f"--xla_force_host_platform_device_count={devices}"
    # No shared compilation cache, because kills and measurements include compilations.
    own = {"XLA_FLAGS": fake_devices, "PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment = os.environ | own | environment
    address = f"--coordinator_address=127.0.0.1:{_unused_port()}"
    commands = [[sys.executable, str(ROOT / "main.py"), *arguments] for _ in range(processes)]
    if processes > 1:
        for i, command in enumerate(commands):
            command += [address, f"--num_processes={processes}", f"--process_id={i}"]
    commands[-1] += of_last
    pipe = subprocess.PIPE
    return [subprocess.Popen(c, env=environment, stdout=pipe, stderr=pipe, text=True) for c in commands]


def finish(started: Sequence[subprocess.Popen], *, status: int = 0, timeout: float = 300) -> list[str]:
    """Wait for processes, check their exit status, and return their stderr."""
    errors = []
    try:
        for process in started:
            errors.append(process.communicate(timeout=timeout)[1])
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [status] * len(started), errors
    return errors


def _unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
