"""Settings that check their values: the base of every group of settings, and types of their fields."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ncsn_jax.runtime.paths import absolute

Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A 32-bit seed: jax would truncate a larger one."""
Place = Annotated[str, Field(min_length=1), AfterValidator(absolute)]
"""An absolute path of a file or a directory, or the URL of a bucket."""

FROM_JSON = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
"""Conversion of JSON's lists to tuples."""


class StrictSettings(BaseModel):
    """Settings whose names, types and ranges are checked, and which don't change afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def one_line(error: ValidationError, place: str = "", tagged: tuple[str, ...] = ()) -> str:
    """Return the problems that pydantic found, each with the setting, the value and the fix, in one line.

    Args:
      error: pydantic's error.
      place: the name of the settings as a whole, which precedes each setting's name.
      tagged: the groups that are tagged unions; pydantic puts the tag after their name.
    """
    return "; ".join(_problem(found, place, tagged) for found in error.errors())


def _problem(found, place: str, tagged: tuple[str, ...]) -> str:
    group, *names = found["loc"] or [""]
    names = names[1:] if group in tagged else names
    name = ".".join(map(str, filter(None, (place, group, *names))))
    if found["type"] == "value_error":  # raised by a validator, whose message includes the value found
        return f"{name}: {found['ctx']['error']}"
    if found["type"] == "missing":
        return f"{name}: this setting is required"
    message = f"{name}={found['input']!r}: {found['msg'][0].lower()}{found['msg'][1:]}"
    return " ".join(message.split())
