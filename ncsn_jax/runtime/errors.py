"""Errors that `main.py` turns into an exit status."""


class UserError(Exception):
    """A user's mistake: the problem, the value found and the fix, in the one line that `main.py` prints."""


class PreemptedError(Exception):
    """Preemption: training has saved its state and ended. `main.py` exits with status 143."""
