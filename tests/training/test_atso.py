"""ATSO's trainer and the real loop on a tiny dataset: who trains on what, who labels what, and what is never read."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_partial.data.planes import write_view_plans
from nnunet_partial.data.preprocessed.label_directory import LabelDirectory, load_labels
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.atso_report.generations import PreprocessedSpace, Run, exclude_cases
from nnunet_partial.files import load_checkpoint, read_json, sha256
from nnunet_partial.inference.preprocessed import restricted_prediction
from nnunet_partial.inference.pseudo_labels import super_class_numbers
from nnunet_partial.labels import check_super_classes
from nnunet_partial.losses.partial import groups_from_annotated
from nnunet_partial.orchestration.atso.loop import Loop
from nnunet_partial.orchestration.atso.options import AtsoOptions
from nnunet_partial.trainers.atso import super_class_groups
from nnunet_partial.variants import write_variant

CLASSES = ("liver", "kidney", "pancreas")
OPTIONS = {
    "dataset": "Dataset501_Tiny",
    "configuration": "3d_fullres",
    "plans": "nnUNetPlans_tiny",
    "generations": 2,
    "fine_tune_epochs": 1,
    "disable_tta": True,
    "validation": "none",
}
FORKED_COMMAND = Path(__file__).with_name("forked_command.py")


def console(name, *arguments):
    """A console script of this environment."""
    subprocess.run([str(Path(sys.executable).parent / name), *arguments], check=True, capture_output=True)


# ---- commands in forked processes, which spare importing torch


class Killed(Exception):
    """A stage was killed."""


class Forked:
    """An executor. ``kill``: stage -> pattern of a file at whose appearance it dies, once; ``refuse``: a prefix."""

    def __init__(self, start, kill=(), refuse=None):
        self.start, self.kill, self.refuse, self.begun, self.killed = start, dict(kill), refuse, [], []

    def run(self, jobs, more=lambda name: ()):
        waiting = list(jobs)
        while waiting:
            job = waiting.pop(0)
            if self.refuse and job.name.startswith(self.refuse):
                raise Killed(job.name)
            self.begun.append(job.name)
            self._run(job)
            waiting += more(job.name)
        return [0.0] * len(jobs)

    def _run(self, job):
        job.log.parent.mkdir(parents=True, exist_ok=True)
        if job.argv[0].startswith("nnUNetv2_predict"):  # whose processes start this one's script again
            console(*job.argv)
            return
        pattern = self.kill.pop(job.name, None)
        process = self.start(FORKED_COMMAND, argv=list(job.argv), log=str(job.log), environment=dict(os.environ), kill=pattern)
        process.join()
        if pattern is not None:
            assert process.exitcode == -signal.SIGKILL, f"{job.name} never wrote {pattern}"
            self.killed.append(job.name)
            raise Killed(job.name)
        if process.exitcode:
            raise UserError(f"{job.name}: {job.log.read_text()[-1500:]}")


class Semi:
    """A copy of the tiny dataset: three fully labelled training cases, four that count as unlabelled."""

    def __init__(self, tiny, folder: Path, monkeypatch, garbage: bool = False, hidden: bool = True):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.preprocessed = folder / "nnUNet_preprocessed" / tiny.name
        shutil.copytree(tiny.preprocessed, self.preprocessed)
        (folder / "nnUNet_results" / tiny.name).mkdir(parents=True)
        if not hidden:  # as it is: every case annotates the organ of its source
            (self.preprocessed / "splits_final.json").write_text(
                json.dumps([{"train": ["kits_005", "lits_000", "nih_010", "plain_015"], "val": ["lits_001"]}])
            )
            return
        content = read_json(self.preprocessed / "dataset.json")
        cases = content["nnunet_partial"]["cases"]
        labelled = sorted(i for i in cases if i.startswith("lits"))
        self.labelled = labelled[:3]
        self.unlabelled = [next(iter(sorted(i for i in cases if i.startswith(s)))) for s in ("kits", "nih", "plain")]
        self.unlabelled.append(sorted(i for i in cases if i.startswith("kits"))[1])
        for name, case in cases.items():
            case["annotated"] = list(CLASSES) if name in labelled else []
        (self.preprocessed / "dataset.json").write_text(json.dumps(content))
        (self.preprocessed / "splits_final.json").write_text(
            json.dumps([{"train": sorted(self.labelled + self.unlabelled), "val": labelled[3:]}])
        )
        if garbage:
            for case in self.unlabelled:
                self._spoil(case)

    def _spoil(self, case):
        """Other labels, other locations, another label file."""
        import blosc2

        images = self.preprocessed / "nnUNetPlans_3d_fullres"
        file = images / f"{case}_seg.b2nd"
        seg = blosc2.open(str(file))[:]
        file.unlink()
        rng = np.random.default_rng(1)
        blosc2.asarray(np.ascontiguousarray(rng.integers(0, 4, seg.shape).astype(seg.dtype)), urlpath=str(file))
        properties = pickle.loads((images / f"{case}.pkl").read_bytes())
        properties["class_locations"] = {i: np.zeros((3, 4), int) for i in properties["class_locations"]}
        (images / f"{case}.pkl").write_bytes(pickle.dumps(properties))
        (self.preprocessed / "gt_segmentations" / f"{case}.nii.gz").write_bytes(b"garbage")

    def use(self):
        for name in ("nnUNet_preprocessed", "nnUNet_results"):
            self.monkeypatch.setenv(name, str(self.folder / name))

    def loop(self, executor, **changes):
        self.use()
        return Loop(AtsoOptions(**{**OPTIONS, **changes}), executor, "cpu", light=executor)

    def weights(self, model):
        file = next((self.folder / "nnUNet_results").rglob(f"*-{model}__3d_fullres/fold_0/checkpoint_final.pth"))
        return load_checkpoint(file)["network_weights"]

    def training_cases(self, model):
        return read_json(next((self.folder / "nnUNet_results").rglob(f"*-{model}__3d_fullres/fold_0/training_cases.json")))

    @property
    def run(self):
        return self.folder / "nnUNet_results" / "Dataset501_Tiny" / "atso" / "atso_3d_fullres_fold0"


@pytest.fixture(scope="module")
def module_monkeypatch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory, module_monkeypatch, forked):
    """A run of two generations that nothing disturbed."""
    made = Semi(tiny, tmp_path_factory.mktemp("finished"), module_monkeypatch)
    made.loop(Forked(forked)).run()
    return made


@pytest.fixture(autouse=True)
def _restore(nnunet_folders):
    before = {i: os.environ[i] for i in ("nnUNet_preprocessed", "nnUNet_results")}
    yield
    os.environ.update(before)


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[i], b[i]) for i in a)


def labels_of(run):
    """Label directory and case -> labels and locations, of a whole run."""
    found = {}
    for file in sorted((run / "labels").rglob("*_seg.b2nd")):
        seg, properties = load_labels(file.parent, file.name[: -len("_seg.b2nd")])
        locations = {k: np.asarray(v).tolist() for k, v in properties["class_locations"].items()}
        found[str(file.relative_to(run))] = (seg[:].tobytes(), locations)
    return found


def report_of(run):
    """Everything of the report but the times."""
    found = {str(i.relative_to(run)): i.read_bytes() for i in sorted((run / "report").rglob("*")) if i.is_file()}
    found.pop("report/times.csv")
    page = found.pop("report/index.html").decode()
    return found, page[: page.index('<section id="times"')]


# ---- the real loop


def test_truth_is_compared_on_the_voxels_of_the_labels(tiny, finished):
    finished.use()
    space = PreprocessedSpace(Run(finished.run))
    for case in finished.labelled:
        seg, properties = load_labels(finished.preprocessed / "nnUNetPlans_3d_fullres", case)
        file = finished.preprocessed / "gt_segmentations" / f"{case}.nii.gz"
        brought = space.seg(file, properties, seg.shape[1:])
        assert np.array_equal(brought, np.maximum(seg[:][0], 0)) and brought.any()


def test_the_order_of_labelling(finished):
    """Which model labelled which case in which generation, from what was recorded where it happened."""
    trained_on = {}
    for model in ("m0", "g1s1", "g1s2", "g2s1", "g2s2", "final"):
        record = finished.training_cases(model)
        assert record["labelled"] == finished.labelled
        trained_on[model] = record["pseudo_labelled"]
        start = record["initial_weights"]
        assert start is None if model == "m0" else "-m0__" in start
    assert trained_on["m0"] == [] and trained_on["final"] == sorted(finished.unlabelled)
    for t in (1, 2):
        assert sorted(trained_on[f"g{t}s1"] + trained_on[f"g{t}s2"]) == sorted(finished.unlabelled)
        for subset in (1, 2):
            content = read_json(finished.run / "labels" / f"generation_{t}" / f"subset_{subset}" / "provenance.json")
            (model,) = content["models"]
            labeller = model["folder"].split("-")[-1].split("__")[0]
            assert sorted(content["cases"]) == trained_on[f"g{t}s{subset}"]
            assert labeller == ("m0" if t == 1 else f"g1s{3 - subset}")
            assert not set(content["cases"]) & set(trained_on[labeller])
            import hashlib

            assert model["sha256"] == hashlib.sha256(Path(model["checkpoint"]).read_bytes()).hexdigest()


def test_killed_in_training_labelling_and_report_equals_the_uninterrupted_run(tiny, finished, tmp_path, monkeypatch, forked):
    here = Semi(tiny, tmp_path, monkeypatch)
    moments = {
        "m0-train": "*-m0__*/fold_0/checkpoint_latest.pth",
        "g1s1-label": "*generation_1/subset_1/records/*.json",
        "g1s2-train": "*-g1s2__*/fold_0/checkpoint_best.pth",
        "g2s1-train": "*-g2s1__*/fold_0/*.txt",
        "g2s2-label": "*generation_2/subset_2/.lock",
        "final-train": "*-final__*/fold_0/checkpoint_best.pth",
        "report": "*report/cache/generation_final.json",
    }
    executor = Forked(forked, moments)
    for _ in range(len(moments)):
        with pytest.raises(Killed):
            here.loop(executor).run()
    here.loop(executor).run()
    assert executor.killed == list(moments) or sorted(executor.killed) == sorted(moments)
    for model in ("m0", "g1s1", "g1s2", "g2s1", "g2s2", "final"):
        assert same_weights(here.weights(model), finished.weights(model)), model
    assert labels_of(here.run) == labels_of(finished.run)
    assert report_of(here.run) == report_of(finished.run)
    assert not list(here.folder.rglob(".tmp-*"))


def test_the_truth_of_unlabelled_cases_never_reaches_training(tiny, finished, tmp_path, monkeypatch, forked):
    here = Semi(tiny, tmp_path, monkeypatch, garbage=True)
    with pytest.raises(Killed):
        here.loop(Forked(forked, refuse="g2s1-label")).run()
    for model in ("m0", "g1s1", "g1s2"):
        assert same_weights(here.weights(model), finished.weights(model)), model
    expected = {k: v for k, v in labels_of(finished.run).items() if "generation_1" in k}
    assert len(expected) == 4 and labels_of(here.run) == expected


def test_the_report_shows_every_generation(finished):
    summary = (finished.run / "report" / "summary.csv").read_text().splitlines()
    assert [i.split(",")[0] for i in summary] == ["generation", "0", "1", "2", "final"]
    page = (finished.run / "report" / "index.html").read_text()
    shown = json.loads(re.search(r'id="viewer-cases">(.*?)</script>', page, re.S)[1])
    layers = [[i["name"] for i in one["layers"]] for one in shown]
    assert layers and all(i in (["generation 0", "generation 1"], ["generation 1", "generation final"]) for i in layers)
    assert [i["shown"] for i in shown[0]["layers"]] == [False, True]
    own = re.sub(r"<script.*?</script>", "", page, flags=re.S)  # NiiVue's program names addresses, and is let none by the page
    assert "data:image/png;base64," in page and "http" not in own.replace("http-equiv", "")
    changes = (finished.run / "report" / "changes.csv").read_text().splitlines()
    assert len(changes) == 1 + 3 * 4 * 3  # three sets of labels, four cases, three classes


def test_an_unreadable_label_is_one_line_and_earlier_generations_stay(tiny, finished, tmp_path, monkeypatch):
    shutil.copytree(finished.folder, tmp_path / "copy")
    here = Semi.__new__(Semi)
    here.folder, here.monkeypatch = tmp_path / "copy", monkeypatch
    here.use()
    damaged = next((here.run / "labels" / "generation_2" / "subset_1").glob("*_seg.b2nd"))
    damaged.write_bytes(damaged.read_bytes()[:40])
    plans = json.loads(next((here.folder / "nnUNet_preprocessed" / tiny.name).glob("*-g2s1.json")).read_text())
    plans["plans_name"] += "x"
    plans["nnunet_partial"]["labels"] = str(damaged.parent)
    (here.folder / "nnUNet_preprocessed" / tiny.name / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(
        "Dataset501_Tiny", "3d_fullres", 0, "nnUNetTrainerATSO", plans["plans_name"], False, torch.device("cpu")
    )
    trainer.initialize()
    import contextlib
    import io

    said = io.StringIO()
    with pytest.raises(SystemExit) as end, contextlib.redirect_stderr(said):
        trainer.on_train_start()
    error = said.getvalue().strip().splitlines()[-1]
    assert end.value.code == 2 and str(damaged) in error and "make the label directory again" in error
    assert LabelDirectory.read(here.run / "labels" / "generation_1").known.keys() == set(finished.unlabelled)


def test_the_disagreement_filter_leaves_out_what_changed_most(finished, tmp_path):
    current, before = (finished.run / "labels" / f"generation_{t}" for t in (2, 1))
    excluded = exclude_cases(current, "disagreement", 0.5, tmp_path / "out.json", before)
    scores = read_json(tmp_path / "out.json")["scores"]
    order = sorted(scores, key=lambda i: (1.0 if scores[i] is None else scores[i], i))
    assert len(excluded) == 2 and excluded == sorted(order[:2]) and read_json(tmp_path / "out.json")["excluded"] == excluded
    assert exclude_cases(current, "disagreement", 0.5, tmp_path / "same.json", current) == sorted(
        sorted(finished.unlabelled)[:2]
    )  # nothing changed: by name
    assert len(exclude_cases(current, "confidence", 0.25, tmp_path / "c.json")) == 1


def test_partly_labelled_reference_cases_at_super_class_level(tiny, tmp_path, monkeypatch, forked):
    """No case is fully labelled: M0 learns what each annotates; then only what a case lacks is pseudo-labelled."""
    here = Semi(tiny, tmp_path, monkeypatch, hidden=False)
    (tmp_path / "super.json").write_text(json.dumps({"paired": ["kidney", "pancreas"]}))
    executor = Forked(forked)
    here.loop(
        executor,
        strategy="self-learning",
        subsets=1,
        generations=1,
        fine_tune_epochs=1,
        filter="confidence",
        filter_share=0.34,
        super_classes=str(tmp_path / "super.json"),
    ).run()
    run = here.run.with_name("atso_3d_fullres_fold0")
    cases = [f"{s}_{i}" for s, i in (("kits", "005"), ("lits", "000"), ("nih", "010"), ("plain", "015"))]
    assert here.training_cases("m0")["pseudo_labelled"] == [] and here.training_cases("m0")["labelled"] == cases[:3]
    excluded = read_json(run / "labels" / "generation_1_excluded.json")["excluded"]
    assert here.training_cases("g1s1")["labelled"] == [i for i in excluded if i in cases[:3]]  # the manual labels stay
    assert len(excluded) == 1 and here.training_cases("g1s1")["pseudo_labelled"] == [i for i in cases if i not in excluded]
    labels = LabelDirectory.read(run / "labels" / "generation_1")
    records = read_json(labels.folder_of("lits_000") / "provenance.json")["cases"]
    assert records["lits_000"]["annotated"] == ["liver"] and records["lits_000"]["pseudo"] == ["kidney", "pancreas"]
    assert records["plain_015"]["pseudo"] == list(CLASSES)
    truth = load_labels(here.preprocessed / "nnUNetPlans_3d_fullres", "lits_000")[0][:]
    assert np.array_equal(load_labels(labels.folder_of("lits_000"), "lits_000")[0][:] == 1, truth == 1)
    assert here.training_cases("final-full")["initial_weights"].endswith("-g1s1__3d_fullres/fold_0/checkpoint_final.pth")
    assert here.training_cases("final-full")["pseudo_labelled"] == cases
    plans = read_json(next(here.preprocessed.glob("*-g1s1.json")))["nnunet_partial"]["atso"]
    assert plans["super_classes"] == {"paired": ["kidney", "pancreas"]}


def test_a_super_class_task_from_m0_to_the_network_of_all_classes(tiny, tmp_path, monkeypatch, forked):
    """The loop for real: M0 and a generation of two super-classes, whose labels, unions, supervise a network of all classes."""
    here = Semi(tiny, tmp_path, monkeypatch)
    (tmp_path / "super.json").write_text(json.dumps({"paired": ["kidney", "pancreas"]}))
    task = {"super_classes": str(tmp_path / "super.json"), "super_class_task": True}
    here.loop(Forked(forked), strategy="stso", subsets=1, generations=1, **task).run()

    def of(model):
        return next((here.folder / "nnUNet_results").rglob(f"*-{model}__3d_fullres/dataset.json"))

    for model in ("m0", "g1s1"):
        assert list(read_json(of(model))["labels"]) == ["background", "liver", "kidney+pancreas"]
        assert here.training_cases(model)["labelled"] == here.labelled
    for model in ("target", "final-full"):
        assert list(read_json(of(model))["labels"]) == ["background", *CLASSES]
        assert here.training_cases(model)["labelled"] == here.labelled  # manual labels stay beside the pseudo labels
        assert here.training_cases(model)["pseudo_labelled"] == sorted(here.unlabelled)
    assert here.training_cases("target")["initial_weights"] is None  # one generation from scratch
    assert here.training_cases("final-full")["initial_weights"].endswith("-target__3d_fullres/fold_0/checkpoint_final.pth")
    assert here.training_cases("g1s1")["initial_weights"].endswith("-m0__3d_fullres/fold_0/checkpoint_final.pth")
    assert (here.weights("m0").keys() == here.weights("g1s1").keys()) and not same_weights(
        here.weights("m0"), here.weights("g1s1")
    )
    unions, full = (LabelDirectory.read(here.run / "labels" / i) for i in ("super_classes", "full_classes"))
    for case in here.unlabelled:
        assert read_json(unions.folder / "records" / f"{case}.json")["pseudo"] == ["liver", ["kidney", "pancreas"]]
        assert read_json(full.folder / "records" / f"{case}.json")["pseudo"] == list(CLASSES)
        assert not (load_labels(unions.folder, case)[0][:] == 3).any()  # the union has the value of its lowest class
    assert (here.run / "report" / "index.html").is_file()


# ---- several views


def test_every_model_is_one_of_each_view_and_they_label_together(tiny, tmp_path, monkeypatch, forked):
    """Two views of the same scans, slices along another axis each, for real: trained, labelled, predicted and fused."""
    here = Semi(tiny, tmp_path, monkeypatch, hidden=False)
    here.use()
    coronal = write_view_plans(tiny.name)["coronal"]
    _preprocess(tiny, coronal)
    views = [tiny.plans, write_variant(tiny.name, "tiny", tiny_plans(here), coronal.stem).stem]
    images, truth = tmp_path / "images", tmp_path / "truth"
    for folder, name in ((images, "imagesTr/kits_006_0000.nii.gz"), (truth, "labelsTr/kits_006.nii.gz")):
        folder.mkdir()
        shutil.copy(tiny.folders.raw / tiny.name / name, folder)
    given = {"strategy": "stso", "subsets": 1, "generations": 1, "configuration": "2d", "views": views[1:]}
    tested = {"test_images": str(images), "test_labels": str(truth)}
    executor = Forked(forked)
    here.loop(executor, **given, **tested).run()
    run, results = here.run.with_name("atso_2d_fold0"), here.folder / "nnUNet_results"
    models = {(m, v): next(results.rglob(f"nnUNetTrainerATSO__{v}_*-{m}__2d")) / "fold_0" for m in ("m0", "g1s1") for v in views}
    for (name, view), folder in models.items():
        record = read_json(folder / "training_cases.json")
        start = record["initial_weights"]
        assert start is None if name == "m0" else Path(start).parent == models["m0", view]  # of the same view
        assert record["labelled"] == (["kits_005", "lits_000", "nih_010"] if name == "m0" else [])
    # what both M0s say, on the voxels of either view
    found = []
    for folder in (run / "labels" / "generation_1", run / "labels" / f"generation_1_{views[1]}"):
        content = read_json(folder / "subset_1" / "provenance.json")
        assert content["rule"] == "vote" and {i["sha256"] for i in content["models"]} == {
            sha256(models["m0", i] / "checkpoint_final.pth") for i in views
        }
        assert sum("sees" in i for i in content["models"]) == 1  # the other view's sees the scan
        found.append({i: load_labels(folder / "subset_1", i)[0][:][0] for i in content["cases"]})
    forward = [read_json(here.preprocessed / f"{i}.json")["transpose_forward"] for i in views]
    assert forward[0] != forward[1]
    for case, labels in found[0].items():
        one, other = (i.transpose(np.argsort(f)) for i, f in zip((labels, found[1][case]), forward))
        assert (one == other).mean() > 0.999  # half precision may decide otherwise where probabilities are equal
    # the deployed opinion is the fused one, and that is what the report scores
    request = read_json(run / "predictions" / "g1s1" / "fusion.json")
    assert request["rule"] == "vote" and len(request["models"]) == 2
    assert (run / "predictions" / "g1s1" / "kits_006.nii.gz").is_file()
    scores = (run / "report" / "scores.csv").read_text()
    assert "g1s1,test,kidney" in scores
    begun = len(executor.begun)
    here.loop(executor, **given, **tested).run()
    assert len(executor.begun) == begun  # everything is there


def tiny_plans(here):
    """The settings of ``nnUNetPlans_tiny`` and its changes of the network."""
    settings = {
        k: v for k, v in read_json(here.preprocessed / "nnUNetPlans_tiny.json")["nnunet_partial"].items() if k != "base_plans"
    }
    return {**settings, "features": [4, 8, 8], "batch_size": 2}


def _preprocess(tiny, plans_file):
    """As nnUNetv2_preprocess -c 2d, case by case, without its processes."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, raw = PlansManager(read_json(plans_file)), tiny.folders.raw / tiny.name
    planned, content = plans.get_configuration("2d"), read_json(raw / "dataset.json")
    folder = plans_file.parent / planned.data_identifier
    folder.mkdir()
    for case, files in content["dataset"].items():
        made = planned.preprocessor_class(verbose=False)
        image, label = str(raw / files["images"][0]), str(raw / files["label"])
        made.run_case_save(str(folder / case), [image], label, plans, planned, content)


