"""The error that a user can mend."""


class UserError(Exception):
    """What was wrong, what was found and what would be accepted, in one line: `main.py` prints just that."""
