"""FLARE23, Fast, Low-resource and Accurate oRgan and pan-cancer sEgmentation (Ma et al.): 13 organs, tumours, partial, CT.

Download: ``imagesTr2200/FLARE23_NNNN_0000.nii.gz`` with ``labelsTr2200/FLARE23_NNNN.nii.gz``, and ``unlabelTr1800``
(``--unlabelled``). Other folders, ``validation`` and those of pseudo labels among them, are left out. Which structures are
outlined differs from case to case: a case annotates those that its label file shows, and no other. So a case without a
tumour says nothing about tumours, and a kidney that was removed counts as not annotated: the label file does not tell these
from structures that nobody outlined.
"""

from dataclasses import replace

from dataset_conversion.flare22 import ORGANS
from dataset_conversion.flare22 import STRUCTURES as ORGANS_OF_FLARE22
from nnunet_partial.data.conversion import Case, Converter, Download, ImageFile, LabelFile, main, pair

STRUCTURES = {**ORGANS_OF_FLARE22, "tumor": (14,)}
NAME = r"([^/]+_\d{4,5})"


def read(source, options) -> Download:
    labels = {k: LabelFile(v) for k, v in source.collect(rf"(?:.*/)?labelsTr[^/]*/{NAME}\.nii\.gz").items()}
    images = source.collect(rf"(?:.*/)?(?:imagesTr|unlabel)[^/]*/{NAME}_0000\.nii\.gz")
    unlabelled = {k for k, v in images.items() if v.parent.name.lower().startswith("unlabel")}
    cases = pair({k: (ImageFile(v),) for k, v in images.items()}, labels, unlabelled=unlabelled.__contains__)
    marked = [replace(i, present=i.label is not None) if isinstance(i, Case) else i for i in cases]
    return Download(STRUCTURES, marked, default=(*ORGANS, "tumor"), release="FLARE23")


CONVERTER = Converter("flare23", "FLARE23", __doc__, read)

if __name__ == "__main__":
    main(CONVERTER)
