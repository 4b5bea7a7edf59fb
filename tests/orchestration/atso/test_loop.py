"""What the loop refuses, shows, does again; and how the strategies differ."""

import json
import shlex
import shutil

import pytest

from nnunet_partial import cli
from nnunet_partial.errors import UserError
from nnunet_partial.labels import Annotations, CaseAnnotation
from nnunet_partial.orchestration.atso.options import AtsoOptions
from nnunet_partial.orchestration.atso.split import split_reference
from nnunet_partial.orchestration.atso.steps import AtsoSteps
from nnunet_partial.orchestration.executor_options import read_slurm


@pytest.fixture
def planner(tmp_path, monkeypatch):
    """``planner(**options)``; nothing on disk is needed to plan."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    return lambda **options: AtsoSteps(AtsoOptions(**{"dataset": "Dataset777_X", "configuration": "2d", **options}), "cpu")


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


def test_every_input_is_an_output_of_an_earlier_group(planner, tmp_path):
    classes = tmp_path / "classes.json"
    classes.write_text('{"a": ["liver"]}')
    for options in (
        {},
        {"filter": "disagreement"},
        {"super_classes": str(classes)},
        {"strategy": "self-learning", "subsets": 1},
        {"test_images": str(tmp_path)},
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
    process = place.start()
    try:
        place.wait_for(lambda: place.states().get("m0-train") == "running")
        result = place.loop(check=False)
        assert result.returncode == 2 and f"process {process.pid}" in result.stderr
        assert "a loop is running" in place.loop("--status").stdout
    finally:
        place.kill(process, whole_tree=True)
    status = place.loop("--status").stdout
    assert "no loop is running" in status and "interrupted" in status


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
    begun = [i.split(":")[0] for i in again.splitlines()[:-2]]
    assert set(begun) == {i for i in first if i.startswith(("g2", "final", "report")) or i in ("g1s1-predict", "g1s2-predict")}
    assert kept.stat().st_mtime_ns == stamp and place.results() == before


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
