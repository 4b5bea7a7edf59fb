"""What the loop refuses, shows, does again; and how the strategies differ."""

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest

from nnunet_partial import cli
from nnunet_partial.errors import UserError
from nnunet_partial.labels import Annotations, CaseAnnotation
from nnunet_partial.orchestration.atso.loop import Loop
from nnunet_partial.orchestration.atso.options import AtsoOptions
from nnunet_partial.orchestration.atso.split import split_reference
from nnunet_partial.orchestration.atso.steps import AtsoSteps
from nnunet_partial.orchestration.executor_options import read_slurm
from nnunet_partial.settings import RunSettings, parse_assignments

DATASET = "Dataset777_Stub"


@pytest.fixture
def planner(tmp_path, monkeypatch):
    """``planner(**options)``; nothing on disk is needed to plan but, where fine-tuning goes by them, the plans."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    return lambda **options: AtsoSteps(AtsoOptions(**{"dataset": "Dataset777_X", "configuration": "2d", **options}), "cpu")


@pytest.fixture
def plans(tmp_path):
    """``plans(num_epochs=9, ...)``: writes the plans of ``planner`` with these settings."""

    def write(**settings):
        (tmp_path / "Dataset777_X").mkdir(exist_ok=True)
        content = {"plans_name": "nnUNetPlans", "configurations": {"2d": {}}, "nnunet_partial": settings}
        (tmp_path / "Dataset777_X" / "dataset.json").write_text("{}")
        (tmp_path / "Dataset777_X" / "nnUNetPlans.json").write_text(json.dumps(content))

    return write


def stages_of(planner):
    return {stage.name: stage for group in planner.groups() for stage in group}


def settings_of(stage):
    return dict(stage.argv[i + 1].split("=", 1) for i, text in enumerate(stage.argv) if text == "--set")


def model_in(text):
    """``g1s2`` out of anything that names the model's plans."""
    return text.split("-2d-f0-")[1].split("__")[0].split("/")[0].split(".")[0]


# ---- Algorithm 1


@pytest.mark.parametrize("subsets", (2, 3))
def test_no_model_labels_what_it_was_trained_on_and_all_start_from_m0(planner, subsets):
    made = planner(generations=4, subsets=subsets)
    stages = stages_of(made)
    for t in range(1, 5):
        for i in range(1, subsets + 1):
            labeller = model_in(stages[f"g{t}s{i}-label"].argv[stages[f"g{t}s{i}-label"].argv.index("--from") + 1])
            assert labeller == ("m0" if t == 1 else f"g{t - 1}s{(i - 2) % subsets + 1}")
            assert labeller != f"g{t - 1}s{i}"
            settings = settings_of(stages[f"g{t}s{i}-plans"])
            assert model_in(settings["atso.initial_weights"]) == "m0"
            assert settings["labels"].endswith(f"generation_{t}/subset_{i}")
    final = settings_of(stages["final-plans"])
    assert model_in(final["atso.initial_weights"]) == "m0" and final["labels"].endswith("labels/generation_4")
    assert made.returned_model == "final"


@pytest.mark.parametrize("strategy, starts", (("stso", "m0"), ("self-learning", None)))
def test_baselines_train_on_all_of_r_from_m0_or_from_the_teacher(planner, strategy, starts):
    made = planner(strategy=strategy, subsets=1, generations=3)
    stages = stages_of(made)
    assert "final-plans" not in stages and made.returned_model == "g3s1"
    for t in range(1, 4):
        teacher = "m0" if t == 1 else f"g{t - 1}s1"
        argv = stages[f"g{t}s1-label"].argv
        assert model_in(argv[argv.index("--from") + 1]) == teacher
        assert model_in(settings_of(stages[f"g{t}s1-plans"])["atso.initial_weights"]) == (starts or teacher)


@pytest.mark.parametrize("subsets", (2, 3))
def test_students_may_start_from_the_model_before_which_never_saw_what_they_will_label(planner, subsets):
    stages = stages_of(planner(generations=3, subsets=subsets, students_from="previous"))
    for t in range(1, 4):
        for i in range(1, subsets + 1):
            start = model_in(settings_of(stages[f"g{t}s{i}-plans"])["atso.initial_weights"])
            assert start == ("m0" if t == 1 else f"g{t - 1}s{i}")
            seen = {settings_of(stages[f"g{u}s{i}-plans"])["labels"].split("/")[-1] for u in range(1, t + 1)}
            labelled = [k for k, s in stages.items() if k.endswith("-label") and "--from" in s.argv]
            labelled = [k for k in labelled if model_in(stages[k].argv[stages[k].argv.index("--from") + 1]) == f"g{t}s{i}"]
            assert not {Path(stages[k].argv[stages[k].argv.index("--out") + 1]).name for k in labelled} & seen


