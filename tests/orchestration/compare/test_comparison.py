"""The comparison's steps, and that it can be killed, extended and started again; over the commands of comparison_stub.py."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from nnunet_partial import cli
from nnunet_partial.errors import UserError
from nnunet_partial.orchestration import costs, stamped
from nnunet_partial.orchestration.compare.methods import METHODS, find_methods
from nnunet_partial.orchestration.compare.steps import CompareOptions, ComparisonSteps
from nnunet_partial.orchestration.engine import waves
from nnunet_partial.orchestration.executors import make_executor

DATASET, FULL = "Dataset777_Stub", "Dataset778_Full"
COMMANDS = ("nnUNetv2_train", "nnUNetv2_predict_from_modelfolder", "nnunet_partial")
METHODS_RUN = ("naive", "individual", "mskd", "selftraining")
TEST_CASES = 3


@pytest.fixture(scope="session")
def stubs(stub_programs):
    return stub_programs(Path(__file__).with_name("comparison_stub.py"), COMMANDS)


class Place:
    """nnU-Net's folders with one partially and one fully labelled dataset, and a test set."""

    def __init__(self, folder, stubs):
        self.folder, self.out, self.log = folder, folder / "out", folder / "stub.log"
        cases = {
            f"{s}_{i}": {"source": s, "annotated": [o]} for s, o in (("kits", "kidney"), ("lits", "liver")) for i in range(5)
        }
        content = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "liver": 1, "kidney": 2},
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
        }
        for dataset, own in ((DATASET, {**content, "nnunet_partial": {"version": 1, "cases": cases}}), (FULL, content)):
            for root in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
                (folder / root / dataset).mkdir(parents=True)
            for root in ("nnUNet_raw", "nnUNet_preprocessed"):
                (folder / root / dataset / "dataset.json").write_text(json.dumps(own))
            plans = {"plans_name": "nnUNetPlans", "configurations": {"2d": {"batch_size": 2}}}
            (folder / "nnUNet_preprocessed" / dataset / "nnUNetPlans.json").write_text(json.dumps(plans))
        names = sorted(cases)
        splits = [
            {"train": [i for i in names if i[-1] != str(f)], "val": [i for i in names if i[-1] == str(f)]} for f in range(5)
        ]
        (folder / "nnUNet_preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))
        for name in names:
            self._touch(folder / "nnUNet_raw" / DATASET / "imagesTr" / f"{name}_0000.nii.gz")
        for number in range(TEST_CASES):
            self._touch(folder / "imagesTs" / f"t{number}_0000.nii.gz")
            self._touch(folder / "labelsTs" / f"t{number}.nii.gz")
        self.environment = {
            **{i: str(folder / i) for i in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
            "NNUNET_PARTIAL_PROGRAMS": str(stubs),
            "STUB_LOG": str(self.log),
            "OMP_NUM_THREADS": "1",
        }

    @staticmethod
    def _touch(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)

    def argv(self, *more, methods=METHODS_RUN, test=True):
        tested = ["--test-images", str(self.folder / "imagesTs"), "--test-labels", str(self.folder / "labelsTs")]
        return [
            "compare",
            "777",
            "--configuration",
            "2d",
            "--methods",
            *methods,
            *(tested if test else []),
            "--out",
            str(self.out),
            "--executor",
            "debug",
            "--device",
            "cpu",
            *more,
        ]

    def compare(self, *more, check=True, environment=(), **kwargs):
        """In this process; its commands are processes of their own. The stub's checkpoints are text, which no check would pass."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            mock.patch.dict(os.environ, {**self.environment, **dict(environment)}),
            mock.patch.object(stamped, "check_model") as self.checked,
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                cli.main(self.argv(*more, **kwargs))
            except SystemExit as end:
                code = end.code
        assert not check or code == 0, f"{out.getvalue()[-2000:]}\n{err.getvalue()[-3000:]}"
        return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

    def start(self):
        """In a process of its own, which can be killed, at the head of its group."""
        return subprocess.Popen(
            [sys.executable, "-m", "nnunet_partial.cli", *self.argv()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **self.environment},
        )

    def started(self):
        """What was started so far, as the first words and the last of the path that follows."""
        return self.log.read_text().splitlines() if self.log.is_file() else []

    def forget(self):
        self.log.unlink(missing_ok=True)

    def results(self):
        """Everything that a comparison leaves, without times, logs and where it lies."""
        skip = {"jobs", "logs", "submitit", costs.FILE, "commands.json", "compare.json", "compare.lock", "stub.log"}
        files = {i.relative_to(self.folder): i for i in sorted(self.folder.rglob("*")) if i.is_file()}
        return {
            str(name): file.read_text("latin-1").replace(str(self.folder), "PLACE")
            for name, file in files.items()
            if not skip & set(name.parts) and not name.name.startswith(".tmp-")
        }


@pytest.fixture(scope="session")
def new_place(tmp_path_factory, stubs):
    return lambda: Place(tmp_path_factory.mktemp("comparison"), stubs)


@pytest.fixture(scope="session")
def finished(new_place):
    """A comparison that nothing disturbed; copied by those that change it."""
    made = new_place()
    made.compare()
    return made


@pytest.fixture
def copy(finished, new_place):
    """The finished comparison elsewhere. Folders are named in it by their path, so it is made anew."""
    made = new_place()
    made.compare()
    made.forget()
    return made


@pytest.fixture
def planned(place, monkeypatch):
    """``planned(methods, **options)`` -> ComparisonSteps in this process."""
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    given = {
        "dataset": "777",
        "configuration": "2d",
        "out": str(place.out),
        "test_images": "/test/images",
        "test_labels": "/test/labels",
        "device": "cpu",
    }
    return lambda methods, **options: ComparisonSteps(CompareOptions(**{**given, "methods": tuple(methods), **options}))


# ------------------------------------------------------------------ what is planned


def test_steps_stand_after_those_that_they_need(planned):
    steps = planned(METHODS_RUN, seeds=(0, 1), folds=("0", "1")).steps()
    names = [i.name for i in steps]
    assert len(names) == len(set(names))
    assert all(names.index(need) < names.index(step.name) for step in steps for need in step.needs)
    for wave in waves(steps):
        assert not {i.name for i in wave} & {need for i in wave for need in i.needs}


def test_the_test_set_reaches_neither_training_nor_choice(planned):
    every = [i for i in METHODS if i != "full"]
    steps = planned(every).steps()
    before_figures = [i for i in steps if i.part in ("plans", "teachers", "labels", "training")]
    assert len(before_figures) > len(every)
    assert not [i.name for i in before_figures if "/test/" in shlex.join(i.argv)]
    # labels are read by the evaluation alone
    assert {i.part for i in steps if "/test/labels" in i.argv} == {"evaluation"}
    # and every model that predicts is the one at the end of its training
    assert not [i for i in steps if "-chk" in i.argv or "best" in shlex.join(i.argv)]


def test_all_methods_get_the_same_plans_budget_and_seed(planned):
    steps = planned(("naive", "partial", "full"), settings=("num_epochs=7",), seeds=(3,), full_dataset="778").steps()
    variants = [shlex.join(i.argv) for i in steps if i.part == "plans"]
    assert len(variants) == 2 and all("--set num_epochs=7 --set seed=3" in i for i in variants)
    trained = [i.argv for i in steps if i.part == "training"]
    assert {i[i.index("-p") + 1] for i in trained} == {"nnUNetPlans_compare-s3"}
    assert {i[1] for i in trained} == {DATASET, FULL}


def test_a_recipe_is_of_every_model_and_settings_override_it(planned):
    (plans,) = [i for i in planned(("partial",), recipe="feng2021", settings=("num_epochs=3",)).steps() if i.part == "plans"]
    assert plans.argv[plans.argv.index("--recipe") + 1] == "feng2021" and "num_epochs=3" in plans.argv
    with pytest.raises(UserError, match="there is no such recipe.*Recipes: choi2022"):
        planned(("partial",), recipe="feng")


def test_teachers_and_labels_are_made_once_for_all_methods(planned):
    steps = planned(("individual", "mskd", "mskdplus", "selftraining", "cotraining")).steps()
    assert len([i for i in steps if i.part == "teachers"]) == 2
    assert len([i for i in steps if i.part == "labels"]) == 1


def test_without_a_test_set_folds_are_validated(planned):
    steps = {
        i.name: i
        for i in planned(("partial", "individual", "cotraining"), test_images=None, test_labels=None, folds=("0", "1")).steps()
    }
    argv = steps["s0-partial-evaluate"].argv
    folders = argv[argv.index("--pred") + 1 : argv.index("--truth")]
    assert [Path(i).parts[-2:] for i in folders] == [("fold_0", "validation"), ("fold_1", "validation")]
    assert argv[argv.index("--truth") + 1].endswith(f"{DATASET}/gt_segmentations") and "--annotated" not in argv
    # a fold's cases are predicted by teachers of that fold, which have not seen them
    predict = steps["s0-individual-predict-lits-fold1"].argv
    assert predict[predict.index("-f") + 1] == "1" and predict[predict.index("-i") + 1].endswith("validation_images/fold_1")
    notes = shlex.join(steps["report"].argv)
    assert "cross-validation" in notes and "CoTraining chooses" in notes


def test_atso_returns_the_model_of_its_own_loop(planned):
    steps = {i.name: i for i in planned(("atso",), atso_generations=2, atso_fine_tune_epochs=1).steps()}
    loop, predict = steps["s0-atso-loop-fold0"].argv, steps["s0-atso-predict"]
    assert loop[:3] == ("python", "-m", "nnunet_partial.orchestration.atso.command")
    assert "nnUNetTrainerATSO__nnUNetPlans_compare-s0_compare-s0-2d-f0-final__2d" in predict.argv[predict.argv.index("-m") + 1]
    from nnunet_partial.orchestration.atso.command import parser, read_options

    options = read_options(parser().parse_args(loop[3:]))
    assert (options.generations, options.fine_tune_epochs, options.test_labels) == (2, 1, None)


def test_the_baselines_of_atso_are_its_loop_from_the_same_m0(planned):
    from nnunet_partial.orchestration.atso.command import parser, read_options

    made = planned(("atso", "stso", "self-learning"), atso_generations=3, atso_fine_tune_lr=0.002)
    steps = {i.name: i for i in made.steps()}
    m0 = steps["s0-atso-m0-fold0"]
    assert (
        m0.argv[m0.argv.index("-tr") + 1] == "nnUNetTrainerATSO" and m0.argv[m0.argv.index("-p") + 1] == "nnUNetPlans_compare-s0"
    )
    runs = {}
    for name in ("atso", "stso", "self-learning"):
        loop = steps[f"s0-{name}-loop-fold0"]
        options = read_options(parser().parse_args(loop.argv[3:]))
        runs[name] = options.run
        assert (options.strategy, options.subsets, options.generations) == (name, 2 if name == "atso" else 1, 3)
        assert loop.needs == (m0.name,) and options.fine_tune_lr == 0.002
        assert Path(options.initial_model) / "fold_0" / "checkpoint_final.pth" == m0.outputs[0]
        predict = steps[f"s0-{name}-predict"].argv
        end = "final" if name == "atso" else "g3s1"
        assert predict[predict.index("-m") + 1].endswith(f"nnUNetPlans_compare-s0_{runs[name]}-2d-f0-{end}__2d")
    assert len(set(runs.values())) == 3 and made.methods["stso"].title == "STSO"
    assert "Models of ATSO, STSO, self-learning after the first" in made.notes()[-1]


def test_a_loop_that_trains_its_own_m0_goes_on_so(planned, place):
    def argv():
        return next(i for i in planned(("atso",)).steps() if i.name.endswith("-loop-fold0")).argv

    journal = place.folder / "nnUNet_results" / DATASET / "atso" / "compare-s0_2d_fold0" / "journal.json"
    journal.parent.mkdir(parents=True)
    for initial_model in (None, "folder"):
        journal.write_text(json.dumps({"version": 1, "arguments": {"initial_model": initial_model}}))
        assert ("--initial-model" in argv()) == bool(initial_model)


def test_efficiency_is_measured_after_everything_else_and_of_every_model(planned):
    made = planned(("partial", "individual"), efficiency=2, seeds=(4, 5), disable_tta=True)
    steps = made.steps()
    *before, measured, report = waves(steps)
    assert [i.name for i in measured] == ["efficiency"] and [i.name for i in report] == ["report"]
    argv = measured[0].argv
    assert argv[argv.index("--cases") + 1] == "2" and "--disable-tta" in argv and argv[argv.index("-i") + 1] == "/test/images"
    models = dict(i.split("=") for n, i in enumerate(argv) if argv[n - 1] == "--model")
    assert list(models) == ["Partial", "Individual, kits", "Individual, lits"]
    assert models["Partial"].endswith("nnUNetTrainerPartial__nnUNetPlans_compare-s4__2d")
    loops = next(i for i in planned(("atso",), efficiency=1, folds=("1", "2")).steps() if i.name == "efficiency").argv
    assert loops[loops.index("--fold") + 1] == "1" and loops.count("--model") == 1 and "-f1-final__" in loops[-1]
    assert "--efficiency" in report[0].argv and not any(i.part == "efficiency" for i in planned(("partial",)).steps())


def test_every_method_is_a_trainer_that_exists():
    import nnunet_partial.trainers as trainers

    assert {i.trainer for i in METHODS.values()} <= set(trainers.__all__)
    assert len({i.title for i in METHODS.values()}) == len(METHODS)


def test_any_trainer_that_nnunet_finds_can_be_named(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "class MyTrainer(PartialTrainer):\n    settings_name = 'mine'\n"
        "class Taught(nnUNetTrainerMSKD):\n    title: str = 'My MSKD'\n"
        "class Completed(Taught):\n    needs_teachers = needs_labels = True\n"
        "class NoTrainer:\n    pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    names = ["partial", "trainer=MyTrainer", "trainer=Taught", "trainer=Completed", "trainer=nnUNetTrainerDA5:labels"]
    found = find_methods(names)
    assert found["MyTrainer"].trainer == "MyTrainer" and not found["MyTrainer"].taught
    assert (found["Taught"].title, found["Taught"].needs, found["Taught"].settings_name) == ("My MSKD", ("teachers",), "mskd")
    assert found["Completed"].labelled and found["Completed"].title == "Completed"
    assert found["nnUNetTrainerDA5"].taught and found["nnUNetTrainerDA5"].labelled
    for wrong in ("MyTrainr", "NoTrainer"):
        with pytest.raises(UserError, match=f"nnU-Net finds no trainer called {wrong}"):
            find_methods([f"trainer={wrong}"])
    with pytest.raises(UserError, match="Did you mean MyTrainer"):
        find_methods(["trainer=MyTrainr"])


def test_a_methods_own_settings_are_checked_by_its_trainer(planned, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("class nnUNetTrainerMine(PartialTrainer):\n    settings_name = 'mine'\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    settings = ("mine.x=2", "mskd.lambda_feature=1")
    steps = planned(("partial", "mskd", "trainer=nnUNetTrainerMine"), settings=settings).steps()
    argv = next(i for i in steps if i.part == "plans").argv
    assert argv[-2:] == ("--trainer", "nnUNetTrainerMine") and argv.count("--trainer") == 1


@pytest.mark.parametrize(
    "names,message",
    [
        (["partial", "partial"], "twice"),
        (["nonsense"], "no such method"),
        (["trainer=My-Trainer"], "write it as"),
        (["trainer=A:b"], "write it as"),
    ],
)
def test_wrong_methods_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        find_methods(names)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"test_labels": None}, "belong together"),
        ({"seeds": (0, 0)}, "--seeds"),
        ({"folds": ()}, "--folds"),
        ({"methods": ("full",)}, "--full-dataset"),
        ({"efficiency": -1}, "--efficiency -1"),
        ({"name": "a__b"}, "not usable"),
        ({"test_images": None, "test_labels": None, "folds": ("all",)}, "no case to validate"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        CompareOptions(
            **{
                "dataset": "777",
                "configuration": "2d",
                "methods": ("partial",),
                "out": "out",
                "test_images": "a",
                "test_labels": "b",
                **options,
            }
        )


# ------------------------------------------------------------------ doing it


def test_a_comparison_does_every_step_once(finished):
    started = finished.started()
    counts = {
        i: sum(line.startswith(i) for line in started)
        for i in ("variant", "nnUNetv2_train", "pseudo-label", "fuse", "nnUNetv2_predict", "evaluate", "report")
    }
    # naive, mskd, self-training and two teachers; three models and two teachers predict
    assert counts == {
        "variant": 3,
        "nnUNetv2_train": 5,
        "pseudo-label": 1,
        "fuse": 1,
        "nnUNetv2_predict": 5,
        "evaluate": 4,
        "report": 1,
    }
    page = (finished.out / "report.html").read_text()
    assert [i.split()[0] for i in page.splitlines()] == ["naive", "Individual", "MSKD", "SelfTraining"]


def test_commands_are_kept_with_their_time_and_users(finished):
    commands = {i["step"]: i for i in json.loads((finished.out / "commands.json").read_text())}
    assert "report" not in commands and all(i["seconds"] > 0 for i in commands.values())
    assert sum(i["cpu_seconds"] for i in commands.values()) > 0  # counted in steps of 10 ms
    assert commands["s0-teacher-lits-fold0"]["methods"] == ["Individual", "MSKD", "SelfTraining"]
    assert commands["s0-labels-fold0"]["methods"] == ["SelfTraining"]
    assert commands["s0-naive-train-fold0"]["methods"] == ["naive nnU-Net"]


def test_a_finished_comparison_only_writes_its_report_again(copy):
    before = copy.results()
    copy.compare()
    assert [i.split()[0] for i in copy.started()] == ["report"] and copy.results() == before


def test_methods_can_be_added(copy):
    copy.compare(methods=(*METHODS_RUN, "partial"))
    assert [i.split()[0] for i in copy.started()] == ["nnUNetv2_train", "nnUNetv2_predict_from_modelfolder", "evaluate", "report"]
    assert "Partial" in (copy.out / "report.html").read_text()


def test_efficiency_can_be_added(copy):
    copy.compare("--efficiency", "1")
    assert [i.split()[0] for i in copy.started()] == ["efficiency", "report"]
    assert "efficiency" in (copy.out / "report.html").read_text()
    copy.forget()
    copy.compare("--efficiency", "2")
    assert [i.split()[0] for i in copy.started()] == ["efficiency", "report"]


def test_dry_run_prints_every_command_and_starts_none(copy):
    shown = copy.compare("--dry-run", methods=(*METHODS_RUN, "partial")).stdout
    assert copy.started() == []
    lines = [i for i in shown.splitlines() if i.startswith(("nnunet_partial ", "nnUNetv2_"))]
    assert sum(i.endswith("# done") for i in lines) == 19 and len(lines) == 19 + 4  # train, predict, evaluate, report
    assert "-tr nnUNetTrainerPartial" in "".join(i for i in lines if not i.endswith("# done"))


def test_other_arguments_are_refused(copy):
    result = copy.compare("--set", "num_epochs=9", check=False)
    assert result.returncode == 2 and "settings: [] then, ['num_epochs=9'] now" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and copy.started() == []


def test_a_model_that_is_trained_already_is_taken(copy):
    """In another folder of results, models of the same name and plans are not trained again."""
    copy.out = copy.folder / "other"
    copy.compare("--trust")
    assert not [i for i in copy.started() if i.startswith("nnUNetv2_train")]
    models = sorted(i for i in (copy.folder / "nnUNet_results" / DATASET).glob("nnUNetTrainer*"))
    calls = sorted(i.args for i in copy.checked.call_args_list)  # each is looked at before nnU-Net unpickles it
    assert calls == [(i, i / "fold_0" / "checkpoint_final.pth", True) for i in models]
    assert len([i for i in copy.started() if i.startswith("nnUNetv2_predict")]) == 5


def test_a_model_of_other_settings_is_not_taken(copy):
    model = copy.folder / "nnUNet_results" / DATASET / "nnUNetTrainerNaive__nnUNetPlans_compare-s0__2d" / "plans.json"
    content = json.loads(model.read_text())
    model.write_text(json.dumps({**content, "nnunet_partial": {"seed": "5"}}))
    copy.out = copy.folder / "other"
    result = copy.compare(check=False)
    assert result.returncode == 2 and "trained with other settings" in result.stderr and "--name" in result.stderr


def test_a_teacher_that_changed_is_noticed(copy):
    teacher = copy.folder / "nnUNet_results" / DATASET / "nnUNetTrainerIndividual__nnUNetPlans_compare-s0_lits__2d" / "fold_0"
    (teacher / "checkpoint_final.pth").write_text("trained again")
    # its predictions and the labels are made anew; models that learned from it are the user's to remove
    for learned, file in (
        ("nnUNetTrainerMSKD__nnUNetPlans_compare-s0__2d", "checkpoint_final.pth"),
        ("nnUNetTrainerSelfTraining__nnUNetPlans_compare-s0_completed__2d", "provenance.json"),
    ):
        result = copy.compare(check=False)
        assert result.returncode == 2 and f"{learned}/fold_0 was trained before" in result.stderr
        assert f"{file} changed. Remove that folder" in result.stderr
        shutil.rmtree(copy.folder / "nnUNet_results" / DATASET / learned)
    before = copy.results()["out/report.html"]
    copy.compare()
    after = copy.results()["out/report.html"]
    changed = [a.split()[0] for a, b in zip(before.splitlines(), after.splitlines()) if a != b]
    assert changed == ["Individual", "SelfTraining"]  # the stub's MSKD does not look at its teachers


def test_an_image_that_changed_is_predicted_again_and_nothing_is_trained(copy):
    image = copy.folder / "imagesTs" / "t0_0000.nii.gz"
    image.touch()
    copy.compare()
    assert [i.split()[0] for i in copy.started()] == ["report"]  # the same content
    copy.forget()
    image.write_text("another scan")
    copy.compare()
    started = [i.split()[0] for i in copy.started()]
    assert started.count("nnUNetv2_predict_from_modelfolder") == 5 and started.count("evaluate") == 4
    assert not {"nnUNetv2_train", "pseudo-label"} & set(started)


def test_predictions_that_are_cut_off_are_not_done(place, finished):
    """The command ends well, as nnU-Net's does on a full disk; what it left is looked at."""
    stopped = place.compare(check=False, environment={"STUB_CUTS": "1"})
    assert stopped.returncode == 2 and "t0.nii.gz is truncated or damaged" in stopped.stderr
    assert len([i for i in stopped.stderr.splitlines() if i.startswith("nnunet_partial: error:")]) == 1
    assert not (place.out / "evaluation").exists()
    place.compare()
    assert place.results() == finished.results()
    mask = next(i for i in place.out.glob("predictions/*/s0/*.nii.gz"))
    mask.write_bytes(b"")
    place.forget()
    place.compare()
    assert any("nnUNetv2_predict" in i for i in place.started()) and place.results() == finished.results()


def test_a_failed_step_ends_it_with_its_log_and_what_is_done_stays(place):
    result = place.compare(check=False, environment={"STUB_FAILS": "nnUNetTrainerMSKD"})
    assert result.returncode == 2 and "the stub was told to fail" in result.stderr and "s0-mskd-train-fold0" in result.stderr
    place.forget()
    place.compare()
    trained = [i for i in place.started() if i.startswith("nnUNetv2_train")]
    assert any("nnUNetTrainerMSKD" in i for i in trained) and not any("nnUNetTrainerIndividual" in i for i in trained)


def test_one_comparison_at_a_time(place):
    from nnunet_partial.orchestration import job

    place.out.mkdir()
    with job.try_lock(place.out / "compare.lock"):
        result = place.compare(check=False)
    assert result.returncode == 2 and "another comparison works in" in result.stderr and place.started() == []


@pytest.mark.parametrize("seed", range(3))
def test_killed_and_started_again_it_continues(place, finished, seed, kill_three_times):
    """SIGKILL at random moments, to the comparison alone or to all that it started; in the end nothing differs."""
    kill_three_times(place, seed, 7)
    place.compare()
    assert place.results() == finished.results()
    # trainings go on from their checkpoints, and what was done was not done again
    assert len(place.started()) <= len(finished.started()) + 2 * 3 + 3


def test_the_local_executor_gives_the_same(place, finished):
    place.compare("--executor", "local")
    assert place.results() == finished.results()


class LastFirst:
    """An executor that runs what was handed to it last, so that nothing ends in the planned order."""

    def __init__(self, folder):
        self.one, self.order = make_executor("debug", folder), []

    def run(self, jobs, more):
        waiting = list(jobs)
        while waiting:
            self.order.append(waiting.pop())
            self.one.run([self.order[-1]])
            waiting += more(self.order[-1].name)


def test_a_step_waits_for_nothing_but_what_it_needs(place, finished, monkeypatch):
    executor = LastFirst(place.out)
    monkeypatch.setattr("nnunet_partial.commands.compare.executor_of", lambda *_: executor)
    place.compare()
    assert place.results() == finished.results()
    names = [i.name for i in executor.order]
    assert names.index("s0-selftraining-predict") < names.index("s0-naive-train-fold0")


def test_cross_validation_without_a_test_set(place):
    place.compare("--folds", "0", "1", methods=("partial", "individual"), test=False)
    for fold in (0, 1):
        links = sorted(i.name for i in (place.out / "validation_images" / f"fold_{fold}").iterdir())
        assert links == [f"kits_{fold}_0000.nii.gz", f"lits_{fold}_0000.nii.gz"]
    assert len((place.out / "report.html").read_text().splitlines()) == 2


def test_trainings_without_final_validation_end_with_their_checkpoint(place):
    place.compare("--set", "final_validation=false", methods=("partial", "individual"))
    folds = list((place.folder / "nnUNet_results").rglob("fold_0"))
    assert len(folds) == 3 and all((i / "checkpoint_final.pth").is_file() and not (i / "validation").exists() for i in folds)
    before = len(place.started())
    place.compare("--set", "final_validation=false", methods=("partial", "individual"))
    assert [i.split()[0] for i in place.started()[before:]] == ["report"]


@pytest.mark.parametrize(
    "options", ({"settings": ("final_validation=false",)}, {"own": {"partial": (None, ("final_validation=false",))}})
)
def test_cross_validation_needs_the_final_validation(planned, options):
    with pytest.raises(UserError, match="leaves cross-validation nothing to evaluate"):
        planned(("partial",), test_images=None, test_labels=None, **options)
    assert planned(("partial",), **options).steps()


def test_the_fully_labelled_dataset_gets_the_same_splits(place):
    place.compare("--full-dataset", "778", methods=("partial", "full"))
    preprocessed = place.folder / "nnUNet_preprocessed"
    splits = [json.loads((preprocessed / i / "splits_final.json").read_text()) for i in (DATASET, FULL)]
    assert splits[0] == splits[1]
    (preprocessed / FULL / "splits_final.json").write_text(json.dumps(splits[0][::-1]))
    result = place.compare("--full-dataset", "778", methods=("partial", "full"), check=False)
    assert result.returncode == 2 and "would see different cases" in result.stderr


def test_missing_test_folder_and_dataset_are_one_line(place):
    for change, message in ((["--test-images", "missing"], "does not exist"), (["--demo"], "give a dataset, or --demo")):
        result = place.compare(*change, check=False)
        assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
