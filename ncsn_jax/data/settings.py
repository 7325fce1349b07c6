"""Settings of a dataset, and of its preprocessing."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from ncsn_jax.runtime.settings import Place, StrictSettings


class Data(StrictSettings):
    """Dataset, images or points of the plane, and its preprocessing."""

    name: str = "mnist"
    """Name of a dataset that `ncsn_jax.data.load` knows; `folder` is your own directory of images. The
    program also accepts the import path of a function that returns your own training and test examples, such
    as `my_package.data:load`."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that function, by name, as JSON; read by import paths."""
    data_dir: Place | None = None
    """Directory of the prepared datasets; None is TFDS's default. For `folder`, the directory of images.
    Point sets don't read it."""

    crop: PositiveInt | None = None
    """Side of the square that is cut from the centre of every image before resizing, in pixels; None cuts
    nothing."""
    image_size: PositiveInt | None = None
    """Height and width of the resized images, in pixels; None keeps their size. Required by `folder`."""
    fit: Literal["crop", "stretch", "pad"] = "crop"
    """Conversion of images that aren't square: `crop` to the centre, `stretch`, or `pad` with black."""

    channels: Literal[1, 3] = 3
    """Channels of the images, 1 (grey) or 3 (colour); read by `folder`."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the files that are test images, chosen by a hash of their names; read by `folder`."""
    corrupt: Literal["error", "skip"] = "error"
    """Treatment of a file that can't be decoded: `error` stops, `skip` warns and leaves the file out. Both
    name the file. Read by `folder`."""

    random_flip: bool = False
    """Whether training images are flipped left to right with probability ½."""
    dequantization: Literal["uniform", "gaussian", "none"] = "uniform"
    """Map from a pixel k of n values to a number: `uniform` (k + u)/n with u ~ U[0, 1); `gaussian`
    k/(n−1) + 0.01 z with z ~ N(0, 1); `none` k/(n−1)."""
    transform: Literal["none", "rescale", "logit"] = "none"
    """Map from [0, 1] to the network's space: `none` the identity, `rescale` x ↦ 2x − 1, or the `logit`."""

    @model_validator(mode="after")
    def _logits_exist(self) -> "Data":
        if self.dequantization == "gaussian" and self.transform == "logit":
            raise ValueError(
                "transform='logit' needs numbers in [0, 1], but dequantization='gaussian' leaves that range; "
                "accepted: 'uniform' or 'none'"
            )
        return self