# ---- the trainer


def test_it_starts_from_all_weights_and_leaves_excluded_cases_out(finished, tmp_path):
    from nnunetv2.run.run_training import get_trainer_from_args

    finished.use()
    folder = finished.folder / "nnUNet_results"
    m0 = next(folder.rglob("*-m0__3d_fullres/fold_0/checkpoint_final.pth"))
    out = finished.unlabelled[0]
    (tmp_path / "exclude.json").write_text(json.dumps({"excluded": [out]}))
    plans = write_variant(
        "Dataset501_Tiny",
        "unit",
        {
            "labels": str(finished.run / "labels" / "generation_2"),
            "atso": {
                "initial_weights": str(m0),
                "exclude": str(tmp_path / "exclude.json"),
                "final_validation": False,
                "super_classes": {"abdomen": ["liver", "pancreas"]},
            },
        },
        "nnUNetPlans_tiny",
        overwrite=True,
    ).stem
    trainer = get_trainer_from_args("Dataset501_Tiny", "3d_fullres", 0, "nnUNetTrainerATSO", plans, False, torch.device("cpu"))
    trainer.initialize()
    assert same_weights(dict(trainer.network.state_dict()), finished.weights("m0"))  # segmentation layers too
    training, validating = trainer.do_split()
    assert sorted(training) == sorted(set(finished.labelled + finished.unlabelled) - {out}) and len(validating) == 2
    dataset = None
    trainer.get_dataloaders()
    dataset, _ = trainer.get_tr_and_val_datasets()
    case = finished.unlabelled[1]
    own = dataset.load_case(finished.labelled[0])[1][:]
    stock = trainer.dataset_class(trainer.preprocessed_dataset_folder, [finished.labelled[0]]).load_case(finished.labelled[0])
    assert np.array_equal(own, stock[1][:])
    folder = LabelDirectory.read(finished.run / "labels" / "generation_2").folder_of(case)
    assert folder.name.startswith("subset_") and np.array_equal(dataset.load_case(case)[1][:], load_labels(folder, case)[0][:])
    size = 4
    batch = {
        "data": torch.zeros(2, 1, size, size, size),
        "target": torch.zeros(2, 1, size, size, size),
        "keys": [finished.labelled[0], case],
    }
    assert trainer.to_device(batch).groups.tolist() == [[0, 1, 2, 3], [0, 1, 2, 1]]


