"""NIH Pancreas-CT (Roth et al. 2015, The Cancer Imaging Archive): pancreas, CT.

Download: DICOM series below ``PANCREAS_NNNN`` and ``labelNNNN.nii.gz`` from ``TCIA_pancreas_labels-02-05-2017``. The
headers of the labels mirror the patient front to back: voxel (i, j, k) of a label is column i, row j, slice k,
counted from the feet, of the series. Cases 25 and 70 were withdrawn in 2020 because they show the patient of case 2;
older copies still have them. They are left out unless ``--keep-duplicates`` is given.
"""

from nnunet_partial.data.conversion import AS_STORED, Converter, DicomSeries, Download, LabelFile, Skip, main, pair

STRUCTURES = {"pancreas": (1,)}
DUPLICATES = ("pancreas_0025", "pancreas_0070")


def add_arguments(parser) -> None:
    parser.add_argument("--keep-duplicates", action="store_true", help="keep cases 25 and 70")


def read(source, options) -> Download:
    masks = source.collect(r"(?:.*/)?label(\d{4})\.nii(?:\.gz)?", "pancreas_{0}")
    labels = {k: LabelFile(v, AS_STORED) for k, v in masks.items()}
    return Download(STRUCTURES, [_without_duplicates(case, options) for case in pair(find_series(source), labels)])


def find_series(source) -> dict:
    """Case -> its DICOM series. Files without ending are DICOM too; licences and lists are not."""
    files: dict = {}
    for path, match in source.match(r"(?:.*/)?PANCREAS_(\d{4})/(?:.*/)?(?:[^/.]+|[^/]+\.dcm)"):
        files.setdefault(f"pancreas_{match[1]}", []).append(path)
    return {name: (DicomSeries(tuple(paths)),) for name, paths in files.items()}


def _without_duplicates(case, options):
    if case.name in DUPLICATES and not isinstance(case, Skip) and not options.keep_duplicates:
        return Skip(case.name, "the same patient as pancreas_0002, withdrawn in 2020 (--keep-duplicates keeps it)")
    return case


CONVERTER = Converter("nih", "PancreasCT", __doc__, read, add_arguments)

if __name__ == "__main__":
    main(CONVERTER)
