"""nnU-Net's regions as exclusive classes: ``{"whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}``.

nnU-Net's labels may overlap. A dataset of many sources needs classes that do not: one for every set of label values that are
in the same regions. A region that is such a set keeps its name; what smaller regions leave of one is called
``whole_without_core``; where none is the smallest, ``a_and_b``. Each region is then a union of these classes.
"""

from collections.abc import Mapping

from nnunet_partial.labels import Union

_NO_CLASS = ("background", "ignore")


def exclusive_labels(labels: Mapping[str, tuple]) -> dict:
    """``labels`` (name -> values) as classes that share no value, in the order of their lowest values; background and ignore
    stay. Labels that do not overlap are returned as they are."""
    regions = {name: frozenset(values) for name, values in labels.items() if name not in _NO_CLASS}
    if not _overlap(regions):
        return dict(labels)
    cells: dict = {}
    for value in sorted(set().union(*regions.values())):
        cells.setdefault(frozenset(i for i, values in regions.items() if value in values), []).append(value)
    kept = {name: tuple(values) for name, values in labels.items() if name in _NO_CLASS}
    return {**kept, **{_cell_name(of, frozenset(values), regions): tuple(values) for of, values in cells.items()}}


def regions_as_unions(labels: Mapping[str, tuple]) -> dict:
    """Name of each region of several exclusive classes -> their :class:`Union`, in the order of :func:`exclusive_labels`."""
    classes = {k: set(v) for k, v in exclusive_labels(labels).items() if k not in _NO_CLASS}
    parts = {name: [i for i, own in classes.items() if own <= set(values)] for name, values in labels.items()}
    return {name: Union(i) for name, i in parts.items() if len(i) > 1}


def _overlap(regions: Mapping[str, frozenset]) -> bool:
    return sum(map(len, regions.values())) > len(set().union(*regions.values()))


def _cell_name(of: frozenset, values: frozenset, regions: Mapping[str, frozenset]) -> str:
    """Name of the values that lie in exactly the regions ``of``."""
    smallest = [i for i in regions if i in of and not any(regions[j] < regions[i] for j in of)]
    inside = frozenset.intersection(*(regions[i] for i in smallest))
    others = [i for i in regions if i not in of and regions[i] & inside]
    largest = [i for i in others if not any(regions[i] & inside < regions[j] & inside for j in others)]
    name = "_and_".join(dict.fromkeys(smallest))
    return name if inside == values else f"{name}_without_{'_'.join(largest)}"
