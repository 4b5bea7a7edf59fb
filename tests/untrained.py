"""The commands of a table, run in this process: what reads, splits, merges and measures as it is, trainings and plans in name only.

A model is a checkpoint without content. What it predicts is the truth, of which it keeps a share of every structure that is this
model's alone, so that figures tell whose they are.
"""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import SimpleITK as sitk
from nnunetv2.experiment_planning import verify_dataset_integrity as integrity

from nnunet_partial import api, cli, paths
from nnunet_partial.commands import compare
from nnunet_partial.data.images import read_label
from nnunet_partial.data.preprocessed.splits import validation_cases
from nnunet_partial.files import read_json, write_json
from nnunet_partial.inference.coarse_to_fine import stages
from nnunet_partial.labels import Annotations
from nnunet_partial.orchestration.atso import command as atso
from nnunet_partial.orchestration.atso import loop
from nnunet_partial.orchestration.compare.steps import ComparisonSteps
from tests.downloads import VOXELS

C2F_PLANS = f"nnUNetPlans_{stages.VARIANT}"


class SerialPool:
    """In the place of nnU-Net's pool, which takes longer to start than these datasets to be looked at."""

    def __init__(self, processes):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        pass

    def starmap(self, function, arguments):
        return list(itertools.starmap(function, arguments))


