"""ACDC, Automated Cardiac Diagnosis Challenge (Bernard et al. 2018): right ventricle, myocardium, left ventricle,
cine MR.

Download: ``training/patientNNN/patientNNN_frameFF.nii.gz`` with ``patientNNN_frameFF_gt.nii.gz``, end diastole and
end systole; the film ``patientNNN_4d.nii.gz`` is not used. ``testing`` (patients 101 to 150) is left out unless
``--with-testing`` is given. Kaggle's copy, unzipped, has a folder ``patientNNN_frameFF.nii`` around each file of that name.
The two frames of a patient are marked as such, and splits keep them together.
"""

from dataclasses import replace

from nnunet_partial.data.conversion import Case, Converter, Download, ImageFile, LabelFile, main, pair, patient_of

STRUCTURES = {"right_ventricle": (1,), "myocardium": (2,), "left_ventricle": (3,)}


def add_arguments(parser) -> None:
    parser.add_argument("--with-testing", action="store_true", help="also use the patients of the folder testing")


def read(source, options) -> Download:
    folder = r"(?:.*/)?" if options.with_testing else r"(?!(?:.*/)?testing/)(?:.*/)?"
    folder += r"patient\d{3}/(?:[^/]+\.nii/)?"
    images = source.collect(folder + r"(patient\d{3}_frame\d{2})\.nii(?:\.gz)?")
    labels = source.collect(folder + r"(patient\d{3}_frame\d{2})_gt\.nii(?:\.gz)?")
    images = {k: (ImageFile(v),) for k, v in images.items()}
    cases = pair(images, {k: LabelFile(v) for k, v in labels.items()})
    marked = [replace(i, patient=patient_of(i.name)) if isinstance(i, Case) else i for i in cases]
    return Download(STRUCTURES, marked, channels=("cine MR",))


CONVERTER = Converter("acdc", "ACDC", __doc__, read, add_arguments)

if __name__ == "__main__":
    main(CONVERTER)
