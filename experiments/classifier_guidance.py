"""Guidance of a network that knows no classes, by a noise-conditional classifier, on digits.

    python main.py --config configs/digits.py:best
    python -m experiments.classifier_guidance --workdir runs/digits_best

Trains a `NoiseConditionalClassifier` on the run's noise levels, for a minute of two CPU cores, and draws
1,000 samples, 100 a class, of `guided_score` at several scales by the run's own sampler. Prints, as
`benchmarks.guidance` does, the share that an SVC takes for the class asked for, the Fréchet distance in
pixels, and the coverage.
"""

import argparse
import functools
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.svm import SVC

from benchmarks.digits_quality import real_digits
from ncsn_jax import as_score_fn, class_log_likelihood, guided_score, training
from ncsn_jax.app.build import dataset_info
from ncsn_jax.app.config import Config
from ncsn_jax.app.methods import recipe_of
from ncsn_jax.app.trained import load_run
from ncsn_jax.data import Data, load, preprocessing
from ncsn_jax.evaluation.distances import frechet_distance, precision_recall_density_coverage
from ncsn_jax.models import NoiseConditionalClassifier
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime.chains import first_states
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.samplers import Sampler, run
from ncsn_jax.training import Experiment, Settings, classification_objective, train

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0)
STEPS = 3_000


def classifier(config: Config, workdir: Path, num_steps: int = STEPS) -> NetworkScore:
    """Train a noise-conditional classifier on the noise levels of a run, and return its logits of (x, σ)."""
    dataset = load(config.data.model_copy(update={"condition": "class"}))
    model, prepare = NoiseConditionalClassifier(num_classes=10), preprocessing(dataset.info)

    def preprocess(key, example):
        return {"x": prepare(key, example["x"]), "label": example["condition"]}

    schedule = optax.cosine_decay_schedule(2e-3, num_steps)
    state = train(
        Experiment(
            model=model,
            objective=classification_objective(config.model.noise_levels),
            optimizer=optax.adamw(schedule, weight_decay=0.05),
            train=dataset.train_examples,
            test=dataset.test_examples,
            preprocess=preprocess,
            settings=Settings(num_steps=num_steps, batch_size=64, eval_every=1000, log_every=500),
            identity={"model": "NoiseConditionalClassifier"},
        ),
        workdir,
    )
    return as_score_fn(model, {"params": jax.device_get(state.ema_params)})


@functools.partial(jax.jit, static_argnames="sampler")
def guided(score_fn, logits_fn, scale, keys: Array, x: Array, labels: Array, sampler: Sampler) -> Array:
    """Return samples of the classes, guided by the classifier."""

    def draw(key, x, label):
        score = guided_score(score_fn, class_log_likelihood(logits_fn, label), scale=scale)
        return run(key, sampler, score, x)

    return jax.vmap(draw)(keys, x, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description="Guidance of digits by a classifier.")
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits_best"), help="the digits run")
    parser.add_argument("--num_samples", type=int, default=1000)
    options = parser.parse_args()
    try:
        config = load_run(options.workdir)
        if config.data != Data(name="digits", data_dir=config.data.data_dir):
            raise UserError(f"{options.workdir} is not an unconditional run of 'digits'")
        score_fn = as_score_fn(*training.restore(options.workdir))
    except UserError as error:
        sys.exit(f"classifier_guidance: {error}")
    with tempfile.TemporaryDirectory() as workdir:
        logits_fn = classifier(config, Path(workdir))
    images, classes, *_ = real_digits(config.data.data_dir)
    svc = SVC(gamma="scale", C=10).fit(images, classes)
    recipe = recipe_of(config.sampling, config.model.noise_levels, dataset_info(config))
    labels = np.arange(options.num_samples) % 10
    keys, x = first_states(jax.random.split(jax.random.key(0), (1, len(labels))), recipe)
    print("| scale | agreement (SVC) | Fréchet distance | coverage |\n|---|---|---|---|")
    for scale in SCALES:
        parts = [
            guided(
                score_fn,
                logits_fn,
                jnp.float32(scale),
                keys[0, i],
                x[0, i],
                jnp.asarray(labels[i]),
                recipe.sampler,
            )
            for i in np.array_split(np.arange(len(labels)), -(-len(labels) // 250))
        ]
        samples = recipe.transform.inverse(jnp.concatenate(parts)).reshape(len(labels), -1)
        pixels = np.round(np.clip(samples, 0, 1) * 16) / 16
        agreement = np.mean(svc.predict(pixels) == labels)
        coverage = precision_recall_density_coverage(images, pixels, num_neighbours=5).coverage
        distance = frechet_distance(pixels, images)
        print(f"| {scale:g} | {agreement:.1%} | {distance:.3f} | {coverage:.1%} |", flush=True)


if __name__ == "__main__":
    main()
