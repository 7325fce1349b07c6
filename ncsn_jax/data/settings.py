"""Settings of a dataset, and of its preprocessing."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ncsn_jax.runtime.settings import FROM_JSON, Place, StrictSettings


class ConditionFacts(StrictSettings):
    """Facts of one part of the examples' conditions, measured when a run begins."""

    kind: Literal["class", "vector", "image"]
    """Kind of the part."""
    size: PositiveInt
    """Number of classes, of a vector's entries, or of an image's channels."""
    names: Annotated[tuple[str, ...], FROM_JSON] = ()
    """Names of the classes, or of the entries if they have names."""
    offset: Annotated[tuple[float, ...], FROM_JSON] = ()
    """Number that becomes 0, for each entry or channel."""
    scale: Annotated[tuple[PositiveFloat, ...], FROM_JSON] = ()
    """Difference that becomes 1, for each entry or channel."""


class Data(StrictSettings):
    """Dataset of images, points or arrays of numbers, and its preprocessing."""

    name: str = "mnist"
    """Name of a dataset that `ncsn_jax.data.load` knows; `folder` is your own directory of images, `arrays`
    are your own arrays of numbers. The program also accepts the import path of a function that returns your
    own training and test examples, such as `my_package.data:load`."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that function, by name, as JSON; read by import paths."""
    data_dir: Place | None = None
    """Directory of the prepared datasets; None is TFDS's default. For `folder`, the directory of images;
    for `arrays`, the directory of train.npy and test.npy, or a .npz or .h5 file with the arrays train and
    test. Point sets don't read it."""

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
    """Fraction of the examples in the test split: files by a hash of their names, or, if there is no test
    array, examples by a hash of their place. Read by `folder` and `arrays`."""
    corrupt: Literal["error", "skip"] = "error"
    """Treatment of a file that can't be decoded: `error` stops, `skip` warns and leaves the file out. Both
    name the file. Read by `folder`."""

    normalize: Literal["standard", "range", "none"] = "standard"
    """Map from each channel to the network's numbers, from the training examples: `standard`, mean 0 and
    standard deviation 1; `range`, smallest 0 and largest 1; or `none`. With `none`, arrays of 8 bits are
    images of n values, n − 1 the largest in the data, which `dequantization` and `transform` apply to.
    Read by `arrays`."""
    shape: Annotated[tuple[PositiveInt, ...] | None, FROM_JSON] = None
    """Shape of an example, with its channels; measured when a run begins. Read by `arrays`."""
    num_values: Annotated[int, Field(ge=2, le=256)] | None = None
    """Number n of values of a pixel of 8 bits with `normalize=none`; measured when a run begins. Read by
    `arrays`."""
    offset: Annotated[tuple[float, ...], FROM_JSON] = ()
    """Number that becomes 0, for each channel; measured when a run begins. Read by `arrays`."""
    scale: Annotated[tuple[PositiveFloat, ...], FROM_JSON] = ()
    """Difference that becomes 1, for each channel; measured when a run begins. Read by `arrays`."""

    condition: Literal["none", "class", "attributes", "columns", "file"] = "none"
    """Condition of each example, which the network is trained on: its `class`, by TFDS's labels, or for
    `folder` by the sub-directory; the `attributes` of celeb_a; for `folder`, the numbers in the `columns` of
    columns.csv, whose first column has the images' paths; for `arrays`, the `file` train_condition.npy beside
    train.npy, or a train_condition_NAME.npy for each part. Vectors and images are normalised to mean 0 and
    standard deviation 1."""
    conditions: dict[str, ConditionFacts] = Field(default_factory=dict)
    """Parts of the condition and the names of its classes; measured when a run begins."""

    random_flip: bool = False
    """Whether training images are flipped left to right with probability ½."""
    dequantization: Literal["uniform", "gaussian", "none"] = "uniform"
    """Map from a pixel k of n values to a number: `uniform` (k + u)/n with u ~ U[0, 1); `gaussian`
    k/(n−1) + 0.01 z with z ~ N(0, 1); `none` k/(n−1)."""
    transform: Literal["none", "rescale", "logit"] = "none"
    """Map from [0, 1] to the network's space: `none` the identity, `rescale` x ↦ 2x − 1, or the `logit`."""

    @model_validator(mode="after")
    def _conditions_fit(self) -> "Data":
        if self.condition in ("class", "columns") and self.corrupt == "skip":
            raise ValueError(
                f"condition={self.condition!r} needs every file's own image, found corrupt='skip'; accepted: "
                "'error'"
            )
        return self

    @model_validator(mode="after")
    def _logits_exist(self) -> "Data":
        if self.dequantization == "gaussian" and self.transform == "logit":
            raise ValueError(
                "transform='logit' needs numbers in [0, 1], but dequantization='gaussian' leaves that range; "
                "accepted: 'uniform' or 'none'"
            )
        return self
