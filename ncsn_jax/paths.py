"""The one place where paths enter: from what a user writes to what the file system knows."""

import os
from os import PathLike


def expanded(path: str | PathLike[str]) -> str:
    """The path with a leading `~` replaced by the home directory; of an unknown user, as it is."""
    return os.path.expanduser(os.fspath(path))


def absolute(path: str) -> str:
    """The path as it is found from any directory; a URL, such as `gs://bucket/run`, stays as it is."""
    return path if "://" in path else os.path.abspath(expanded(path))
