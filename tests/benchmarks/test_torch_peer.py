"""The networks that speeds are compared with are the official ones. Runs where torch is installed."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("name", ["ncsn_28x1_ngf8.npz", "ncsnv2_32x3_ngf8_L12.npz"])
def test_torch_peer_networks_compute_the_official_outputs(name, fixture):
    from benchmarks.torch_peer import NCSN, NCSNv2

    official = fixture(name)
    if "v2" in name:
        network = NCSNv2(3, 8, torch.tensor(official["sigmas"]))
    else:
        network = NCSN(1, 8, num_scales=len(official["sigmas"]))
    network.load_state_dict({str(n): torch.tensor(official[n]) for n in official["state_dict_names"]})
    with torch.inference_mode():
        found = network(torch.tensor(official["x"]), torch.tensor(official["y"])).numpy()
    expected, axes = official["s"], (1, 2, 3)
    # Outputs of NCSNv2 differ by four orders of magnitude between noise levels.
    assert np.all(np.abs(found - expected).max(axes) < 2e-5 * np.abs(expected).max(axes))
