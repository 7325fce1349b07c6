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
        else config_dict.FieldReference(value, field_type=object)
        if _has_types(type(settings), name)
        else value
        for name, value in settings
    }


def _has_types(settings: type[BaseModel], name: str) -> bool:
    """Return whether a setting is a number or a string: ml_collections would take the default's type."""
    kinds = {
        getattr(kind, "__origin__", kind) for kind in typing.get_args(settings.model_fields[name].annotation)
    }
    return {float, str} <= kinds


def _placeholder(settings: type[BaseModel], name: str) -> config_dict.FieldReference:
    kind, _ = typing.get_args(settings.model_fields[name].annotation)  # of `float | None`
    return config_dict.placeholder(getattr(kind, "__origin__", kind))  # the float may be `Annotated`
