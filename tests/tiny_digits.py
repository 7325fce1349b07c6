"""The config of configs/digits.py with a network that compiles within a second."""

from configs import digits
from ncsn_jax.app.config import OwnModel, parse
from ncsn_jax.app.overridable import overridable


def get_config():
    config = parse(digits.get_config().to_dict())
    model = OwnModel(name="tests.tiny:TinyScore", fields={"sigmas": [1.0, 0.01]}, num_scales=2)
    return overridable(config.model_copy(update={"model": model}))
