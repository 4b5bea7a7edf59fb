"""Import paths of version 0.1 still work, and say what their name is now."""

import importlib
import subprocess
import sys

import pytest

from nnunet_partial import _moved


@pytest.mark.parametrize("old", sorted(_moved.MOVED))
def test_an_old_path_is_the_new_module(old):
    new = importlib.import_module(f"nnunet_partial.{_moved.MOVED[old]}")
    spec = new.__spec__
    sys.modules.pop(f"nnunet_partial.{old}", None)
    with pytest.warns(FutureWarning, match=f"nnunet_partial.{_moved.MOVED[old]} now"):
        assert importlib.import_module(f"nnunet_partial.{old}") is new
    assert new.__spec__ is spec  # reload and pickle go by it


@pytest.mark.parametrize(
    "package, name",
    [
        ("data.check", "dataset_problems"),
        ("data.merge", "merge_datasets"),
        ("inference.coarse_to_fine", "CoarseToFineSettings"),
        ("inference.efficiency", "Measurement"),
        ("demo", "run_demo"),
    ],
)
def test_a_package_in_a_modules_place_forwards_its_names(package, name):
    module = importlib.import_module(f"nnunet_partial.{package}")
    with pytest.warns(FutureWarning, match=f"nnunet_partial.{package}.{name} is nnunet_partial.{package}"):
        assert callable(getattr(module, name))
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    "module, old, new",
    [
        ("orchestration.atso.options", "Options", "orchestration.atso.options.AtsoOptions"),
        ("orchestration.atso.steps", "Planner", "orchestration.atso.steps.AtsoSteps"),
        ("orchestration.atso.steps", "Stage", "orchestration.engine.Step"),
        ("orchestration.compare.steps", "Options", "orchestration.compare.steps.CompareOptions"),
        ("orchestration.compare.steps", "Planner", "orchestration.compare.steps.ComparisonSteps"),
        ("data.conversion.finished", "Journal", "data.conversion.finished.FinishedCases"),
        ("data.conversion.worker", "Job", "data.conversion.worker.CaseToConvert"),
        ("data.check.inspection", "Job", "data.check.inspection.CaseToInspect"),
        ("data.check.audit", "Row", "data.check.audit.AuditedCase"),
        ("data.presence", "Shown", "data.presence.ShownClasses"),
        ("evaluation.evaluate", "CaseJob", "evaluation.evaluate.CaseToScore"),
        ("evaluation.statistics", "Comparison", "evaluation.statistics.PairedDifference"),
        ("evaluation.report.inputs", "Model", "evaluation.report.inputs.TrainedModel"),
        ("inference.fuse", "Predictions", "inference.fuse.ModelPredictions"),
        ("inference.knowledge", "Placed", "inference.knowledge.PlacedPrediction"),
        ("inference.efficiency.measure", "Cost", "inference.efficiency.measure.NetworkCost"),
        ("training.initial_weights", "Source", "training.initial_weights.SourceModel"),
        ("outputs", "Predictions", "outputs.ExpectedPredictions"),
        ("doctor", "Finding", "doctor.DoctorFinding"),
        ("settings_help", "Row", "settings_help.SettingRow"),
        ("study", "run", "orchestration.foreground.run"),
        ("study", "mean_dice", "evaluation.results.mean_dice"),
        ("study", "markdown_table", "evaluation.results.markdown_table"),
    ],
)
def test_a_class_that_is_called_otherwise_now(module, old, new):
    found = importlib.import_module(f"nnunet_partial.{module}")
    with pytest.warns(FutureWarning, match=f"nnunet_partial.{module}.{old} is nnunet_partial.{new} now"):
        assert getattr(found, old).__name__ == new.rpartition(".")[2]


def test_modules_that_never_were_are_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nnunet_partial.data.never")


def test_a_module_of_a_room_is_not_taken_for_a_name_that_another_module_imports():
    """The room's main module imports some of its siblings by name."""
    script = "import warnings; warnings.simplefilter('error'); from nnunet_partial.demo import phantoms; print(phantoms.__name__)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "nnunet_partial.demo.phantoms", result.stderr[-1000:]
