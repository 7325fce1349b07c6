"""Distributions whose density and score are known exactly at every noise level, and toy data sets.

Perturbing data by N(0, σ²I) convolves their density with that Gaussian: `log_density(x, sigma)` is the
convolution in closed form, and the clean density at σ = 0. Every function handles a single point; use
`jax.vmap` for many.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.scipy.special import log_ndtr, logsumexp
from jax.scipy.stats import norm
from jaxtyping import Float

from ncsn_jax.dtypes import floating, wide
from ncsn_jax.operators import Compose, frequency_axes
from ncsn_jax.typing import PRNGKey, Scalar

Point = Float[Array, " D"]


def score_of(log_density: Callable[..., Float[Array, ""]]) -> Callable[..., Float[Array, "*event"]]:
    """The score ∇ₓ log p(x) of a log-density.

    The density needs no normalisation: log p̃ = log p + log Z has the same gradient.

    Args:
      log_density: log p̃, from x (and any further arguments) to a scalar.

    Returns:
      A function of the same arguments that returns the score at x.

    >>> def unnormalised(x): return jnp.log(1e6) - jnp.sum(jnp.square(x)) / 2
    >>> score_of(unnormalised)(jnp.array([1.0, -2.0]))
    Array([-1.,  2.], dtype=float32)
    """
    return jax.grad(log_density)


class GaussianMixture(struct.PyTreeNode):
    """The mixture p(x) = Σₖ wₖ N(x; μₖ, Sₖ) of K Gaussians in D dimensions.

    Noise adds σ² to every variance: p_σ(x) = Σₖ wₖ N(x; μₖ, Sₖ + σ²I). The mixture is a pytree whose leaves
    may be traced and differentiated.

    Attributes:
      weights: wₖ, positive, `(K,)`; they are divided by their sum.
      means: μₖ, `(K, D)`.
      stds: the standard deviations: one for all, `()`; one for each component, `(K,)`; or one for each
        component and coordinate, `(K, D)`.

    Its methods raise a ValueError if x isn't one point `(D,)` or has no floating type.

    >>> p = GaussianMixture(weights=[0.5, 0.5], means=[[-1.0], [1.0]], stds=[1.0, 1.0])
    >>> p.score(jnp.zeros(1), sigma=2.0)
    Array([0.], dtype=float32)
    """

    weights: Any
    means: Any
    stds: Any

    def log_density(self, x: Point, sigma: Scalar = 0.0) -> Float[Array, ""]:
        """log p_σ(x)."""
        return logsumexp(self._joint(x, sigma)).astype(jnp.asarray(x).dtype)

    def score(self, x: Point, sigma: Scalar = 0.0) -> Point:
        """∇ₓ log p_σ(x) = Σₖ p_σ(k | x) (Sₖ + σ²I)⁻¹ (μₖ − x), each mean's pull weighted by its share."""
        x = floating(x)
        joint = self._joint(x, sigma)
        means, variances = self._moments(sigma, joint.dtype)
        return (jax.nn.softmax(joint) @ ((means - x[None]) / variances)).astype(x.dtype)

    def sample(self, key: PRNGKey, sigma: Scalar = 0.0) -> Point:
        """Draw a point from p_σ, in the type of the parameters."""
        own = _common_type(self.weights, self.means, self.stds)
        dtype = wide(own)
        component_key, noise_key = jax.random.split(key)
        k = jax.random.categorical(component_key, jnp.log(jnp.asarray(self.weights, dtype)))
        means, variances = self._moments(sigma, dtype)
        noise = jax.random.normal(noise_key, means.shape[1:], dtype)
        return (means[k] + jnp.sqrt(variances[k]) * noise).astype(own)

    def _moments(self, sigma, dtype) -> tuple[Float[Array, "K D"], Float[Array, "K D"]]:
        """The means and the variances of the components of p_σ."""
        means, stds = jnp.asarray(self.means, dtype), jnp.asarray(self.stds, dtype)
        stds = stds[:, None] if stds.ndim == 1 else stds
        variances = jnp.square(stds) + jnp.square(jnp.asarray(sigma, dtype))
        return means, jnp.broadcast_to(variances, means.shape)

    def _joint(self, x, sigma) -> Float[Array, " K"]:
        """log p_σ(x, k)."""
        x = floating(x)
        point = jnp.shape(jnp.asarray(self.means))[1:]
        if x.shape != point:
            raise ValueError(f"x must be one point of the shape {point}, found {x.shape}")
        dtype = wide(x, _common_type(self.weights, self.means, self.stds))
        log_weights = jax.nn.log_softmax(jnp.log(jnp.asarray(self.weights, dtype)))
        means, variances = self._moments(sigma, dtype)
        return log_weights + jnp.sum(norm.logpdf(x[None], means, jnp.sqrt(variances)), axis=1)


