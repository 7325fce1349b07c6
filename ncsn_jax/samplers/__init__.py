"""Samplers of the variance-exploding process, each for a single chain: `jax.vmap` runs many.

They share one process, whose time is the noise level itself: x_σ = x₀ + σ z. It has these forms:

- from a level σ up to τ: x + √(τ² − σ²) z (`diffuse`);
- its time reversal: dx = −2σ s(x, σ) dσ + √(2σ) dw, while σ falls (Song et al. 2021, equation 6);
- the probability flow, which has the same distribution at every level: dx/dσ = −σ s(x, σ) (equation 13).

The variance-exploding SDE of Song et al. 2021 is this process at σ(t) = σ_L (σ₁/σ_L)ᵗ; Karras et al. 2022
use the form given here. A sampler descends through the levels σ₁ > … > σ_L; one step takes it from one level
to the next. It starts at x ~ p_σ₁, which is about N(0, σ₁² I) if σ₁ is far larger than the data.

`predictor_corrector`, `heun` and `probability_flow` evaluate the score between the levels of the training, so
they refuse a network that embeds discrete levels.
"""

from ncsn_jax.samplers.consistent import (
    check_eta,
    consistent_annealed_sampling,
    consistent_sampler,
    consistent_step,
)
from ncsn_jax.samplers.heun import churn_of, heun, heun_sampler, heun_step
from ncsn_jax.samplers.langevin import (
    annealed,
    annealed_langevin_dynamics,
    annealed_langevin_sampler,
    denoised,
    denoising,
    langevin_dynamics,
    langevin_step,
    langevin_update,
    level_step_size,
    repeat,
)
from ncsn_jax.samplers.predictor_corrector import (
    Predictor,
    euler_maruyama,
    langevin_corrector,
    predictor_corrector,
    predictor_corrector_sampler,
    predictor_corrector_step,
    reverse_diffusion,
)
from ncsn_jax.samplers.probability_flow import SolverOptions, follow, probability_flow
from ncsn_jax.samplers.process import diffuse, flow, require_any_sigma
from ncsn_jax.samplers.sampler import Sampler, Step, run

__all__ = [
    "Predictor",
    "Sampler",
    "SolverOptions",
    "Step",
    "annealed",
    "annealed_langevin_dynamics",
    "annealed_langevin_sampler",
    "check_eta",
    "churn_of",
    "consistent_annealed_sampling",
    "consistent_sampler",
    "consistent_step",
    "denoised",
    "denoising",
    "diffuse",
    "euler_maruyama",
    "flow",
    "follow",
    "heun",
    "heun_sampler",
    "heun_step",
    "langevin_corrector",
    "langevin_dynamics",
    "langevin_step",
    "langevin_update",
    "level_step_size",
    "predictor_corrector",
    "predictor_corrector_sampler",
    "predictor_corrector_step",
    "probability_flow",
    "repeat",
    "require_any_sigma",
    "reverse_diffusion",
    "run",
]
