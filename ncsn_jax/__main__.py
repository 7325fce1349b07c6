"""The command `ncsn-jax`, and `python -m ncsn_jax`."""

import sys


def main() -> None:
    """Run the program; without the extra `app`, print how to install it."""
    try:
        from ncsn_jax.app.process import run
    except ModuleNotFoundError as error:
        sys.exit(f"ncsn-jax: {error}")
    run()


if __name__ == "__main__":
    main()
