"""KiTS19, KiTS21 and KiTS23, Kidney Tumor Segmentation Challenges (Heller et al.): kidneys, tumours, cysts, CT.

Download: ``case_NNNNN/imaging.nii.gz`` with ``segmentation.nii.gz`` (19, 23) or ``aggregated_MAJ_seg.nii.gz`` (21,
also AND and OR). The files store slices along their first axis, with an off-diagonal affine that says so; not every
slice is 512 x 512 (case_00160). ``kits.json``, where it is there, gives the voxel size to compare the headers with.
KiTS19 has no cysts: they are kidney there. Its cases 210 to 299 have no labels.
"""

from nnunet_partial.data.conversion import Case, Converter, Download, ImageFile, LabelFile, main, pair
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
    release = options.release or recognise(source)
    name = rf"aggregated_{options.aggregation}_seg" if release == "21" else "segmentation"
    labels = {k: LabelFile(v) for k, v in source.collect(rf"(?:.*/)?(case_\d{{5}})/{name}\.nii\.gz").items()}
    sizes = _sizes(source)
    cases = pair(
        {k: (ImageFile(v),) for k, v in images.items()},
        labels,
        unlabelled=lambda name: release == "19" and name >= FIRST_TEST_CASE,
    )
    return Download(STRUCTURES[release], [_compared(case, sizes) for case in cases], default=("kidney",))


def recognise(source) -> str:
    """Release of a download: 21 has aggregated masks; 23 has folders of instances and cases from 400 on; else 19."""
    if any(True for _ in source.match(r"(?:.*/)?case_\d{5}/aggregated_\w+_seg\.nii\.gz")):
        return "21"
    return "23" if any(True for _ in source.match(r"(?:.*/)?case_(\d{5}/instances/.*|00[4-9]\d\d/.*)")) else "19"


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
