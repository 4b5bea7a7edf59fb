"""Whether the model that a run of ATSO returns is better than M0, or how to find out."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_partial.evaluation import ranking
from nnunet_partial.evaluation.atso_report.generations import Run, model_scores

M0 = "M0"


def verdict(run: Run, changes: Sequence[Mapping[str, Any]]) -> str:
    """One or two sentences. Test cases decide; without them the truth of the reference set, where it is known."""
    name, entry = run.plan["returned_model"], run.model(run.plan["returned_model"])
    if entry is None or not run.is_trained(entry):
        return f"The run is not over: the model that it returns ({name}) is not trained yet."
    if name == "m0":
        return "The run returns M0 itself."
    m0 = run.model("m0")
    assert m0 is not None  # every run has one
    tested, of_m0 = (model_scores(run, i, those).get("test", []) for i, those in ((name, entry), ("m0", m0)))
    if tested and of_m0:
        return _compared(f"The model that the run returns ({name})", tested, of_m0, "test")
    unknown = (
        f"Whether the model that the run returns ({name}) is better than M0 on new cases cannot be known from this run: "
        f"{'the test cases have no labels here' if run.options.get('test_images') else 'no test cases were given'}. How to give them "
        "stands below, under Commands and versions."
    )
    last, first = (_with_truth(changes, i) for i in (run.generations[-1]["generation"], 0))
    if not last or not first:
        return unknown
    return f"{unknown} {_compared('On the cases that they were trained on, the last pseudo labels', last, first, 'reference')}"


def _with_truth(changes: Sequence[Mapping[str, Any]], generation: Any) -> list:
    own = [i for i in changes if i["generation"] == generation and i["dice_to_truth"] is not None]
    return [{"case": i["case"], "class": i["class"], "source": "", "dice": i["dice_to_truth"]} for i in own]


def _measured(rows: Sequence[Mapping], others: Sequence[Mapping]) -> list:
    """``rows`` of the cases and classes that have a Dice in both: a class that is in neither truth nor prediction has none."""
    there = {(i["case"], i["class"]) for i in others if i["dice"] is not None}
    return [i for i in rows if i["dice"] is not None and (i["case"], i["class"]) in there]


def _compared(what: str, rows: Sequence[Mapping], of_m0: Sequence[Mapping], cases: str) -> str:
    rows, of_m0 = _measured(rows, of_m0), _measured(of_m0, rows)
    if not rows:
        return f"{what} cannot be compared with M0: no class has a Dice in both on any of the {cases} cases."
    methods = {what: [rows], M0: [of_m0]}
    means = {i.name: i.mean for i in ranking.rank(methods)}
    (pair,) = ranking.pairwise(methods)
    plural = what.endswith("labels")
    better = "better" if pair.difference > 0 else "worse"
    said = f"{'are' if plural else 'is'} {better} than M0{chr(39) + 's' if plural else ''}"
    if not pair.significant:
        said = f"{'are' if plural else 'is'} not told apart from M0{chr(39) + 's' if plural else ''}"
    return (
        f"{what} {said} on {pair.n} {cases} case{'s' if pair.n > 1 else ''}: mean Dice {100 * means[what]:.1f} against {100 * means[M0]:.1f} %, "
        f"difference {100 * pair.difference:+.1f} [{100 * pair.low:.1f}, {100 * pair.high:.1f}] points "
        f"(paired permutation test, p {pair.p_holm:.3f})."
    )


def commands_for_test_cases(run: Run) -> list:
    """What compares the two models on test cases now; empty where the run has them, or is not over."""
    name, fold = run.plan["returned_model"], run.options["fold"]
    entries = {i: found for i in ("m0", name) if (found := run.model(i)) is not None and run.is_trained(found)}
    tested = run.options.get("test_images") and run.options.get("test_labels")
    if tested or name == "m0" or len(entries) < 2:
        return []
    dataset, found = run.plan["dataset"], []
    for model, entry in entries.items():
        found += [
            ["nnUNetv2_predict_from_modelfolder", "-i", "IMAGES", "-o", f"test/{model}", "-m", entry["folder"], "-f", fold],
            ["nnunet_partial", "evaluate", "--pred", f"test/{model}", "--truth", "LABELS", "--dataset", dataset]
            + ["--annotated", "all", "--out", f"test/evaluation/{model}"],
        ]
    named = [j for i in entries for j in ("--evaluation", f"{i}=test/evaluation/{i}")]
    found.append(["nnunet_partial", "report", "--dataset", dataset, *named, "--images", "IMAGES", "--out", "test/report.html"])
    return [shlex.join(str(j) for j in i) for i in found]
