"""A project's steps, that it can be killed and taken up again, extended and looked at; over stub commands."""

import json
import shlex

import pytest

from nnunet_partial.orchestration.run.project import TABLES, Project, assignments, read_project
from nnunet_partial.orchestration.run.steps import STAGES
from nnunet_partial.settings import parse_assignments


def verbs(lines):
    return [i.split()[0] for i in lines]


def test_a_project_goes_from_downloads_to_exported_models(finished):
    started = verbs(finished.started())
    assert started[:5] == ["convert", "convert", "merge", "check", "nnUNetv2_plan_and_preprocess"]
    assert started.count("nnUNetv2_train") == 4  # two teachers, two methods
    assert started.count("export") == 2
    assert started.index("pseudo-label") > max(n for n, i in enumerate(finished.started()) if "nnUNetTrainerIndividual" in i)
    assert (finished.out / "report.html").is_file()
    assert sorted(i.parent.name for i in finished.out.rglob("model.zip")) == ["s0-partial", "s0-selftraining"]
    exported = next(i for i in finished.started() if i.startswith("export") and "s0-partial" in i)
    assert f"--evaluation {finished.out / 'evaluation' / 'partial' / 's0'}" in exported  # for the figures of its card
    assert started.index("export") > started.index("evaluate")
    converted = next(i for i in finished.started() if i.startswith("convert lits"))
    assert "--organs liver" in converted and "--dataset-id 101" in converted
    commands = json.loads((finished.out / "commands.json").read_text())
    assert {i["part"] for i in commands} >= {"conversion", "merge", "check", "planning", "teachers", "training", "evaluation"}
    assert next(i for i in commands if i["step"] == "merge")["methods"] == ["Partial", "SelfTraining"]
    assert next(i for i in commands if i["step"] == "s0-teacher-lits-fold0")["methods"] == ["SelfTraining"]


def test_done_is_not_done_again(finished, new_place):
    place = new_place()
    place.run()
    before = len(place.started())
    said = place.run()
    assert verbs(place.started()[before:]) == ["report"]  # written anew each time, as of a comparison
    assert "report:" in said.stdout and "model:" in said.stdout
    assert place.results() == finished.results()


@pytest.mark.parametrize("seed", range(1))
def test_killed_and_started_again_it_continues(place, finished, seed, kill_three_times):
    """SIGKILL at random moments, to the run alone or to all that it started; in the end nothing differs."""
    kill_three_times(place, seed, 6, "--executor", "debug")
    place.run()
    assert place.results() == finished.results()


@pytest.mark.parametrize("step", ("convert-lits", "merge", "plan"))
def test_killed_before_its_result_was_written(step, place, finished):
    """What appears when all else is written counts as done; preprocessing, which begins with its plans, is done again."""
    place.run("--until", "plan")
    (place.out / "jobs" / step / "result.json").unlink()
    before = len(place.started())
    place.run()
    again = verbs(place.started()[before:])
    assert ("nnUNetv2_plan_and_preprocess" in again) == (step == "plan")
    assert "merge" not in again and "convert" not in again
    assert place.results() == finished.results()


def test_a_failed_step_ends_the_run_with_its_last_lines_and_goes_on_later(place, finished):
    failed = place.run(check=False, environment={"STUB_FAILS": "nnUNetTrainerSelfTraining"})
    assert failed.returncode == 2 and "the stub was told to fail" in failed.stderr and failed.stderr.count("\n") == 1
    assert "failed" in place.run("--status").stdout
    place.run()
    assert place.results() == finished.results()


@pytest.mark.parametrize("stage", STAGES)
def test_until_a_stage_and_no_further(place, stage):
    said = place.run("--until", stage, "--dry-run").stdout
    shown = [shlex.split(i) for i in said.splitlines() if i.startswith(("nnunet_partial ", "nnUNetv2_"))]
    ends = {i[1] if i[0] == "nnunet_partial" else i[0].split("_")[1] for i in shown}
    wanted = {"teachers": "train", "label": "pseudo-label"}.get(stage, stage)
    assert wanted in ends
    assert ("export" in ends) == (stage == "export") and ("report" in ends) == (stage == "report")
    assert ("train" in ends) == (list(STAGES).index(stage) >= list(STAGES).index("teachers"))


def test_until_a_step_by_its_name_and_a_misspelt_one(place):
    place.run("--until", "merge")
    assert verbs(place.started()) == ["convert", "convert", "merge"]
    wrong = place.run("--until", "evalaute", check=False)
    assert wrong.returncode == 2 and "Did you mean evaluate?" in wrong.stderr


def test_a_dry_run_writes_nothing_and_tells_what_is_known(place):
    before = place.files()
    said = place.run("--dry-run").stdout
    assert place.files() == before and not place.out.exists()
    assert "source lits: 5 cases" in said and "not known yet" in said and "nnunet_partial merge" in said


def test_what_steps_take_is_told_from_those_that_were_measured(place):
    place.run("--until", "plan")
    place.change('out = "out"', 'out = "out2"')
    place.change("dataset = 501", "dataset = 502")
    place.change("dataset = 101", "dataset = 103")
    place.change("dataset = 102", "dataset = 104")
    said = place.run("--dry-run").stdout
    rows = {i.split()[0]: i for i in said.splitlines() if i.startswith(("convert-", "merge ", "plan ", "s0-"))}
    assert "1 times" in rows["convert-lits"] and "1 times" in rows["plan"]
    assert "not known yet" in rows["s0-partial-train-fold0"]


