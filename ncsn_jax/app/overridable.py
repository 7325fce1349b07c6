"""Conversion of the package's config to a `ConfigDict`, which flags override."""

import typing
from typing import Any

from ml_collections import config_dict
from pydantic import BaseModel

from ncsn_jax.app.config import Config


def overridable(config: Config) -> config_dict.ConfigDict:
    """Return the config as a `ConfigDict`, for flags such as `--config.training.batch_size=64`."""
    return config_dict.ConfigDict(_values(config))


def _values(settings: BaseModel) -> dict[str, Any]:
    return {
        name: _values(value)
        if isinstance(value, BaseModel)
        # A plain None can't be overridden: ml_collections needs its type.
        else _placeholder(type(settings), name)
        if value is None
        else value
        for name, value in settings
    }


def _placeholder(settings: type[BaseModel], name: str) -> config_dict.FieldReference:
    kind, _ = typing.get_args(settings.model_fields[name].annotation)  # of `float | None`
    return config_dict.placeholder(getattr(kind, "__origin__", kind))  # the float may be `Annotated`
