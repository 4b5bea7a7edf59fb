"""Algorithm 1 as steps: commands that a person can type, with what they read, write, and when they are done."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunet_partial import _moved, paths
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json
from nnunet_partial.labels import UNIONS, Annotations, read_super_classes
from nnunet_partial.orchestration.atso.layout import TRAINER, Layout
from nnunet_partial.orchestration.atso.options import RULES, AtsoOptions
from nnunet_partial.orchestration.engine import Cost, Step
from nnunet_partial.outputs import ExpectedPredictions
from nnunet_partial.settings import PLATEAU, RunSettings


class AtsoSteps:
    """All steps of a run, from its options alone."""

    def __init__(self, options: AtsoOptions, device: str = "cuda"):
        self.options, self.layout, self.device = options, Layout(options), device

    def steps(self) -> list:
        """Every step, each after those that it needs."""
        return [step for group in self.groups() for step in group]

    def groups(self) -> list:
        """Lists of steps; the steps of a list do not need each other, every list needs those before it."""
        o, groups = self.options, [[self.split()]]
        if not o.initial_model:
            groups += self.models(["m0"], 0, lambda _, view: self._task(), lambda *_: [])
        for t in range(1, o.generations + 1):
            groups += self.generation(t)
        groups += self.ending()
        return _one_after_the_other([i for i in groups if i])

    def generation(self, t: int) -> list:
        """Label, choose, train, report. The models of the generation before are tested while it labels."""
        o = self.options
        before = ["m0"] if t == 1 else [f"g{t - 1}s{i}" for i in o.models_of_a_generation]
        numbers = {f"g{t}s{i}": i for i in o.models_of_a_generation}

        def settings(name: str, view: str) -> dict:
            return self._student(t, numbers[name], view)

        def read(name: str, view: str) -> list:
            return self._read_by_student(t, [numbers[name]], o.starts_from(t, numbers[name]), view)

        return [
            [self.label(t, i, view) for i in o.models_of_a_generation for view in o.all_plans] + self.predict(before, t),
            self.fuse(before, t),
            [self.report(t)] if t > 1 else [],
            [self.exclude(t)] if self._filters(t) else [],
            *self.models(list(numbers), t, settings, read),
        ]

    def ending(self) -> list:
        """The model on all pseudo labels, at full class level if they were coarser, its labels, and the report."""
        o, after = self.options, self.options.generations + 1
        groups, tested = [], [f"g{o.generations}s{i}" for i in o.models_of_a_generation]
        last = o.last_model
        if o.subsets > 1:
            groups += self.models(["final"], after, lambda _, view: self._final(view), lambda _, view: self._read_by_final(view))
            tested.append("final")
        if o.super_class_task:
            last = "target"
            groups.append(self.label_all("super_classes", o.last_model, coarse=False))
            groups += self.models(["target"], after, self._target, lambda _, view: [self._labels_of_all("super_classes", view)])
            tested.append("target")
        if o.super_classes:
            groups.append(self.label_all("full_classes", last, coarse=False))
            groups += self.models(["final-full"], after, self._full_classes, self._read_by_full_classes)
            tested.append("final-full")
        # what is labelled last is for the report, which looks at it in one view
        groups.append(self.label_all("final", self.returned_model, coarse=False)[:1] + self.predict(tested, after))
        return [*groups, self.fuse(tested, after), [self.report(after)]]

    def models(self, names: Sequence[str], generation: int, settings: Callable, read: Callable) -> list:
        """Two lists of steps, the plans and the trainings of models in every view.

        ``settings`` (name, view) -> what its plans change; ``read`` (name, view) -> what its training reads beside them
        """
        every = [(name, view) for name in names for view in self.options.all_plans]
        return [
            [self.plans(name, generation, settings(name, view), view) for name, view in every],
            [self.train(name, generation, settings(name, view), read(name, view), view) for name, view in every],
        ]

    @property
    def returned_model(self) -> str:
        """Name of the model that the run returns."""
        return "final-full" if self.options.super_classes else self.options.last_model

    # ---- settings of the models

    def _student(self, t: int, subset: int, view: str) -> dict:
        start = self.options.starts_from(t, subset)
        return {
            **({} if start is None else self._fine_tuning(start, view)),
            "labels": self.layout.labels(t, subset, view),
            **self._supervision(t),
        }

    def _final(self, view: str) -> dict:
        t = self.options.generations
        start = self._fine_tuning("m0", view) if self.options.final_from == "m0" else {}
        return {**start, "labels": self.layout.generation_labels(t, view), **self._supervision(t)}

    def _target(self, name: str, view: str) -> dict:
        return {"labels": self.layout.other_labels("super_classes", view)}

    def _full_classes(self, name: str, view: str) -> dict:
        start = self._fine_tuning(self._before_full_classes, view)
        return {**start, "labels": self.layout.other_labels("full_classes", view)}

    @property
    def _before_full_classes(self) -> str:
        """The model of all classes that super-classes have supervised."""
        return "target" if self.options.super_class_task else self.options.last_model

    def _task(self) -> dict:
        """What makes a network one of super-classes alone."""
        if not self.options.super_class_task:
            return {}
        return {"atso.super_classes": self._super_classes(), "atso.task": "super_classes"}

    def _super_classes(self) -> str:
        given = self.options.super_classes or ""
        if given != UNIONS:
            return Path(given).read_text(encoding="utf-8").strip()
        return json.dumps(read_super_classes(given, Annotations.read(paths.preprocessed_dataset(self.options.dataset))))

    def _fine_tuning(self, start: str, view: str) -> dict:
        settings = {**self._length_and_rate(view), "atso.initial_weights": self.layout.checkpoint(start, view)}
        return {k: v for k, v in settings.items() if v is not None}

    def _length_and_rate(self, view: str) -> dict:
        """Length, schedule and learning rate of every model that starts from another, where they differ from the plans'."""
        o = self.options
        if o.fine_tune_schedule != "constant" and o.stage == 1:
            return {"num_epochs": o.fine_tune_epochs, "initial_lr": o.fine_tune_lr}
        m0 = self._settings_of(view)
        stage = max(1, round(o.stage * m0.num_epochs))
        length = {"num_epochs": o.fine_tune_epochs or stage}
        if o.fine_tune_schedule != "constant":
            return length
        idle = {f"plateau_{i}": "None" for i in PLATEAU if getattr(m0, f"plateau_{i}") is not None}
        return {**length, "schedule": "constant", **idle, "initial_lr": o.fine_tune_lr or _rate_of_last_stage(m0, stage, view)}

    def _supervision(self, t: int) -> dict:
        settings = self._task()
        if self.options.super_classes:
            settings["atso.super_classes"] = self._super_classes()
        if self._filters(t):
            settings["atso.exclude"] = self.layout.excluded(t)
        return settings

    def _filters(self, t: int) -> bool:
        return self.options.filter == "confidence" or self.options.filter == "disagreement" and t > 1

    def _validates(self, model: str) -> bool:
        return self.options.validation == "all" or self.options.validation == "final" and model == self.returned_model

    # ---- what trainings read beside their plans

    def _read_by_student(self, t: int, subsets: Sequence[int], start: str | None, view: str) -> list:
        labels = [self._provenance(self.layout.labels(t, i, view)) for i in subsets]
        excluded = [self.layout.excluded(t)] if self._filters(t) else []
        return [*labels, *excluded, *([] if start is None else [self.layout.checkpoint(start, view)])]

    def _read_by_final(self, view: str) -> list:
        o = self.options
        return self._read_by_student(o.generations, o.models_of_a_generation, "m0" if o.final_from == "m0" else None, view)

    def _read_by_full_classes(self, name: str, view: str) -> list:
        return [self._labels_of_all("full_classes", view), self.layout.checkpoint(self._before_full_classes, view)]

    def _labels_of_all(self, name: str, view: str) -> Path:
        return self._provenance(self.layout.other_labels(name, view))

    @staticmethod
    def _provenance(labels: Path) -> Path:
        return labels / "provenance.json"

    # ---- steps

    def split(self) -> Step:
        """S and R, and the parts of R."""
        o, folder = self.options, self.layout.subset(1).parent
        argv = [
            "nnunet_partial",
            "atso",
            "split",
            o.dataset,
            "--fold",
            o.fold,
            "--subsets",
            o.subsets,
            "--seed",
            o.seed,
            "--out",
            folder,
        ]
        return _step("split", 0, argv, [folder / "labelled.txt"], owned=[folder], light=True)

    def plans(self, model: str, generation: int, settings: dict, view: str) -> Step:
        """The plans variant of a model."""
        settings = {**settings, "atso.final_validation": "true" if self._validates(model) else "false"}
        argv = [
            "nnunet_partial",
            "variant",
            self.options.dataset,
            "--base",
            view,
            "--name",
            self.layout.variant(model),
            "--overwrite",
        ]
        for name, value in settings.items():
            argv += ["--set", f"{name}={value}"]
        file = self.layout.plans_file(model, view)
        return _step(f"{self.layout.named(model, view)}-plans", generation, argv, [file], owned=[file], light=True)

    def train(self, model: str, generation: int, settings: Mapping[str, Any], more: Sequence[Path], view: str) -> Step:
        """Train one model, or go on with it. ``settings``: of its plans; ``more``: what it reads beside them."""
        o, checkpoint = self.options, self.layout.checkpoint(model, view)
        # always --c: without a checkpoint it starts from the beginning, and a job that the cluster hands in again goes on
        argv = [
            "nnUNetv2_train",
            o.dataset,
            o.configuration,
            o.fold,
            "-tr",
            TRAINER,
            "-p",
            self.layout.plans(model, view),
            "-device",
            self.device,
            "--c",
        ]
        outputs = [checkpoint, checkpoint.parent / "validation" / "summary.json"][: 1 + self._validates(model)]
        read, own = [self.layout.plans_file(model, view), *more], [self.layout.model(model, view)]
        cost = self._training_cost(settings, view)
        return _step(f"{self.layout.named(model, view)}-train", generation, argv, outputs, read, own, cost=cost)

    def _training_cost(self, settings: Mapping[str, Any], view: str) -> Cost | None:
        """Iterations of the plans' network on a device; None without plans, of which a start of the loop tells."""
        try:
            m0 = self._settings_of(view)
        except UserError:
            return None
        epochs = int(settings.get("num_epochs", m0.num_epochs))
        kind = f"train {TRAINER} {self.options.configuration} {self.device}: {self.layout.dataset}, {view}"
        return Cost(kind, epochs * m0.num_iterations_per_epoch, epochs)

    def _settings_of(self, view: str) -> RunSettings:
        return RunSettings.from_plans(read_json(paths.plans_file(self.options.dataset, view)))

    def label(self, generation: int, subset: int, view: str) -> Step:
        """Pseudo labels of one subset, on the voxels of one view, by the model that was not trained on it."""
        return self._label(
            f"g{generation}s{subset}",
            generation,
            self.options.labeller(generation, subset),
            self.layout.labels(generation, subset, view),
            self.layout.subset(subset),
            bool(self.options.super_classes) and not self.options.super_class_task,  # a model of unions labels unions
            view,
        )

    def label_all(self, name: str, model: str, coarse: bool) -> list:
        """Pseudo labels of the whole reference set by one model, on the voxels of every view."""
        after, cases = self.options.generations + 1, self.layout.reference
        return [
            self._label(name, after, model, self.layout.other_labels(name, i), cases, coarse, i) for i in self.options.all_plans
        ]

    def _label(self, name: str, generation: int, model: str, out: Path, cases: Path, coarse: bool, view: str) -> Step:
        """With several views all of the model's networks label together."""
        o = self.options
        argv = [
            "nnunet_partial",
            "pseudo-label",
            o.dataset,
            "--configuration",
            o.configuration,
            "--fold",
            o.fold,
            "--plans",
            view,
            "--from",
            *(self.layout.model(model, i) for i in o.all_plans),
            *self._rule,
            "--out",
            out,
            "--cases",
            cases,
            "--device",
            self.device,
        ]
        argv += ["--super-classes", o.super_classes] if coarse else []
        argv += ["--largest-component"] if o.largest_component else []
        argv += ["--disable-tta"] if o.disable_tta else []
        argv += ["--trust"] if o.trust and model == "m0" and o.initial_model else []
        read = [*self.layout.checkpoints(model), cases]
        return _step(f"{self.layout.named(name, view)}-label", generation, argv, [self._provenance(out)], read, [out])

    @property
    def _rule(self) -> list:
        """How the networks of several views become one opinion."""
        return ["--rule", self.options.rule or RULES[0]] if self.options.views else []

    def exclude(self, t: int) -> Step:
        """The cases that the filter leaves out."""
        o, out = self.options, self.layout.excluded(t)
        argv = [
            "nnunet_partial",
            "atso",
            "exclude",
            self.layout.generation_labels(t),
            "--by",
            o.filter,
            "--share",
            o.filter_share,
            "--out",
            out,
        ]
        if o.filter == "disagreement":
            argv += ["--previous", self.layout.generation_labels(t - 1)]
        compared = (t, t - 1) if o.filter == "disagreement" else (t,)
        read = [self._provenance(self.layout.labels(i, j)) for i in compared for j in o.models_of_a_generation]
        return _step(f"g{t}-exclude", t, argv, [out], read, owned=[out], light=True)

    def predict(self, models: list, generation: int) -> list:
        """Predictions of the test images by each of ``models`` in every view, if there are any images."""
        o = self.options
        return [self._predict(i, generation, view) for i in self._tested(models) for view in o.all_plans]

    def fuse(self, models: list, generation: int) -> list:
        """What several views say of the test images together."""
        return [self._fuse(i, generation) for i in self._tested(models)] if self.options.views else []

    def _tested(self, models: list) -> list:
        return [i for i in models if self._has_all_classes(i)] if self.options.test_images else []

    def _has_all_classes(self, model: str) -> bool:
        """Whether its masks can be compared with labels of the dataset; those of a super-class task are numbered anew."""
        return not self.options.super_class_task or model in ("target", "final-full")

    def _fuse(self, model: str, generation: int) -> Step:
        o, out = self.options, self.layout.predictions(model)
        folders = [self.layout.predictions_of_view(model, i) for i in o.all_plans]
        argv = ["nnunet_partial", "fuse", "--pred", *folders, "--dataset", o.dataset, *self._rule, "--out", out]
        read = [*(i / "predict_from_raw_data_args.json" for i in folders), *self.layout.checkpoints(model)]
        done = [out / "fusion.json"]
        return _step(
            f"{model}-fuse", generation, argv, done, read, [out], atomic=False, predictions=self._predictions_of_test(out)
        )

    def _predictions_of_test(self, out: Path) -> ExpectedPredictions:
        dataset = paths.root("nnUNet_preprocessed") / self.layout.dataset / "dataset.json"
        return ExpectedPredictions(Path(self.options.test_images or ""), out, dataset)

    def _predict(self, model: str, generation: int, view: str) -> Step:
        o, out = self.options, self.layout.predictions_of_view(model, view)
        argv = [
            "nnUNetv2_predict_from_modelfolder",
            "-i",
            o.test_images,
            "-o",
            out,
            "-m",
            self.layout.model(model, view),
            "-f",
            o.fold,
            "-device",
            self.device,
            "-npp",
            "1",
            "-nps",
            "1",
            "--disable_progress_bar",
        ]
        argv += ["--disable_tta"] if o.disable_tta else []
        argv += ["--save_probabilities"] if o.views else []
        return _step(
            f"{self.layout.named(model, view)}-predict",
            generation,
            argv,
            [out / "predict_from_raw_data_args.json"],
            [self.layout.checkpoint(model, view)],
            [out],
            atomic=False,
            predictions=self._predictions_of_test(out),
        )

    def report(self, t: int) -> Step:
        """Scores, changes and pictures of everything that is there at the start of generation ``t``."""
        argv = ["nnunet_partial", "atso", "report", self.layout.folder]
        return _step(
            f"g{t}-report" if t <= self.options.generations else "report",
            t,
            argv,
            [self.layout.report / "index.html"],
            atomic=False,
            light=True,
            owned=[self.layout.report] if t > self.options.generations else [],
        )

    # ---- for the report

    def manifest(self) -> dict:
        """Models, labels and predictions of every generation: what ``plan.json`` holds."""
        o, layout = self.options, self.layout
        generations = [{"generation": 0, "models": {"m0": self._model("m0")}, "labels": str(layout.generation_labels(1))}]
        for t in range(1, o.generations + 1):
            following = layout.generation_labels(t + 1) if t < o.generations else layout.other_labels("final")
            own = t < o.generations or o.subsets == 1 and not o.super_classes
            generations.append(
                {
                    "generation": t,
                    "models": {f"g{t}s{i}": self._model(f"g{t}s{i}") for i in o.models_of_a_generation},
                    "labels": str(following) if own else None,
                }
            )
        if self.returned_model not in generations[-1]["models"]:
            last = (o.last_model, self._before_full_classes, self.returned_model)
            names = [i for i in last if i not in generations[-1]["models"]]
            generations.append(
                {
                    "generation": "final",
                    "models": {i: self._model(i) for i in dict.fromkeys(names)},
                    "labels": str(layout.other_labels("final")),
                }
            )
        return {
            "version": 1,
            "options": o.to_json(),
            "dataset": layout.dataset,
            "returned_model": self.returned_model,
            "reference": str(layout.reference),
            "generations": generations,
        }

    def _model(self, name: str) -> dict:
        tested = self.options.test_images and self._has_all_classes(name)
        predictions = str(self.layout.predictions(name)) if tested else None
        return {"folder": str(self.layout.model(name)), "predictions": predictions}