def test_missing_initial_weights_are_one_line(finished, capsys):
    from nnunetv2.run.run_training import get_trainer_from_args

    finished.use()
    plans = write_variant(
        "Dataset501_Tiny", "lost", {"atso": {"initial_weights": "/nowhere/m0.pth"}}, "nnUNetPlans_tiny", overwrite=True
    ).stem
    with pytest.raises(SystemExit) as end:
        get_trainer_from_args("Dataset501_Tiny", "3d_fullres", 0, "nnUNetTrainerATSO", plans, False, torch.device("cpu"))
    assert end.value.code == 2 and "/nowhere/m0.pth does not exist" in capsys.readouterr().err.strip().splitlines()[-1]


def test_groups_of_super_classes():
    annotated = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    truth = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    groups = super_class_groups(groups_from_annotated(annotated), groups_from_annotated(truth), [[1, 2, 3]])
    # all pseudo: 1, 2 and 3 together; 1 true: by itself, 2 unknown: background; nothing known: all background
    assert groups.tolist() == [[0, 1, 1, 1, 4], [0, 1, 0, 3, 4], [0, 0, 0, 0, 0]]


def test_super_classes_leave_the_outline_of_a_union_where_it_is():
    """Annotated: 2, 3 and 5 as one structure. Pseudo labels divide it in the first sample, in the second they do not."""
    truth_groups = torch.tensor([[0, 0, 2, 2, 0, 2]]).repeat(2, 1)
    groups = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 4, 2]])
    # 3 and 5 are of one super-class, but 4 of it lies outside the outline; 1 is in one with 2 and stays outside
    found = super_class_groups(groups, truth_groups, [[3, 4, 5], [1, 2]])
    assert found.tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 2, 2, 4, 2]]


