"""The NCSN++ that speeds are compared with is the official one. Runs where torch is installed."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")


def test_torch_ncsnpp_computes_the_official_outputs_and_gradients(fixture):
    from benchmarks.torch_ncsnpp import NCSNpp

    official = fixture("score_sde/a_cifar10_ncsnpp_continuous.npz")
    config = json.loads(str(official["config_json"]))
    names = ("nf", "ch_mult", "num_res_blocks", "attn_resolutions")
    network = NCSNpp(*(config["model"][name] for name in names), config["data"]["image_size"])
    names = [str(name) for name in official["state_dict_names"] if name != "sigmas"]
    network.load_state_dict({name: torch.tensor(official[f"sd.{name}"]) for name in names})
    x = torch.tensor(official["x"], requires_grad=True)
    out = network(x, torch.tensor(official["cond"]))
    (out * torch.tensor(official["cotangent"])).sum().backward()
    for found, expected in [(out.detach(), official["out"]), (x.grad, official["grad_x"])]:
        errors = np.abs(found.numpy() - expected).max((1, 2, 3))
        assert (errors < 2e-4 * np.abs(expected).max((1, 2, 3))).all()
