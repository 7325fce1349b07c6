"""Features of labelled small images: the last layer of a classifier, trained once on their classes.

Its training is not `ncsn_jax.training.train`, because a classifier of images takes no noise level.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import platformdirs
from flax import linen as nn
from flax import serialization
from jax import Array
from jax.experimental import multihost_utils
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from ncsn_jax.evaluation.cached_parts import fingerprint
from ncsn_jax.evaluation.features import Extracted, Features, in_batches
from ncsn_jax.runtime import processes
from ncsn_jax.runtime.files import write_whole

NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 1500, 128, 2e-3
VERSION = 2
"""Version of the network and its training; increase it when they change, so that old weights aren't read."""


class Classifier(nn.Module):
    """Three convolutions and two dense layers.

    Its features lie in [−1, 1], because large ones would dominate the cubic kernel of the kernel distance.

    Attributes:
      num_classes: K, the number of classes.
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch 64"], Float[Array, "batch K"]]:
        """Return the features and the logits of images in [0, 1]."""
        h = nn.relu(nn.Conv(16, (3, 3))(x - 0.5))
        h = nn.relu(nn.Conv(32, (3, 3), strides=2)(h))
        h = nn.relu(nn.Conv(64, (3, 3), strides=2)(h))
        features = nn.tanh(nn.Dense(64)(h.reshape(len(h), -1)))
        return features, nn.Dense(self.num_classes)(features)


class Labelled(NamedTuple):
    """Images of a split, 8 bits a channel, and their classes."""

    images: UInt8[np.ndarray, "n height width channels"]
    labels: Int[np.ndarray, " n"]


def classifier(name: str, train: Labelled, test: Labelled) -> Features:
    """Return the features of a dataset's classifier, trained at first use and then read from a file.

    The file is in `ncsn_jax/classifiers` in the user's cache directory; its name has a fingerprint of the
    training images, their labels and the training settings.

    Args:
      name: the name of the dataset.
      train: the training set.
      test: the set on which its accuracy is measured.
    """
    model = Classifier(num_classes=int(train.labels.max()) + 1)
    x = jax.ShapeDtypeStruct((1, *train.images.shape[1:]), jnp.float32)
    params = model.lazy_init(jax.random.key(0, impl="threefry2x32"), x)
    recipe = fingerprint(VERSION, NUM_STEPS, BATCH_SIZE, LEARNING_RATE, params, train)
    path = platformdirs.user_cache_path("ncsn_jax") / "classifiers" / f"{name}-{recipe}.msgpack"
    if processes.is_first():
        params = _read(path, params) or _trained(path, model, params, train, name)
    params = jax.device_get(multihost_utils.broadcast_one_to_all(params))
    extract = in_batches(functools.partial(_extract, jax.jit(model.apply), params), 500)
    accuracy = np.mean(np.argmax(extract(test.images).probabilities, axis=1) == test.labels)
    description = f"the classifier is right on {accuracy:.1%} of the {len(test.labels)} test images"
    return Features("classifier", f"classifier-{fingerprint(params)}", extract, description)


def _read(path: Path, like: Any) -> Any:
    """Return the parameters in a file; None if it doesn't exist or isn't complete."""
    try:
        return serialization.from_bytes(like, path.read_bytes())
    except (OSError, ValueError, KeyError):
        return None


def _trained(path: Path, model: Classifier, params: Any, train: Labelled, name: str) -> Any:
    """Train the classifier, write its parameters to the file, and return them."""
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, NUM_STEPS))

    def logits_of(params, images) -> Array:
        return model.apply(params, images.astype(jnp.float32) / 255)[1]  # pyright: ignore[reportReturnType]

    @jax.jit
    def step(params, opt_state, images, labels):
        def loss(params):
            logits = logits_of(params, images)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    batch_size = min(BATCH_SIZE, len(train.labels))
    rng = np.random.default_rng(0)
    for _ in tqdm(range(NUM_STEPS), unit="step", desc=f"classifier of {name}"):
        chosen = rng.choice(len(train.labels), batch_size, replace=False)
        params, opt_state = step(params, opt_state, train.images[chosen], train.labels[chosen])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(serialization.to_bytes(params)))
    return params


def _extract(apply: Any, params: Any, images: UInt8[np.ndarray, "n h w c"]) -> Extracted:
    features, logits = apply(params, images.astype(np.float32) / 255)
    return Extracted(np.asarray(features), np.asarray(jax.nn.softmax(logits)))