def test_the_most_probable_super_class_wins_a_voxel():
    probabilities = torch.tensor([0.3, 0.25, 0.35, 0.1])  # background, a1, b, a2: a together has 0.35, ties go to a
    logits = torch.log(torch.tensor([0.3, 0.27, 0.31, 0.12])).view(4, 1, 1, 1)
    index, probability = restricted_prediction(logits, [1, 2, 3], groups=[1, 2, 1])
    assert index.item() == 1 and abs(probability.item() - 0.39) < 1e-6
    assert restricted_prediction(logits, [1, 2, 3])[0].item() == 2
    assert probabilities.sum() == 1
    assert super_class_numbers(["a1", "b", "a2"], {"a": ["a1", "a2"]}) in ([1, 2, 1], [2, 1, 2])
    assert super_class_numbers(["a1"], {}) is None


@pytest.mark.parametrize(
    "given, message",
    (({"x": ["spleen"]}, "no class"), ({"x": ["liver"], "y": ["liver"]}, "two"), ({"x": "liver"}, "list"), ({"x": []}, "list")),
)
def test_unusable_super_classes_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        check_super_classes(given, CLASSES)


def test_label_directories_in_parts_must_not_overlap(finished, tmp_path):
    parts = finished.run / "labels" / "generation_1"
    for name in ("a", "b"):
        shutil.copytree(parts / "subset_1", tmp_path / name)
    with pytest.raises(UserError, match="has labels in"):
        LabelDirectory.read(tmp_path)
    (tmp_path / "b" / "provenance.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        LabelDirectory.read(tmp_path)