def test_unions_of_the_dataset_are_super_classes_without_a_file(planner, plans, tmp_path):
    """The word goes to what labels, the classes to what learns; with and without a task of their own."""
    labels = {"background": 0, "left": 1, "right": 2, "liver": 3}
    contract = {"a_1": {"source": "a", "annotated": [["left", "right"]]}, "b_1": {"source": "b", "annotated": ["liver"]}}
    plans(num_epochs=9)
    (tmp_path / "Dataset777_X" / "dataset.json").write_text(
        json.dumps({"labels": labels, "nnunet_partial": {"version": 2, "cases": contract}})
    )
    made = planner(generations=1, super_classes="unions")
    stages = stages_of(made)
    argv = stages["g1s1-label"].argv
    assert argv[argv.index("--super-classes") + 1] == "unions"
    for name in ("g1s1", "g1s2", "final"):
        assert json.loads(settings_of(stages[f"{name}-plans"])["atso.super_classes"]) == {"left+right": ["left", "right"]}
    assert made.returned_model == "final-full" and "atso.super_classes" not in settings_of(stages["final-full-plans"])
    task = stages_of(planner(generations=1, super_classes="unions", super_class_task=True))
    assert json.loads(settings_of(task["m0-plans"])["atso.super_classes"]) == {"left+right": ["left", "right"]}


def test_a_training_tells_its_epochs(planner, plans):
    plans(num_epochs=9, num_iterations_per_epoch=5)
    stages = stages_of(planner(generations=1, fine_tune_epochs=4))
    assert [stages[f"{i}-train"].cost.epochs for i in ("m0", "g1s1", "final")] == [9, 4, 4]
    assert stages["m0-train"].cost.units == 45


def test_students_of_the_earlier_version_start_from_scratch_and_so_does_the_last_model(planner):
    stages = stages_of(planner(generations=2, students_from="scratch"))
    for name in ("g1s1", "g1s2", "g2s1", "g2s2", "final"):
        assert {"atso.initial_weights", "num_epochs", "initial_lr", "schedule"}.isdisjoint(settings_of(stages[f"{name}-plans"]))
    last = settings_of(stages_of(planner(generations=2, students_from="scratch", final_from="m0"))["final-plans"])
    assert model_in(last["atso.initial_weights"]) == "m0"


def test_a_super_class_task_supervises_a_network_of_all_classes_for_one_generation(planner, tmp_path):
    (tmp_path / "classes.json").write_text('{"a": ["liver", "kidney"]}')
    given = {"super_classes": str(tmp_path / "classes.json"), "super_class_task": True, "test_images": str(tmp_path)}
    made = planner(generations=2, **given)
    stages = stages_of(made)
    coarse = [k.removesuffix("-plans") for k, s in stages.items() if settings_of(s).get("atso.task") == "super_classes"]
    assert coarse == ["m0", "g1s1", "g1s2", "g2s1", "g2s2", "final"]
    target, last = settings_of(stages["target-plans"]), settings_of(stages["final-full-plans"])
    assert target["labels"].endswith("labels/super_classes") and {"atso.initial_weights", "num_epochs"}.isdisjoint(target)
    assert model_in(last["atso.initial_weights"]) == "target" and last["labels"].endswith("labels/full_classes")
    labellers = {k: model_in(s.argv[s.argv.index("--from") + 1]) for k, s in stages.items() if "--from" in s.argv}
    assert labellers["super_classes-label"] == "final" and labellers["full_classes-label"] == "target"
    assert labellers["final-label"] == "final-full" == made.returned_model
    assert not any("--super-classes" in s.argv for s in stages.values())  # a model of unions labels unions
    assert {k for k in stages if k.endswith("-predict")} == {"target-predict", "final-full-predict"}  # of the dataset's classes
    models = {k: v["predictions"] for i in made.manifest()["generations"] for k, v in i["models"].items()}
    assert {k for k, v in models.items() if v} == {"target", "final-full"}
    assert stages["super_classes-label"].outputs[0] in stages["target-train"].inputs
    assert "super_class_task" not in planner().options.to_json()  # runs that were begun without go on


