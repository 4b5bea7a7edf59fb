"""Multi-organ abdominal CT reference standard (Gibson et al. 2018, zenodo.org/records/1169361): 8 organs, 90 CTs of
others.

Download: ``label_btcv_multiorgan/labelNNNN.nii.gz``, ``label_tcia_multiorgan/labelNNNN.nii.gz`` and ``cropping.csv``.
The images are those of BTCV (``imgNNNN.nii.gz``) and NIH Pancreas-CT (DICOM below ``PANCREAS_NNNN``), in the same
folder or where ``--btcv`` and ``--tcia`` say. PANCREAS_0025 has been withdrawn. The labels of other BTCV organs are
not complete and not used.

Outside the region that cropping.csv gives for a case, annotations are incomplete: it becomes nnU-Net's ignore label.
``--whole`` makes it background. Rows of the table count in different directions; the direction that holds the labels
counts. Headers of labels are not to be trusted: whether a label must be mirrored is seen in the image.
"""

import csv
import itertools
from dataclasses import dataclass

import numpy as np

from dataset_conversion import btcv, nih
from nnunet_partial.data.conversion import AS_STORED, Case, Converter, Download, ImageFile, LabelFile, Skip, main
from nnunet_partial.data.images import read_label
from nnunet_partial.errors import UserError

STRUCTURES = {
    "spleen": (1,),
    "left_kidney": (3,),
    "gallbladder": (4,),
    "esophagus": (5,),
    "liver": (6,),
    "stomach": (7,),
    "pancreas": (11,),
    "duodenum": (14,),
}
INCOMPLETE = (2, 8, 9, 10, 12, 13)  # organs that only the BTCV labels have
OUTSIDE = 255
WITHDRAWN = "tcia_0025"
EXTENTS = ("left", "right", "ant", "post", "inf", "sup")
MINIMUM_INSIDE = 0.95  # share of the labelled voxels that must lie in the region


def add_arguments(parser) -> None:
    parser.add_argument("--btcv", metavar="DIR", help="folder of BTCV, default SRC")
    parser.add_argument("--tcia", metavar="DIR", help="folder of NIH Pancreas-CT, default SRC")
    parser.add_argument(
        "--whole", action="store_true", help="background instead of the ignore label outside of cropping.csv's regions"
    )


def read(source, options) -> Download:
    from_btcv = source.beside(options.btcv) if options.btcv else source
    from_tcia = source.beside(options.tcia) if options.tcia else source
    images = {k: (ImageFile(v),) for k, v in btcv.find_images(from_btcv).items()}
    images.update({k.replace("pancreas", "tcia"): v for k, v in nih.find_series(from_tcia).items()})
    labels = source.collect(r"(?:.*/)?label_(btcv|tcia)_multiorgan/label(\d{4})\.nii(?:\.gz)?", "{0}_{1}")
    regions = {} if options.whole else read_regions(source)
    cases = [_case(name, path, images, regions, options) for name, path in labels.items()]
    return Download(STRUCTURES, cases, ignored=frozenset() if options.whole else frozenset({OUTSIDE}))


def _case(name, path, images, regions, options):
    if name not in images:
        reason = "withdrawn" if name == WITHDRAWN else "is --btcv or --tcia missing?"
        return Skip(name, f"its image is not there ({reason})")
    if not options.whole and name not in regions:
        return Skip(name, "cropping.csv has no line for it")
    return Case(name, images[name], RegionLabel(path, AS_STORED, region_xyz=regions.get(name)))


def read_regions(source) -> dict:
    """Case -> ((left, right), (ant, post), (inf, sup)) in voxels, each pair ascending, from cropping.csv."""
    file = source.find(r"(?:.*/)?cropping\.csv")
    if file is None:
        raise UserError(f"{source.given} holds no cropping.csv. Download it from zenodo.org/records/1169361, or pass --whole.")
    source.check(file)
    regions = {}
    with open(file, newline="", encoding="utf-8-sig") as handle:
        for number, row in enumerate(csv.DictReader(handle), start=2):
            try:
                limits = [int(float(row[f"extent_{i}"])) for i in EXTENTS]
                name = f"{row['publisher'].strip().lower()}_{int(row['original_id']):04d}"
            except (KeyError, TypeError, ValueError, AttributeError):
                raise UserError(
                    f"{file}, line {number}: publisher, original_id and extent_* {', '.join(EXTENTS)} are expected, "
                    f"found {dict(row)}."
                ) from None
            regions[name] = tuple(tuple(sorted(limits[i : i + 2])) for i in (0, 2, 4))
    return regions


@dataclass(frozen=True)
class RegionLabel(LabelFile):
    """A label that is complete in a region only. ``region_xyz``: voxels from, to; None: everywhere."""

    region_xyz: tuple | None = None

    def read(self, organs, available, geometry) -> tuple:
        label, claimed = read_label(self.path)
        label[np.isin(label, INCOMPLETE)] = 0
        if self.region_xyz is not None:
            label[~region_mask(label, self.region_xyz, self.path)] = OUTSIDE
        try:
            return organs.apply(label, available), claimed
        except UserError as error:
            raise UserError(f"{self.path} {error}") from None


def region_mask(label: np.ndarray, region_xyz: tuple, name) -> np.ndarray:
    """Bool mask (z, y, x) of the region, counted from whichever ends of the axes hold the most labelled voxels."""
    choices = [(limits, (n - limits[1], n - limits[0])) for limits, n in zip(region_xyz[::-1], label.shape)]
    boxes = list(itertools.product(*choices))
    slices = [tuple(slice(max(low, 0), high) for low, high in box) for box in boxes]
    inside = [np.count_nonzero(label[i]) for i in slices]
    best = int(np.argmax(inside))
    if inside[best] < MINIMUM_INSIDE * np.count_nonzero(label):
        raise UserError(
            f"{name}: {inside[best] / np.count_nonzero(label):.0%} of the label lies in the region of "
            f"cropping.csv; is it the label of another case?"
        )
    mask = np.zeros(label.shape, bool)
    mask[slices[best]] = True
    return mask


CONVERTER = Converter("moba", "MOBA", __doc__, read, add_arguments)

if __name__ == "__main__":
    main(CONVERTER)
