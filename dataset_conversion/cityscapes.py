"""Cityscapes (Cordts et al. 2016): street scenes, 19 classes, RGB in 2D.

Download: ``leftImg8bit/train/CITY/*_leftImg8bit.png`` with ``gtFine/train/CITY/*_gtFine_labelIds.png``; the pictures
of ``train_extra`` have no fine labels (``--unlabelled``). ``val`` is the usual test set and left out unless
``--with-val`` is given. Pixels outside of the 19 classes become nnU-Net's ignore label.

``--super-classes`` writes the five classes road, vehicle, person, vegetation, others of the ATSO paper (section 4.3)
instead of the 19; ``super_classes.json`` beside dataset.json has the mapping either way. The paper does not print the
mapping: here rider is a person, terrain is vegetation, everything on wheels is a vehicle.
"""

from nnunet_partial.data.conversion import Converter, Download, ImageFile, LabelFile, main, pair

CLASSES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic_light": 19,
    "traffic_sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
SUPER_CLASSES = {
    "road": ("road",),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
    "person": ("person", "rider"),
    "vegetation": ("vegetation", "terrain"),
    "others": ("sidewalk", "building", "wall", "fence", "pole", "traffic_light", "traffic_sign", "sky"),
}
VOID = frozenset(range(34)) - frozenset(CLASSES.values()) | {255}


def add_arguments(parser) -> None:
    parser.add_argument("--super-classes", action="store_true", help="five super-classes instead of 19 classes")
    parser.add_argument("--with-val", action="store_true", help="also use the pictures of val for training")


def read(source, options) -> Download:
    parts = "train|train_extra|val" if options.with_val else "train|train_extra"
    found = source.collect(rf"(?:.*/)?leftImg8bit/({parts})/[^/]+/([^/]+)_leftImg8bit\.png", "{0} {1}")
    extra = {k.split()[1] for k in found if k.startswith("train_extra")}
    images = {k.split()[1]: (ImageFile(v),) for k, v in found.items()}
    labels = source.collect(rf"(?:.*/)?gtFine/(?:{parts})/[^/]+/([^/]+)_gtFine_labelIds\.png")
    cases = list(pair(images, {k: LabelFile(v) for k, v in labels.items()}, unlabelled=extra.__contains__))
    structures = {name: (value,) for name, value in CLASSES.items()}
    if options.super_classes:
        structures = {name: tuple(CLASSES[i] for i in members) for name, members in SUPER_CLASSES.items()}
    return Download(
        structures,
        cases,
        channels=("R", "G", "B"),
        ignored=VOID,
        reader="NaturalImage2DIO",
        ending=".png",
        files={"super_classes.json": SUPER_CLASSES},
    )


CONVERTER = Converter("cityscapes", "Cityscapes", __doc__, read, add_arguments)

if __name__ == "__main__":
    main(CONVERTER)
