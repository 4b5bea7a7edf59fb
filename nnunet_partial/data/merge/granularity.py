"""Do the sources cut the body into the same pieces? ``kidney`` here and ``left_kidney`` there teach one tissue twice.

The names alone are looked at. A part is named after its whole (``left_kidney``, ``liver_tumor``, ``vertebrae_L1``), is in
the small table of anatomy below, or is a lesion (``tumor``) of the organs that its source annotates beside it.
"""

import re
from collections.abc import Mapping, Sequence

from nnunet_partial.data.merge.sources import Source
from nnunet_partial.errors import UserError
from nnunet_partial.labels import members

_LESIONS = frozenset(
    ["tumor", "lesion", "cyst", "cancer", "metastasis", "nodule", "carcinoma", "adenocarcinoma", "neoplasm", "mass", "abscess"]
)
_SAME = {
    **{"tumour": "tumor", "tumours": "tumor", "tumors": "tumor", "lesions": "lesion", "cysts": "cyst", "cancers": "cancer"},
    **{"metastases": "metastasis", "nodules": "nodule", "kidneys": "kidney", "lungs": "lung", "lobes": "lobe", "ribs": "rib"},
    **{"vertebrae": "vertebra", "vertebral": "vertebra", "spine": "vertebra", "glands": "gland", "hippocampi": "hippocampus"},
    **{"femurs": "femur", "hips": "hip", "atria": "atrium", "ventricles": "ventricle", "vessels": "vessel", "ovaries": "ovary"},
}
_SHORT = {"lk": ("left", "kidney"), "rk": ("right", "kidney"), "lag": ("left", "adrenal"), "rag": ("right", "adrenal")}
_OF_ORGAN = {  # of a lesion; a hepatic artery is no part of the liver
    **{"hepatic": "liver", "renal": "kidney", "pancreatic": "pancreas", "splenic": "spleen", "pulmonary": "lung"},
    **{"gastric": "stomach", "colonic": "colon", "prostatic": "prostate"},
}
_POSITIONS = frozenset(["left", "right", "upper", "middle", "lower", "superior", "inferior", "anterior", "posterior"])
_OPPOSITES = tuple(map(frozenset, (("left", "right"), ("anterior", "posterior"), ("superior", "inferior"), ("upper", "lower"))))
_PARTS = {  # whole -> words of its parts, which a name made of these words and positions alone means
    "lung": {"lobe"},
    "vertebra": {"sacrum", "coccyx"},
    "heart": {"atrium", "ventricle", "myocardium", "auricle", "appendage", "atrial"},
    "brain": {"cerebellum", "brainstem", "hippocampus", "thalamus", "amygdala", "putamen", "caudate", "pallidum"},
    "bowel": {"duodenum", "jejunum", "ileum", "colon", "sigmoid", "cecum", "caecum"},
    "intestine": {"duodenum", "jejunum", "ileum", "colon", "sigmoid", "cecum", "caecum"},
}
_COLUMN = re.compile(r"[ctls]\d{1,2}")
_NO_PARTS = tuple(  # whole, word of what is named after it but lies outside
    (frozenset({a}), b) for a, b in (("bladder", "gall"), ("spleen", "vein"), ("liver", "artery"), ("lung", "artery"))
)


def words(name: str) -> frozenset:
    """The words of the name of a structure, in any order, in one spelling: ``Kidneys_Left`` -> kidney, left."""
    parts: list[str] = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+|[^\W\d_a-zA-Z]+", name)
    spelled = [_SAME.get(i.lower(), i.lower()) for i in parts]
    found = {j for i in spelled for j in _SHORT.get(i, (i,))}
    if found & _LESIONS:
        found = {_OF_ORGAN.get(i, i) for i in found}
    if "adrenal" in found:
        found -= {"gland"}
    return frozenset(found)


def opposites(names: Sequence[str]) -> list:
    """Pairs of names that differ in a side alone: ``kidney_left`` and ``kidney_right``. Mirrored, each may look like the other."""
    found = [(name, words(name)) for name in names]
    return [(a, b) for i, (a, own) in enumerate(found) for b, other in found[i + 1 :] if own ^ other in _OPPOSITES]


