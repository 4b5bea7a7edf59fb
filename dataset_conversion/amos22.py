"""AMOS22 (Ji et al. 2022): 15 abdominal organs, 500 CT and 100 MR.

Download: ``amos22`` with ``imagesTr``, ``labelsTr``, ``imagesVa``, ``labelsVa``, ``imagesTs``, each
``amos_NNNN.nii.gz``. Numbers up to 500 are CT, higher ones MR. ``--modality`` chooses, because nnU-Net normalises the
two differently. MR does not annotate bladder and prostate or uterus. Validation cases are used with
``--with-validation``; test cases have no labels.
"""

from dataset_conversion.btcv import ORGANS as BTCV
from nnunet_partial.data.conversion import Converter, Download, ImageFile, LabelFile, main, pair

# as BTCV up to the vena cava
ORGANS = (
    *BTCV[:9],
    "pancreas",
    "right_adrenal_gland",
    "left_adrenal_gland",
    "duodenum",
    "bladder",
    "prostate_or_uterus",
)
STRUCTURES = {**{name: (i + 1,) for i, name in enumerate(ORGANS)}, "kidney": (2, 3), "adrenal_gland": (11, 12)}
LAST_CT = 500
IN_MR = frozenset(range(1, 14))


def add_arguments(parser) -> None:
    parser.add_argument("--modality", choices=("ct", "mr"), default="ct")
    parser.add_argument("--with-validation", action="store_true", help="also use imagesVa and labelsVa for training")


def read(source, options) -> Download:
    parts = "Tr|Va" if options.with_validation else "Tr"
    labels = {k: LabelFile(v) for k, v in source.collect(rf"(?:.*/)?labels(?:{parts})/(amos_\d{{4}})\.nii\.gz").items()}
    tests = source.collect(r"(?:.*/)?imagesTs/(amos_\d{4})\.nii\.gz")
    images = source.collect(rf"(?:.*/)?images(?:{parts}|Ts)/(amos_\d{{4}})\.nii\.gz")
    wanted = {k: (ImageFile(v),) for k, v in images.items() if _modality(k) == options.modality}
    labels = {k: v for k, v in labels.items() if _modality(k) == options.modality}
    cases = pair(wanted, labels, unlabelled=tests.__contains__, available=IN_MR if options.modality == "mr" else None)
    default = ORGANS if options.modality == "ct" else ORGANS[: len(IN_MR)]
    modality = options.modality.upper()
    return Download(STRUCTURES, list(cases), default, channels=(modality,), release=f"AMOS22, the {modality} part")


def _modality(case: str) -> str:
    return "ct" if int(case[-4:]) <= LAST_CT else "mr"


CONVERTER = Converter("amos22", "AMOS22", __doc__, read, add_arguments)

if __name__ == "__main__":
    main(CONVERTER)
