"""A project as steps: commands that a person can type, from the download to the exported model.

What follows planning are the steps of a comparison, one for each configuration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_partial import paths
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.orchestration.compare.steps import CompareOptions, ComparisonSteps
from nnunet_partial.orchestration.engine import Cost, Step
from nnunet_partial.orchestration.run.project import Project, SourceBlock, assignments

# what --until takes -> the parts of the steps that it means
STAGES = {
    "convert": ("conversion",),
    "merge": ("merge",),
    "check": ("check",),
    "plan": ("planning",),
    "teachers": ("teachers",),
    "label": ("labels",),
    "train": ("training",),
    "predict": ("prediction",),
    "evaluate": ("evaluation",),
    "report": ("report", "efficiency"),
    "export": ("export",),
}


class ProjectSteps:
    """All steps of a project.

    ``taught``   names of the merged dataset's sources that annotate something
    ``counts``   number of cases of each source, and of ``test`` where there is a test set: what times are told by
    ``lines``    what was found in the data, for people
    """

    def __init__(
        self,
        project: Project,
        taught: Sequence[str],
        device: str = "cuda",
        trust: bool = False,
        counts: Mapping[str, int] | None = None,
        lines: Sequence[str] = (),
    ):
        self.project, self.taught, self.device, self.trust = project, tuple(taught), device, trust
        self.counts, self.lines = counts or {}, tuple(lines)
        self.plans = {i: ComparisonSteps(self.options(i), taught) for i in project.plan.configurations}

    def steps(self) -> list:
        """Every step, each after those that it needs."""
        before = self._before_training()
        return [*before, *(i for c in self.plans for i in self.comparison(c, before[-1].name))]

    def until(self, stage: str) -> list:
        """Only what is needed for a stage, or for one step."""
        steps = self.steps()
        wanted = [i.name for i in steps if i.name == stage or i.part in STAGES.get(stage, ())]
        if not wanted:
            raise UserError(
                f"--until {stage}: this project has no such step. {did_you_mean(stage, STAGES)}Stages: {', '.join(STAGES)}; steps: "
                f"{', '.join(i.name for i in steps)}."
            )
        by_name, kept = {i.name: i for i in steps}, set()
        while wanted:
            name = wanted.pop()
            if name not in kept:
                kept.add(name)
                wanted += by_name[name].needs
        return [i for i in steps if i.name in kept]

    # ---- before training

    def _before_training(self) -> list:
        converted = [self._convert(i) for i in self.project.sources if i.converter]
        steps = list(converted)
        if self.project.sources:
            steps.append(self._merge(converted))
        if self.project.project.check != "off":
            steps.append(self._check(steps[-1:]))
        return [*steps, self._plan(steps[-1:])]

    def _convert(self, source: SourceBlock) -> Step:
        dataset = dataset_of(source)
        argv = ["nnunet_partial", "convert", source.converter, source.path, "--dataset-id", source.dataset]
        argv += ["--name", dataset.partition("_")[2], "--source-name", source.name]
        argv += ["--organs", ",".join(map(str, source.organs))] if source.organs else []
        argv += ["--unlabelled"] if source.unlabelled_cases else []
        argv += ["--skip-bad"] if source.skip_bad else []
        for name, value in source.options.items():
            argv += _option(name, value)
        return self._step(
            f"convert-{source.name}",
            "conversion",
            argv,
            [_raw(dataset) / "dataset.json"],
            whole=True,
            cost=self._cost(f"convert {source.converter}", [source.name]),
        )

    def _merge(self, converted: Sequence[Step]) -> Step:
        p, m = self.project, self.project.merge
        argv = ["nnunet_partial", "merge", "--dataset-id", p.project.dataset, "--name", p.project.name]
        for source in p.sources:
            if not source.labelled:
                argv += ["--unlabelled", f"{source.name}={source.dataset}"]
                continue
            classes = f":{','.join(source.classes)}" if source.classes else ""
            argv += ["--source", f"{source.name}={source.dataset}{classes}"]
            argv += [j for label, to in source.map.items() for j in ("--map", f"{source.name}:{label}={to}")]
        argv += [j for i in p.sources if i.cases for j in ("--cases", f"{i.name}={i.cases}")]
        argv += ["--classes", ",".join(m.classes)] if m.classes else []
        argv += ["--taught", ",".join(m.taught)] if m.taught else []
        argv += ["--patients", m.patients] if m.patients else []
        argv += ["--replace-not-finite", m.replace_not_finite] if m.replace_not_finite is not None else []
        flags = ("allow_absent", "allow_parts", "headers_only")
        argv += [f"--{i.replace('_', '-')}" for i in flags if getattr(m, i)]
        raw = [_raw(dataset_of(i)) / "dataset.json" for i in p.sources if not i.converter]
        return self._step(
            "merge",
            "merge",
            argv,
            [_raw(p.dataset) / "dataset.json"],
            needs=tuple(i.name for i in converted),
            inputs=tuple(raw),
            whole=True,
            cost=self._cost("merge", [i.name for i in p.sources]),
        )

    def _check(self, needs: Sequence[Step]) -> Step:
        out = self.project.out / "check"
        argv = ["nnunet_partial", "check", self.project.dataset, "--out", out]
        argv += ["--report-only"] if self.project.project.check == "report" else []
        return self._step(
            "check", "check", argv, [out / "check.json"], needs=tuple(i.name for i in needs), cost=self._cost("check", self._all)
        )

    def _plan(self, needs: Sequence[Step]) -> Step:
        p = self.project
        argv = ["nnUNetv2_plan_and_preprocess", "-d", p.project.dataset, "-pl", p.plan.planner, "-c", *p.plan.configurations]
        argv += ["--verify_dataset_integrity"]
        if p.plan.gpu_memory_gb:
            argv += ["-gpu_memory_target", f"{p.plan.gpu_memory_gb:g}", "-overwrite_plans_name", p.plans]
        if p.plan.processes:
            argv += ["-npfp", p.plan.processes, "-np", *[p.plan.processes] * len(p.plan.configurations)]
        folder = paths.root("nnUNet_preprocessed").absolute() / p.dataset
        return self._step(
            "plan",
            "planning",
            argv,
            [folder / "dataset.json", folder / f"{p.plans}.json"],
            needs=tuple(i.name for i in needs),
            environment={"nnUNet_n_proc_DA": "1"},  # the planner's threads, of which 0 as for training on few cores is none
            cost=self._cost(f"plan {' '.join(p.plan.configurations)}", self._all),
        )

    @property
    def _all(self) -> list:
        return [i.name for i in self.project.sources] or [self.project.dataset]

    def _step(self, name: str, part: str, argv: Sequence, outputs: Sequence[Path], **more) -> Step:
        return Step(name, part, tuple(str(i) for i in argv), tuple(outputs), **more)

    def _cost(self, kind: str, sources: Sequence[str]) -> Cost | None:
        cases = sum(self.counts.get(i, 0) for i in sources)
        return Cost(kind, cases) if cases else None

    # ---- a comparison for each configuration

    def options(self, configuration: str) -> CompareOptions:
        """What the comparison of one configuration is asked for."""
        p, several = self.project, len(self.project.plan.configurations) > 1
        own = {i.name: (i.recipe, assignments(i.settings)) for i in p.methods if i.recipe or i.settings}
        return CompareOptions(
            p.dataset,
            configuration,
            tuple(i.name for i in p.methods),
            str(p.out / configuration if several else p.out),
            plans=p.plans,
            name=f"{p.project.name}-{configuration.replace('_', '-')}" if several else p.project.name,
            settings=assignments(p.settings),
            seeds=tuple(p.training.seeds),
            folds=p.folds,
            test_images=p.test.images,
            test_labels=p.test.labels,
            metric=p.test.metric,
            device=self.device,
            disable_tta=not p.test.mirroring,
            atso_generations=p.training.atso_generations,
            efficiency=p.test.efficiency,
            trust=self.trust,
            recipe=p.training.recipe,
            own={_key(k): v for k, v in own.items()},
        )

    def name_of(self, configuration: str, step: str) -> str:
        """A step of one configuration's comparison, as it is called here."""
        return f"{configuration}-{step}" if len(self.plans) > 1 else step

    def comparison(self, configuration: str, planned: str) -> list:
        """The steps of one configuration, which wait for the step ``planned``, and the export of its models."""
        plan = self.plans[configuration]
        steps = plan.steps()
        steps += [i for name in self.project.exported for i in self._exports(plan, name, steps)]
        return [
            replace(
                i,
                name=self.name_of(configuration, i.name),
                needs=tuple(self.name_of(configuration, j) for j in i.needs) or (planned,),
            )
            for i in steps
        ]

    def _exports(self, plan: ComparisonSteps, name: str, steps: Sequence[Step]) -> list:
        method = _key(name)
        if plan.methods[method].kind == "fused":  # no model of its own
            return []
        found = []
        for seed in plan.options.seeds:
            for number, model in enumerate(plan.models(method, seed)):
                trained = [i for i in steps if i.part == "training" and i.outputs[0].parent.parent == model]
                folds = [i.outputs[0].parent.name.removeprefix("fold_") for i in trained]
                target = plan.out / "export" / (f"s{seed}-{method}" + (f"-{number}" if number else "")) / "model.zip"
                evaluated = plan.evaluation(method, seed)
                argv = ["nnunet_partial", "export", model, "--zip", target, "--overwrite", "--folds", *folds]
                argv += ["--evaluation", evaluated]
                argv += ["--trust"] if self.trust else []
                step = f"s{seed}-{method}-export" + (f"-{number}" if number else "")
                inputs = (*(paths.final_checkpoint(model, i) for i in folds), evaluated / "metrics.json")
                needs = (*(i.name for i in trained), f"s{seed}-{method}-evaluate")
                found.append(self._step(step, "export", argv, [target], needs=needs, inputs=inputs, light=True, whole=True))
        return found


def dataset_of(source: SourceBlock) -> str:
    """``Dataset101_lits``: the raw dataset of a source; one of this number that is there keeps its name."""
    there = paths.dataset_folders(source.dataset, "nnUNet_raw")
    if source.converter is None or len(there) > 1:
        return paths.dataset_name(source.dataset)
    return there[0].name if there else f"Dataset{source.dataset:03d}_{source.name}"


def _raw(dataset: str) -> Path:
    return paths.root("nnUNet_raw").absolute() / dataset


def _key(method: str) -> str:
    """What a comparison calls a method: ``trainer=CLASS:teachers`` is CLASS."""
    return method.removeprefix("trainer=").partition(":")[0]


def _option(name: str, value: object) -> list:
    """``{"modality": "mr", "with_validation": True}`` as a converter's arguments."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option] if value else []
    return [j for i in (value if isinstance(value, list) else [value]) for j in (option, i)]
