"""The network that speeds are compared with is the official one. Runs where torch is installed."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")


def test_torch_peer_network_computes_the_official_outputs(official):
    from benchmarks.torch_peer import NCSN

    network = NCSN(channels=1, filters=8, num_scales=len(official["sigmas"]))
    network.load_state_dict({str(n): torch.tensor(official[n]) for n in official["state_dict_names"]})
    with torch.inference_mode():
        found = network(torch.tensor(official["x"]), torch.tensor(official["y"])).numpy()
    expected = official["s"]
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
