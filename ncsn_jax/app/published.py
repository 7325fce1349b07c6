"""The settings that the published experiments of Song et al. 2021 with NCSN++ share."""

from ncsn_jax.app.config import Config, Data, NcsnppModel, Sampling, Training

HIGH_RESOLUTION = {"progressive": "output_skip", "progressive_input": "input_skip", "num_scales": 2000}
"""Fields of the networks for 256×256 and 1024×1024 pixels."""


def published(
    data: Data,
    model: NcsnppModel,
    *,
    num_steps: int = 1_300_001,
    batch_size: int = 128,
    ema_rate: float = 0.999,
    snr: float = 0.16,
    reduce_mean: bool = False,
) -> Config:
    """Return a published experiment of the variance-exploding process.

    All of them train by denoising score matching of images in [0, 1] with flips and without dequantization,
    with Adam at 2e-4 after a warm-up of 5,000 steps, gradients clipped to norm 1, and a moving average that
    warms up. They sample by predictor-corrector: reverse diffusion and one Langevin step at each level, then
    a denoising step.

    The release sets the corrector's step size by norms of the noise and the score that it averages over the
    batch, ε = 2 (r‖z‖/‖s‖)². Here it is 2 (rσ)², because a sample is decided by its key. Both agree where ‖s‖
    is ‖z‖/σ, which holds if the data are finer than the noise, so the release's r is kept.

    Args:
      data: the images.
      model: the network and its noise levels.
      num_steps: the number of training steps.
      batch_size: the number of images in a step.
      ema_rate: the rate of the moving average.
      snr: r, the corrector's signal-to-noise ratio.
      reduce_mean: whether squares are averaged over an image.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), appendices G and H.
    """
    is_discrete = model.is_discrete
    return Config(
        data=data.model_copy(update={"random_flip": True, "dequantization": "none"}),
        model=model,
        training=Training(
            num_steps=num_steps,
            batch_size=batch_size,
            noise="discrete" if is_discrete else "continuous",
            reduce_mean=reduce_mean,
            learning_rate=2e-4,
            warmup_steps=5000,
            gradient_clip=1.0,
            ema_rate=ema_rate,
            ema_warmup=True,
            preview_every=50_000,
            preview_samples=16,
        ),
        sampling=Sampling(method="pc", snr=snr, denoise=True),
    )
