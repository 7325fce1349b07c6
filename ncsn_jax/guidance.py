"""Scores from scores: guidance by a likelihood, and classifier-free guidance."""

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import struct
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from ncsn_jax.dtypes import scalars
from ncsn_jax.typing import Scalar, ScoreFn

LogLikelihood = Callable[[Float[Array, "*event"], Scalar], Float[Array, ""]]
"""log p(y | x, σ) of a condition y, as a function of the perturbed example x and its noise level."""


class GuidedScore(struct.PyTreeNode):
    """The `ScoreFn` that `guided_score` returns."""

    score_fn: ScoreFn
    log_likelihood: LogLikelihood
    scale: Any

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """The discrete levels that the network embeds; None if it takes any σ."""
        return getattr(self.score_fn, "sigmas", None)

    def __call__(self, x: Float[Array, "*event"], sigma: Scalar) -> Float[Array, "*event"]:
        sigma, scale = scalars(x, sigma, self.scale)
        pull = jax.grad(self.log_likelihood)(x, sigma)
        return (self.score_fn(x, sigma) + scale * pull).astype(x.dtype)


def guided_score(
    score_fn: ScoreFn, log_likelihood: LogLikelihood, *, scale: Scalar = 1.0
) -> GuidedScore | ScoreFn:
    """The score of x given a condition y: s(x, σ) + scale·∇ₓ log p(y | x, σ).

    With scale 1 it is the score of p(x | y), by Bayes' rule, if the likelihood knows that x is perturbed. A
    larger scale draws from p(x) p(y | x)^scale instead, up to the difference that noise makes.

    Args:
      score_fn: s(x, σ).
      log_likelihood: log p(y | x, σ), a scalar, such as `class_log_likelihood` of a classifier.
      scale: the weight of its gradient; a Python 0 returns `score_fn` itself.

    Returns:
      A `ScoreFn`, for any sampler; a pytree if its arguments are.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), equation 14; Dhariwal & Nichol 2021 (arXiv:2105.05233), section 4,
      for the scale.
    """
    if isinstance(scale, int | float) and scale == 0:
        return score_fn
    return GuidedScore(score_fn, log_likelihood, scale)


class ClassLogLikelihood(struct.PyTreeNode):
    """The log-likelihood that `class_log_likelihood` returns."""

    logits_fn: Callable[[Any, Scalar], Float[Array, " K"]]
    label: Any

    def __call__(self, x: Float[Array, "*event"], sigma: Scalar) -> Float[Array, ""]:
        logits = self.logits_fn(x, sigma)
        if not isinstance(self.label, Tracer) and not 0 <= self.label < len(logits):
            raise ValueError(f"label={self.label}: no such class; accepted: 0 to {len(logits) - 1}")
        return jax.nn.log_softmax(logits)[self.label]


def class_log_likelihood(
    logits_fn: Callable[[Any, Scalar], Float[Array, " K"]], label: Int[ArrayLike, ""]
) -> ClassLogLikelihood:
    """The log-likelihood log p(c | x, σ) of a class, by a noise-conditional classifier.

    Args:
      logits_fn: the classifier's logits of one perturbed example, from (x, σ), such as
        `as_score_fn(NoiseConditionalClassifier(...), variables)`.
      label: c, the class.

    Returns:
      A function of (x, σ) for `guided_score`; a pytree if its arguments are. It raises a ValueError for a
      label that isn't traced and is no class.
    """
    return ClassLogLikelihood(logits_fn, label)


class ClassifierFreeScore(struct.PyTreeNode):
    """The `ScoreFn` that `classifier_free_guidance` returns."""

    conditional: ScoreFn
    unconditional: ScoreFn
    weight: Any
    interval: tuple[Any, Any]

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """The discrete levels that the network embeds; None if it takes any σ."""
        levels = getattr(self.conditional, "sigmas", None)
        return getattr(self.unconditional, "sigmas", None) if levels is None else levels

    def __call__(self, x: Float[Array, "*event"], sigma: Scalar) -> Float[Array, "*event"]:
        sigma, weight, low, high = scalars(x, sigma, self.weight, *self.interval)
        conditional = self.conditional(x, sigma).astype(x.dtype)

        def guided():
            unconditional = self.unconditional(x, sigma)
            return (unconditional + weight * (conditional - unconditional)).astype(x.dtype)

        # A condition, so that the unconditional score isn't computed outside of the interval.
        return jax.lax.cond((low < sigma) & (sigma <= high), guided, lambda: conditional)


def classifier_free_guidance(
    conditional: ScoreFn,
    unconditional: ScoreFn,
    weight: Scalar,
    *,
    interval: tuple[Scalar, Scalar] = (0.0, math.inf),
) -> ClassifierFreeScore | ScoreFn:
    """The score s_u + weight·(s_c − s_u) at noise levels in the interval, and s_c at others.

    Its condition is the difference of the scores, ∇ₓ log p(y | x, σ) = s_c − s_u, so it is `guided_score`
    with the scale `weight`, without a classifier. A weight above 1 draws examples that show their condition
    more clearly, and fewer kinds of them.

    Args:
      conditional: s_c(x, σ), the score given the condition.
      unconditional: s_u(x, σ), the score without it, or a weaker network's.
      weight: the weight; a Python 1 returns s_c, and a Python 0 with the whole interval s_u.
      interval: the noise levels (low, high]: guidance at high levels costs diversity, and at low ones changes
        little.

    Returns:
      A `ScoreFn`, for any sampler; a pytree if its arguments are. The unconditional score is computed only
      within the interval, unless `jax.vmap` maps over σ.

    Reference:
      Ho & Salimans 2022 (arXiv:2207.12598), equation 6, whose w is weight − 1; Kynkäänniemi et al. 2024
      (arXiv:2404.07724) for the interval.
    """
    if isinstance(weight, int | float):
        if weight == 1:
            return conditional
        is_everywhere = all(isinstance(end, int | float) for end in interval) and (
            tuple(interval) == (0.0, math.inf)
        )
        if weight == 0 and is_everywhere:
            return unconditional
    return ClassifierFreeScore(conditional, unconditional, weight, interval)
