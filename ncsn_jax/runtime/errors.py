"""Errors that the program turns into an exit status, and their messages."""


class UserError(Exception):
    """A user's mistake: the problem, the value found and the fix, in the one line that the program prints."""


class ArgumentError(UserError):
    """A mistake in an argument or a setting, whose message begins with its name, such as `batch_size=10`.

    The application puts the name of the flag, such as `config.training.`, in front of it.
    """


class PreemptedError(Exception):
    """Preemption: training has saved its state and ended. The program exits with status 143."""


def reason(error: Exception) -> str:
    """Return the type and the message of an error, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
