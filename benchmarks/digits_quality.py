"""Quality of the samples of a digits run: their classes, and their distance from the training images.

    python -m benchmarks.digits_quality --workdir runs/digits

Draws 1,000 samples by the run's config, clips them to [0, 1], rounds them to the 17 grey values, and prints

- the class shares by an SVC fitted on the training images, and its accuracy on the test images;
- the Fréchet distance between Gaussians fitted to the pixels of samples and training images, and, to show its
  scale, the same distance for other images;
- the time to draw the samples.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from jaxtyping import Float
from sklearn.svm import SVC

from ncsn_jax import as_score_fn, data, training
from ncsn_jax.app.build import dataset_info, load_dataset
from ncsn_jax.app.conditions import asked_of
from ncsn_jax.app.sample import write_samples
from ncsn_jax.app.trained import load_run
from ncsn_jax.data.digits import Digits
from ncsn_jax.evaluation.distances import frechet_distance
from ncsn_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Quality:
    """Measured quality.

    Attributes:
      class_shares: the share of the samples that the classifier assigns to each class.
      accuracy: the classifier's accuracy on the test images.
      distances: the Fréchet distances of the samples and of other images to the training images.
      seconds: the time to draw the samples, including compilation.
    """

    class_shares: Float[np.ndarray, "10"]
    accuracy: float
    distances: dict[str, float]
    seconds: float


def measure(workdir: Path, num_samples: int = 1000) -> Quality:
    """Draw samples of a digits run and measure their quality.

    Raises:
      UserError: if the run doesn't exist, or has another dataset.
    """
    config = load_run(workdir)
    if config.data.name != "digits":
        raise UserError(f"{workdir} is a run of {config.data.name!r}; accepted: a run of 'digits'")
    train, train_labels, test, test_labels = real_digits(config.data.data_dir)
    svc = SVC(gamma="scale", C=10).fit(train, train_labels)

    settings = config.sampling.model_copy(update={"num_samples": num_samples})
    score_fn = as_score_fn(*training.restore(workdir))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        info, sigmas = dataset_info(config), config.model.noise_levels
        asked = asked_of(config, lambda: load_dataset(config).train_conditions)
        write_samples(Path(directory), score_fn, info, sigmas, settings, asked)
        samples = np.load(Path(directory) / "samples.npy").reshape(num_samples, -1)
    seconds = time.monotonic() - began
    samples = np.round(np.clip(samples, 0, 1) * 16) / 16

    rng = np.random.default_rng(0)
    images = {
        "the samples": samples,
        f"{num_samples} draws of the training images": rng.choice(train, num_samples),
        f"the {len(test)} test images": test,
        "uniform noise": rng.uniform(size=samples.shape),
    }
    return Quality(
        class_shares=np.bincount(svc.predict(samples), minlength=10) / num_samples,
        accuracy=float(svc.score(test, test_labels)),
        distances={name: frechet_distance(pixels, train) for name, pixels in images.items()},
        seconds=seconds,
    )


def real_digits(data_dir: str | None) -> tuple[np.ndarray, ...]:
    """Return the training images in [0, 1] and their labels, and the same of the test set."""
    data.load(data.Data(name="digits", data_dir=data_dir))
    arrays = []
    for split in ("train", "test"):
        builder = Digits(data_dir=data_dir, file_format="array_record")
        examples = list(builder.as_data_source(split))  # pyright: ignore[reportCallIssue]
        arrays.append(np.stack([example["image"].ravel() / 16 for example in examples]))
        arrays.append(np.array([example["label"] for example in examples]))
    return tuple(arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of the samples of a digits run.")
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits"))
    parser.add_argument("--num_samples", type=int, default=1000)
    options = parser.parse_args()
    try:
        quality = measure(options.workdir, options.num_samples)
    except UserError as error:
        sys.exit(f"digits_quality: {error}")
    print("classes 0 … 9 of the samples:  " + "  ".join(f"{s:.1%}" for s in quality.class_shares))
    print(f"the classifier is right on {quality.accuracy:.1%} of the test images")
    print("Fréchet distance to the 1,500 training images of")
    for name, distance in quality.distances.items():
        print(f"  {name:35} {distance:6.3f}")
    print(f"drawn in {quality.seconds:.0f} s, including compilation")


if __name__ == "__main__":
    main()
