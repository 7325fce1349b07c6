"""scikit-learn's 8×8 digits, tuned for two CPU cores; no download.

    make demo                                     # or: python main.py
    python main.py --config configs/digits.py:v2  # a network for any σ
    python main.py --config configs/digits.py:ncsnpp
    python main.py --config configs/digits.py:best
    python main.py --config configs/digits.py:conditional

The first, NCSN, takes 2½ minutes on two cores: 1,600 steps of 64 images, and 100 samples. Its held-out loss
is 13.4; each class has 7-13 % of 1,000 samples, whose Fréchet distance (pixels) to the training images is
0.148 (`python -m benchmarks.digits_quality`). By Adam, in 1,800 steps and as much time, it was 0.175.

The second, NCSNv2 on continuous noise, takes 8 minutes: 3,000 steps. Its held-out loss is 12.6; each class
has 7-15 % of the samples, whose distance is 0.16 with 97 evaluations of annealed Langevin dynamics and 0.13
with 49 evaluations of
`--mode sample --config.sampling.method=heun --config.sampling.num_levels=25 --config.sampling.s_churn=25`
(`python -m benchmarks.sampler_quality`).

The third, a small NCSN++ on continuous noise up to σ = 4, takes 3 minutes: 3,000 steps. Its held-out loss,
over these other noise levels, is 9.6; the distance is 0.10 with 49 evaluations of Heun's method with churn,
and with 19. Its Fourier frequencies have the standard deviation 1: with the release's 16, every tenth sample
of the deterministic samplers was noise.

The fourth, the same network preconditioned and trained as Karras et al. 2022, with Muon, takes 3 minutes:
2,200 steps. The distance is 0.089 with 49 evaluations of Heun's method with churn, and 0.090 with 19.

The fifth is the fourth with classes as conditions: `--config.sampling.condition=7`, or `each`. It takes as
long. An SVC takes 99.3 % of 1,000 samples for the class asked for, at a distance of 0.083; with
`--config.sampling.guidance=1.25` 99.7 % at 0.088 (`python -m benchmarks.guidance`).
"""

from ncsn_jax.app.config import (
    Config,
    Data,
    Evaluation,
    NcsnModel,
    NcsnppModel,
    Ncsnv2Model,
    Sampling,
    Training,
)
from ncsn_jax.app.overridable import overridable

TRAINING = Training(
    num_steps=1800,
    batch_size=64,
    learning_rate=4e-3,
    warmup_steps=100,
    schedule="cosine",
    ema_rate=0.995,
    log_every=50,
    eval_every=600,
    checkpoint_every=600,
    preview_every=600,
    preview_samples=25,
)


NCSNPP = NcsnppModel(
    num_filters=16,
    multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    image_size=8,
    sigma_begin=4.0,
    num_scales=16,
    fourier_scale=1.0,
)
HEUN = Sampling(num_samples=100, batch_size=100, method="heun", num_levels=25, s_churn=25.0)


def preconditioned(data: Data, unconditional: float = 0.0) -> Config:
    """Return the small NCSN++ with preconditioning."""
    own = {"preconditioning": "karras", "scale_by_sigma": False, "sigma_begin": 8.0}
    return Config(
        data=data,
        model=NCSNPP.model_copy(update=own),
        training=TRAINING.model_copy(
            update={
                "num_steps": 2200,
                "weighting": "karras",
                "noise": "log_normal",
                "p_mean": -1.0,
                "p_std": 1.3,
                "unconditional": unconditional,
                "optimizer": "muon",
                "learning_rate": 5e-3,
                "ema_warmup": True,
            }
        ),
        sampling=HEUN,
        evaluation=Evaluation(num_samples=1000),
    )


def get_config(network: str = "ncsn"):
    networks = {
        "ncsn": Config(
            data=Data(name="digits"),
            model=NcsnModel(num_filters=16),
            training=TRAINING.model_copy(update={"optimizer": "muon", "num_steps": 1600}),
            sampling=Sampling(
                num_samples=100, batch_size=100, step_size=4e-5, steps_per_scale=10, denoise=True
            ),
            evaluation=Evaluation(num_samples=1000),
        ),
        "v2": Config(
            data=Data(name="digits"),
            model=Ncsnv2Model(num_filters=16, num_scales=16),
            training=TRAINING.model_copy(
                update={"num_steps": 3000, "learning_rate": 2e-3, "warmup_steps": 0, "noise": "continuous"}
            ),
            sampling=Sampling(
                num_samples=100,
                batch_size=100,
                step_size=2.2e-5,
                steps_per_scale=6,
                denoise=True,
                s_churn=10.0,
            ),
            evaluation=Evaluation(num_samples=1000),
        ),
        "ncsnpp": Config(
            data=Data(name="digits"),
            model=NCSNPP,
            training=TRAINING.model_copy(
                update={"num_steps": 3000, "learning_rate": 2e-3, "noise": "continuous", "ema_warmup": True}
            ),
            sampling=HEUN,
            evaluation=Evaluation(num_samples=1000),
        ),
        "best": preconditioned(Data(name="digits")),
        "conditional": preconditioned(Data(name="digits", condition="class"), unconditional=0.1),
    }
    if network not in networks:
        raise ValueError(f"configs/digits.py:{network}: accepted: {', '.join(networks)}")
    return overridable(networks[network])
