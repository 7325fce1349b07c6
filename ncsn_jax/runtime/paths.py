"""Expansion of the paths that users write; no other module expands them."""

import os
import re
from os import PathLike

FOR_BUCKETS = "pip install -e '.[gcs]' for gs://"
"""The fix for an environment that can't read buckets."""


def expanded(path: str | PathLike[str]) -> str:
    """Return the path with a leading `~` expanded; an unknown user's `~name` stays unchanged."""
    return os.path.expanduser(os.fspath(path))


def is_url(path: str | PathLike[str]) -> bool:
    """Return whether the path is a URL, such as `gs://bucket/run`, and not a local path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", os.fspath(path)) is not None


def absolute(path: str) -> str:
    """Return the absolute path; a bucket such as `gs://bucket/run` stays unchanged.

    Raises:
      ValueError: if the path is a URL, but not a bucket's.
    """
    if not is_url(path):
        return os.path.abspath(expanded(path))
    if not path.startswith("gs://"):
        raise ValueError(f"found {path!r}; accepted: a directory, or a bucket such as gs://bucket/run")
    return path
