"""Options that may be given several times. No verb."""

import argparse


def add_argument(parser: argparse.ArgumentParser, name: str, metavar: str, help: str) -> None:
    """Add the option ``name`` to a parser; its value is the list of what was given, empty without it."""
    parser.add_argument(name, action="append", default=[], metavar=metavar, help=help)
