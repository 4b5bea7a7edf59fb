"""TotalSegmentator (Wasserthal et al. 2023): up to 117 structures, CT or MR, one file per structure.

Download: ``sNNNN/ct.nii.gz`` (or ``mri.nii.gz``) with ``sNNNN/segmentations/STRUCTURE.nii.gz``. A case without the
file of a structure does not annotate the classes made from it. Choose few classes (``--organs
liver,kidney=kidney_left+kidney_right``): only their files are read.
"""

from dataclasses import replace

from nnunet_partial.data.conversion import Converter, Download, ImageFile, MaskFiles, Skip, main, pair
from nnunet_partial.errors import UserError

ONLY_IN_V1 = {"face", "heart_myocardium", "heart_atrium_left", "heart_ventricle_left", "heart_atrium_right"}
ONLY_IN_V1 |= {"heart_ventricle_right", "pulmonary_artery"}
ONLY_IN_V2 = {"atrial_appendage_left", "brachiocephalic_trunk", "brachiocephalic_vein_left", "brachiocephalic_vein_right"}
ONLY_IN_V2 |= {"common_carotid_artery_left", "common_carotid_artery_right", "costal_cartilages", "heart", "kidney_cyst_left"}
ONLY_IN_V2 |= {"kidney_cyst_right", "prostate", "pulmonary_vein", "skull", "spinal_cord", "sternum", "subclavian_artery_left"}
ONLY_IN_V2 |= {"subclavian_artery_right", "superior_vena_cava", "thyroid_gland", "vertebrae_S1"}


def read(source, options) -> Download:
    images: dict = {"ct": {}, "mri": {}}
    for path, match in source.match(r"(?:.*/)?(s\d{4})/(ct|mri)\.nii\.gz"):
        images[match[2].lower()][match[1]] = (ImageFile(path),)
    if images["ct"] and images["mri"]:
        raise UserError(f"{source.given} holds CT and MR cases. Convert them one after the other.")
    masks: dict = {}
    for path, match in source.match(r"(?:.*/)?(s\d{4})/segmentations/([^/]+)\.nii\.gz"):
        masks.setdefault(match[1], {})[match[2]] = path
    names = sorted({name for found in masks.values() for name in found})
    values = {name: i + 1 for i, name in enumerate(names)}
    labels = {k: MaskFiles(tuple((values[n], path) for n, path in v.items())) for k, v in masks.items()}
    cases = [with_available(case) for case in pair({**images["ct"], **images["mri"]}, labels)]
    structures = {name: (value,) for name, value in values.items()}
    return Download(structures, cases, channels=("MR" if images["mri"] else "CT",), release=release(names, bool(images["mri"])))


def release(structures, is_mr: bool) -> str:
    """What the names of the structures say: some were renamed or added from the first release (104) to the second (117)."""
    if is_mr:
        return "TotalSegmentator MR"
    old, new = sorted(ONLY_IN_V1.intersection(structures)), sorted(ONLY_IN_V2.intersection(structures))
    if old and new:
        return (
            f"TotalSegmentator, v1 and v2 mixed ({old[0]} and {new[0]}): a structure of one of them is not annotated in the other"
        )
    if old or new:
        return f"TotalSegmentator v{'1' if old else '2'} (recognised by {(old or new)[0]})"
    return "TotalSegmentator v1 or v2 (its structures are the same in both)"


def with_available(case):
    """The case knows which structures it has a file for."""
    if isinstance(case, Skip):
        return case
    return replace(case, available=frozenset(value for value, _ in case.label.masks))


CONVERTER = Converter("totalsegmentator", "TotalSegmentator", __doc__, read)

if __name__ == "__main__":
    main(CONVERTER)
