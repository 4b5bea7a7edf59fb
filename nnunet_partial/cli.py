"""``nnunet_partial VERB``: one module of :mod:`nnunet_partial.commands` per verb, imported when it is called."""

import argparse
import importlib
import os
import re
import select
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TextIO

from nnunet_partial import __version__
from nnunet_partial.errors import did_you_mean, exit_on_user_error

# verb -> (module of nnunet_partial.commands, one line of help). A module has DESCRIPTION, EXAMPLE,
# add_arguments(parser) and run(arguments) -> None; bad input is a UserError.
VERBS = {
    "run": ("run", "one file from downloads to a model: check, convert, merge, plan, train, test, report, export"),
    "init": ("init", "write a first project file from folders of downloads"),
    "convert": ("convert", "turn a downloaded dataset into an nnU-Net raw dataset"),
    "check": ("check", "look at a dataset: what it holds and what looks wrong"),
    "relabel": ("relabel", "mirror labels that are stored mirrored against their images"),
    "merge": ("merge", "merge datasets that annotate different organs into one partially labelled dataset"),
    "variant": ("variant", "write a plans variant: other settings, same preprocessing"),
    "views": ("views", "write plans of a 2D network along each axis, for three views of a scan"),
    "pseudo-label": ("pseudo_label", "complete the labels of the training cases by what trained models predict"),
    "predict": ("predict", "segment new scans with a trained model, whatever they are called, or a dataset's own cases"),
    "predict-dicom": ("predict_dicom", "segment DICOM series with a trained model: a folder of them in, DICOM SEG out"),
    "atso": ("atso", "the ATSO loop, generation by generation (run), and its stages by hand"),
    "coarse-to-fine": ("coarse_to_fine", "find the organs at low resolution, then segment their box: prepare, train, predict"),
    "efficiency": ("efficiency", "measure what prediction costs: time, memory, arithmetic; model beside model"),
    "evaluate": ("evaluate", "compare predictions with the truth, on annotated classes only"),
    "postprocessing": ("postprocessing", "decide class by class whether the largest component alone scores better"),
    "report": ("report", "write one HTML file about one or several evaluated methods"),
    "fuse": ("fuse", "fuse several models' predictions of the same images into one label map"),
    "compare": ("compare", "train, test and rank several methods on the same cases; one report"),
    "export": ("export", "write a model that stock nnU-Net runs without this package"),
    "doctor": ("doctor", "show what nnU-Net finds of this package, and how to mend it"),
    "demo": ("demo", "run the whole pipeline on phantoms made on the spot"),
}


STOPPED = 130  # exit code after Ctrl-C, as shells have it
UNREAD = 141  # and of a program that writes to a pipe which nobody reads any more


class Parser(argparse.ArgumentParser):
    """Also asks what may have been meant by a misspelt verb, choice or option."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        option = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        hint = ""
        if choice:
            hint = did_you_mean(choice[1], re.findall(r"[^', ]+", choice[2]))
        elif option:
            hint = did_you_mean(option[1], [i for i in self._option_string_actions if i.startswith("--")])
        super().error(f"{message}{'. ' + hint.strip() if hint else ''}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Bad input ends with one line on stderr and exit code 2, Ctrl-C with one line and 130, and a pipe that is
    closed (``| head``) with 141 and no word."""
    with _quiet_when_nobody_reads():
        return _main(argv)


@contextmanager
def _quiet_when_nobody_reads() -> Iterator[None]:
    """Raises SystemExit where the output goes to a pipe whose reader has ended; other broken pipes are errors as before."""
    try:
        try:
            yield
        finally:  # what is held back must be written here, not when the interpreter ends, which would complain
            with exit_on_user_error():
                _flush()
    except BrokenPipeError:
        unread = [i for i in (sys.stdout, sys.stderr) if _is_unread(i)]
        if not unread:
            raise
        for stream in unread:  # what is still held back goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise SystemExit(UNREAD) from None


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def _is_unread(stream: TextIO | None) -> bool:
    """Whether ``stream`` is a pipe whose other end is closed."""
    if stream is None or not hasattr(select, "poll"):  # no poll on Windows, where a closed pipe is another error
        return False
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # closed, or no file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _main(argv: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="nnunet_partial",
        description="Partially labelled datasets in, one ordinary nnU-Net v2 model that segments every organ out.",
    )
    parser.add_argument("--version", action="version", version=f"nnunet_partial {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (_, summary) in VERBS.items():
        verbs.add_parser(verb, help=summary, add_help=False)
    verb = parser.parse_args(argv[:1]).verb
    try:
        with exit_on_user_error():
            run_verb(verb, argv[1:])
    except KeyboardInterrupt:
        print("\nnnunet_partial: stopped; the same command goes on", file=sys.stderr, flush=True)
        return STOPPED
    return 0


def run_verb(verb: str, argv: Sequence[str]) -> None:
    """Run one verb with its own arguments. ``command_line`` is the command as given, for those that record it."""
    module = importlib.import_module(f"nnunet_partial.commands.{VERBS[verb][0]}")
    command_line = shlex.join(["nnunet_partial", verb, *argv])
    module.run(verb_parser(verb).parse_args(argv, argparse.Namespace(command_line=command_line)))


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """The parser of one verb's arguments."""
    module = importlib.import_module(f"nnunet_partial.commands.{VERBS[verb][0]}")
    parser = Parser(
        prog=f"nnunet_partial {verb}",
        description=module.DESCRIPTION,
        epilog=f"example: {module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
