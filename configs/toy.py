"""Points of the plane: an MLP on a toy set, trained and sampled in under a minute on two CPU cores.

    python main.py --config configs/toy.py                    # two_gaussians
    python main.py --config configs/toy.py:two_moons          # or eight_gaussians, swiss_roll, checkerboard

two_gaussians is 0.2 N((−5, −5), I) + 0.8 N((5, 5), I) of Song & Ermon 2019, section 3.2, under ten noise
levels from 20 to 1. Its score is known in closed form; tests/test_toy.py compares the trained score with it.
"""

from ncsn_jax.app.config import Config, Data, MlpModel, Sampling, Training
from ncsn_jax.app.overridable import overridable


def get_config(name: str = "two_gaussians"):
    begin_and_end = {
        "two_gaussians": (20.0, 1.0),
        "eight_gaussians": (10.0, 0.05),
        "two_moons": (10.0, 0.05),
        "swiss_roll": (10.0, 0.05),
        "checkerboard": (10.0, 0.05),
    }
    if name not in begin_and_end:
        raise ValueError(f"configs/toy.py:{name}: accepted: {', '.join(begin_and_end)}")
    sigma_begin, sigma_end = begin_and_end[name]
    return overridable(
        Config(
            data=Data(name=name),
            model=MlpModel(sigma_begin=sigma_begin, sigma_end=sigma_end, num_scales=10),
            training=Training(
                num_steps=3000,
                batch_size=256,
                learning_rate=5e-3,
                schedule="cosine",
                ema_rate=0.99,
                log_every=100,
                eval_every=1000,
                eval_examples=5000,
                checkpoint_every=1000,
                preview_every=2000,
                preview_samples=1000,
            ),
            sampling=Sampling(
                num_samples=5000, batch_size=5000, step_size=0.05 * sigma_end**2, steps_per_scale=200
            ),
        )
    )
