"""BTCV, Beyond the Cranial Vault, abdomen (Landman et al. 2015): 13 organs, CT.

Download: ``RawData/Training/img/imgNNNN.nii.gz`` with ``label/labelNNNN.nii.gz`` (1 to 10, 21 to 40) and
``RawData/Testing/img/imgNNNN.nii.gz`` (61 to 80), which has no labels.
"""

from nnunet_partial.data.conversion import Converter, Download, ImageFile, LabelFile, main, pair

ORGANS = (
    "spleen",
    "right_kidney",
    "left_kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior_vena_cava",
    "portal_and_splenic_vein",
    "pancreas",
    "right_adrenal_gland",
    "left_adrenal_gland",
)
STRUCTURES = {**{name: (i + 1,) for i, name in enumerate(ORGANS)}, "kidney": (2, 3), "adrenal_gland": (12, 13)}


def read(source, options) -> Download:
    labels = {k: LabelFile(v) for k, v in source.collect(r"(?:.*/)?label(\d{4})\.nii(?:\.gz)?", "btcv_{0}").items()}
    images = {k: (ImageFile(v),) for k, v in find_images(source).items()}
    tests = source.collect(r"(?:.*/)?Testing/(?:.*/)?img(\d{4})\.nii(?:\.gz)?", "btcv_{0}")
    return Download(STRUCTURES, list(pair(images, labels, unlabelled=tests.__contains__)), default=ORGANS)


def find_images(source) -> dict:
    """Case -> image, of training and test cases."""
    return source.collect(r"(?:.*/)?img(\d{4})\.nii(?:\.gz)?", "btcv_{0}")


CONVERTER = Converter("btcv", "BTCV", __doc__, read)

if __name__ == "__main__":
    main(CONVERTER)