def is_part(part: str, whole: str) -> bool:
    """Whether the structure ``part`` lies within ``whole``, by their names."""
    inner, outer = words(part), words(whole)
    if not outer or inner == outer or any(outer == a and b in inner for a, b in _NO_PARTS) or len(_members(part)) > 1:
        return False
    if len(_members(whole)) > 1:  # prostate/uterus
        return any(words(i) and words(i) <= inner for i in _members(whole))
    return outer < inner or _in_table(inner, outer)


def _members(name: str) -> list:
    return re.split(r"/|&|(?:\b|_)(?:and|or)(?:\b|_)", name)


def _in_table(inner: frozenset, outer: frozenset) -> bool:
    for whole, parts in _PARTS.items():
        sides = outer - {whole}
        if whole in outer and sides <= _POSITIONS and sides <= inner:
            own = inner - _POSITIONS
            if own and own <= parts:
                return True
    column = {i for i in inner if _COLUMN.fullmatch(i)}
    return "vertebra" in outer and outer <= {"vertebra", "column"} and bool(column) and inner <= column | {"vertebra"}


def is_lesion(name: str) -> bool:
    """``tumor``, ``cyst 2``: a lesion whose organ is not named."""
    return bool(words(name) & _LESIONS) and all(i in _LESIONS or i.isdigit() for i in words(name))


def conflicts(classes: Mapping[str, Sequence[str]]) -> list:
    """``(whole, source that does not tell its part apart, part, source that does)`` for ``classes``: source -> its classes.

    A source that has both means by the whole what the part leaves of it; beside a source with the whole alone, one name
    means two things. Parts in both, or wholes nowhere without their parts, are no conflict.
    """
    every = list(dict.fromkeys(name for names in classes.values() for name in names))
    found = []
    for part in every:
        having = [source for source, names in classes.items() if part in names]
        for whole in every:
            owner = next((i for i in having if _within(part, whole, classes[i])), None)
            without = next((i for i, names in classes.items() if whole in names and part not in names), None)
            if owner is not None and without is not None and whole != part:
                found.append((whole, without, part, owner))
    return found


def _within(part: str, whole: str, beside: Sequence[str]) -> bool:
    if is_lesion(part) and whole in beside and not words(whole) & _LESIONS:
        return True
    return is_part(part, whole)


def check_granularity(loaded: Sequence[Source]) -> None:
    """Raises :class:`UserError`, with the options that settle it, where sources cut a structure differently."""
    found = conflicts({i.spec.name: [c for item in i.classes for c in members(item)] for i in loaded if i.classes})
    if not found:
        return
    whole, without, _, owner = found[0]
    parts = [p for w, a, p, b in found if (w, a, b) == (whole, without, owner)]
    coarse, fine = (next(i for i in loaded if i.spec.name == name) for name in (without, owner))
    more = f" ({len({(w, p) for w, _, p, _ in found}) - len(parts)} more such pairs.)" if len(found) > len(parts) else ""
    raise UserError(
        f"source {without} has the class {whole!r} where source {owner} tells {_quoted(parts)} apart from it: the same "
        f"tissue would be taught as both. {_as_union(coarse, whole, fine, parts)}make it one class: "
        f"{_joining(fine, parts, whole)}; or let {without} "
        f"teach nothing of it: --map {_labels_of(coarse, [whole])}=background; or, if these names mean structures that do "
        f"not overlap, add --allow-parts.{more}"
    )


def _as_union(coarse: Source, whole: str, fine: Source, parts: Sequence[str]) -> str:
    """The option that loses nothing: the whole is the union of its parts, where it is known which these are."""
    union = [whole, *parts] if whole in fine.classes else list(parts)
    if len(union) < 2:
        return "Either "
    return f"Either say that it is their union: --map {_labels_of(coarse, [whole])}={'+'.join(union)}; or "


def _joining(source: Source, parts: Sequence[str], whole: str) -> str:
    command = f"--map {_labels_of(source, parts)}={whole}"
    if source.spec.classes is None:
        return command
    classes = dict.fromkeys(whole if i in parts else i for i in source.spec.classes)
    return f"--source {source.spec.name}={source.spec.dataset}:{','.join(classes)} {command}"


def _labels_of(source: Source, classes: Sequence[str]) -> str:
    return f"{source.spec.name}:" + ",".join(label for label, target in source.targets.items() if target in classes)


def _quoted(names: Sequence[str]) -> str:
    return " and ".join([", ".join(map(repr, names[:-1])), repr(names[-1])] if len(names) > 1 else [repr(names[0])])
