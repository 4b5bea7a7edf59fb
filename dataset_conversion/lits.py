"""LiTS, Liver Tumor Segmentation Challenge (Bilic et al. 2023): liver and tumours, CT.

Download: ``volume-N.nii`` and ``segmentation-N.nii`` (0 to 130, also ``.nii.gz``) in one folder or in "Training Batch
1" and "Training Batch 2"; ``test-volume-N.nii`` has no labels. Orientations differ from case to case; nnU-Net brings
them together.

- Volumes 28 to 47 come from 3D-IRCADb-01 and carry an identity affine instead of their voxel size. ``--ircadb`` names
  the folder of that dataset, whose DICOM headers have it. Volumes 28 to 48 are flagged: do not test on 3D-IRCADb
  after training on them, or leave them out with ``--without-ircadb``.
- In some pairs, 48 to 52 among them, the header of the mask differs from that of the image. Voxels correspond all the
  same, unless a viewer has saved the mask again: then its own header counts. The image decides, and a close call is named.
"""

import re
from dataclasses import replace

from nnunet_partial.data.conversion import (
    AS_STORED,
    Converter,
    Download,
    ImageFile,
    LabelFile,
    Skip,
    SourceFolder,
    dicom,
    main,
    pair,
)
from nnunet_partial.data.images import read_geometry
from nnunet_partial.errors import UserError

STRUCTURES = {"liver": (1, 2), "tumor": (2,), "liver_parenchyma": (1,)}
IRCADB = range(28, 49)
PLACEHOLDER_MM = (1.0, 1.0, 1.0)


def add_arguments(parser) -> None:
    parser.add_argument(
        "--ircadb", metavar="DIR", help="folder of 3D-IRCADb-01, from which volumes 28 to 47 get their voxel size"
    )
    parser.add_argument("--without-ircadb", action="store_true", help="leave out volumes 28 to 48")


def read(source, options) -> Download:
    volumes = source.collect(r"(?:.*/)?volume-(\d+)\.nii(?:\.gz)?", "lits_{0:0>3}")
    masks = source.collect(r"(?:.*/)?segmentation-(\d+)\.nii(?:\.gz)?", "lits_{0:0>3}")
    tests = source.collect(r"(?:.*/)?test-volume-(\d+)\.nii(?:\.gz)?", "lits_test_{0:0>3}")
    images = {k: (ImageFile(v),) for k, v in {**volumes, **tests}.items()}
    labels = {k: LabelFile(v, AS_STORED, own_header=True) for k, v in masks.items()}
    sizes = ircadb_spacings(SourceFolder(options.ircadb, options.follow_links)) if options.ircadb else {}
    cases = [_with_facts(case, sizes, options) for case in pair(images, labels, unlabelled=tests.__contains__)]
    return Download(STRUCTURES, cases, default=("liver",))


def _with_facts(case, sizes, options):
    match = re.fullmatch(r"lits_(\d{3})", case.name)
    if isinstance(case, Skip) or not match or int(match[1]) not in IRCADB:
        return case
    if options.without_ircadb:
        return Skip(case.name, "it is part of 3D-IRCADb-01 (--without-ircadb)")
    image, note = case.images[0], "part of 3D-IRCADb-01: do not test on that dataset"
    try:
        geometry = read_geometry(image.path)
    except UserError as error:
        return Skip(case.name, str(error))
    if geometry.spacing_mm != PLACEHOLDER_MM:
        return replace(case, notes=(note,))
    size = sizes.get(int(match[1]) - 27)
    if size is None or size[0] != geometry.size_xyz:
        return replace(case, notes=(note, "the voxel size 1 mm is a placeholder; give --ircadb DIR"))
    mended = ImageFile(image.path, spacing_mm=size[1])
    return replace(case, images=(mended,), notes=(note, "voxel size from 3D-IRCADb-01"))


def ircadb_spacings(source) -> dict:
    """Patient number -> (size, voxel size in mm), (x, y, z), from ``3Dircadb1.N/PATIENT_DICOM``."""
    files: dict = {}
    for path, match in source.match(r"(?:.*/)?3Dircadb1\.(\d+)/(?:.*/)?PATIENT_DICOM/(?:.*/)?image_\d+"):
        files.setdefault(int(match[1]), []).append(path)
    if not files:
        raise UserError(
            f"--ircadb {source.given} holds no 3Dircadb1.N/PATIENT_DICOM/image_*. Unpack the archives of 3D-IRCADb-01."
        )
    found = {number: dicom.read_headers(tuple(paths)).geometry for number, paths in files.items()}
    return {number: (geometry.size_xyz, geometry.spacing_mm) for number, geometry in found.items()}


CONVERTER = Converter("lits", "LiTS", __doc__, read, add_arguments)

if __name__ == "__main__":
    main(CONVERTER)
