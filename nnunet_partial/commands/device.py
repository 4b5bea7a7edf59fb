"""The option ``--device`` of the commands that run networks. No verb."""


def add_argument(parser):
    """Add ``--device`` to a parser."""
    parser.add_argument("--device", choices=("cuda", "cpu", "mps"), help="default: cuda where there is one, else cpu")


def chosen(arguments) -> str:
    """The device asked for, or the best there is. Raises :class:`UserError` for a CUDA device that is not there."""
    import torch

    from nnunet_partial.errors import UserError

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device. Use --device cpu.")
    return device
