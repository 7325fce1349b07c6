"""Score networks, as batched flax modules, and their single-example view."""

from ncsn_jax.models.classifier import NoiseConditionalClassifier
from ncsn_jax.models.conditions import Classes, Image, Vector
from ncsn_jax.models.mlp import MLP
from ncsn_jax.models.ncsn import NCSN
from ncsn_jax.models.ncsnpp import NCSNpp
from ncsn_jax.models.ncsnv2 import NCSNv2
from ncsn_jax.models.patches import Patches
from ncsn_jax.models.preconditioning import Preconditioned
from ncsn_jax.models.score_fn import as_score_fn
from ncsn_jax.models.vp import VPScore

__all__ = [
    "MLP",
    "NCSN",
    "Classes",
    "Image",
    "NCSNpp",
    "NCSNv2",
    "NoiseConditionalClassifier",
    "Patches",
    "Preconditioned",
    "VPScore",
    "Vector",
    "as_score_fn",
]
