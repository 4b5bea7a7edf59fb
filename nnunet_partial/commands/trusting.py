"""The option ``--trust`` of the commands that read models. No verb."""


def add_argument(parser):
    """Add ``--trust`` to a parser."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="build the model's network whatever classes its plans.json names; only for models of people you trust "
        "(docs/security.md)",
    )
