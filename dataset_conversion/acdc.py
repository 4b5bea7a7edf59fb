"""ACDC, Automated Cardiac Diagnosis Challenge (Bernard et al. 2018): right ventricle, myocardium, left ventricle,
cine MR.

Download: ``training/patientNNN/patientNNN_frameFF.nii.gz`` with ``patientNNN_frameFF_gt.nii.gz``, end diastole and
end systole; the film ``patientNNN_4d.nii.gz`` is not used. ``testing`` (patients 101 to 150) is left out unless
``--with-testing`` is given.
"""

from nnunet_partial.data.conversion import Converter, Download, ImageFile, LabelFile, main, pair

STRUCTURES = {"right_ventricle": (1,), "myocardium": (2,), "left_ventricle": (3,)}
NOTE = "two frames per patient: keep them in one fold"


def add_arguments(parser) -> None:
    parser.add_argument("--with-testing", action="store_true", help="also use the patients of the folder testing")


def read(source, options) -> Download:
    folder = r"(?:.*/)?" if options.with_testing else r"(?!(?:.*/)?testing/)(?:.*/)?"
    images = source.collect(folder + r"patient\d{3}/(patient\d{3}_frame\d{2})\.nii(?:\.gz)?")
    labels = source.collect(folder + r"patient\d{3}/(patient\d{3}_frame\d{2})_gt\.nii(?:\.gz)?")
    images = {k: (ImageFile(v),) for k, v in images.items()}
    cases = pair(images, {k: LabelFile(v) for k, v in labels.items()}, notes=(NOTE,))
    return Download(STRUCTURES, list(cases), channels=("cine MR",))


CONVERTER = Converter("acdc", "ACDC", __doc__, read, add_arguments)

if __name__ == "__main__":
    main(CONVERTER)