class Untrained:
    """``ran``: every command; ``kept``: model -> how many of ``VOXELS`` voxels its predictions keep."""

    def __init__(self, tables, monkeypatch):
        self.tables, self.ran, self.kept = tables, [], {}
        monkeypatch.setattr(tables, "run_command", self.run)
        monkeypatch.setattr(loop, "check_model", lambda *_: None)  # which no empty checkpoint would pass
        serial = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=SerialPool))
        monkeypatch.setattr(integrity, "multiprocessing", serial)

    def run(self, argv, log):
        self.ran.append(argv)
        name, *rest = argv if argv[0] != "nnunet_partial" else argv[1:]
        if name == "python":
            self.tables.main(rest[1:])
        elif name in ("convert", "merge", "evaluate"):
            assert cli.main([name, *rest, "--processes", "1"]) == 0
        else:
            own = argv[0] == "nnunet_partial"
            getattr(self, name.replace("-", "_"))(cli.verb_parser(name).parse_args(rest) if own else rest)

    # ---- plans

    def nnUNetv2_plan_and_preprocess(self, argv):
        raw = paths.raw_dataset(option(argv, "-d"))
        integrity.verify_dataset_integrity(str(raw), 1)
        folder = paths.root("nnUNet_preprocessed") / raw.name
        write_json(read_json(raw / "dataset.json"), folder / "dataset.json")
        shutil.copytree(raw / "labelsTr", folder / "gt_segmentations")
        planned = {i: {} for i in ("2d", "3d_fullres") if i in argv}
        write_json({"plans_name": "nnUNetPlans", "configurations": planned}, folder / "nnUNetPlans.json")

    def nnUNetv2_preprocess(self, argv):
        plans = read_json(paths.plans_file(option(argv, "-d"), option(argv, "-plans_name")))
        paths.require_configuration(plans, option(argv, "-c"))

    def views(self, arguments):
        assert len(read_json(paths.plans_file(arguments.dataset))["configurations"]) == 2  # both are planned from
        for view in ("axial", "coronal", "sagittal"):
            write_plans(arguments.dataset, "nnUNetPlans", view)

    def variant(self, arguments):
        write_plans(arguments.dataset, arguments.base, arguments.name or arguments.recipe)

    # ---- models

    def compare(self, arguments):
        options = compare._options(arguments)
        api._share(options)
        plan = ComparisonSteps(options)
        evaluations = {i.name: i.argv for i in plan.steps() if i.part == "evaluation"}
        for method in plan.methods:
            argv = evaluations[f"s0-{method}-evaluate"]
            cases = cases_of(options.test_images) if options.test_images else self._validation_cases(plan.dataset)
            truth = options.test_labels or str(paths.raw_dataset(plan.dataset) / "labelsTr")
            self.predict(f"{plan.dataset[11:]} {method}", plan.dataset, cases, Path(truth), Path(option(argv, "--pred")))
            self.run(list(argv), None)

    @staticmethod
    def _validation_cases(dataset):
        folder = paths.preprocessed_dataset(dataset)
        return validation_cases(folder, Annotations.read(folder), 0)

    def atso(self, arguments):
        options = atso.read_options(arguments)
        run = loop.Loop(options, device="cpu")
        run.check()
        annotations = Annotations.read(paths.preprocessed_dataset(run.layout.dataset))
        for file in Path(options.reference_truth).iterdir():  # which the report looks for by these names
            assert not annotations.of(file.name.partition(".")[0]).annotated, file
        predicts = ["nnunet_partial", "fuse"] if options.views else ["nnUNetv2_predict_from_modelfolder", "-i"]
        for step in run.steps:
            if step.argv[0] == "nnUNetv2_train":
                touch(*step.outputs)
            if list(step.argv[:2]) == predicts:
                out = Path(option(step.argv, "--out" if options.views else "-o"))
                model = f"{run.layout.dataset[11:]} {options.strategy} {out.name}"
                self.predict(model, run.layout.dataset, cases_of(options.test_images), Path(options.test_labels), out)

    def coarse_to_fine(self, arguments):
        {"prepare": self._prepare, "train": self._train, "predict": self._predict}[arguments.step](arguments)

    @staticmethod
    def _prepare(arguments):
        content = read_json(paths.raw_dataset(arguments.dataset) / "dataset.json")
        if arguments.stage == "fine":
            require_trained(c2f_model(arguments.coarse, arguments.trainer), arguments.fold)
        write_json(content, paths.root("nnUNet_raw") / f"Dataset{arguments.id}_{arguments.name}" / "dataset.json")

    @staticmethod
    def _train(arguments):
        touch(paths.final_checkpoint(c2f_model(arguments.dataset, arguments.trainer), arguments.fold))

    def _predict(self, arguments):
        models = [require_trained(Path(i), arguments.fold) for i in (arguments.coarse, arguments.fine)]
        model = " ".join(f"{i.parent.name[11:]} {i.name.split('__')[0]}" for i in models)
        images = Path(arguments.images)
        self.predict(model, models[1].parent.name, cases_of(images), images.parent / "labelsTs", Path(arguments.out))

    def efficiency(self, arguments):
        assert cases_of(arguments.images)
        for model in arguments.coarse_to_fine:
            require_trained(Path(model), arguments.fold)

    # ---- what a model says

    def predict(self, model, dataset, cases, truth, out):
        kept = self.kept.setdefault(model, len(self.kept) + 1)
        content = read_json(paths.raw_dataset(dataset) / "dataset.json")
        of_truth = read_json(truth.parent / "dataset.json")["labels"]
        values = {of_truth[name]: v for name, v in content["labels"].items() if name not in ("background", "ignore")}
        out.mkdir(parents=True, exist_ok=True)
        for case in cases:
            file = f"{case}{content['file_ending']}"
            label = read_label(truth / file)[0]
            said = np.zeros_like(label)
            for value, own in values.items():
                places = np.flatnonzero(label == value)
                said.flat[places[: len(places) * kept // VOXELS]] = own
            image = sitk.GetImageFromArray(said)
            image.CopyInformation(sitk.ReadImage(str(truth / file)))
            sitk.WriteImage(image, str(out / file), True)
        write_json(content, out / "dataset.json")  # as nnU-Net does


def option(argv, name):
    return argv[list(argv).index(name) + 1]


def cases_of(images):
    cases = [i.name.partition("_0000.")[0] for i in sorted(Path(images).glob("*_0000.*"))]
    assert cases
    return cases


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def write_plans(dataset, base, name):
    file = paths.plans_file(dataset, base)
    write_json({**read_json(file), "plans_name": f"{base}_{name}"}, file.with_name(f"{base}_{name}.json"))


def c2f_model(dataset, trainer):
    return paths.model_folder(dataset, trainer, C2F_PLANS, stages.CONFIGURATION)


def require_trained(model, fold):
    assert paths.final_checkpoint(model, fold).is_file(), model
    return model