class GaussianField(struct.PyTreeNode):
    """A stationary Gaussian image of mean 0 with periodic boundaries, x ~ N(0, C).

    The covariance is C = Fᴴ diag(P) F with the unitary Fourier transform F: amplitudes of different
    frequencies are independent, and P(k) is their variance. A pixel's variance is the mean of P over all
    frequencies. Channels are independent of each other. Noise adds σ² to every P(k).

    Attributes:
      shape: the shape of x, `(height, width)`, `(height, width, channels)`, or `(D,)`.
      power_spectrum: P, a function of |k| in cycles per pixel; or its values, `(height, width)` or `(D,)`, in
        the order of `numpy.fft` and with P(k) = P(−k).

    Its methods raise a ValueError if x has another shape or no floating type.

    >>> field = GaussianField((8, 8), lambda k: 1.0 / (0.1 + k) ** 2)
    >>> field.sample(jax.random.key(0)).shape
    (8, 8)
    """

    shape: tuple[int, ...] = struct.field(pytree_node=False)
    power_spectrum: Any

    @property
    def power(self) -> Float[Array, "..."]:
        """The values of P, with an axis of length 1 for the channels."""
        axes = frequency_axes(self.shape)
        power = self.power_spectrum
        if callable(power):
            grid = jnp.meshgrid(*[jnp.fft.fftfreq(self.shape[axis]) for axis in axes], indexing="ij")
            power = power(jnp.sqrt(sum(jnp.square(k) for k in grid)))
        return jnp.reshape(
            jnp.asarray(power), (*self.shape[: len(axes)], *[1] * (len(self.shape) - len(axes)))
        )

    def log_density(self, x: Float[Array, "*event"], sigma: Scalar = 0.0) -> Float[Array, ""]:
        """log p_σ(x)."""
        x = self._checked(x)
        variances = self._variances(x, sigma)
        whitened = self._filtered(x, jax.lax.rsqrt(variances))
        log_volume = jnp.sum(jnp.log(2 * jnp.pi * jnp.broadcast_to(variances, x.shape)))
        return (-(jnp.sum(jnp.square(whitened)) + log_volume) / 2).astype(x.dtype)

    def score(self, x: Float[Array, "*event"], sigma: Scalar = 0.0) -> Float[Array, "*event"]:
        """∇ₓ log p_σ(x) = −(C + σ²I)⁻¹ x."""
        x = self._checked(x)
        return -self._filtered(x, 1 / self._variances(x, sigma)).astype(x.dtype)

    def sample(self, key: PRNGKey, sigma: Scalar = 0.0) -> Float[Array, "*event"]:
        """Draw an image from p_σ, in the type of P."""
        white = jax.random.normal(key, self.shape, jnp.result_type(self.power, float))
        return self._filtered(white, jnp.sqrt(self._variances(white, sigma))).astype(white.dtype)

    def posterior_mean(self, observation: Any) -> Float[Array, "*event"]:
        """E[x | y] = C Aᵀ (A C Aᵀ + Σ_y)⁻¹ y, Wiener's filter.

        Args:
          observation: an `Observation` of x.
        """
        # With x = C^½ ξ and ξ ~ N(0, I) the mean of ξ is the pull of its observation on 0 at σ = 1.
        white = jnp.zeros(self.shape, jnp.result_type(self.power, float))
        root = jax.tree_util.Partial(GaussianField._coloured, self)
        of_white = observation.replace(operator=Compose(observation.operator, root))
        return self._coloured(of_white.pull(white, 1.0))

    def posterior_sample(self, key: PRNGKey, observation: Any) -> Float[Array, "*event"]:
        """Draw an image of p(x | y), a constrained realisation (Hoffman & Ribak 1991).

        x′ + E[x | y − A x′ − n′], with a draw x′ of the field and n′ of the noise.

        Args:
          key: a key.
          observation: an `Observation` of x, whose noise is a number or a map.

        Raises:
          ValueError: if the noise is a function: its covariance alone draws no noise.
        """
        if callable(observation.noise_std):
            raise ValueError(
                "noise_std must be a number or a map for a constrained realisation, found a function"
            )
        field_key, noise_key = jax.random.split(key)
        x = self.sample(field_key)
        y = jnp.asarray(observation.y)
        # Infinite noise and NaN mean that nothing was measured.
        std = jnp.where(jnp.isinf(jnp.asarray(observation.noise_std)), 0.0, observation.noise_std)
        # Complex normal numbers have a variance of 1 in all, and the noise has one in each part.
        std = std * jnp.sqrt(2.0) if jnp.iscomplexobj(y) else std
        noise = std * jax.random.normal(noise_key, y.shape, y.dtype)
        return x + self.posterior_mean(observation.replace(y=y - observation.operator(x) - noise))

    def _coloured(self, white: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """C^½ ξ."""
        return self._filtered(white, jnp.sqrt(self.power)).astype(white.dtype)

    def _filtered(self, x, factors) -> Float[Array, "*event"]:
        """Multiply frequencies by factors."""
        axes = frequency_axes(self.shape)
        return jnp.fft.ifftn(factors * jnp.fft.fftn(x, axes=axes), axes=axes).real

    def _variances(self, x, sigma) -> Float[Array, "..."]:
        dtype = wide(x, self.power)
        return self.power.astype(dtype) + jnp.square(jnp.asarray(sigma, dtype))

    def _checked(self, x) -> Float[Array, "*event"]:
        x = floating(x)
        if x.shape != self.shape:
            raise ValueError(f"x must have the shape of the field, {self.shape}, found {x.shape}")
        return x


class BoxUniform(struct.PyTreeNode):
    """The uniform distribution on a box, aᵢ ≤ xᵢ ≤ bᵢ: a density that jumps at its boundary.

    Inside, its score is zero. Integration by parts leaves a boundary term, so implicit score matching doesn't
    equal explicit score matching up to a constant. With noise there is no such term: the density is smooth,
    p_σ(x) = Πᵢ [Φ((bᵢ − xᵢ)/σ) − Φ((aᵢ − xᵢ)/σ)] / (bᵢ − aᵢ).

    Attributes:
      low: a, `(D,)`.
      high: b, `(D,)`.
    """

    low: Any
    high: Any

    def log_density(self, x: Point, sigma: Scalar = 0.0) -> Float[Array, ""]:
        """log p_σ(x); −∞ outside of the box if σ = 0."""
        low, high, sigma = self._in_type_of(x, sigma)
        clean = jnp.where((low <= x) & (x <= high), 0.0, -jnp.inf)
        _, near, far = self._sides(x, sigma)
        tails = jnp.stack([log_ndtr(-near), log_ndtr(-far)])
        noisy = logsumexp(tails, axis=0, b=jnp.array([[1.0], [-1.0]], near.dtype))
        log_densities = jnp.where(sigma > 0, noisy, clean) - jnp.log(high - low)
        return jnp.sum(log_densities).astype(jnp.asarray(x).dtype)

    def score(self, x: Point, sigma: Scalar = 0.0) -> Point:
        """∇ₓ log p_σ(x): in each coordinate, [φ(n) − φ(f)] / [Φ(f) − Φ(n)] / σ inwards; zero if σ = 0.

        n and f are the distances from x to the nearer and the farther side, in units of σ; n < 0 inside.
        """
        _, _, sigma = self._in_type_of(x, sigma)
        outwards, near, far = self._sides(x, sigma)

        # The ratio would overflow deep inside the box, where the score is zero to all digits.
        near = jnp.maximum(near, -12.0)
        exponent = -(far - near) * (far + near) / 2  # log φ(f)/φ(n)
        pull = -jnp.expm1(exponent) / (_mills_ratio(near) - jnp.exp(exponent) * _mills_ratio(far))
        score = jnp.where(sigma > 0, -outwards * pull / jnp.where(sigma > 0, sigma, 1.0), 0.0)
        return score.astype(jnp.asarray(x).dtype)

    def _in_type_of(self, x, sigma) -> tuple[Array, Array, Array]:
        """The two corners and σ, in the type of computations at x."""
        dtype = wide(floating(x), _common_type(self.low, self.high))
        return tuple(jnp.asarray(value, dtype) for value in (self.low, self.high, sigma))  # pyright: ignore

    def _sides(self, x, sigma) -> tuple[Point, Point, Point]:
        """Each coordinate's outward sign ±1, and its distances to the nearer and the farther side over σ."""
        low, high, sigma = self._in_type_of(x, sigma)
        scale = jnp.where(sigma > 0, sigma, 1.0)  # gradients of the branch that isn't taken must be finite
        outwards = jnp.where(2 * x >= low + high, 1.0, -1.0)
        near = jnp.where(outwards > 0, x - high, low - x) / scale
        return outwards, near, near + (high - low) / scale

    def sample(self, key: PRNGKey, sigma: Scalar = 0.0) -> Point:
        """Draw a point from p_σ, in the type of the corners."""
        own = _common_type(self.low, self.high)
        low, high, sigma = self._in_type_of(jnp.zeros((), own), sigma)
        uniform_key, noise_key = jax.random.split(key)
        x = jax.random.uniform(uniform_key, low.shape, low.dtype, minval=low, maxval=high)
        return (x + sigma * jax.random.normal(noise_key, low.shape, low.dtype)).astype(own)

    def boundary_flux(self, fn: Callable[[Point], Point], x: Point) -> Float[Array, ""]:
        """The flux of p·f out of the box, ∮ p f·n dS, estimated from one point of the box.

        The mean of Σᵢ [fᵢ(x with xᵢ = bᵢ) − fᵢ(x with xᵢ = aᵢ)] / (bᵢ − aᵢ) over x ~ p is the boundary term
        of the divergence theorem, E[f·∇log p] + E[∇·f] = ∮ p f·n dS.

        Args:
          fn: f, from a point to a vector of the same shape.
          x: a point of the box.
        """
        low, high = jnp.asarray(self.low), jnp.asarray(self.high)

        def through_sides(i):
            leaving, entering = fn(x.at[i].set(high[i]))[i], fn(x.at[i].set(low[i]))[i]
            return (leaving - entering) / (high[i] - low[i])

        return jnp.sum(jax.vmap(through_sides)(jnp.arange(x.size)))


def _common_type(*parameters: Any) -> Any:
    """The floating type of a density's parameters; lists and integers take JAX's default."""
    return jnp.result_type(*map(jnp.asarray, parameters), float)


def _mills_ratio(t: Array) -> Array:
    """[1 − Φ(t)] / φ(t), the relative size of the Gaussian's tail; from t = 10 by its asymptotic series."""
    # Not erfcx: in jax 0.10 it is 0 between 9.2 and 9.4 in single precision.
    moderate, large = jnp.minimum(t, 10.0), jnp.maximum(t, 10.0)
    u = 1 / jnp.square(large)
    series = (1 - u * (1 - 3 * u * (1 - 5 * u))) / large
    return jnp.where(t < 10.0, jnp.exp(log_ndtr(-moderate) - norm.logpdf(moderate)), series)


def two_gaussians() -> GaussianMixture:
    """0.2 N((−5, −5), I) + 0.8 N((5, 5), I), the mixture of Song & Ermon 2019, section 3.2."""
    return GaussianMixture(
        weights=jnp.array([0.2, 0.8]),
        means=jnp.array([[-5.0, -5.0], [5.0, 5.0]]),
        stds=jnp.ones(2),
    )


def eight_gaussians(*, radius: float = 4.0, std: float = 0.3) -> GaussianMixture:
    """Eight equal Gaussians on a circle."""
    angles = jnp.arange(8) * jnp.pi / 4
    means = radius * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    return GaussianMixture(weights=jnp.full(8, 1 / 8), means=means, stds=jnp.full(8, std))


def two_moons(key: PRNGKey, *, noise: float = 0.1) -> Float[Array, "2"]:
    """Draw a point of two interleaving half circles of radius 2, around the origin, with Gaussian noise."""
    moon_key, angle_key, noise_key = jax.random.split(key, 3)
    angle = jax.random.uniform(angle_key, maxval=jnp.pi)
    upper = jnp.stack([jnp.cos(angle) - 0.5, jnp.sin(angle) - 0.25])
    sign = jax.random.rademacher(moon_key, (), jnp.float32)  # half a turn maps each moon to the other
    return 2.0 * sign * upper + noise * jax.random.normal(noise_key, (2,))


def swiss_roll(key: PRNGKey, *, noise: float = 0.1) -> Float[Array, "2"]:
    """Draw a point of a spiral of one and a half turns, out to a radius of 4, with Gaussian noise."""
    angle_key, noise_key = jax.random.split(key)
    angle = 1.5 * jnp.pi * (1 + 2 * jax.random.uniform(angle_key))
    radius = 4.0 * angle / (4.5 * jnp.pi)
    point = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    return point + noise * jax.random.normal(noise_key, (2,))


def checkerboard(key: PRNGKey) -> Float[Array, "2"]:
    """Draw a point uniformly from the eight dark squares of a 4 × 4 board on [−4, 4]²."""
    square_key, place_key = jax.random.split(key)
    row, half_column = jnp.divmod(jax.random.randint(square_key, (), 0, 8), 2)
    corner = jnp.stack([2 * half_column + row % 2, row])
    return 2.0 * (corner + jax.random.uniform(place_key, (2,))) - 4.0
