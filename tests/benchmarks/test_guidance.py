"""The benchmark of guidance: its numbers for a network of known samples, and its errors."""

import numpy as np
import pytest

from benchmarks import guidance
from ncsn_jax.runtime.errors import UserError


def test_measuring_guidance_reports_a_missing_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        guidance.measure(tmp_path, (1.0,), 10)


def test_the_plot_shows_every_weight():
    measured = [guidance.Measured(w, np.nan if w == 0 else 0.9, 0.1 * w, 0.8) for w in (0.0, 1.0, 2.0)]
    shares, distances = guidance.plot(measured).axes
    assert [len(line.get_xdata()) for line in (*shares.lines, *distances.lines)] == [3, 3, 3]