# ---- three views

VIEWS = ("nnUNetPlans_coronal", "nnUNetPlans_sagittal")


def values_of(stage, name):
    """All values of an option of its command."""
    rest = stage.argv[stage.argv.index(name) + 1 :]
    return rest[: next((i for i, text in enumerate(rest) if text.startswith("-")), len(rest))]


def view_in(text):
    """Name of the plans that a variant, model or checkpoint is of."""
    return text.split("__")[1 if "__" in text else 0].split("/")[-1].rsplit("_atso-", 1)[0]


def test_every_view_has_its_models_and_all_of_them_label(planner, tmp_path):
    made = planner(generations=2, plans="nnUNetPlans_axial", views=VIEWS, test_images=str(tmp_path), filter="disagreement")
    stages, every = stages_of(made), ("nnUNetPlans_axial", *VIEWS)
    for name in ("m0", "g1s1", "g2s2", "final"):
        for view in every:
            own = made.layout.named(name, view)
            assert values_of(stages[f"{own}-plans"], "--base") == (view,)
            assert values_of(stages[f"{own}-train"], "-p") == (f"{view}_atso-2d-f0-{name}",)
            settings = settings_of(stages[f"{own}-plans"])
            if name != "m0":  # each view goes on from its own M0, on labels of its own voxels
                start = settings["atso.initial_weights"]
                assert (model_in(start), view_in(start)) == ("m0", view)
                assert str(start) in map(str, stages[f"{own}-train"].inputs)
                assert settings["labels"].replace("/subset_", "").rstrip("12").endswith(f"_{view}") == (view != every[0])
    for stage in (stages["g2s1-label"], stages["g2s1_nnUNetPlans_coronal-label"]):
        models = values_of(stage, "--from")
        assert [model_in(i) for i in models] == ["g1s2"] * 3 and [view_in(i) for i in models] == list(every)
        assert values_of(stage, "--rule") == ("vote",) and len(stage.inputs) == 4
    assert values_of(stages["g2s1_nnUNetPlans_coronal-label"], "--plans") == ("nnUNetPlans_coronal",)
    assert {settings_of(stages[made.layout.named("g2s1", i) + "-plans"])["atso.exclude"] for i in every} == {
        str(made.layout.excluded(2))
    }
    fused = stages["final-fuse"]
    assert values_of(fused, "--pred") == tuple(str(made.layout.predictions_of_view("final", i)) for i in every)
    assert all("--save_probabilities" in stages[made.layout.named("final", i) + "-predict"].argv for i in every)
    assert made.manifest()["generations"][-1]["models"]["final"]["predictions"] == str(made.layout.predictions("final"))
    assert [k for k in stages if k.endswith("-fuse")] == [f"{i}-fuse" for i in ("m0", "g1s1", "g1s2", "g2s1", "g2s2", "final")]


def test_every_view_may_be_given_its_m0(planner, tmp_path):
    from nnunet_partial.orchestration.atso.command import parser, read_options

    argv = ["--dataset", "777", "--configuration", "2d", "--views", *VIEWS, "--initial-model", *"abc", "--strategy", "stso"]
    options = read_options(parser().parse_args(argv))
    given = [str(Path(i).absolute()) for i in "abc"]
    assert options.initial_model == given[0] and list(options.initial_models) == given[1:]
    content = options.to_json()
    assert content["initial_models"] == given[1:] and content["views"] == list(VIEWS)
    names = {k: content[k] for k in ("views", "initial_model", "initial_models", "strategy", "subsets")}
    stages = stages_of(planner(generations=1, **names))
    assert not any(k.startswith("m0") and k.endswith("train") for k in stages)
    assert list(values_of(stages["g1s1-label"], "--from")) == given
    for view, folder in zip(("nnUNetPlans", *VIEWS), given):
        name = "g1s1" if view == "nnUNetPlans" else f"g1s1_{view}"
        assert settings_of(stages[f"{name}-plans"])["atso.initial_weights"] == f"{folder}/fold_0/checkpoint_final.pth"
    assert {"views", "initial_models", "rule"}.isdisjoint(planner().options.to_json())  # runs that were begun without go on


