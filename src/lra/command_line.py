"""The command line of scripts that take Hydra's overrides without being a Hydra application."""

import argparse
from collections.abc import Sequence


def parse_overrides(arguments: Sequence[str], description: str | None) -> list[str]:
    """The overrides among the arguments; `--help` prints the description and ends the program."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    return list(parser.parse_args(arguments).overrides)
