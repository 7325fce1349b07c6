"""NCSN++: the release's numbers, the structure that its fields choose, and refusals."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import NCSNpp
from ncsn_jax.interop import from_torch, to_torch
from ncsn_jax.interop.torch_names import UNET, official_shapes, params_to_torch
from ncsn_jax.interop.torch_unets import unet_fields

pytestmark = pytest.mark.usefixtures("optimized")

FILES = (
    "d_cifar10_ncsnpp_discrete",
    "a_cifar10_ncsnpp_continuous",
    "c_church256_style",
    "c_ffhq1024_style",
    "d_ncsnpp_ddpmblock_positional",
)
SMALL = functools.partial(NCSNpp, num_filters=4, multipliers=(1, 2), num_res_blocks=1)


def channels_last(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def relative_error(x, expected):
    """Largest error of a sample, relative to its largest entry."""
    return np.max(np.abs(x - expected).max((1, 2, 3)) / np.abs(expected).max((1, 2, 3)))


def gradients(numbers, dtype):
    """The network's output, and the gradients of its product with the cotangent, by x and by tensors."""
    model, variables = from_torch({name: numbers[f"sd.{name}"] for name in numbers["state_dict_names"]})
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables["params"])
    x, cotangent = (channels_last(numbers[name]).astype(dtype) for name in ("x", "cotangent"))
    sigma = jnp.asarray(numbers["cond"])
    if model.sigmas is not None:
        sigma = jnp.asarray(model.sigmas)[numbers["cond"].astype(int)]

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def objective(params, x):
        out = model.apply({"params": params}, x, sigma.astype(dtype))
        return jnp.sum(out * cotangent), out

    (_, out), (by_params, by_x) = jax.jit(objective)(params, x)
    return out, by_x, params_to_torch(by_params, UNET)


def check(numbers, dtype, tolerance, of_parameters):
    out, by_x, by_params = gradients(numbers, dtype)
    assert out.dtype == dtype
    assert relative_error(out, channels_last(numbers["out"])) < tolerance
    assert relative_error(by_x, channels_last(numbers["grad_x"])) < tolerance
    norms = dict(zip(numbers["state_dict_names"].tolist(), numbers["grad_norm"], strict=True))
    floor = 1e-6 * numbers["grad_global_norm"]
    for name, gradient in by_params.items():
        found, expected = np.linalg.norm(gradient.ravel()), norms[name]
        if np.isnan(expected):  # the frequencies, which aren't trained
            assert found == 0
        else:
            assert abs(found - expected) < of_parameters * expected + floor, name


def test_a_network_equals_the_release(fixture):
    numbers = fixture(f"score_sde/{FILES[0]}.npz")
    model, variables = from_torch({name: numbers[f"sd.{name}"] for name in numbers["state_dict_names"]})
    sigma = jnp.asarray(model.sigmas)[numbers["cond"].astype(int)]
    out = jax.jit(model.apply)({"params": variables["params"]}, channels_last(numbers["x"]), sigma)
    assert relative_error(out, channels_last(numbers["out"])) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_networks_equal_the_release_with_their_gradients(fixture, name):
    check(fixture(f"score_sde/{name}.npz"), jnp.float32, 2e-4, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_networks_equal_the_release_in_double_precision(fixture, name):
    with jax.enable_x64(True):
        check(fixture(f"score_sde/{name}.npz"), jnp.float64, 2e-6, 1e-5)


@pytest.mark.parametrize("name", FILES)
def test_state_dicts_of_the_release_are_recognised_and_given_back(fixture, name):
    numbers = fixture(f"score_sde/{name}.npz")
    given = {str(n): numbers[f"sd.{n}"] for n in numbers["state_dict_names"]}
    model, variables = from_torch(given)
    back = to_torch(model, variables)
    assert list(back) == list(given)
    assert all(np.array_equal(back[n], given[n]) and back[n].dtype == given[n].dtype for n in given)
    fields = json.loads(str(numbers["config_json"]))
    assert isinstance(model, NCSNpp)
    assert (model.num_filters, list(model.multipliers)) == (fields["model"]["nf"], fields["model"]["ch_mult"])
    has_attention = {model.image_size // size for size in model.attention_resolutions}
    image_size = fields["data"]["image_size"]
    assert has_attention == {image_size // size for size in fields["model"]["attn_resolutions"]}


def test_state_dicts_with_a_tensor_missing_or_of_another_shape_are_refused_in_one_line(fixture):
    numbers = fixture("score_sde/d_cifar10_ncsnpp_discrete.npz")
    given = {str(n): numbers[f"sd.{n}"] for n in numbers["state_dict_names"]}
    refused = 0
    for changed in list(given)[1:]:
        for value in (None, np.float32(0).reshape(()), np.zeros((2, 0), np.float32)):
            others = {n: v for n, v in given.items() if n != changed}
            with pytest.raises(ValueError, match=r"state dict|no such network can be built") as error:
                from_torch(others if value is None else others | {changed: value})
            assert "\n" not in str(error.value).partition("\n---")[0]
            refused += 1
    assert refused > 400
    with pytest.raises(ValueError, match=r"all_modules\.2\.weight of the shape .*; accepted: four axes"):
        from_torch(given | {"all_modules.2.weight": np.zeros((8, 0, 3, 3), np.float32)})
    model, variables = from_torch(given)
    with pytest.raises(ValueError, match=r"aren't an NCSNpp's; for a VPScore, pass its network and"):
        to_torch(model, {"params": {"network": variables["params"]}})


OF_LABELS = NCSNpp(fir=False, progressive_input="none", embedding="positional", scale_by_sigma=False)
PUBLISHED = {  # networks of the VP process; tests/app/test_config.py has the others
    "vp/cifar10_ddpmpp": (OF_LABELS, 61_804_419),
    "vp/cifar10_ncsnpp": (NCSNpp(embedding="positional", scale_by_sigma=False), 62_693_251),
    "vp/cifar10_ddpmpp_deep": (OF_LABELS.clone(num_res_blocks=8), 106_632_579),
}


def shapes_of(model, channels=3):
    side = 2 ** (len(model.multipliers) - 1)
    x = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, jnp.ones(1))["params"]


@pytest.mark.parametrize(
    "name", [n if n == "vp/cifar10_ddpmpp" else pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHED]
)
def test_published_networks_have_the_published_number_of_parameters(name):
    model, count = PUBLISHED[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model))) == count