@pytest.mark.parametrize(
    "options, message",
    (
        ({"views": ("nnUNetPlans",)}, "nnUNetPlans are named twice"),
        ({"views": ("a", "a")}, "a are named twice"),
        ({"rule": "mean"}, "no effect with one view"),
        ({"rule": "most", "views": ("a",)}, "vote, mean, max"),
        ({"initial_model": "/x", "views": ("a",)}, "names 1, and M0 is one model for each of nnUNetPlans, a"),
        ({"initial_model": "/x", "initial_models": ("/y",)}, "names 2, and M0 is one model for each of nnUNetPlans."),
    ),
)
def test_unusable_views_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        AtsoOptions(dataset="1", configuration="2d", **options)


def test_a_run_of_several_views_is_killed_and_goes_on_and_gets_another_generation(place, new_place):
    def views(where):
        for view in VIEWS:
            where.write_json(f"{view}.json", {"plans_name": view, "configurations": {"2d": {}}})
        return ("--views", *VIEWS, "--rule", "mean")

    more, at_once = views(place), new_place()
    for stage in ("g1s1_nnUNetPlans_coronal-train", "g1s2-fuse"):
        process = place.start(*more, generations=1)
        place.wait_for(lambda stage=stage: place.states().get(stage) in ("running", "done"))
        place.kill(process, whole_tree=True)
    place.loop(*more, executor="debug", generations=1)
    place.loop(*more, executor="debug", generations=2)
    at_once.loop(*views(at_once), executor="debug", generations=2)
    assert place.results() == at_once.results() and len(place.results()) > 100
    printed = place.loop(*more, executor="debug").stdout.splitlines()
    assert [view_in(i) for i in printed if i.startswith("model:")] == ["nnUNetPlans", *VIEWS]
    fewer = place.loop("--views", VIEWS[0], "--rule", "mean", check=False)
    assert fewer.returncode == 2 and "views: " in fewer.stderr and len(fewer.stderr.splitlines()) == 1
    place.write_json(f"{VIEWS[1]}.json", {"plans_name": VIEWS[1], "configurations": {"3d_fullres": {}}})
    other = place.loop(*more, check=False)
    assert other.returncode == 2 and f"plans {VIEWS[1]} have no configuration '2d'" in other.stderr


# ---- fine-tuning


@pytest.mark.parametrize("schedule", ("poly", "cosine", "constant"))
def test_fine_tuning_is_the_last_third_of_m0_at_its_mean_rate(planner, plans, schedule):
    plans(num_epochs=30, initial_lr=0.02, schedule=schedule)
    rates = {
        "poly": [0.02 * (1 - i / 30) ** 0.9 for i in range(20, 30)],
        "cosine": [0.01 * (1 + math.cos(math.pi * i / 30)) for i in range(20, 30)],
        "constant": [0.02],
    }[schedule]
    stages = stages_of(planner(generations=2, fine_tune_schedule="constant"))
    for name in ("g1s1", "g2s2", "final"):
        found = settings_of(stages[f"{name}-plans"])
        assert (found["num_epochs"], found["schedule"]) == ("10", "constant")
        assert float(found["initial_lr"]) == pytest.approx(sum(rates) / len(rates), rel=1e-3)
    assert "num_epochs" not in settings_of(stages["m0-plans"])
    given = {"fine_tune_epochs": 7, "fine_tune_lr": 0.003, "fine_tune_schedule": "constant"}
    found = settings_of(stages_of(planner(**given))["g1s1-plans"])
    assert (found["num_epochs"], found["initial_lr"]) == ("7", "0.003")
    halved = {"fine_tune_fraction": 0.5, "fine_tune_schedule": "plans"}
    found = settings_of(stages_of(planner(**halved))["g1s1-plans"])
    assert found["num_epochs"] == "15" and {"schedule", "initial_lr"}.isdisjoint(found)


def test_the_rate_that_a_plateau_ends_with_must_be_given(planner, plans):
    plans(schedule="plateau", plateau_factor=0.5, num_epochs=3)
    with pytest.raises(UserError, match="schedule=plateau no plans say .* --fine-tune-lr"):
        stages_of(planner(fine_tune_schedule="constant"))
    found = settings_of(stages_of(planner(fine_tune_schedule="constant", fine_tune_lr=0.001))["g1s1-plans"])
    assert (found["schedule"], found["plateau_factor"], found["num_epochs"]) == ("constant", "None", "1")
    # as the variant command reads it, the combination is valid
    RunSettings.from_plans({"nnunet_partial": parse_assignments([f"{k}={v}" for k, v in found.items() if "." not in k])})


