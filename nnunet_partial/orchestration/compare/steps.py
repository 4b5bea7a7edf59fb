"""A comparison of methods as steps: commands that a person can type, with what they need and when they are done.

No method's training reads the test images or their labels, and nothing is chosen by them: every model is the one at the
end of its training.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunet_partial import _moved, paths
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json
from nnunet_partial.labels import Annotations, check_source_name
from nnunet_partial.orchestration.atso import layout as atso_layout
from nnunet_partial.orchestration.atso import options as atso_options
from nnunet_partial.orchestration.atso import steps as atso_steps
from nnunet_partial.orchestration.compare.methods import TEACHER, Method, find_methods
from nnunet_partial.orchestration.engine import Cost, Step
from nnunet_partial.outputs import ExpectedPredictions
from nnunet_partial.recipes import read_recipe
from nnunet_partial.settings import BLOCKS, NETWORK_CHANGES, RunSettings, parse_assignments

COMPLETED = "completed"  # the plans variant that trains on completed labels


@dataclass(frozen=True)
class CompareOptions:
    """Everything that the result depends on. Folders are absolute.

    ``plans``        planned network, or a variant of it; every model's plans are variants of these
    ``name``         of these variants: ``PLANS_NAME-s0`` for seed 0
    ``settings``     ``name=value`` of every variant: the budget, the network
    ``folds``        folds to train; with a test set their models predict together, without one they validate
    ``test_images``, ``test_labels``  None: cross-validation on the annotated classes
    ``recipe``       how a paper trains, for every variant; ``settings`` override it
    ``full_dataset`` the same cases with all labels, for the method ``full``
    ``trust``        the user vouches for the architectures of models that are there already
    ``efficiency``   cases on which the cost of prediction is measured, 0 for none
    ``own``          what single methods do differently: name -> ``(recipe or None, settings)``, laid over those of all
    """

    dataset: str
    configuration: str
    methods: tuple
    out: str
    plans: str = "nnUNetPlans"
    name: str = "compare"
    settings: tuple = ()
    seeds: tuple = (0,)
    folds: tuple = ("0",)
    test_images: str | None = None
    test_labels: str | None = None
    full_dataset: str | None = None
    metric: str = "dice"
    device: str = "cuda"
    disable_tta: bool = False
    atso_generations: int = 5
    atso_fine_tune_epochs: int | None = None
    efficiency: int = 0
    trust: bool = False
    recipe: str | None = None
    atso_fine_tune_lr: float | None = None
    own: Mapping[str, tuple] = field(default_factory=dict)

    def __post_init__(self):
        for recipe in (self.recipe, *(i for i, _ in self.own.values())):
            if recipe is not None:
                read_recipe(recipe)
        check_source_name(self.name)
        find_methods(self.methods)
        if (self.test_images is None) != (self.test_labels is None):
            raise UserError("--test-images and --test-labels belong together: give both, or none for cross-validation.")
        for name, given in (("--methods", self.methods), ("--seeds", self.seeds), ("--folds", self.folds)):
            if not given or len(set(given)) != len(given):
                raise UserError(f"{name}: give each once, and at least one.")
        if self.cross_validation and any(i.get("final_validation") is False for i in self._given_settings()):
            raise UserError(
                "final_validation=false leaves cross-validation nothing to evaluate: leave it out, or give a test set, "
                "--test-images and --test-labels."
            )
        if self.efficiency < 0:
            raise UserError(f"--efficiency {self.efficiency}: give a number of cases, or 0.")
        unknown = [i for i in self.own if i not in find_methods(self.methods)]
        if unknown:
            raise UserError(f"settings are given for {unknown[0]}, which is none of the methods {', '.join(self.methods)}.")
        shared = [k for k, i in find_methods(self.methods).items() if k in self.own and i.kind in ("fused", "atso")]
        if shared:
            raise UserError(f"the method {shared[0]} shares trainings with others: give its settings to all methods.")
        if "full" in self.methods and self.full_dataset is None:
            raise UserError("the method full needs --full-dataset: the same cases with the labels of all classes.")
        if self.test_images is None and "all" in self.folds:
            raise UserError(
                "--folds all leaves no case to validate on. Name folds such as 0 1 2 3 4, or give --test-images and "
                "--test-labels."
            )

    def _given_settings(self) -> list:
        """The settings of all methods, then those of single ones, as they are given."""
        return [parse_assignments(i) for i in (self.settings, *(own for _, own in self.own.values()))]

    @property
    def cross_validation(self) -> bool:
        return self.test_images is None


# ------------------------------------------------------------------ what is to be done


class ComparisonSteps:
    """The steps of a comparison, from its options and the sources that annotate something.

    ``sources``: their names, where the dataset is not there yet; None: those of its contract.
    """

    def __init__(self, options: CompareOptions, sources: Sequence[str] | None = None):
        self.options, self.methods = options, find_methods(options.methods)
        if parse_assignments(options.settings).get("mskd", {}).get("teachers") == "soft":
            self.methods = {k: i.from_soft_labels() for k, i in self.methods.items()}
        self.out = Path(options.out)
        self.dataset = paths.dataset_name(options.dataset)
        if sources is None:
            sources = Annotations.read(paths.preprocessed_dataset(self.dataset)).annotated_sources
        self.sources = tuple(sources)
        if self.given_teachers and any(i.kind == "fused" for i in self.methods.values()):
            raise UserError(
                "the method individual tests the teachers that are trained here: leave mskd.teachers out, or the method."
            )
        self._steps: dict = {}

    def steps(self) -> list:
        """Every step, each after those that it needs."""
        self._steps = {}
        for seed in self.options.seeds:
            self._plans(seed)
            for name, method in self.methods.items():
                self._evaluate(name, seed, *self._method(name, method, seed))
        self._report()
        return list(self._steps.values())

    def _add(self, name: str, part: str, argv: Iterable, outputs: Iterable, **more: Any) -> str:
        """Add a step unless it is there already; several methods may need the same teacher. Returns its name."""
        self._steps.setdefault(name, Step(name, part, tuple(str(i) for i in argv), tuple(outputs), **more))
        return name

    # ---- names and places

    def plans(self, seed: int, *more: str) -> str:
        return "_".join([self.options.plans, f"{self.options.name}-s{seed}", *more])

    def plans_file(self, plans: str, dataset: str | None = None) -> Path:
        return paths.root("nnUNet_preprocessed").absolute() / (dataset or self.dataset) / f"{plans}.json"

    @property
    def _preprocessed(self) -> Path:
        return paths.root("nnUNet_preprocessed").absolute() / self.dataset

    @property
    def given_teachers(self) -> Mapping[str, str]:
        """source -> model folder of a teacher that was trained elsewhere, as the settings name it."""
        given = parse_assignments(self.options.settings).get("mskd", {}).get("teachers", {})
        return given if isinstance(given, Mapping) else {}  # soft: labels in their place

    def model(self, trainer: str, plans: str, dataset: str | None = None) -> Path:
        return paths.model_folder(dataset or self.dataset, trainer, plans, self.options.configuration).absolute()

    @property
    def full_dataset(self) -> str:
        return paths.dataset_name(self.options.full_dataset or "")

    def models(self, name: str, seed: int) -> list:
        """The model folders of a method under one seed."""
        method = self.methods[name]
        if method.kind == "fused":
            return [self.model(TEACHER, self.plans(seed, i)) for i in self.sources]
        if method.kind == "atso":
            return list(dict.fromkeys(self._atso(name, seed, fold).model for fold in self.options.folds))
        dataset = self.full_dataset if method.kind == "full" else None
        return [self.model(method.trainer, self.plans(seed, *self._plans_parts(name)), dataset)]

    def _plans_parts(self, name: str) -> tuple:
        """What distinguishes the plans of a method from those of all: completed labels, settings of its own."""
        return (*((COMPLETED,) if self.methods[name].labelled else ()), *((name,) if name in self.options.own else ()))

    def evaluation(self, name: str, seed: int) -> Path:
        return self.out / "evaluation" / name / f"s{seed}"

    def predictions(self, name: str, seed: int) -> Path:
        """Where the test images are predicted by a method; by that of the teachers, in folders below."""
        return self.out / "predictions" / name / f"s{seed}"

    def teacher_predictions(self, name: str, seed: int, source: str, group: str = "test") -> Path:
        """What one teacher says of the images of ``group``: ``test``, or those of a fold."""
        return self.predictions(name, seed) / group / source

    # ---- plans, teachers, labels

    def _plans(self, seed: int) -> None:
        o = self.options
        settings = [j for i in (*o.settings, f"seed={seed}") for j in ("--set", i)]
        owners = self._owners(o.settings, self.methods.values())
        for dataset in [self.dataset, *([self.full_dataset] if "full" in self.methods else [])]:
            argv = [
                "nnunet_partial",
                "variant",
                dataset,
                "--base",
                o.plans,
                "--name",
                f"{o.name}-s{seed}",
                "--configuration",
                o.configuration,
                *(["--recipe", o.recipe] if o.recipe else []),
                *settings,
                *owners,
            ]
            self._add(
                _plans_step(seed, dataset if dataset != self.dataset else ""),
                "plans",
                argv,
                [self.plans_file(self.plans(seed), dataset)],
                light=True,
            )

    def _owners(self, settings: Sequence[str], methods: Iterable[Method]) -> list:
        """Arguments that name the trainers whose own settings are among these."""
        blocks = {*parse_assignments(settings)} - {*BLOCKS}
        return [j for i in methods if i.settings_name in blocks for j in ("--trainer", i.trainer)]

    def _teachers(self, seed: int, fold: str) -> list:
        argv = ["nnunet_partial", "variant", self.dataset, "--base", self.plans(seed), "--per-source"]
        plans = self._add(
            f"s{seed}-plans-of-teachers",
            "plans",
            argv,
            [self.plans_file(self.plans(seed, i)) for i in self.sources],
            needs=(_plans_step(seed),),
            light=True,
        )
        return [
            self._train(f"s{seed}-teacher-{i}", "teachers", TEACHER, self.plans(seed, i), fold, (plans,), self._settings())
            for i in self.sources
            if i not in self.given_teachers
        ]

    def labels(self, seed: int) -> Path:
        """Completed labels lie with the models, so that another comparison of the same name finds both."""
        folder = f"{self.plans(seed, COMPLETED)}__{self.options.configuration}"
        return paths.root("nnUNet_results").absolute() / self.dataset / "labels" / folder

    def _labels(self, seed: int, fold: str) -> str:
        """Completed labels of the training cases of one fold; returns the step that they are done with."""
        o, folder = self.options, self.labels(seed) / f"fold_{fold}"
        argv = [
            "nnunet_partial",
            "pseudo-label",
            self.dataset,
            "--configuration",
            o.configuration,
            "--fold",
            fold,
            "--plans",
            self.plans(seed),
            "--from",
            "teachers",
            "--out",
            folder,
            "--device",
            o.device,
            "--overwrite",
            *(["--disable-tta"] if o.disable_tta else []),
            *(["--trust"] if o.trust else []),
            *(["--soft"] if any(i.soft for i in self.methods.values()) else []),
        ]
        own = [i for i in self.sources if i not in self.given_teachers]
        teachers = [paths.final_checkpoint(self.model(TEACHER, self.plans(seed, i)), fold) for i in own]
        return self._add(
            f"s{seed}-labels-fold{fold}",
            "labels",
            argv,
            [folder / "provenance.json"],
            needs=(_plans_step(seed), *self._teachers(seed, fold)),
            inputs=tuple(teachers),
        )

    def _plans_of_completed(self, seed: int) -> str:
        argv = [
            "nnunet_partial",
            "variant",
            self.dataset,
            "--base",
            self.plans(seed),
            "--name",
            COMPLETED,
            "--set",
            f"labels={self.labels(seed)}/fold_{{fold}}",
        ]
        return self._add(
            f"s{seed}-plans-of-completed",
            "plans",
            argv,
            [self.plans_file(self.plans(seed, COMPLETED))],
            needs=(_plans_step(seed),),
            light=True,
        )

    # ---- models

    def _train(
        self,
        name: str,
        part: str,
        trainer: str,
        plans: str,
        fold: str,
        needs: Sequence[str],
        settings: Mapping[str, Any],
        dataset: str | None = None,
    ) -> str:
        o, model = self.options, self.model(trainer, plans, dataset)
        # --c without a checkpoint starts from the beginning, so the command is the same before and after an interruption
        argv = [
            "nnUNetv2_train",
            dataset or self.dataset,
            o.configuration,
            fold,
            "-tr",
            trainer,
            "-p",
            plans,
            "-device",
            o.device,
            "--c",
        ]
        done = paths.fold_folder(model, fold)
        return self._add(
            f"{name}-fold{fold}",
            part,
            argv,
            _outputs_of_training(done, settings),
            needs=tuple(needs),
            taken=lambda: require_same_plans(model, self.plans_file(plans, dataset), o.configuration),
            cost=self._training_cost(trainer, settings),
        )

    def _training_cost(self, trainer: str, settings: Mapping[str, Any]) -> Cost:
        """Iterations of a network on a device. One of the plans is that of this dataset."""
        own = [f"{i}={settings[i]}" for i in NETWORK_CHANGES if i in settings]
        network = ", ".join(own if len(own) == len(NETWORK_CHANGES) else [self.dataset, self.options.plans, *own])
        epochs = int(settings.get("num_epochs", RunSettings.num_epochs))
        iterations = int(settings.get("num_iterations_per_epoch", RunSettings.num_iterations_per_epoch))
        kind = f"train {trainer} {self.options.configuration} {self.options.device}: {network}"
        return Cost(kind, max(1, epochs * iterations), epochs)

    def _prediction_cost(self, images: str, folds: int) -> Cost | None:
        """Images times models; not known before the images are there."""
        number = len(os.listdir(images)) if os.path.isdir(images) else 0
        kind = f"predict {self.dataset} {self.options.plans} {self.options.configuration} {self.options.device}"
        return Cost(f"{kind}{'' if self.options.disable_tta else ' mirrored'}", number * folds) if number else None

    def _settings(self, name: str | None = None) -> dict:
        """Settings of all methods, or of one, as far as they are known before the plans are written."""
        o = self.options
        layers = [(o.recipe, o.settings), *([o.own[name]] if name and name in o.own else [])]
        found: dict = {}
        for recipe, settings in layers:
            found |= {k: v["value"] for k, v in read_recipe(recipe).settings.items() if "value" in v} if recipe else {}
            found |= parse_assignments(settings)
        return found

    def _method(self, name: str, method: Method, seed: int) -> tuple:
        """Steps of one method under one seed; ``(folders to evaluate, steps to wait for)``."""
        if method.kind == "fused":
            return self._fused(name, seed)
        steps = []
        for fold in self.options.folds:
            steps.append(
                self._atso_step(name, seed, fold) if method.kind == "atso" else self._train_method(name, method, seed, fold)
            )
        if self.options.cross_validation:
            folders = [paths.fold_folder(self._model_of_fold(name, seed, i), i) / "validation" for i in self.options.folds]
            return folders, steps
        out = self.predictions(name, seed)
        return [out], [self._predict(f"s{seed}-{name}-predict", self.models(name, seed)[0], out, steps)]

    def _model_of_fold(self, name: str, seed: int, fold: str) -> Path:
        return self._atso(name, seed, fold).model if self.methods[name].kind == "atso" else self.models(name, seed)[0]

    def _train_method(self, name: str, method: Method, seed: int, fold: str) -> str:
        dataset = self.full_dataset if method.kind == "full" else None
        needs = [self._plans_of(name, seed, dataset)]
        if method.labelled:
            needs.append(self._labels(seed, fold))
        elif method.taught:
            needs += self._teachers(seed, fold)
        plans = self.plans(seed, *self._plans_parts(name))
        return self._train(f"s{seed}-{name}-train", "training", method.trainer, plans, fold, needs, self._settings(name), dataset)

    def _plans_of(self, name: str, seed: int, dataset: str | None = None) -> str:
        """The step that writes the plans which a method trains with."""
        base = self._plans_of_completed(seed) if self.methods[name].labelled else _plans_step(seed, dataset or "")
        if name not in self.options.own:
            return base
        recipe, settings = self.options.own[name]
        parts = self._plans_parts(name)
        argv = [
            "nnunet_partial",
            "variant",
            dataset or self.dataset,
            "--base",
            self.plans(seed, *parts[:-1]),
            "--name",
            name,
            "--configuration",
            self.options.configuration,
            *(["--recipe", recipe] if recipe else []),
            *(j for i in settings for j in ("--set", i)),
            *self._owners(settings, [self.methods[name]]),
        ]
        file = self.plans_file(self.plans(seed, *parts), dataset)
        return self._add(f"s{seed}-plans-of-{name}", "plans", argv, [file], needs=(base,), light=True)

    def _predict(
        self,
        name: str,
        model: Path,
        out: Path,
        needs: Sequence[str],
        *more: str,
        images: str | None = None,
        folds: Sequence[str] = (),
        outputs: Sequence[Path] = (),
    ) -> str:
        o, folds = self.options, folds or self.options.folds
        argv = [
            "nnUNetv2_predict_from_modelfolder",
            "-i",
            images or o.test_images,
            "-o",
            out,
            "-m",
            model,
            "-f",
            *folds,
            "-device",
            o.device,
            "-npp",
            1,
            "-nps",
            1,
            "--disable_progress_bar",
            *(["--disable_tta"] if o.disable_tta else []),
            *more,
        ]
        return self._add(
            name,
            "prediction",
            argv,
            outputs or [out / "predict_from_raw_data_args.json"],
            needs=tuple(needs),
            inputs=tuple(paths.final_checkpoint(model, i) for i in folds),
            owned=(out,),
            cost=self._prediction_cost(images or o.test_images or "", len(folds)),
            predictions=ExpectedPredictions(Path(images or o.test_images or ""), out, self._preprocessed / "dataset.json"),
        )

    # ---- the teachers' predictions, fused

    def _fused(self, name: str, seed: int) -> tuple:
        o, folders, steps = self.options, [], []
        groups = (
            [(f"fold{i}", (i,), str(validation_images(self.out, i))) for i in o.folds]
            if o.cross_validation
            else [("test", o.folds, o.test_images)]
        )
        for label, folds, images in groups:
            trained = list(dict.fromkeys(step for i in folds for step in self._teachers(seed, i)))
            fused, parts, waited = self.predictions(name, seed) / label / "fused", [], []
            for source in self.sources:
                out = self.teacher_predictions(name, seed, source, label)
                parts.append(out)
                waited.append(
                    self._predict(
                        f"s{seed}-{name}-predict-{source}-{label}",
                        self.model(TEACHER, self.plans(seed, source)),
                        out,
                        trained,
                        "--save_probabilities",
                        images=images,
                        folds=folds,
                    )
                )
            argv = [
                "nnunet_partial",
                "fuse",
                "--pred",
                *parts,
                "--dataset",
                self.dataset,
                "--out",
                fused,
                "--remove-probabilities",
            ]
            steps.append(
                self._add(
                    f"s{seed}-{name}-fuse-{label}",
                    "prediction",
                    argv,
                    [fused / "dataset.json"],
                    needs=tuple(waited),
                    owned=(fused,),
                    light=True,
                )
            )
            folders.append(fused)
        return folders, steps

    # ---- ATSO

    def _atso(self, name: str, seed: int, fold: str) -> "_Atso":
        """The run of the strategy ``name``. All start from one M0, but for a run that version 0.1 began, which has its own."""
        o = self.options
        loop = _Atso(
            atso_options.AtsoOptions(
                self.dataset,
                o.configuration,
                fold,
                self.plans(seed),
                f"{o.name}-s{seed}" + ("" if name == "atso" else f"-{name}"),
                name,
                generations=o.atso_generations,
                subsets=2 if name == "atso" else 1,
                seed=seed,
                fine_tune_epochs=o.atso_fine_tune_epochs,
                fine_tune_lr=o.atso_fine_tune_lr,
                disable_tta=o.disable_tta,
                trust=o.trust,
            )
        )
        return loop if loop.trains_m0 else loop.starting_from(self.model(atso_layout.TRAINER, self.plans(seed)))

    def _atso_step(self, name: str, seed: int, fold: str) -> str:
        made, o, needs = self._atso(name, seed, fold), self.options, (_plans_step(seed),)
        loop = made.options
        argv = [
            "python",
            "-m",
            "nnunet_partial.orchestration.atso.command",
            "--dataset",
            loop.dataset,
            "--configuration",
            loop.configuration,
            "--fold",
            fold,
            "--plans",
            loop.plans,
            "--run",
            loop.run,
            "--generations",
            loop.generations,
            "--seed",
            seed,
            "--device",
            o.device,
            "--executor",
            "debug",
        ]
        argv += ["--disable-tta"] if loop.disable_tta else []
        argv += ["--fine-tune-epochs", loop.fine_tune_epochs] if loop.fine_tune_epochs else []
        argv += ["--fine-tune-lr", loop.fine_tune_lr] if loop.fine_tune_lr else []
        argv += ["--strategy", name] if name != "atso" else []
        if loop.initial_model:
            argv += ["--initial-model", loop.initial_model, *(["--trust"] if loop.trust else [])]
            trainer, plans = atso_layout.TRAINER, self.plans(seed)
            needs = (self._train(f"s{seed}-atso-m0", "training", trainer, plans, fold, needs, self._settings()),)
        done = paths.fold_folder(made.model, fold)
        return self._add(
            f"s{seed}-{name}-loop-fold{fold}",
            "training",
            argv,
            _outputs_of_training(done, self._settings()),
            needs=needs,
        )

    # ---- figures

    def _evaluate(self, name: str, seed: int, folders: Sequence[Path], needs: Sequence[str]) -> str:
        o, out = self.options, self.evaluation(name, seed)
        argv = [
            "nnunet_partial",
            "evaluate",
            "--pred",
            *folders,
            "--truth",
            self.truth,
            "--dataset",
            self.dataset,
            "--out",
            out,
            *(["--allow-missing"] if o.cross_validation else ["--annotated", "all"]),
        ]
        return self._add(f"s{seed}-{name}-evaluate", "evaluation", argv, [out / "metrics.json"], needs=tuple(needs), light=True)

    @property
    def truth(self) -> str:
        """Labels to compare with; without a test set the annotations, whose folder nnU-Net always has."""
        return self.options.test_labels or str(self._preprocessed / "gt_segmentations")

    def _efficiency(self) -> Path:
        """What prediction costs, measured once all is trained and predicted, so that nothing runs beside it."""
        o, out, seed, fold = self.options, self.out / "efficiency.json", self.options.seeds[0], self.options.folds[0]
        models = {}
        for name, method in self.methods.items():
            folders = self.models(name, seed)
            if method.kind == "fused":
                models.update({f"{method.title}, {i}": folder for i, folder in zip(self.sources, folders)})
            else:  # ATSO has a folder a fold; the first is of the fold that is measured
                models[method.title] = folders[0]
        argv = [
            "nnunet_partial",
            "efficiency",
            "-i",
            o.test_images or validation_images(self.out, fold),
            "--out",
            out,
            "--cases",
            o.efficiency,
            "--fold",
            fold,
            "--device",
            o.device,
            *(["--disable-tta"] if o.disable_tta else []),
            *(["--trust"] if o.trust else []),
            *(j for name, folder in models.items() for j in ("--model", f"{name}={folder}")),
        ]
        self._add(
            "efficiency",
            "efficiency",
            argv,
            [out],
            needs=self._evaluations(),
            inputs=tuple(paths.final_checkpoint(i, fold) for i in models.values()),
        )
        return out

    def _evaluations(self) -> tuple:
        return tuple(f"s{seed}-{name}-evaluate" for seed in self.options.seeds for name in self.methods)

    def _report(self) -> str:
        argv = [
            "nnunet_partial",
            "report",
            "--dataset",
            self.dataset,
            "--metric",
            self.options.metric,
            "--commands",
            self.out / "commands.json",
            "--title",
            f"Comparison on {self.dataset}",
        ]
        for seed in self.options.seeds:
            for name, method in self.methods.items():
                argv += ["--evaluation", f"{method.title}={self.evaluation(name, seed)}"]
                argv += [j for i in self.models(name, seed) for j in ("--model", f"{method.title}={i}")]
        argv += [
            "--images",
            *(
                [self.options.test_images]
                if self.options.test_images
                else [validation_images(self.out, i) for i in self.options.folds]
            ),
        ]
        needs = self._evaluations()
        if self.options.efficiency:
            argv += ["--efficiency", self._efficiency()]
            needs += ("efficiency",)
        argv += [j for i in self.notes() for j in ("--note", i)] + ["--out", self.out / "report.html"]
        return self._add(
            "report", "report", argv, [self.out / "report.html"], needs=needs, light=True, inputs=(self.out / "commands.json",)
        )

    def notes(self) -> list:
        """What a reader must know to trust the figures."""
        o = self.options
        own = [f"{self.methods[k].title}: {_words(*v)}" for k, v in o.own.items()]
        if own:
            return [f"Not every method trained in the same way. {'; '.join(own)}.", *self._note_on_atso()]
        if not o.cross_validation:
            return [
                "Every training had the same plans, cases, steps and seed, and each model is the one at its end; how many "
                "trainings a method takes is under What each method costs. The test cases were used for nothing but these "
                "figures.",
                *self._note_on_atso(),
            ]
        notes = [
            "There is no fully labelled test set: figures are of cross-validation, on the classes that each case annotates. "
            "A structure that is invented where it is not annotated costs nothing here."
        ]
        if any(i.startswith("cotraining") for i in self.methods):
            notes.append(
                "CoTraining chooses between its two networks by the annotated classes of the validation cases, which "
                "are the cases of these figures; its figures are a little too good for that."
            )
        return [*notes, *self._note_on_atso()]

    def _note_on_atso(self) -> list:
        loops = [i.title for i in self.methods.values() if i.kind == "atso"]
        epochs = self.options.atso_fine_tune_epochs
        if not loops:
            return []
        length = "as long as the last stage of the first" if epochs is None else f"for {epochs} epochs each"
        return [f"Models of {', '.join(loops)} after the first (M0) were trained {length}."]


class _Atso:
    """What the comparison needs to know of a run of ATSO."""

    def __init__(self, options: atso_options.AtsoOptions):
        self.options = options

    @property
    def trains_m0(self) -> bool:
        """Whether the run is there and trains M0 itself, as those of a comparison did in version 0.1."""
        journal = atso_layout.Layout(self.options).journal
        return journal.is_file() and read_json(journal).get("arguments", {}).get("initial_model") is None

    def starting_from(self, model: Path) -> "_Atso":
        """The same run with ``model`` as its M0."""
        return _Atso(replace(self.options, initial_model=str(model)))

    @property
    def model(self) -> Path:
        returned = atso_steps.AtsoSteps(self.options).returned_model
        return atso_layout.Layout(self.options).model(returned)


def _outputs_of_training(fold: Path, settings: Mapping[str, Any]) -> list:
    """What a training leaves, the last thing last."""
    validation = [fold / "validation" / "summary.json"] if settings.get("final_validation", True) else []
    return [fold / paths.FINAL_CHECKPOINT, *validation]


def _words(recipe: str | None, settings: Sequence[str]) -> str:
    return ", ".join([*([f"recipe {recipe}"] if recipe else []), *settings])


def _plans_step(seed: int, dataset: str = "") -> str:
    return f"s{seed}-plans{f'-{dataset}' if dataset else ''}"


def validation_images(out: PathLike, fold: str) -> Path:
    """Folder of links to the images of a fold's validation cases."""
    return Path(out) / "validation_images" / f"fold_{fold}"


def require_same_plans(model: Path, plans_file: Path, configuration: str) -> None:
    """Raise :class:`UserError` if ``model`` was trained with other plans than ``plans_file`` now holds."""
    if not (model / "plans.json").is_file():
        return
    trained, wanted = read_json(model / "plans.json"), read_json(plans_file)
    for what, part in (("settings", lambda i: i.get("nnunet_partial")), ("network or patches", lambda i: i["configurations"])):
        if part(trained) != part(wanted):
            raise UserError(
                f"{model} was trained with other {what} than {plans_file} has now. Choose another --name for this "
                f"comparison, or remove the model."
            )


__getattr__ = _moved.renamed(
    __name__, {"Options": "CompareOptions", "Planner": "ComparisonSteps", "waves": "orchestration.engine.waves"}
)
