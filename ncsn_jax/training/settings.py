"""Settings of a training run that no network, loss or optimizer reads."""

from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ncsn_jax.runtime.settings import Fraction, Place, Seed, StrictSettings, one_line
from ncsn_jax.training.power_averages import LONGEST, exponent


def _lengths(value: Any) -> Any:
    """Return lengths of averages; those from the command line are a string, and those from JSON a list."""
    try:
        given = value.strip("()[], ").split(",") if isinstance(value, str) else list(value)
        lengths = tuple(float(length) for length in given if length != "")
        for length in lengths:
            exponent(length)
    except (TypeError, ValueError):
        raise ValueError(
            f"found {str(value)[:80]!r}; accepted: lengths between 0 and {LONGEST:.4f}, such as 0.05,0.1"
        ) from None
    return lengths


Lengths = Annotated[tuple[float, ...], BeforeValidator(_lengths)]
"""Lengths σ_rel of averages by power functions."""


class RunSettings(StrictSettings):
    """Length, batches, average, log, evaluation and checkpoints of a run."""

    num_steps: PositiveInt
    """Number of training steps."""
    batch_size: PositiveInt = 128
    """Examples per step, over all devices and processes."""
    ema_rate: Fraction = 0.0
    """Rate r of the moving average ema ← r·ema + (1−r)·params; 0 keeps no average."""
    ema_warmup: bool = False
    """Whether r is at most (1 + n)/(10 + n) in the n-th update, which soon forgets the initial parameters, as
    in the PyTorch release of Song et al. 2021."""

    ema_lengths: Lengths = ()
    """Lengths σ_rel of two moving averages by power functions, such as 0.05,0.1, instead of the exponential
    one: relative to the updates made, at most 0.2887. Averages of other lengths can be made of their
    snapshots after training. Empty for none."""
    ema_snapshot_every: PositiveInt | None = None
    """Steps between snapshots of the two averages, which are never deleted; None makes none. Some 32 of them
    reach the lengths from 0.015 to 0.25."""

    log_every: PositiveInt = 100
    """Steps between lines of the log."""
    eval_every: PositiveInt = 5_000
    """Steps between evaluations of the held-out loss."""
    eval_examples: Annotated[
        PositiveInt, Field(validation_alias=AliasChoices("eval_examples", "eval_images"))
    ] = 1_000
    """Test examples, from the first, that the held-out loss averages over."""
    checkpoint_every: PositiveInt = 5_000
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Number of newest checkpoints that are kept."""
    keep_best: NonNegativeInt = 0
    """Number of checkpoints with the lowest held-out loss that are kept as well; if positive, the loss is
    evaluated at every checkpoint."""
    checkpoint_dir: Place | None = None
    """Directory or bucket of the checkpoints, such as `gs://bucket/run`, that all processes can reach; None
    is `checkpoints/` in the workdir."""
    max_failed_saves: NonNegativeInt = 100
    """Consecutive saves that may fail, such as on a full disk, before training stops. A failed save is
    retried at the next line of the log, with the state of that step."""
    max_skipped_steps: NonNegativeInt = 0
    """Number of steps that a run may skip, because the loss or the gradient isn't finite, before training
    stops."""

    @model_validator(mode="after")
    def _averages_are_of_one_kind(self) -> "RunSettings":
        if self.ema_lengths and (len(self.ema_lengths) != 2 or self.ema_lengths[0] == self.ema_lengths[1]):
            raise ValueError(f"ema_lengths={self.ema_lengths}: accepted: none, or two different lengths")
        if self.ema_lengths and (self.ema_rate or self.ema_warmup):
            raise ValueError(
                f"ema_lengths={self.ema_lengths} replaces the exponential average, found "
                f"ema_rate={self.ema_rate}, ema_warmup={self.ema_warmup}; accepted: 0.0 and False"
            )
        if self.ema_snapshot_every and not self.ema_lengths:
            raise ValueError(
                f"ema_snapshot_every={self.ema_snapshot_every}: found no ema_lengths, whose averages it "
                "stores; accepted: with ema_lengths such as 0.05,0.1"
            )
        return self


class Settings(RunSettings):
    """Settings of `ncsn_jax.training.train`, by keyword; only `num_steps` has no default.

    When a run resumes, `batch_size`, `ema_rate`, `ema_warmup`, `ema_lengths` and `seed` must be the same; the
    rest may change.

    Raises:
      ValueError: if a name is unknown, or a value has the wrong type or range; one line lists all of them.
    """

    seed: Seed = 0
    """Seed of the initial parameters, the order of the data and every random draw in training."""

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(one_line(error)) from None


MAY_CHANGE = (
    "checkpoint_dir",
    "checkpoint_every",
    "ema_snapshot_every",
    "eval_every",
    "eval_examples",
    "keep_best",
    "keep_checkpoints",
    "log_every",
    "max_failed_saves",
    "max_skipped_steps",
    "num_steps",
)
"""Settings that may change when a run resumes, because they don't affect its parameters up to that step."""