def test_every_input_is_an_output_of_an_earlier_group(planner, tmp_path):
    classes = tmp_path / "classes.json"
    classes.write_text('{"a": ["liver"]}')
    for options in (
        {},
        {"filter": "disagreement"},
        {"super_classes": str(classes)},
        {"super_classes": str(classes), "super_class_task": True, "filter": "confidence"},
        {"strategy": "self-learning", "subsets": 1},
        {"test_images": str(tmp_path)},
        {"test_images": str(tmp_path), "views": VIEWS, "super_classes": str(classes), "super_class_task": True},
    ):
        made, written = planner(**{"generations": 3, **options}), set()
        for group in made.groups():
            for stage in group:
                missing = {str(i) for i in stage.inputs} - written
                # the split writes all files of its folder, the last of them is its output
                assert not [i for i in missing if "/subsets/" not in i], (stage.name, missing)
            written |= {str(i) for stage in group for i in stage.outputs}
        owned = [i for group in made.groups() for stage in group for i in stage.owned]
        assert len(owned) == len(set(owned))


def test_options_reach_the_commands(planner, tmp_path):
    classes = tmp_path / "classes.json"
    classes.write_text('{"a": ["liver", "kidney"]}')
    stages = stages_of(
        planner(
            generations=2,
            fine_tune_epochs=7,
            fine_tune_lr=0.002,
            final_from="scratch",
            super_classes=str(classes),
            filter="confidence",
            filter_share=0.2,
            validation="all",
        )
    )
    student, final = settings_of(stages["g1s1-plans"]), settings_of(stages["final-plans"])
    assert (student["num_epochs"], student["initial_lr"]) == ("7", "0.002")
    assert json.loads(student["atso.super_classes"]) == {"a": ["liver", "kidney"]}
    assert student["atso.exclude"].endswith("generation_1_excluded.json") and student["atso.final_validation"] == "true"
    assert "num_epochs" not in final and "atso.initial_weights" not in final
    last = settings_of(stages["final-full-plans"])
    assert model_in(last["atso.initial_weights"]) == "final" and "atso.super_classes" not in last
    assert "--super-classes" in stages["g1s1-label"].argv and "--super-classes" not in stages["full_classes-label"].argv
    assert "num_epochs" not in settings_of(stages["m0-plans"])