def _rate_of_last_stage(m0: RunSettings, stage: int, view: str) -> str:
    """M0's mean learning rate over its last ``stage`` epochs: the paper's is constant there."""
    epochs = range(m0.num_epochs - stage, m0.num_epochs)
    rates = [rate for i in epochs if (rate := m0.learning_rate(i)) is not None]
    if not rates:
        raise UserError(
            f"plans {view}: with schedule={m0.schedule} no plans say which learning rate M0 ends with. Give "
            "that of fine-tuning: --fine-tune-lr (of compare: --atso-fine-tune-lr)."
        )
    return f"{sum(rates) / stage:.4g}"


def _one_after_the_other(groups: list) -> list:
    """``groups``, the steps of each needing all of the group before."""
    names = [tuple(i.name for i in group) for group in groups]
    return [[replace(i, needs=before) for i in group] for group, before in zip(groups, [(), *names])]


def _step(
    name: str, generation: int, argv: Sequence, outputs: Sequence, inputs: Sequence = (), owned: Sequence = (), **more: Any
) -> Step:
    return Step(name, generation, tuple(str(i) for i in argv), tuple(outputs), inputs=tuple(inputs), owned=tuple(owned), **more)


__getattr__ = _moved.renamed(__name__, {"Planner": "AtsoSteps", "Stage": "orchestration.engine.Step"})
