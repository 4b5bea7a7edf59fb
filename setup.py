"""Packaging of nnunet_partial.

One thing here is unusual. Stock nnU-Net commands find the trainers because ``import torch`` calls the
``torch.backends`` entry point below. torch turns *any* failure of an entry point into a failed ``import torch``,
so the module behind it must stay importable even when the rest of this package is not: a checkout that was
installed with ``pip install -e`` and then moved or deleted must not take torch down with it. The module is
therefore copied into site-packages in an editable install too, where setuptools would only link it.
"""

import os
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

AUTOLOAD = "nnunet_partial_autoload"


def read(name):
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), encoding="utf-8") as handle:
        return handle.read()


class build_py_with_autoload(build_py):
    def run(self):
        super().run()
        if self.editable_mode:
            shutil.copy(AUTOLOAD + ".py", self.get_finalized_command("install").install_lib)


setup(
    name="nnunet_partial",
    version="0.1.0",
    description="From partially labelled datasets to one nnU-Net v2 model that segments every organ",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # _ext is a folder that nnU-Net searches, not a package, so find_packages leaves it out
    packages=[*find_packages(include=["nnunet_partial*", "dataset_conversion*"]), "nnunet_partial._ext"],
    package_data={"nnunet_partial.evaluation.report": ["*.j2"]},
    py_modules=[AUTOLOAD],
    cmdclass={"build_py": build_py_with_autoload},
    install_requires=[
        "nnunetv2>=2.8,<3",
        "torch>=2.5,!=2.9.*",  # 2.5: entry points of torch.backends; nnU-Net excludes 2.9
        "acvl-utils>=0.2.6,<0.3",
        "dynamic-network-architectures>=0.4.4,<0.5",
        "batchgenerators>=0.25.1",
        "batchgeneratorsv2>=0.3.2",
        "numpy>=1.24",
        "scipy",
        "scikit-learn",
        "SimpleITK>=2.2.1",
        "surface-distance>=0.1",
        "connected-components-3d>=3.12",
        "fastremap>=1.14",
        "psutil>=5.9",
        "nibabel>=5",
        "matplotlib>=3.7",
        "blosc2>=3.3.2",
        "pydicom>=3.0",
        "python-gdcm>=3.0.24",  # through it pydicom decodes JPEG, JPEG-LS and JPEG 2000
        "h5py>=3.8",
        "jinja2>=3.1",
        "submitit>=1.5",
        "tqdm",
    ],
    extras_require={
        # the counter, in the release of the time, is behind a published figure
        "test": ["pytest>=7", "pytest-xdist>=3.5", "pytest-timeout>=2.2", "ptflops==0.6.9", "dcm2niix>=1.0.20220715"],
        "onnx": ["onnx>=1.16", "onnxruntime>=1.17", "onnxscript>=0.1"],
    },
    entry_points={
        "console_scripts": ["nnunet_partial = nnunet_partial.cli:main"],
        "torch.backends": [f"nnunet_partial = {AUTOLOAD}:register"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