STRUCTURES = [
    {},
    {"progressive": "residual"},
    {"progressive_input": "input_skip", "combine": "cat", "progressive": "output_skip"},
    {"multipliers": (1,), "num_res_blocks": 2, "progressive_input": "none"},
    {"multipliers": (1, 1, 2), "attention_resolutions": (32, 8), "fir": False},
    {"attention_resolutions": (), "embedding": "positional", "sigmas": (2.0, 1.0)},
    {"block": "ddpm", "progressive_input": "residual", "progressive": "residual"},
    {"block": "ddpm", "multipliers": (1, 1, 2), "fir": False},
    {"block": "ddpm", "resample_with_conv": False, "progressive": "output_skip"},
    {"block": "ddpm", "resample_with_conv": False, "progressive": "residual"},
    {"block": "ddpm", "multipliers": (2,), "progressive_input": "none"},
]


@pytest.mark.parametrize("fields", STRUCTURES, ids=str)
def test_the_structure_is_read_from_the_names_and_shapes_of_tensors(fields):
    model = SMALL(**fields)
    shapes = official_shapes(shapes_of(model), UNET)
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    found = unet_fields(tensors)
    rest = {name: getattr(model, name) for name in ("sigmas", "fir") if name not in found}
    assert official_shapes(shapes_of(NCSNpp(**found, **rest)), UNET) == shapes
    same = ("num_filters", "multipliers", "num_res_blocks", "block", "embedding", "progressive_input")
    assert all(found[name] == getattr(model, name) for name in same)
    assert found["progressive"] == model.progressive or len(model.multipliers) == 1


@pytest.mark.slow
def test_images_may_be_rectangular_and_bfloat16_changes_little():
    model = SMALL(image_size=32, attention_resolutions=(16,))
    rng = np.random.default_rng(0)
    draw = jax.tree.map(
        lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes_of(model, 2)
    )
    variables = {"params": draw}
    x, sigma = jax.random.uniform(jax.random.key(1), (2, 8, 12, 2)), jnp.asarray([0.5, 30.0])
    out = jax.jit(model.apply)(variables, x, sigma)
    assert out.shape == x.shape
    narrow = jax.jit(model.clone(dtype="bfloat16").apply)(variables, x, sigma)
    assert narrow.dtype == jnp.float32
    assert 1e-5 < relative_error(narrow, np.asarray(out)) < 0.1


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"multipliers": (1, 1, 1)}, (1, 8, 6, 1), "2 times: .* multiples of 4, found 8×6 pixels"),
        ({"sigmas": (1.0, 0.1)}, (1, 8, 8, 1), "Fourier embeddings take any σ; use embedding='positional'"),
        ({"embedding": "positional"}, (1, 8, 8, 1), "scale_by_sigma=True: .* needs sigmas to divide by"),
        ({"fir_kernel": (1.0, -1.0)}, (1, 8, 8, 1), "fir_kernel=.*accepted: numbers with a positive sum"),
        ({"num_filters": 3}, (1, 8, 8, 1), "num_filters=3, .* accepted: at least 4 filters"),
        ({"num_filters": 6}, (1, 8, 8, 1), "6 channels can't be divided|12 channels|18 channels"),
    ],
)
def test_what_the_network_cannot_do_is_refused_in_one_line(fields, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(SMALL(**fields).init, jax.random.key(0), jnp.ones(shape), jnp.ones(1))
