"""The errors that `main.py` turns into an exit status."""


class UserError(Exception):
    """What was wrong, what was found and what would be accepted, in one line: `main.py` prints just that."""


class PreemptedError(Exception):
    """The machine is wanted back: training has been saved and has ended. `main.py` exits with status 143."""
