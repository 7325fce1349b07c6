"""The upper half of MNIST given its lower half: an image condition, beside posterior sampling.

    python main.py --config configs/mnist.py:small
    python -m experiments.completion --unconditional runs/mnist_small

Trains the network of `configs/mnist.py:small` with the lower half of each digit as an image condition, for as
many steps, in runs/completion; running it again resumes. Then it completes test images both by this network
and by the posterior score of the unconditional run, with one sampler, and with annealed Langevin dynamics,
which end in the posterior itself. Prints for each the root mean square error of a pixel of the upper half,
and the share of completed digits that the project's classifier takes for the digit that they were.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ncsn_jax import Observation, as_score_fn, data, training
from ncsn_jax.app.build import objective, optimizer, settings
from ncsn_jax.app.config import Config, NcsnppModel
from ncsn_jax.app.methods import recipe_of
from ncsn_jax.app.trained import load_run
from ncsn_jax.data import Dataset
from ncsn_jax.evaluation import Evaluation
from ncsn_jax.evaluation.real_features import features_of
from ncsn_jax.models import Image, Patches, Preconditioned
from ncsn_jax.operators import Mask
from ncsn_jax.runtime import viz
from ncsn_jax.runtime.chains import Given, Recipe, batches, chains, first_states, rows
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.training import Experiment, train


def lower_half(x: Float[Array, "28 28 1"]) -> Float[Array, "28 28 1"]:
    """Return the lower half of an image, from −1 to 1, below zeros."""
    return jnp.where(jnp.arange(28)[:, None, None] >= 14, 2.0 * x - 1.0, 0.0)


def network(settings: NcsnppModel) -> Patches:
    """Return the network with the lower half of an image as its condition, in patches like x."""
    size = settings.patch_size
    inner = settings.build(rescaled=True, conditions=Image(size**2))
    return Patches(Preconditioned(inner, settings.measured_std), size)


def experiment(model: Patches, config: Config, dataset: Dataset) -> Experiment:
    """Return the training of images given their lower halves."""
    prepare = data.preprocessing(dataset.info)

    def preprocess(key, image):
        x = prepare(key, image)
        return {"x": x, "condition": lower_half(x)}

    return Experiment(
        model=model,
        objective=objective(config),
        optimizer=optimizer(config.training),
        train=dataset.train,
        test=dataset.test,
        preprocess=preprocess,
        settings=settings(config),
        identity={"condition": "lower half", "network": config.model.model_dump()},
    )


def completed(
    score_fn: Any, recipe: Recipe, images: Float[np.ndarray, "n 28 28 1"], *, is_posterior: bool
) -> Float[np.ndarray, "n 28 28 1"]:
    """Return images with a sample of their upper half."""
    mask = jnp.broadcast_to(jnp.arange(28)[:, None, None] >= 14, (28, 28, 1))

    def given(image: Array) -> Given:
        if is_posterior:
            return Given(observation=Observation(image * mask, Mask(mask), jnp.zeros(())))
        return Given(condition=lower_half(image))

    drawn, fold_in = [], functools.partial(jax.random.fold_in, jax.random.key(0))
    for numbers in batches(len(images), 250):
        numbers = np.minimum(numbers, len(images) - 1)
        keys, first = first_states(jax.vmap(jax.vmap(fold_in))(numbers), recipe)
        seen = jax.vmap(jax.vmap(given))(jnp.asarray(images)[numbers])
        *_, last = chains(recipe.sampler, keys, score_fn, first, seen)
        drawn.append(rows(last))
    upper = np.clip(np.concatenate(drawn)[: len(images)], 0, 1)
    return np.where(np.asarray(mask), images, upper)


def main() -> None:
    parser = argparse.ArgumentParser(description="Upper halves of MNIST given lower halves.")
    parser.add_argument("--unconditional", type=Path, default=Path("runs/mnist_small"))
    parser.add_argument("--workdir", type=Path, default=Path("runs/completion"))
    parser.add_argument("--num_steps", type=int, help="default: as many as configs/mnist.py:small")
    parser.add_argument("--num_images", type=int, default=500)
    options = parser.parse_args()
    try:
        run = load_run(options.unconditional)
        unconditional = as_score_fn(*training.restore(options.unconditional))
    except UserError as error:
        sys.exit(f"completion: {error}")
    assert isinstance(run.model, NcsnppModel)
    model, dataset = network(run.model), data.load(run.data)
    if options.num_steps is not None:
        training_settings = run.training.model_copy(update={"num_steps": options.num_steps})
        run = run.model_copy(update={"training": training_settings})
    state = train(experiment(model, run, dataset), options.workdir)
    conditional = as_score_fn(model, {"params": jax.device_get(state.ema_params)})

    features = features_of(Evaluation(features="classifier"), dataset)
    stored = np.stack([dataset.test[i] for i in range(options.num_images)])
    assert dataset.load_labels is not None
    images, labels = ((stored + 0.5) / 256).astype(np.float32), dataset.load_labels()[1][: options.num_images]
    levels, annealed = run.model.noise_levels, run.sampling.model_copy(update={"method": "annealed"})
    heun, langevin = (recipe_of(each, levels, dataset.info) for each in (run.sampling, annealed))
    results = {"test images": images}
    results["image condition, heun"] = completed(conditional, heun, images, is_posterior=False)
    results["posterior score, heun"] = completed(unconditional, heun, images, is_posterior=True)
    results["posterior score, annealed"] = completed(unconditional, langevin, images, is_posterior=True)
    print("| completion | root mean square error | agreement of class |\n|---|---|---|")
    for name, found in results.items():
        error = np.sqrt(np.mean((found - images)[:, :14] ** 2))
        pixels = np.clip(np.floor(256 * found), 0, 255).astype(np.uint8)
        probabilities = features.extract(pixels).probabilities
        assert probabilities is not None
        agreement = np.mean(probabilities.argmax(1) == labels)
        print(f"| {name} | {error:.3f} | {agreement:.1%} |", flush=True)
    shown = np.stack([found[:12] for found in results.values()])
    viz.save_png(options.workdir / "completion.png", viz.image_grid(shown.reshape(-1, 28, 28, 1), columns=12))
    print(f"{options.workdir}: completion.png")


if __name__ == "__main__":
    main()
