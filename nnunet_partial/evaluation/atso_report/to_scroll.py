"""The cases of a run that its page lets one scroll through: the most changed, the middle and the least changed one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nnunet_partial import palette
from nnunet_partial.evaluation.atso_report.generations import Run, read_seg, reference_truth
from nnunet_partial.evaluation.atso_report.pictures import image_folder, most_changed
from nnunet_partial.evaluation.report.scenes import Preprocessed
from nnunet_partial.evaluation.report.viewer import Scene


def changed_cases(run: Run, changes: Sequence[Mapping[str, Any]], number: int) -> Iterator[Scene]:
    """The ``number`` most changed cases, then those of the middle and the end, with labels of before and after and the truth."""
    ranked = most_changed(changes, len(changes))
    chosen = dict.fromkeys([*ranked[:number], *ranked[len(ranked) // 2 : len(ranked) // 2 + 1], *ranked[-1:]])
    if not chosen:
        return
    space, truth = Preprocessed(image_folder(run)), reference_truth(run)
    colours = {n + 1: (name, palette.of(palette.ON_GREY, n)) for n, name in enumerate(run.classes)}
    folders = {str(i["generation"]): labels for i in run.generations if (labels := run.labels(i)) is not None}
    for rank, (generation, case, score) in enumerate(chosen):
        names = list(folders)
        both = names[names.index(generation) - 1 :][:2]
        segs = {f"generation {i}": read_seg(folders[i], case) for i in both}
        true = truth(case, folders[generation], segs[f"generation {generation}"].shape)
        segs |= {} if true is None else {"truth": true}
        # all have the same colours: this generation is shown, the others come at the press of a key
        layers = [(name, seg, colours, name == f"generation {generation}") for name, seg in segs.items()]
        text = f"{case}, generation {generation}: Dice to the one before {100 * score:.1f} %"
        scene = space.scene(text, case, layers, (rank,))
        if scene is not None:
            yield scene
