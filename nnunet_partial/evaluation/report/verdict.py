"""What the page says in a sentence, and what speaks against believing it: classes that nothing has learned, curves that rise."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_partial.evaluation import ranking
from nnunet_partial.evaluation.report.inputs import Inputs, TrainedModel, finite
from nnunet_partial.evaluation.report.tables import number
from nnunet_partial.evaluation.results import is_missed_or_invented

NOT_LEARNED = 0.1  # a class whose mean Dice is below this
RISING = 0.02  # gain of the pseudo Dice in the last fifth of a training that is still worth waiting for


def verdict(ranked: Sequence[ranking.Ranked], pairs: Sequence[ranking.Pair]) -> str:
    """One sentence about several methods: who is first, and which of the others are not told apart from it."""
    first = ranked[0].name
    n = max((i.n for i in pairs), default=0)
    level = [i.name for i in ranked[1:] if not any(p.significant and {p.a, p.b} == {first, i.name} for p in pairs)]
    if not level:
        return f"{first} ranks first; its difference from every other method is significant on these {n} cases."
    return (
        f"{first} ranks first; on these {n} cases it is not told apart from {', '.join(level)} "
        f"(paired permutation test, adjusted for all pairs, p not below {ranking.SIGNIFICANT:.2f})."
    )


def how_good(ranked: ranking.Ranked, summary: Mapping, inputs: Inputs) -> str:
    """One sentence about a single method: its mean, its best and its weakest class, and what it missed."""
    metric, title = inputs.metric, inputs.heading(inputs.metric)
    means = {k: v[metric]["mean"] for k, v in summary["classes"].items() if math.isfinite(v[metric]["mean"])}
    rows = [row for evaluation in inputs.methods[ranked.name] for row in evaluation.rows]
    missed = sum(map(is_missed_or_invented, rows))
    counted = f"{missed} of {len(rows)} structures were missed or invented"
    if not means:
        return f"{ranked.name} has no finite {title} on {summary['n_cases']} cases; {counted}."
    interval = f" [{number(ranked.low, metric)}, {number(ranked.high, metric)}]" if math.isfinite(ranked.low) else ""
    text = f"{ranked.name} has a mean {title} of {number(ranked.mean, metric)}{interval} on {summary['n_cases']} cases"
    if len(means) > 1:
        good, poor = (max, min) if ranking.HIGHER_IS_BETTER[metric] else (min, max)
        best, worst = good(means, key=means.__getitem__), poor(means, key=means.__getitem__)
        text += f": best {best} ({number(means[best], metric)}), weakest {worst} ({number(means[worst], metric)})"
    return f"{text}; {counted}."


def warnings(inputs: Inputs, summaries: Mapping[str, Mapping], classes: Sequence[str]) -> list:
    """Sentences that a reader of the verdict must see: what was not learned, and by which trainings that are not over."""
    gains = {name: gain for name in summaries if (gain := _gain([i for i in inputs.models if i.method == name])) is not None}
    found = _not_learned(inputs, summaries, classes)
    if found and gains:
        found = [f"{i} {_slopes(gains)}" for i in found]
    rising = {name: gain for name, gain in gains.items() if gain > RISING}
    if rising:
        may = "twice the steps may change the order" if len(summaries) > 1 else "more steps may help"
        found.append(f"Still rising: {_told(rising)} in the last fifth of the training; {may}.")
    return found


def _not_learned(inputs: Inputs, summaries: Mapping[str, Mapping], classes: Sequence[str]) -> list:
    means = {
        name: {i: summary["classes"][i]["dice"]["mean"] for i in classes if "dice" in summary["classes"].get(i, {})}
        for name, summary in summaries.items()
    }
    poor = {name: {i for i, value in own.items() if value < NOT_LEARNED} for name, own in means.items()}
    known = set().union(*means.values())
    nowhere = [i for i in classes if i in known and all(i in poor[name] for name in means if i in means[name])]
    found = []
    if nowhere:
        who = "No method has" if len(summaries) > 1 else f"{next(iter(summaries))} has not"
        meaning = "; there the order of the methods says nothing about them" if len(summaries) > 1 else ""
        found.append(f"{who} learned {', '.join(nowhere)} (mean Dice below {NOT_LEARNED:g}){meaning}.")
    for name in dict.fromkeys(i.method for i in inputs.models if i.fully_supervised):
        own = [i for i in classes if i in poor.get(name, ()) and i not in nowhere]
        if own:
            found.append(
                f"Even {name} has not learned {', '.join(own)} (mean Dice below {NOT_LEARNED:g}): the budget was too small."
            )
    return found


def _gain(models: Sequence[TrainedModel]) -> float | None:
    """How much the pseudo Dice of a method's trainings gained in the last fifth of their epochs, against the fifth before."""
    gains = [gain for i in models if (gain := last_gain(i.curves.get("mean_fg_dice", ()))) is not None]
    return float(np.mean(gains)) if gains else None


def last_gain(curve: Sequence[float]) -> float | None:
    """Mean of the last fifth of a curve, less that of the fifth before; None of fewer than two known values."""
    known = [i for i in curve if finite(i)]
    if len(known) < 2:
        return None
    fifth = max(1, len(known) // 5)
    return float(np.mean(known[-fifth:]) - np.mean(known[-2 * fifth : -fifth]))


def _slopes(gains: Mapping[str, float]) -> str:
    return f"Pseudo Dice in the last fifth of the training: {', '.join(f'{k} {v:+.3f}' for k, v in gains.items())}."


def _told(gains: Mapping[str, float]) -> str:
    return "pseudo Dice of " + ", ".join(f"{k} {v:+.3f}" for k, v in gains.items())
