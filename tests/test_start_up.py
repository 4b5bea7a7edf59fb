"""What needs no torch does not import it: seconds at every start, and nothing that can fail on the way."""

import os
import subprocess
import sys

import pytest

from nnunet_partial.cli import VERBS

HEAVY = ("torch", "nnunetv2", "batchgenerators", "batchgeneratorsv2", "skimage", "sklearn")
SCRIPT = """
import sys
from nnunet_partial.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code in (0, None), end.code
print("HEAVY", sorted(set(sys.modules) & set({heavy!r})))
"""


def heavy_modules(*argv, folder=None):
    """Which heavy modules a command has imported by its end."""
    environment = dict(os.environ)
    if folder is not None:
        environment.update({i: str(folder / i) for i in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")})
    script = SCRIPT.format(heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", script, *map(str, argv)], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip().splitlines()[-1]


def write_raw(folder, organ):
    """Five cases of one organ."""
    import numpy as np
    import SimpleITK as sitk

    from nnunet_partial.files import write_json

    labels = {"background": 0, organ: 1}
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for seed in range(5):
        image = np.random.default_rng([seed, len(organ)]).normal(0, 10, (8, 8, 8)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "imagesTr" / f"c{seed}_0000.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray((image > 0).astype(np.uint8)), str(folder / "labelsTr" / f"c{seed}.nii.gz"))
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 5, "file_ending": ".nii.gz"}
    write_json(content, folder / "dataset.json")


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help(verb):
    assert heavy_modules(verb, "--help") == "HEAVY []"


def test_every_converter_has_its_help():
    assert heavy_modules("convert", "lits", "--help") == "HEAVY []"


def test_the_commands_that_prepare_data(tmp_path):
    """merge, check and variant, on a dataset of five cases."""
    from nnunet_partial.files import write_json

    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
    write_raw(tmp_path / "nnUNet_raw" / "Dataset101_A", "liver")
    write_raw(tmp_path / "nnUNet_raw" / "Dataset102_B", "kidney")
    argv = ["--dataset-id", 501, "--name", "Both", "--source", "a=101:liver", "--source", "b=102:kidney", "--processes", 1]
    assert heavy_modules("merge", *argv, folder=tmp_path) == "HEAVY []"
    merged = tmp_path / "nnUNet_raw" / "Dataset501_Both"
    assert (merged / "dataset.json").is_file()
    preprocessed = tmp_path / "nnUNet_preprocessed" / merged.name
    preprocessed.mkdir()
    (preprocessed / "dataset.json").write_text((merged / "dataset.json").read_text())
    network = {"arch_kwargs": {"strides": [[1, 1], [2, 2]], "features_per_stage": [4, 8], "n_stages": 2}}
    configuration = {"batch_size": 2, "patch_size": [8, 8], "architecture": network}
    plans = {"dataset_name": merged.name, "plans_name": "nnUNetPlans", "configurations": {"2d": configuration}}
    write_json(plans, preprocessed / "nnUNetPlans.json")
    assert heavy_modules("variant", 501, "--name", "x", "--set", "num_epochs=2", folder=tmp_path) == "HEAVY []"
    assert (
        heavy_modules(
            "evaluate",
            "--pred",
            merged / "labelsTr",
            "--truth",
            merged / "labelsTr",
            "--dataset",
            501,
            "--metrics",
            "dice",
            "--processes",
            1,
            "--out",
            tmp_path / "out",
            folder=tmp_path,
        )
        == "HEAVY []"
    )