@pytest.mark.parametrize(
    "options, message",
    (
        ({"subsets": 1}, "at least two"),
        ({"strategy": "stso"}, "Leave --subsets out"),
        ({"generations": 0}, "generation"),
        ({"strategy": "else"}, "atso, stso, self-learning"),
        ({"run": "a__b"}, "not usable"),
        ({"filter": "x"}, "--filter x"),
        ({"strategy": "stso", "subsets": 1, "final_from": "scratch"}, "--final-from"),
        ({"filter_share": 1}, "between"),
        ({"test_labels": "/x"}, "--test-images"),
        ({"fine_tune_epochs": 0}, "epoch"),
        ({"fine_tune_lr": 0.1, "fine_tune_schedule": "plans"}, "no effect with --fine-tune-schedule plans"),
        ({"fine_tune_lr": 0.0}, "above 0"),
        ({"fine_tune_fraction": 1.5}, "at most 1"),
        ({"fine_tune_lr": 0.1, "students_from": "scratch"}, "--fine-tune-lr has no effect"),
        ({"students_from": "g1"}, "m0, scratch, previous"),
        ({"super_class_task": True}, "needs --super-classes"),
        ({"super_class_task": True, "super_classes": "/x", "initial_model": "/x"}, "Leave one out"),
        ({"strategy": "stso", "subsets": 1, "students_from": "previous"}, "--strategy self-learning"),
        ({"strategy": "self-learning", "subsets": 1, "students_from": "m0"}, "--strategy stso"),
    ),
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        AtsoOptions(dataset="1", configuration="2d", **options)


def test_slurm_options():
    assert read_slurm(["time=60", "partition=gpu", "cpus-per-task=4"]) == {"time": 60, "partition": "gpu", "cpus_per_task": 4}
    with pytest.raises(UserError, match="key=value"):
        read_slurm(["time"])


def test_the_reference_set_is_dealt_evenly_and_by_source():
    cases = {f"a{i}": CaseAnnotation("a", ()) for i in range(10)} | {f"b{i}": CaseAnnotation("b", ("x",)) for i in range(4)}
    cases |= {f"f{i}": CaseAnnotation("a", ("x", "y")) for i in range(3)}
    annotations = Annotations(("x", "y"), cases)
    labelled, parts = split_reference(annotations, list(cases), 2, seed=3)
    assert labelled == sorted([f"b{i}" for i in range(4)] + [f"f{i}" for i in range(3)])  # M0 learns what b annotates
    assert sorted(parts[0] + parts[1]) == sorted(i for i in cases if not i.startswith("f"))
    assert all(sum(i.startswith("b") for i in part) == 2 and len(part) == 7 for part in parts)
    assert split_reference(annotations, list(reversed(cases)), 2, seed=3) == (labelled, parts)
    assert split_reference(annotations, list(cases), 2, seed=4)[1] != parts
    with pytest.raises(UserError, match="too few for 20 subsets"):
        split_reference(annotations, list(cases), 20)
    with pytest.raises(UserError, match="nothing to learn"):
        split_reference(Annotations(("x",), {"a": CaseAnnotation("a", ())}), ["a"], 1)


# ---- journal, lock, doing again


def test_other_arguments_are_refused_and_named(uninterrupted):
    before = uninterrupted.results()
    result = uninterrupted.loop("--seed", 5, "--fine-tune-lr", 0.1, check=False)
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1
    assert "seed: 0 then, 5 now" in result.stderr and "fine_tune_lr: None then, 0.1 now" in result.stderr
    assert "generations" not in result.stderr
    assert uninterrupted.results() == before


def test_a_finished_run_does_nothing_and_other_executors_are_no_other_arguments(uninterrupted):
    result = uninterrupted.loop("--retries", 2, executor="debug")
    assert [i for i in result.stdout.splitlines() if not i.startswith(("model:", "report:"))] == []


def test_changed_plans_are_refused(place):
    place.loop(generations=1, executor="debug")
    place.write_json("nnUNetPlans.json", {"plans_name": "nnUNetPlans", "configurations": {"2d": {"batch_size": 3}}})
    result = place.loop(generations=1, executor="debug", check=False)
    assert result.returncode == 2 and "other files" in result.stderr and "plans" in result.stderr


def test_one_loop_at_a_time(place):
    place.environment["STUB_PAUSE_S"] = "8"  # an epoch: it is still training when the second loop is refused
    process = place.start()
    try:
        place.wait_for(lambda: place.states().get("m0-train") == "running")
        result = place.loop(check=False)
        assert result.returncode == 2 and f"process {process.pid}" in result.stderr

        def row_of_training():
            status = place.loop("--status").stdout
            assert status.splitlines()[0].endswith(", at work") and " epoch " in status.splitlines()[1]
            (row,) = [i for i in status.splitlines() if i.startswith("m0-train ")]
            return row

        # queued until its process is at work, which has the log already
        place.wait_for(lambda: row_of_training().split()[1] in ("running", "done"))
        assert row_of_training().endswith("logs/m0-train.log")
    finally:
        place.kill(process, whole_tree=True)
    # a process that has been killed holds its lock until it is gone
    place.wait_for(lambda: " interrupted, nobody is at work" in place.loop("--status").stdout.splitlines()[0])


def test_status_and_dry_run_run_nothing(place):
    dry = place.loop("--dry-run").stdout
    assert len([i for i in dry.splitlines() if i]) == 26 and "# done" not in dry
    assert all(
        shlex.split(i)[0] in ("nnunet_partial", "nnUNetv2_train", "nnUNetv2_predict_from_modelfolder")
        for i in dry.splitlines()
        if i
    )
    assert not place.run.exists()
    result = place.loop("--status", check=False)
    assert result.returncode == 2 and "has not been started" in result.stderr


def test_commands_of_a_dry_run_typed_by_hand_are_the_run(place, uninterrupted):
    import subprocess

    for line in place.loop("--dry-run").stdout.splitlines():
        if line:
            argv = shlex.split(line)
            program = place.environment["NNUNET_PARTIAL_PROGRAMS"] + "/" + argv[0]
            subprocess.run([program, *argv[1:]], check=True, env=place.environment, stdout=subprocess.DEVNULL)
    typed = place.results()
    expected = uninterrupted.results()
    expected.pop("nnUNet_results/Dataset777_Stub/atso/atso_2d_fold0/plan.json")  # the loop's own
    assert typed == expected


def test_from_generation_does_again_from_there_and_keeps_the_rest(place):
    place.loop(executor="debug")
    before, first = place.results(), place.journal()["stages"]
    kept = place.run / "labels" / "generation_1" / "subset_1" / "provenance.json"
    stamp = kept.stat().st_mtime_ns
    again = place.loop("--from-generation", 2, executor="debug").stdout
    begun = [i.split(":")[0].strip() for i in again.splitlines()[:-2]]
    assert set(begun) == {i for i in first if i.startswith(("g2", "final", "report")) or i in ("g1s1-predict", "g1s2-predict")}
    assert kept.stat().st_mtime_ns == stamp and place.results() == before


@pytest.mark.parametrize("strategy, subsets", (("atso", 2), ("stso", 1)))
def test_more_generations_are_added_and_none_is_done_again(place, new_place, strategy, subsets):
    more = ("--strategy", strategy, "--run", "atso")
    place.loop(*more, executor="debug", generations=1)
    kept = sorted(i for i in (place.run / "labels" / "generation_1").rglob("*") if i.is_file())
    models = [next(place.results_folder.glob(f"*-g1s{i}__2d")) / "fold_0" / "checkpoint_final.pth" for i in range(1, subsets + 1)]
    before = {i: i.stat().st_mtime_ns for i in (*kept, *models)}
    again = place.loop(*more, executor="debug", generations=3).stdout
    begun = {i.split(":")[0] for i in again.splitlines()[:-2]}
    assert {i: i.stat().st_mtime_ns for i in before} == before and len(kept) > subsets
    assert not {i for i in begun if i.startswith(("m0", "split", "g1"))}
    at_once = new_place()
    at_once.loop(*more, executor="debug", generations=3)
    assert place.results() == at_once.results()
    fewer = place.loop(*more, executor="debug", generations=2, check=False)
    assert fewer.returncode == 2 and "generations: 3 then, 2 now" in fewer.stderr and place.results() == at_once.results()


def test_more_generations_with_other_arguments_are_refused_and_change_nothing(place):
    place.loop(executor="debug", generations=1)
    before, journal = place.results(), place.journal()
    result = place.loop("--seed", 5, executor="debug", generations=2, check=False)
    assert result.returncode == 2 and "seed: 0 then, 5 now" in result.stderr and "generations" not in result.stderr
    assert (place.results(), place.journal()) == (before, journal)


def test_a_run_goes_on_with_the_fine_tuning_that_it_was_begun_with(place, monkeypatch):
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    options = AtsoOptions(dataset=DATASET, configuration="2d")
    assert Loop(options).options.fine_tune_schedule == "constant"
    place.run.mkdir(parents=True)
    for begun in ({}, {"fine_tune_schedule": "plans"}, {"fine_tune_schedule": "constant"}):  # {}: of version 0.1
        (place.run / "journal.json").write_text(json.dumps({"version": 1, "arguments": begun}))
        assert Loop(options).options.fine_tune_schedule == begun.get("fine_tune_schedule")
    assert Loop(options).options.stage == 1 / 3
    (place.run / "journal.json").write_text(json.dumps({"version": 1, "arguments": {}}))
    assert "schedule" not in settings_of(stages_of(Loop(options).plan)["g1s1-plans"])


def test_everything_that_a_training_or_a_filter_reads_is_among_its_inputs(planner, tmp_path):
    (tmp_path / "classes.json").write_text('{"a": ["liver"]}')
    stages = stages_of(planner(generations=2, filter="disagreement", super_classes=str(tmp_path / "classes.json")))
    for name in ("g1s1", "g1s2", "g2s1", "g2s2", "final", "final-full"):
        settings, inputs = settings_of(stages[f"{name}-plans"]), {str(i) for i in stages[f"{name}-train"].inputs}
        labels = {i for i in inputs if i.endswith("provenance.json")}
        assert all(i.startswith(settings["labels"]) for i in labels) and len(labels) == 1 + (name == "final")
        assert {settings[i] for i in ("atso.initial_weights", "atso.exclude") if i in settings} <= inputs
        assert str(stages[f"{name}-plans"].outputs[0]) in inputs
    assert len(stages["g2-exclude"].inputs) == 4  # both parts, of this generation and the one before


def test_what_read_something_else_is_made_again_but_no_training_is_removed(place):
    place.loop(executor="debug", generations=1)
    m0 = next(place.results_folder.glob("*-m0__2d")) / "fold_0" / "checkpoint_final.pth"
    students = {i: i.read_text() for i in place.results_folder.glob("*-g1s*__2d/fold_0/checkpoint_final.pth")}
    m0.touch()
    assert "-label" not in place.loop(executor="debug", generations=1).stdout  # the same content
    m0.write_text("another M0")
    result = place.loop(executor="debug", generations=1, check=False)
    begun = {i.split(":")[0].strip() for i in result.stdout.splitlines()}
    assert begun == {"g1s1-label", "g1s2-label", "m0-predict"}
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1
    assert "was trained before" in result.stderr and "changed. Do it anew with --from-generation 1" in result.stderr
    assert {i: i.read_text() for i in students} == students
    place.loop("--from-generation", 1, executor="debug", generations=1)
    assert all(i.read_text() != old for i, old in students.items())
    assert "-train" not in place.loop(executor="debug", generations=1).stdout


def test_a_from_generation_that_is_killed_leaves_nothing_old_behind(place):
    place.loop(executor="debug")
    content = place.journal()
    for name, entry in content["stages"].items():
        if name.startswith(("g2", "final", "report")):
            entry["state"] = "discarded"  # as noted before anything is removed
    (place.run / "journal.json").write_text(json.dumps(content))
    stale = next(place.results_folder.glob("*g2s1*")) / "fold_0" / "checkpoint_final.pth"
    right = stale.read_text()
    stale.write_text("stale")
    place.loop(executor="debug")
    assert stale.read_text() == right


def test_results_without_a_journal_are_of_another_run(place):
    place.loop(generations=1, executor="debug")
    shutil.rmtree(place.run)
    result = place.loop(generations=1, executor="debug", check=False)
    assert result.returncode == 2 and "another run of this name" in result.stderr


def test_a_failed_stage_shows_its_log_and_earlier_generations_stay(place):
    place.loop(executor="debug", generations=1)
    before = place.results()
    shutil.rmtree(place.run / "predictions" / "final")
    result = place.loop(
        executor="local", generations=1, check=False, environment={"STUB_FAILS": "nnUNetv2_predict_from_modelfolder"}
    )
    assert result.returncode == 2 and "the stub was told to fail" in result.stderr and "final-predict" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert place.states()["final-predict"] == "failed" and place.states()["m0-predict"] == "done"
    place.loop(executor="local", generations=1)
    assert place.results() == before


def test_a_full_disk_is_one_line_and_nothing_is_lost(place, uninterrupted):
    """A file-size limit stands in for the full disk: what exceeds it cannot be written."""
    import subprocess

    place.start().wait()
    shutil.rmtree(place.run / "labels" / "generation_2" / "subset_2")
    for name in ("journal.json", "plan.json"):
        assert (place.run / name).stat().st_size > 2048
    before = (place.run / "journal.json").read_text()
    limited = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; ulimit -f 2; exec {shlex.join(place.argv())}"],
        capture_output=True,
        text=True,
        env=place.environment,
    )
    assert limited.returncode == 2 and "cannot be written" in limited.stderr and len(limited.stderr.splitlines()) == 1
    assert (place.run / "journal.json").read_text() == before
    place.loop()
    assert place.results() == uninterrupted.results()


def test_nothing_to_label_is_refused(place):
    content = json.loads((place.preprocessed / "dataset.json").read_text())
    for entry in content["nnunet_partial"]["cases"].values():
        entry["annotated"] = ["liver"]
    place.write_json("dataset.json", content)
    result = place.loop(check=False)
    assert result.returncode == 2 and "nothing to pseudo-label" in result.stderr and not place.run.exists()


def test_the_verb_of_the_package_is_the_script(place, monkeypatch, capsys):
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    arguments = [*place.argv("--dry-run", "--seed", 3)[2:]]
    assert cli.main(["atso", "run", *arguments]) == 0
    assert capsys.readouterr().out == place.loop("--dry-run", "--seed", 3).stdout
