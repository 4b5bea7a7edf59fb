"""Medical Segmentation Decathlon (Antonelli et al. 2022), any of its ten tasks, CT or MR.

Download: ``TaskNN_Name`` with ``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesTs``. Which cases, channels and
classes there are stands in dataset.json. Tasks with several channels keep them in one file in 4D; each channel
becomes available through a header of its own. In Liver and Pancreas the organ includes its tumour unless both are
asked for.
"""

import re

from nnunet_partial.data.conversion import Case, Converter, Download, ImageFile, LabelFile, Skip, main
from nnunet_partial.errors import UserError

TUMOUR = {"liver": "cancer", "pancreas": "cancer"}  # organ -> its tumour, as dataset.json calls them


def read(source, options) -> Download:
    file = source.find(r"(?:[^/]+/)?dataset\.json")
    if file is None:
        raise UserError(f"{source.given} holds no dataset.json. Name the folder of one task, such as Task04_Hippocampus.")
    content = source.json(file)
    try:
        channels = tuple(str(content["modality"][k]) for k in sorted(content["modality"], key=int))
        structures = {class_name(name): (int(value),) for value, name in content["labels"].items() if int(value)}
        pairs = [(i["image"], i["label"]) for i in content["training"]] + [(i, None) for i in content.get("test", [])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is not the dataset.json of the Decathlon ({type(error).__name__}: {error}).") from None
    if len(structures) < sum(bool(int(value)) for value in content["labels"]):
        raise UserError(
            f"{file}: two labels have names that differ in signs alone, {list(content['labels'].values())}. Rename one."
        )
    cases = [find_case(source, file, image, label, len(channels)) for image, label in pairs]
    organ = next((i for i in TUMOUR if i in structures and TUMOUR[i] in structures), None)
    if organ is None:
        return Download(structures, cases, channels=channels)
    whole = {organ: structures[organ] + structures[TUMOUR[organ]], f"{organ}_parenchyma": structures[organ]}
    return Download({**structures, **whole}, cases, default=(organ,), channels=channels)


def find_case(source, file, image, label, channels: int):
    """One entry of ``training`` or ``test``. Several channels lie along the fourth axis of one file."""
    path = source.named(image, file)
    name = re.sub(r"\.nii(\.gz)?$", "", path.name)
    if name.startswith("."):
        return Skip(name.lstrip("."), f"{image} is a leftover of macOS, not an image")
    volumes = (ImageFile(path),) if channels == 1 else tuple(ImageFile(path, volume=i) for i in range(channels))
    return Case(name, volumes, LabelFile(source.named(label, file)) if label is not None else None)


def class_name(name: str) -> str:
    """Names of dataset.json without the signs that separate classes on the command line."""
    return re.sub(r"[^\w.-]+", "_", str(name).strip()).strip("_")


CONVERTER = Converter("msd", "MSD", __doc__, read)

if __name__ == "__main__":
    main(CONVERTER)
