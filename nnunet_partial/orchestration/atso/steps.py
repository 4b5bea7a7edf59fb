"""Algorithm 1 as steps: commands that a person can type, with what they read, write, and when they are done."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_partial import _moved, paths
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json
from nnunet_partial.orchestration.atso.layout import TRAINER, Layout
from nnunet_partial.orchestration.atso.options import AtsoOptions
from nnunet_partial.orchestration.engine import Step
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
            groups += [[self.plans("m0", 0, self._task())], [self.train("m0", 0)]]
        for t in range(1, o.generations + 1):
            groups += self.generation(t)
        groups += self.ending()
        return _one_after_the_other([i for i in groups if i])

    def generation(self, t: int) -> list:
        """Label, choose, train, report. The models of the generation before are tested while it labels."""
        o = self.options
        before = ["m0"] if t == 1 else [f"g{t - 1}s{i}" for i in o.models_of_a_generation]
        return [
            [self.label(t, i) for i in o.models_of_a_generation] + self.predict(before, t),
            [self.report(t)] if t > 1 else [],
            [self.exclude(t)] if self._filters(t) else [],
            [self.plans(f"g{t}s{i}", t, self._student(t, i)) for i in o.models_of_a_generation],
            [self.train(f"g{t}s{i}", t, self._read_by_student(t, [i], o.starts_from(t, i))) for i in o.models_of_a_generation],
        ]

    def ending(self) -> list:
        """The model on all pseudo labels, at full class level if they were coarser, its labels, and the report."""
        o, after = self.options, self.options.generations + 1
        groups, tested = [], [f"g{o.generations}s{i}" for i in o.models_of_a_generation]
        last = o.last_model
        if o.subsets > 1:
            groups += [[self.plans("final", after, self._final())], [self.train("final", after, self._read_by_final())]]
            tested.append("final")
        if o.super_class_task:
            last = "target"
            groups += [
                [self.label_all("super_classes", o.last_model, coarse=False)],
                [self.plans("target", after, {"labels": self.layout.other_labels("super_classes")})],
                [self.train("target", after, [self._provenance(self.layout.other_labels("super_classes"))])],
            ]
            tested.append("target")
        if o.super_classes:
            groups += [
                [self.label_all("full_classes", last, coarse=False)],
                [self.plans("final-full", after, self._full_classes())],
                [self.train("final-full", after, self._read_by_full_classes())],
            ]
            tested.append("final-full")
        groups.append([self.label_all("final", self.returned_model, coarse=False)] + self.predict(tested, after))
        return [*groups, [self.report(after)]]

    @property
    def returned_model(self) -> str:
        """Name of the model that the run returns."""
        return "final-full" if self.options.super_classes else self.options.last_model

    # ---- settings of the models

    def _student(self, t: int, subset: int) -> dict:
        start = self.options.starts_from(t, subset)
        return {
            **({} if start is None else self._fine_tuning(start)),
            "labels": self.layout.labels(t, subset),
            **self._supervision(t),
        }

    def _final(self) -> dict:
        t = self.options.generations
        start = self._fine_tuning("m0") if self.options.final_from == "m0" else {}
        return {**start, "labels": self.layout.generation_labels(t), **self._supervision(t)}

    def _full_classes(self) -> dict:
        return {**self._fine_tuning(self._before_full_classes), "labels": self.layout.other_labels("full_classes")}

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
        return Path(self.options.super_classes or "").read_text(encoding="utf-8").strip()

    def _fine_tuning(self, start: str) -> dict:
        settings = {**self._length_and_rate, "atso.initial_weights": self.layout.checkpoint(start)}
        return {k: v for k, v in settings.items() if v is not None}

    @cached_property
    def _length_and_rate(self) -> dict:
        """Length, schedule and learning rate of every model that starts from another, where they differ from the plans'."""
        o = self.options
        if o.fine_tune_schedule != "constant" and o.stage == 1:
            return {"num_epochs": o.fine_tune_epochs, "initial_lr": o.fine_tune_lr}
        m0 = self._settings_of_m0()
        stage = max(1, round(o.stage * m0.num_epochs))
        length = {"num_epochs": o.fine_tune_epochs or stage}
        if o.fine_tune_schedule != "constant":
            return length
        idle = {f"plateau_{i}": "None" for i in PLATEAU if getattr(m0, f"plateau_{i}") is not None}
        return {**length, "schedule": "constant", **idle, "initial_lr": o.fine_tune_lr or self._rate_of_last_stage(m0, stage)}

    def _settings_of_m0(self) -> RunSettings:
        return RunSettings.from_plans(read_json(paths.plans_file(self.options.dataset, self.options.plans)))

    def _rate_of_last_stage(self, m0: RunSettings, stage: int) -> str:
        """M0's mean learning rate over its last ``stage`` epochs: the paper's is constant there."""
        epochs = range(m0.num_epochs - stage, m0.num_epochs)
        rates = [rate for i in epochs if (rate := m0.learning_rate(i)) is not None]
        if not rates:
            raise UserError(
                f"plans {self.options.plans}: with schedule={m0.schedule} no plans say which learning rate M0 ends with. Give "
                "that of fine-tuning: --fine-tune-lr (of compare: --atso-fine-tune-lr)."
            )
        return f"{sum(rates) / stage:.4g}"

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

    def _read_by_student(self, t: int, subsets: Sequence[int], start: str | None) -> list:
        labels = [self._provenance(self.layout.labels(t, i)) for i in subsets]
        excluded = [self.layout.excluded(t)] if self._filters(t) else []
        return [*labels, *excluded, *([] if start is None else [self.layout.checkpoint(start)])]

    def _read_by_final(self) -> list:
        o = self.options
        return self._read_by_student(o.generations, o.models_of_a_generation, "m0" if o.final_from == "m0" else None)

    def _read_by_full_classes(self) -> list:
        labels = self._provenance(self.layout.other_labels("full_classes"))
        return [labels, self.layout.checkpoint(self._before_full_classes)]

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

    def plans(self, model: str, generation: int, settings: dict | None = None) -> Step:
        """The plans variant of a model."""
        settings = {**(settings or {}), "atso.final_validation": "true" if self._validates(model) else "false"}
        argv = [
            "nnunet_partial",
            "variant",
            self.options.dataset,
            "--base",
            self.options.plans,
            "--name",
            self.layout.variant(model),
            "--overwrite",
        ]
        for name, value in settings.items():
            argv += ["--set", f"{name}={value}"]
        file = self.layout.plans_file(model)
        return _step(f"{model}-plans", generation, argv, [file], owned=[file], light=True)

    def train(self, model: str, generation: int, more: Sequence[Path] = ()) -> Step:
        """Train one model, or go on with it. ``more``: what it reads beside its plans."""
        o, checkpoint = self.options, self.layout.checkpoint(model)
        # always --c: without a checkpoint it starts from the beginning, and a job that the cluster hands in again goes on
        argv = [
            "nnUNetv2_train",
            o.dataset,
            o.configuration,
            o.fold,
            "-tr",
            TRAINER,
            "-p",
            self.layout.plans(model),
            "-device",
            self.device,
            "--c",
        ]
        outputs = [checkpoint, checkpoint.parent / "validation" / "summary.json"][: 1 + self._validates(model)]
        return _step(
            f"{model}-train", generation, argv, outputs, [self.layout.plans_file(model), *more], [self.layout.model(model)]
        )

    def label(self, generation: int, subset: int) -> Step:
        """Pseudo labels of one subset by the model that was not trained on it."""
        return self._label(
            f"g{generation}s{subset}-label",
            generation,
            self.options.labeller(generation, subset),
            self.layout.labels(generation, subset),
            self.layout.subset(subset),
            bool(self.options.super_classes) and not self.options.super_class_task,  # a model of unions labels unions
        )

    def label_all(self, name: str, model: str, coarse: bool) -> Step:
        """Pseudo labels of the whole reference set by one model."""
        return self._label(
            f"{name}-label", self.options.generations + 1, model, self.layout.other_labels(name), self.layout.reference, coarse
        )

    def _label(self, name: str, generation: int, model: str, out: Path, cases: Path, coarse: bool) -> Step:
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
            o.plans,
            "--from",
            self.layout.model(model),
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
        return _step(name, generation, argv, [self._provenance(out)], [self.layout.checkpoint(model), cases], [out])

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
        """Predictions of the test images by each of ``models``, if there are any images."""
        o = self.options
        return [self._predict(i, generation) for i in models if self._has_all_classes(i)] if o.test_images else []

    def _has_all_classes(self, model: str) -> bool:
        """Whether its masks can be compared with labels of the dataset; those of a super-class task are numbered anew."""
        return not self.options.super_class_task or model in ("target", "final-full")

    def _predict(self, model: str, generation: int) -> Step:
        o, out = self.options, self.layout.predictions(model)
        argv = [
            "nnUNetv2_predict_from_modelfolder",
            "-i",
            o.test_images,
            "-o",
            out,
            "-m",
            self.layout.model(model),
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
        return _step(
            f"{model}-predict",
            generation,
            argv,
            [out / "predict_from_raw_data_args.json"],
            [self.layout.checkpoint(model)],
            [out],
            atomic=False,
            predictions=ExpectedPredictions(
                Path(o.test_images or ""), out, paths.root("nnUNet_preprocessed") / self.layout.dataset / "dataset.json"
            ),
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


def _one_after_the_other(groups: list) -> list:
    """``groups``, the steps of each needing all of the group before."""
    names = [tuple(i.name for i in group) for group in groups]
    return [[replace(i, needs=before) for i in group] for group, before in zip(groups, [(), *names])]


def _step(
    name: str, generation: int, argv: Sequence, outputs: Sequence, inputs: Sequence = (), owned: Sequence = (), **more: Any
) -> Step:
    return Step(name, generation, tuple(str(i) for i in argv), tuple(outputs), inputs=tuple(inputs), owned=tuple(owned), **more)


__getattr__ = _moved.renamed(__name__, {"Planner": "AtsoSteps", "Stage": "orchestration.engine.Step"})
