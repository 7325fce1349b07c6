"""An experiment: the objects that a training run consists of."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ncsn_jax.data import Source, given_batches
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.streams import stream
from ncsn_jax.training.description import Description, described_by_identity
from ncsn_jax.training.objective import Objective
from ncsn_jax.training.settings import Settings
from ncsn_jax.training.state import TrainState, first_state, fitting_params
from ncsn_jax.training.step import ExampleLoss, Map, condition_and_clean, example_loss
from ncsn_jax.typing import PRNGKey


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """Everything that `train` needs, by keyword.

    An example is an array, or a dictionary with `x`. Its `condition`, if any, is passed to the network; with
    further keys, the objective receives the whole dictionary instead of x.

    Attributes:
      model: a flax module with `__call__(x, sigma)`, or `__call__(x, sigma, condition)`. Its initial
        parameters depend on the key alone, and it has no variables but parameters.
      objective: the loss of one example, (key, score_fn, x) -> scalar.
      optimizer: the gradient transformation.
      train: the training examples: an array, or any source with `len` and `[]`, which several threads read.
      test: the test examples, for the held-out loss; None for no such loss.
      preprocess: a random function of a stored example, (key, example) -> example; None leaves examples as
        they are. It runs on the device.
      augment: a random function of a stored training example, such as a flip, which comes before
        `preprocess`.
      settings: the length of the run, its batches, its checkpoints.
      identity: JSON, such as the name of the network and its fields, that must be the same when the run
        resumes.
      batches: instead of `train`, a function from the first step to an iterator of batches, if only an
        iterator is available. Process p of P yields the examples p, p + P, p + 2P, … of each batch of
        `batch_size`. It is called twice: with 0, for the shape of an example, and with the step at which
        training begins. Determinism is then the caller's: the same step must give the same batch.
      description: the content of `config.json`, if it is more than `settings` and `identity`.
    """

    model: nn.Module
    objective: Objective
    optimizer: optax.GradientTransformation
    train: Source | Any = None
    test: Source | Any = None
    preprocess: Map | None = None
    augment: Map | None = None
    settings: Settings
    identity: Any
    batches: Callable[[int], Iterator[Any]] | None = None
    description: Description | None = None

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            if isinstance(examples := getattr(self, name), jax.Array):  # read by the host, example by example
                object.__setattr__(self, name, np.asarray(examples))
        if (self.train is None) == (self.batches is None):
            raise ValueError(
                "an experiment needs either train or batches, found "
                + ("neither" if self.train is None else "both")
            )

    @functools.cached_property
    def described(self) -> Description:
        """The content of `config.json`."""
        return self.description or described_by_identity(self.identity, self.settings)

    def loss(self, *, training: bool) -> ExampleLoss:
        """Return the loss of a stored example under given parameters.

        Args:
          training: whether examples are augmented and the network has dropout.
        """
        return example_loss(
            self.model,
            self.objective,
            augment=self.augment if training else None,
            preprocess=self.preprocess,
            dropout=training,
        )

    def initial_state(self) -> TrainState:
        """Draw the state before the first step, on one device."""
        _, draw = self._beginning
        return self._first_state(draw(stream(self.settings.seed, "initialization")))

    def abstract_state(self) -> TrainState:
        """Return the shapes and dtypes of the run's state; compute nothing.

        Raises:
          UserError: if the network can't take the examples.
        """
        return self._beginning[0]

    @functools.cached_property
    def inputs(self) -> tuple[jax.ShapeDtypeStruct, Any]:
        """Shapes and types of the network's x and condition, for one example."""
        if self.batches is None:
            stored = self.train[0]
        else:
            batches = given_batches(self.batches(0), batch_size=self.settings.batch_size)
            stored = jax.tree.map(lambda leaf: leaf[0, 0], next(batches)["examples"])
        key, example = jax.eval_shape(lambda: jax.random.key(0)), jax.tree.map(_shape, stored)
        for function in filter(None, (self.augment, self.preprocess)):
            example = jax.eval_shape(function, key, example)
        condition, _ = condition_and_clean(example)
        x = example["x"] if isinstance(example, Mapping) else example
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise UserError(
                f"the examples have the type {x.dtype}; accepted: a floating type, or a preprocess that "
                "makes one"
            )
        return x, condition

    @functools.cached_property
    def _beginning(self) -> tuple[TrainState, Callable[[PRNGKey], Any]]:
        """The first state's shapes and dtypes, and a function that draws its parameters; traces once."""
        x, condition = self.inputs
        params, draw = fitting_params(self.model, x, condition)
        return jax.eval_shape(self._first_state, params), draw

    def _first_state(self, params: Any) -> TrainState:
        return first_state(params, self.optimizer, has_two_averages=bool(self.settings.ema_lengths))


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    leaf = np.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))
