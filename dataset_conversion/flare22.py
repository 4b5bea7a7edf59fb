"""FLARE22, Fast and Low-resource semi-supervised Abdominal oRgan sEgmentation (Ma et al. 2023): 13 organs, CT.

Download: ``FLARE22_LabeledCase50/images/FLARE22_Tr_NNNN_0000.nii.gz`` with ``labels/FLARE22_Tr_NNNN.nii.gz``, and
2000 cases ``Case_NNNNN_0000.nii.gz`` in ``FLARE22_UnlabeledCase1-1000`` and ``FLARE22_UnlabeledCase1001-2000``
(``--unlabelled``). The 50 cases of the tuning set, ``FLARETs_NNNN_0000.nii.gz``, are not for training and left out.
"""

from nnunet_partial.data.conversion import Converter, Download, ImageFile, LabelFile, main, pair
from nnunet_partial.errors import UserError

ORGANS = (
    "liver",
    "right_kidney",
    "spleen",
    "pancreas",
    "aorta",
    "inferior_vena_cava",
    "right_adrenal_gland",
    "left_adrenal_gland",
    "gallbladder",
    "esophagus",
    "stomach",
    "duodenum",
    "left_kidney",
)
STRUCTURES = {**{name: (i + 1,) for i, name in enumerate(ORGANS)}, "kidney": (2, 13), "adrenal_gland": (7, 8)}


def read(source, options) -> Download:
    labels = {k: LabelFile(v) for k, v in source.collect(r"(?:.*/)?(FLARE22_Tr_\d{4})\.nii\.gz").items()}
    images = source.collect(r"(?:.*/)?(FLARE22_Tr_\d{4}|Case_\d{5})_0000\.nii\.gz")
    images = {k: (ImageFile(v),) for k, v in images.items()}
    if not images and any(True for _ in source.match(r"(?:.*/)?FLARE23\w*\.nii\.gz")):
        raise UserError(f"{source.given} holds FLARE23, whose cases are partially labelled. Convert it with flare23.")
    cases = pair(images, labels, unlabelled=lambda name: name.startswith("Case_"))
    return Download(STRUCTURES, list(cases), default=ORGANS)


CONVERTER = Converter("flare22", "FLARE22", __doc__, read)

if __name__ == "__main__":
    main(CONVERTER)
