"""State dicts of the official networks, to and from this package's."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn

from ncsn_jax import MLP, NCSN, NCSNv2, geometric_sigmas
from ncsn_jax.interop import from_torch, to_torch
from ncsn_jax.models import Classes
from ncsn_jax.models.layers import ConditionalInstanceNorm, VarianceNorm


@pytest.fixture(params=["ncsn_28x1_ngf8.npz", "ncsnv2_32x3_ngf8_L12.npz"])
def state_dict(request, fixture):
    numbers = fixture(request.param)
    return {str(name): numbers[name] for name in numbers["state_dict_names"]}


def assert_same(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_state_dict_survives_the_round_trip_through_flax(state_dict, prefix, dtype):
    state_dict = {prefix + name: value.astype(dtype) for name, value in state_dict.items()}
    assert_same(to_torch(*from_torch(state_dict)), state_dict)


def test_a_module_prefix_does_not_change_the_network_outputs(state_dict):
    channels = state_dict["begin_conv.weight"].shape[1]
    x = jax.random.uniform(jax.random.key(0), (1, 8, 8, channels))
    plain, prefixed = (
        from_torch({prefix + name: value for name, value in state_dict.items()}) for prefix in ("", "module.")
    )
    outs = [model.apply(variables, x, jnp.ones(1)) for model, variables in (plain, prefixed)]
    np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize(
    "model",
    [
        NCSN((1.0, 0.1, 0.01), 2),
        NCSN((1.0, 0.1, 0.01), 2, depth=5),
        NCSN((1.0, 0.1, 0.01), 3, depth=5, norm=ConditionalInstanceNorm),
        NCSNv2(2),
        NCSNv2(4, depth=5),
        NCSNv2(2, depth=6),
        NCSNv2(2, norm=VarianceNorm),
        NCSNv2(2, act=nn.relu, rescaled=True),
    ],
    ids=repr,
)
def test_from_torch_recognises_every_network_by_its_state_dict(model):
    x = jnp.zeros((1, 8, 8, 2))
    variables = jax.eval_shape(model.init, jax.random.key(0), x, jnp.ones(1))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), variables)
    state_dict = to_torch(model, variables)
    fields = {"act": model.act, "rescaled": model.rescaled}
    found, again = from_torch(state_dict, **fields)
    if isinstance(model, NCSN):
        assert found.sigmas == tuple(geometric_sigmas(1.0, 0.01, 3).tolist())
        found = found.copy(sigmas=model.sigmas)
    assert found == model
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_to_torch_orders_names_as_the_official_code(fixture):
    for name in ("ncsn_28x1_ngf8.npz", "ncsnv2_32x3_ngf8_L12.npz"):
        numbers = fixture(name)
        state_dict = {name: numbers[name] for name in sorted(numbers["state_dict_names"])}
        assert list(to_torch(*from_torch(state_dict))) == numbers["state_dict_names"].tolist()


def test_from_torch_prefers_given_sigmas_then_the_entry_then_official_levels(state_dict):
    if "sigmas" in state_dict:
        _, variables = from_torch(state_dict)
        np.testing.assert_array_equal(variables["buffers"]["sigmas"], state_dict["sigmas"])
        shadow = {name: value for name, value in state_dict.items() if name != "sigmas"}
        assert "buffers" not in from_torch(shadow)[1]
        assert_same(to_torch(*from_torch(shadow, sigmas=[2.0, 1.0])), shadow)
    else:
        assert from_torch(state_dict)[0].sigmas == tuple(geometric_sigmas(1.0, 0.01, 10).tolist())
        levels = np.linspace(2.0, 0.1, 10, dtype=np.float32)
        assert from_torch(state_dict, sigmas=levels)[0].sigmas == tuple(levels.tolist())
        assert from_torch(state_dict | {"sigmas": levels})[0].sigmas == tuple(levels.tolist())
        with pytest.raises(ValueError, match="has 10 noise levels, found 2 sigmas"):
            from_torch(state_dict, sigmas=[1.0, 0.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("res3.0.conv1.bias"), r"lacks res3\.0\.conv1\.bias$"),
        (lambda d: d.update(foo=np.zeros(1)), "but has the unknown foo$"),
        (
            lambda d: d.update({"end_conv.bias": np.zeros(9)}),
            r"shape for end_conv\.bias: \(9,\), not \(.,\)$",
        ),
        (lambda d: d.update({"begin_conv.bias": np.zeros(8, int)}), "floating numbers for begin_conv.bias"),
        (lambda d: d.pop("begin_conv.weight"), "no begin_conv.weight with four axes, found "),
        (lambda d: d.update({"begin_conv.weight": np.zeros(3)}), "no begin_conv.weight with four axes, "),
        (lambda d: d.clear(), "found no entries$"),
        (
            lambda d: d.update({"end_conv.bias": [0.0]}),
            "numpy arrays, found a list for 'end_conv.bias'",
        ),
        (lambda d: d.update({7: np.zeros(1)}), "map strings to numpy arrays, found a ndarray for '7'"),
        (lambda d: d.update({"sigmas": np.array(["auto"])}), "sigmas must be numbers"),
        (lambda d: d.update({"sigmas": np.zeros(3)}), "row of positive noise levels, found 0.0, 0.0, 0.0$"),
        (lambda d: d.update({"sigmas": np.zeros(0)}), "row of positive noise levels, found no entries"),
        (lambda d: d.update({"sigmas": np.array([np.inf])}), "row of positive noise levels, found inf"),
        (lambda d: d.update({"begin_conv.weight": np.zeros((0, 3, 3, 3))}), "no begin_conv.weight with four"),
        (lambda d: d.update({"module.end_conv.bias": np.zeros(1)}), "has the unknown module.end_conv.bias"),
        (lambda d: d.update({"res5.0.conv1.bias": np.zeros(8)}), "depth=5 .* lacks "),
        (
            lambda d: d.update({"begin_conv.weight": np.broadcast_to(np.float32(0), (10**9, 3, 3, 3))}),
            "num_filters=1000000000, but has the wrong shape for",
        ),
    ],
)
def test_from_torch_refuses_invalid_state_dicts_in_one_line(state_dict, change, message, unchecked):
    from ncsn_jax.interop import torch_networks

    change(state_dict)
    with pytest.raises(ValueError, match=message) as error:
        unchecked(torch_networks).from_torch(state_dict)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


def test_conversion_refuses_checkpoint_lists_and_unsupported_networks(state_dict, unchecked):
    from ncsn_jax.interop import torch_networks

    with pytest.raises(ValueError, match="found a list; an official checkpoint is a list"):
        unchecked(torch_networks).from_torch([state_dict])
    with pytest.raises(ValueError, match=r"only NCSN, NCSNv2 and NCSNpp .* found MLP"):
        to_torch(MLP(), {"params": {}})
    model, variables = from_torch(state_dict)
    with pytest.raises(ValueError, match=r"variables must be \{'params': \.\.\.\}, found begin_conv"):
        to_torch(model, variables["params"])
    with pytest.raises(ValueError, match="but has the wrong shape for"):
        to_torch(model.copy(num_filters=4), variables)
    with pytest.raises(
        ValueError, match=r"the official networks take no condition, found conditions=Classes"
    ):
        to_torch(NCSN((1.0, 0.1), conditions=Classes(3)), {"params": {}})
    with pytest.raises(ValueError, match=r"but lacks"):
        to_torch(model, {"params": {"Dense_0": {"kernel": np.zeros((2, 2))}}})