def test_the_status_tells_every_step(place):
    place.run("--until", "plan")
    rows = {i.split()[0]: i.split()[1] for i in place.run("--status").stdout.splitlines()[2:]}
    assert {rows[i] for i in ("convert-lits", "convert-kits", "merge", "check", "plan")} == {"done"}
    assert {v for k, v in rows.items() if k.startswith("s0-")} == {"waiting"}
    assert len(place.run("--status", "--until", "merge").stdout.splitlines()) == 5


def test_the_status_of_a_run_that_was_not_started(place):
    said = place.run("--status", check=False)
    assert said.returncode == 2 and "has not been started" in said.stderr


def test_methods_may_be_added_and_data_may_not_change(place):
    place.run("--until", "plan")
    place.change('name = "selftraining"', 'name = "naive"')
    place.run("--until", "evaluate")
    assert sum("nnUNetTrainerNaive" in i for i in place.started()) > 0
    place.change('organs = ["liver"]', 'organs = ["tumor"]')
    refused = place.run(check=False)
    assert refused.returncode == 2 and "source.lits.organs: ['liver'] then, ['tumor'] now" in refused.stderr


def test_settings_may_be_corrected_until_something_was_trained_with_them(place):
    place.run("--until", "plan")
    place.change("num_epochs = 3", "num_epochs = 4")
    place.run("--until", "train")
    place.change("num_epochs = 4", "num_epochs = 5")
    refused = place.run(check=False)
    assert refused.returncode == 2 and "exists with other settings" in refused.stderr


def test_a_method_with_settings_of_its_own_shares_the_teachers(place):
    place.change('name = "selftraining"', 'name = "mskd"\nsettings = { num_epochs = 5, mskd = { lambda_feature = 2.5 } }')
    place.run()
    variants = [i for i in place.started() if i.startswith("variant") and "--name mskd" in i]
    assert len(variants) == 1 and "--base nnUNetPlans_Joint-s0 " in variants[0]
    assert "--set num_epochs=5 --set mskd.lambda_feature=2.5" in variants[0]
    trained = [i for i in place.started() if i.startswith("nnUNetv2_train") and "nnUNetTrainerMSKD" in i]
    assert len(trained) == 1 and "-p nnUNetPlans_Joint-s0_mskd " in trained[0]
    teachers = [i for i in place.started() if "nnUNetTrainerIndividual" in i and i.startswith("nnUNetv2_train")]
    assert len(teachers) == 2 and all("_mskd" not in i for i in teachers)
    report = next(i for i in place.started() if i.startswith("report"))
    assert "Not every method trained in the same way" in report


def test_a_teacher_from_elsewhere_is_not_trained(place):
    model = place.folder / "elsewhere"
    place.touch("elsewhere/plans.json", "elsewhere/dataset.json", "elsewhere/fold_0/checkpoint_final.pth")
    place.change('organs = ["liver"]', 'organs = ["liver"]\nteacher = "elsewhere"')
    said = place.run("--dry-run").stdout
    assert "s0-teacher-lits-fold0" not in said and "s0-teacher-kits-fold0" in said
    assert shlex.quote(f'mskd.teachers={{"lits": "{model}"}}') in said


def test_several_configurations_each_have_a_comparison(place):
    place.change('["2d"]', '["2d", "3d_fullres"]')
    place.run()
    assert (place.out / "2d" / "report.html").is_file() and (place.out / "3d_fullres" / "report.html").is_file()
    assert sum(i.startswith("nnUNetv2_plan_and_preprocess") for i in place.started()) == 1
    assert {i.split()[2] for i in place.started() if i.startswith("nnUNetv2_train")} == {"2d", "3d_fullres"}


def test_without_sources_a_dataset_that_is_there_is_taken(place):
    place.run("--until", "merge")
    text = place.file.read_text()
    place.write(text[: text.index("[[source]]")] + text[text.index("[plan]") :])
    place.change('out = "out"', 'out = "other"')
    before = len(place.started())
    place.run("--until", "plan")
    assert verbs(place.started()[before:]) == ["check", "nnUNetv2_plan_and_preprocess"]


def test_without_a_test_set_it_is_cross_validation(place):
    text = place.file.read_text()
    place.write(text[: text.index("[test]")].replace('[[method]]\nname = "selftraining"', ""))
    place.run()
    assert sum(i.startswith("nnUNetv2_train") for i in place.started()) == 5
    assert len(list((place.out / "validation_images").iterdir())) == 5


def test_settings_become_assignments_that_mean_the_same():
    settings = {
        "num_epochs": 3,
        "patch_size": [8, 8],
        "optimizer": "adamw",
        "mskd": {"lambda_feature": 2.5, "teachers": {"a.b": "/x"}},
    }
    assert parse_assignments(assignments(settings)) == settings
    assert parse_assignments(assignments({"labels": "1", "a": {"text": "x,y"}})) == {"labels": "1", "a": {"text": "x,y"}}


def test_paths_are_relative_to_the_file(place):
    project = read_project(place.file)
    assert isinstance(project, Project) and project.sources[0].path == str(place.folder / "downloads" / "lits")
    assert project.out == place.out and project.dataset == "Dataset501_Joint" and project.folds == ("0",)
    assert set(TABLES) == {"project", "folders", "source", "merge", "plan", "training", "method", "test", "export"}


def test_what_stock_nnunet_has_no_network_for_is_not_exported(place):
    place.change("[test]", '[[method]]\nname = "dodnet"\n[[method]]\nname = "cotraining-ibn"\n[test]')
    project = read_project(place.file)
    assert {"dodnet", "cotraining-ibn"} < {i.name for i in project.methods}
    assert set(project.exported) == {i.name for i in project.methods} - {"dodnet", "cotraining-ibn"}
