"""Files that grow batch by batch."""

import jax.numpy as jnp
import numpy as np

from ncsn_jax.app.samples_file import MAX_FRAMES, write_batches
from ncsn_jax.runtime.chains import batches


def test_batches_are_written_one_by_one_and_only_few_frames_are_kept(tmp_path):
    """A sampler of 1,000 steps and 3 batches; every state encodes its step and its sample."""
    written = []

    def run(numbers):
        for step in range(1001):
            yield jnp.asarray(numbers, jnp.float32)[..., None] + 1000.0 * step
        partial = np.load(tmp_path / "x.npy.partial", mmap_mode="r")
        written.append((partial != 0).sum())

    numbers = batches(10, 4)
    shown = np.array([0, 1, 4, 5, 8, 11])
    written_file = write_batches(
        tmp_path / "x.npy", {}, run, numbers, num_steps=1000, counts=(5, 2), shape=(1,), shown=shown
    )
    frames = written_file.frames
    assert written == [4, 8, 10]
    last = 1_000_000.0 + np.arange(10)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), last.reshape(5, 2, 1))
    assert len(frames) <= MAX_FRAMES + 1
    np.testing.assert_array_equal(frames[-1][:, 0], last[[0, 1, 4, 5, 8]])
    # Frames keep these samples only, and are no views of a batch.
    assert all(frame.shape == (5, 1) and frame.base is None for frame in frames)
