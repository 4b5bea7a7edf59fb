"""What the commands do, as functions of Python: ``from nnunet_partial import api``.

============================ ==================================================================
:func:`run`                  a project file: from downloads to exported models (:func:`project`: its plan)
:func:`convert`              a downloaded dataset -> nnU-Net raw dataset
:func:`merge`                raw datasets -> one partially labelled dataset (:class:`SourceSpec`)
:func:`variant`              other settings, same preprocessing
:func:`source_variants`      the plans of the teachers
:func:`plans_of_model`       a trained model's plans for another dataset
:func:`views`                plans of a 2D network along each axis
:func:`pseudo_label`         completed labels of the training cases
:func:`evaluate`             predictions against the truth, on annotated classes
:func:`postprocessing`       largest components, decided class by class
:func:`compare`              several methods on the same cases (:class:`CompareOptions`)
:func:`export`               a model that stock nnU-Net runs
============================ ==================================================================

The commands call these very functions. Bad input is a :class:`UserError` whose text is one line that names what is wrong
and what to do; nothing is half-written then. nnU-Net's folders are those of the environment (``nnUNet_raw``,
``nnUNet_preprocessed``, ``nnUNet_results``). Planning, training and prediction are nnU-Net's own commands.

Importing this module imports neither torch nor nnU-Net; a function does when it needs them.
"""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike

if TYPE_CHECKING:
    from nnunet_partial.data.conversion.run import Report
    from nnunet_partial.data.merge.merge import MergeResult
    from nnunet_partial.data.merge.merge import merge_datasets as merge
    from nnunet_partial.data.merge.sources import SourceSpec
    from nnunet_partial.data.planes import write_view_plans as views
    from nnunet_partial.evaluation.evaluate import evaluate_folder as evaluate
    from nnunet_partial.evaluation.postprocessing import determine_for_model as postprocessing
    from nnunet_partial.inference.export import export_model as export
    from nnunet_partial.inference.pseudo_labels import pseudo_label
    from nnunet_partial.orchestration.compare.steps import CompareOptions
    from nnunet_partial.orchestration.executors import Executor
    from nnunet_partial.orchestration.run.pipeline import ProjectRun
    from nnunet_partial.variants import write_plans_of_model as plans_of_model
    from nnunet_partial.variants import write_source_variants as source_variants
    from nnunet_partial.variants import write_variant as variant

# one function, one signature: these are the functions themselves, found when they are first asked for
_ELSEWHERE = {
    "CompareOptions": ("nnunet_partial.orchestration.compare.steps", "CompareOptions"),
    "MergeResult": ("nnunet_partial.data.merge.merge", "MergeResult"),
    "Report": ("nnunet_partial.data.conversion.run", "Report"),
    "SourceSpec": ("nnunet_partial.data.merge.sources", "SourceSpec"),
    "evaluate": ("nnunet_partial.evaluation.evaluate", "evaluate_folder"),
    "export": ("nnunet_partial.inference.export", "export_model"),
    "merge": ("nnunet_partial.data.merge.merge", "merge_datasets"),
    "plans_of_model": ("nnunet_partial.variants", "write_plans_of_model"),
    "postprocessing": ("nnunet_partial.evaluation.postprocessing", "determine_for_model"),
    "pseudo_label": ("nnunet_partial.inference.pseudo_labels", "pseudo_label"),
    "source_variants": ("nnunet_partial.variants", "write_source_variants"),
    "variant": ("nnunet_partial.variants", "write_variant"),
    "views": ("nnunet_partial.data.planes", "write_view_plans"),
}

__all__ = [
    "CompareOptions",
    "MergeResult",
    "Report",
    "SourceSpec",
    "UserError",
    "compare",
    "convert",
    "converters",
    "evaluate",
    "export",
    "merge",
    "plans_of_model",
    "postprocessing",
    "project",
    "pseudo_label",
    "run",
    "source_variants",
    "variant",
    "views",
]


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, found = _ELSEWHERE[name]
    return getattr(importlib.import_module(module), found)


def __dir__() -> list[str]:
    return sorted(__all__)


def converters() -> list[str]:
    """The names that :func:`convert` takes."""
    from nnunet_partial.data.conversion.command import converters as names

    return names()


