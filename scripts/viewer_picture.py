"""Draw docs/pictures/viewer.png, a picture of the viewer of pages: ``python scripts/viewer_picture.py [chromium]``.

The patient is a phantom of the demo in finer voxels, and the methods' "predictions" are its labels, moved. Needs the extra
``viewer`` and Chromium, in which WebGL runs in software.
"""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from nnunet_partial.demo import phantoms  # noqa: E402
from nnunet_partial.evaluation.metrics import dice  # noqa: E402
from nnunet_partial.evaluation.report import scenes, viewer  # noqa: E402
from nnunet_partial.evaluation.report.viewer import Layer, Scene  # noqa: E402
from nnunet_partial.files import atomic_path, write_text  # noqa: E402
from nnunet_partial.palette import of  # noqa: E402

PICTURE, PART = ROOT / "docs" / "pictures" / "viewer.png", (0, 455, 1100, 1350)  # what is above is the rest of the page
FLAGS = ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--use-gl=angle", "--use-angle=swiftshader")
FLAGS += ("--enable-unsafe-swiftshader", "--window-size=1100,1350", "--virtual-time-budget=20000")


def scene() -> Scene:
    """The liver of a phantom, as two made-up methods segment it."""
    style = phantoms.PORTAL_VENOUS
    fine = replace(style, spacing_mm=(1.6, 1.6, 3.2), size_xyz=tuple(n * k for n, k in zip(style.size_xyz, (4, 4, 2))))
    patient = phantoms.make_patient([11, 0], fine)
    liver = np.isin(patient.organs, (phantoms.LIVER, phantoms.LIVER_TUMOUR))
    masks = {
        "truth": liver,
        "MSKD": ndimage.binary_opening(np.roll(liver, (1, 4), axis=(0, 2)), iterations=3),
        "individual": ndimage.binary_dilation(np.roll(liver, (1, -3), axis=(0, 1)), iterations=2),
    }
    layers = [
        Layer(name, mask.astype(np.uint8), {1: ("liver", of(scenes.LAYERS, n))}, shown=n < 2)
        for n, (name, mask) in enumerate(masks.items())
    ]
    text = f"liver, worst: phantom, Dice of MSKD {dice(masks['MSKD'], liver):.3g}"
    return Scene(text, patient.ct.astype(np.float32), layers, fine.spacing_mm[::-1], patient.origin_mm, "CT")


def draw(chromium: str = "chromium") -> None:
    """Write the page, open it, and keep what is on the screen."""
    content = {"title": "A page to scroll in", "words": "", "picture": None, "file": ""}
    with tempfile.TemporaryDirectory() as folder, atomic_path(PICTURE) as temporary:
        page, shot = Path(folder) / "page.html", Path(folder) / "viewer.png"
        write_text(viewer.render("check.html.j2", content, lambda: [scene()]), page)
        argv = [chromium, *FLAGS, f"--user-data-dir={folder}/profile", f"--screenshot={shot}", page.as_uri()]
        subprocess.run(argv, check=True, capture_output=True)
        Image.open(shot).crop(PART).save(temporary, format="png", optimize=True)


if __name__ == "__main__":
    draw(*sys.argv[1:])
