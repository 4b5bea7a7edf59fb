"""KiTS19, KiTS21 and KiTS23, Kidney Tumor Segmentation Challenges (Heller et al.): kidneys, tumours, cysts, CT.

Download: ``case_NNNNN/imaging.nii.gz`` with ``segmentation.nii.gz`` (19, 23) or ``aggregated_MAJ_seg.nii.gz`` (21,
also AND and OR). The files store slices along their first axis, with an off-diagonal affine that says so; not every
slice is 512 x 512 (case_00160). ``kits.json``, where it is there, gives the voxel size to compare the headers with.
KiTS19 has no cysts: they are kidney there. Its cases 210 to 299 have no labels. Part of a release is told by its files, or
by a cyst in one of its labels; ``--release`` says it outright.
"""

from nnunet_partial.data.conversion import Case, Converter, Download, ImageFile, LabelFile, main, pair, voxels
from nnunet_partial.data.images import read_geometry
from nnunet_partial.errors import UserError

STRUCTURES = {
    "19": {"kidney": (1, 2), "tumor": (2,), "kidney_parenchyma": (1,)},
    "21": {"kidney": (1, 2, 3), "tumor": (2,), "cyst": (3,), "kidney_parenchyma": (1,)},
}
STRUCTURES["23"] = STRUCTURES["21"]
FIRST_TEST_CASE = "case_00210"  # of KiTS19
SPACING_TOLERANCE = 0.01  # relative; kits.json rounds


def add_arguments(parser) -> None:
    parser.add_argument("--release", choices=tuple(STRUCTURES), help="default: recognised by its files")
    parser.add_argument("--aggregation", choices=("MAJ", "AND", "OR"), default="MAJ", help="KiTS21: how annotations are combined")


def read(source, options) -> Download:
    images = source.collect(r"(?:.*/)?(case_\d{5})/imaging\.nii\.gz")
    release, reason = (options.release, "--release") if options.release else recognise(source)
    name = rf"aggregated_{options.aggregation}_seg" if release == "21" else "segmentation"
    labels = {k: LabelFile(v) for k, v in source.collect(rf"(?:.*/)?(case_\d{{5}})/{name}\.nii\.gz").items()}
    sizes = _sizes(source)
    cases = pair(
        {k: (ImageFile(v),) for k, v in images.items()},
        labels,
        unlabelled=lambda name: release == "19" and name >= FIRST_TEST_CASE,
    )
    compared = [_compared(case, sizes) for case in cases]
    return Download(STRUCTURES[release], compared, default=("kidney",), release=f"KiTS{release} ({reason})")


def recognise(source) -> tuple:
    """``(release, by what it was recognised)`` of a download or of a part of one."""
    if any(True for _ in source.match(r"(?:.*/)?case_\d{5}/aggregated_\w+_seg\.nii\.gz")):
        return "21", "recognised by aggregated masks"
    if any(True for _ in source.match(r"(?:.*/)?case_\d{5}/instances/.*")):
        return "23", "recognised by the folders of instances"
    if any(True for _ in source.match(r"(?:.*/)?case_00[3-9]\d\d/.*")):  # KiTS19 ends with case 299
        return "23", "recognised by cases from 300 on"
    labelled = {match[1] for _, match in source.match(r"(?:.*/)?(case_\d{5})/segmentation\.nii\.gz")}
    if any(match[1] not in labelled for _, match in source.match(r"(?:.*/)?(case_002[1-9]\d)/imaging\.nii\.gz")):
        return "19", "recognised by cases from 210 on without labels"
    return _by_a_cyst(source)


def _by_a_cyst(source) -> tuple:
    """The labels themselves: KiTS19 has none of value 3. They are read until one has."""
    for path, match in source.match(r"(?:.*/)?(case_\d{5})/segmentation\.nii\.gz"):
        try:
            source.check(path)
            if 3 in voxels.label_values(path):
                return "23", f"recognised by the cyst in {match[1]}"
        except UserError:
            continue  # told when the case is converted
    return "19", "no label shows a cyst; --release 23 if it is a part of KiTS23"


def _sizes(source) -> dict:
    """``case -> (distance of slices, pixel width)`` in mm, from kits.json."""
    path = source.find(r"(?:.*/)?kits\.json")
    entries = source.json(path) if path else []
    try:
        return {i["case_id"]: (float(i["captured_slice_thickness"]), float(i["captured_pixel_width"])) for i in entries}
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not the kits.json of a release ({type(error).__name__}: {error}). Remove it or download it again."
        ) from None


def _compared(case, sizes):
    if not isinstance(case, Case) or case.name not in sizes:
        return case
    try:
        spacing = read_geometry(case.images[0].path).spacing_mm
    except UserError:
        return case  # told when the case is converted
    thickness, width = sizes[case.name]
    if all(abs(a - b) <= SPACING_TOLERANCE * b for a, b in zip(spacing, (thickness, width, width))):
        return case
    return Case(
        case.name,
        case.images,
        case.label,
        case.available,
        (f"voxel size {tuple(round(i, 3) for i in spacing)} mm, {(thickness, width, width)} in kits.json",),
    )


CONVERTER = Converter("kits", "KiTS", __doc__, read, add_arguments)

if __name__ == "__main__":
    main(CONVERTER)