def convert(
    converter: str,
    source: PathLike,
    dataset_id: int,
    *,
    name: str | None = None,
    organs: str | None = None,
    source_name: str | None = None,
    unlabelled: bool = False,
    overwrite: bool = False,
    processes: int | None = None,
    **options: Any,
) -> "Report":
    """Convert the unpacked download in ``source`` into the nnU-Net raw dataset ``dataset_id``.

    ``converter``   one of :func:`converters`
    ``name``        of the dataset; ``source_name``: of the source in the contract; both default to the converter's
    ``organs``      classes to write, ``"liver,kidney=kidney_left+kidney_right"``; None: the converter's choice
    ``unlabelled``  also the cases without labels
    ``overwrite``   replace an existing dataset
    ``processes``   None: all cores
    ``options``     what else ``nnunet_partial convert CONVERTER --help`` lists, with ``_`` for ``-``
    Raises :class:`UserError` for an unknown converter or option, and for input that cannot be converted.
    """
    from nnunet_partial.data.conversion.command import chosen
    from nnunet_partial.data.conversion.run import convert as run
    from nnunet_partial.data.conversion.source import SourceFolder

    own = {"name": name, "organs": organs, "source_name": source_name, "unlabelled": unlabelled}
    found, arguments = chosen(converter, source, dataset_id, **own, overwrite=overwrite, processes=processes, **options)
    return run(found, SourceFolder(source, arguments.follow_links), arguments)


def compare(options: "CompareOptions", executor: "Executor | None" = None) -> Path:
    """Train, predict, evaluate and rank the methods of ``options``; return the page, ``OUT/report.html``.

    ``executor``: who runs the commands; None: one after the other on this machine. A comparison that was interrupted goes
    on where it was. Raises :class:`UserError` for a folder that holds another comparison, and for a step that fails.
    """
    from nnunet_partial.orchestration.compare.comparison import Comparison

    comparison = Comparison(options)
    _share(options)
    comparison.executor = executor
    return comparison.run()


def _share(options: "CompareOptions") -> None:
    """What the methods of a comparison share of the data: one split, the images of its validation cases."""
    from nnunet_partial.data.preprocessed.sharing import link_validation_images, share_splits
    from nnunet_partial.orchestration.compare.steps import validation_images

    share_splits(options.dataset, options.folds, options.full_dataset if "full" in options.methods else None)
    if options.cross_validation:
        for fold in options.folds:
            link_validation_images(options.dataset, fold, validation_images(options.out, fold))


def project(
    file: PathLike,
    device: str = "cpu",
    trust: bool = False,
    executor: "Executor | None" = None,
    until: str | None = None,
    check: bool = True,
) -> "ProjectRun":
    """Read a project file and check everything that can be checked before anything is written; its run, not yet started.

    ``device``: ``cuda``, ``cpu`` or ``mps``, of every training and prediction. ``trust``: you vouch for models that are
    there already. ``until``: a stage (``convert``, ``train``, ...) or a step after which to stop. ``check``: look at the data
    too, not at the file alone, as far as its status needs. nnU-Net's folders that the file names are set in the environment
    of this process. Raises :class:`UserError`, one line, for whatever is wrong.
    """
    from nnunet_partial.orchestration.run.pipeline import ProjectRun
    from nnunet_partial.orchestration.run.project import read_project
    from nnunet_partial.orchestration.run.steps import ProjectSteps
    from nnunet_partial.project.checks import check_project, known_from_the_journal

    read = read_project(file)
    os.environ.update(read.environment())
    found = check_project(read, device) if check else known_from_the_journal(read)
    steps = ProjectSteps(read, found.taught, device, trust, found.counts, found.lines)
    return ProjectRun(steps, executor, until, _share)


def run(
    file: PathLike, device: str = "cpu", trust: bool = False, executor: "Executor | None" = None, until: str | None = None
) -> list[Path]:
    """Do what a project file says, from downloads to exported models; return the reports, one for each configuration.

    The arguments are those of :func:`project`. A run that was interrupted goes on where it was.
    """
    return project(file, device, trust, executor, until).run()
