"""The program: the only floor that reads a config."""

from ncsn_jax.extras import require_app

require_app(__name__)
