"""Medical Segmentation Decathlon: dataset.json, channels of 4D files in place, tumours, leftovers of macOS."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.errors import UserError


@pytest.fixture
def task(src, tools):
    """Write a task; returns (folder, {case: label})."""

    def write(name, modality, labels, cases=("a_001", "a_002"), tests=(), extra=(), channels=1):
        folder = src / name
        found = {}
        for number, case in enumerate((*cases, *tests)):
            shape = (channels, *tools.shape) if channels > 1 else tools.shape
            image = tools.grey(number, shape)
            path = folder / ("imagesTs" if case in tests else "imagesTr") / f"{case}.nii.gz"
            if channels > 1:
                path.parent.mkdir(parents=True, exist_ok=True)
                sitk.WriteImage(sitk.JoinSeries([tools.image(i) for i in image]), str(path), True)
            else:
                tools.write(path, image)
            if case in cases:
                found[case] = tools.label_with(number, [int(i) for i in labels if int(i)])
                tools.write(folder / "labelsTr" / f"{case}.nii.gz", found[case])
        content = {
            "name": name,
            "modality": modality,
            "labels": labels,
            "numTraining": len(cases),
            "tensorImageSize": "3D",
            "training": [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in cases] + list(extra),
            "test": [f"./imagesTs/{i}.nii.gz" for i in tests],
        }
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder, found

    return write


def test_spleen(tools, task, run):
    folder, labels = task("Task09_Spleen", {"0": "CT"}, {"0": "background", "1": "spleen"}, tests=("a_003",))
    report = run("msd", folder)
    tools.check(
        report,
        source="msd",
        classes=["spleen"],
        cases={k: ([folder / "imagesTr" / f"{k}.nii.gz"], v, ["spleen"]) for k, v in labels.items()},
        skipped={"a_003": "it has no label of the classes; --unlabelled includes such cases"},
    )


@pytest.mark.parametrize("organ", ["liver", "pancreas"])
def test_organ_includes_its_tumour_unless_both_are_asked_for(organ, tools, task, run):
    folder, labels = task("Task", {"0": "CT"}, {"0": "background", "1": organ, "2": "cancer"})
    images = {k: folder / "imagesTr" / f"{k}.nii.gz" for k in labels}
    report = run("msd", folder, "--name", "Whole")
    tools.check(
        report,
        source="msd",
        classes=[organ],
        cases={k: ([images[k]], tools.remap(v, {1: 1, 2: 1}), [organ]) for k, v in labels.items()},
    )
    report.folder.rename(folder.parent.parent / "first")
    report = run("msd", folder, "--organs", f"{organ},cancer", dataset_id=8)
    tools.check(
        report, source="msd", classes=[organ, "cancer"], cases={k: ([images[k]], v, [organ, "cancer"]) for k, v in labels.items()}
    )


def test_channels_of_a_4d_task_stay_in_one_file(tools, task, run):
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    folder, labels = task(
        "Task01_BrainTumour",
        modality,
        {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
        channels=4,
    )
    report = run("msd", folder)
    classes = ["edema", "non-enhancing_tumor", "enhancing_tumour"]
    expected = {k: [sitk.ReadImage(str(folder / "imagesTr" / f"{k}.nii.gz"))[:, :, :, c] for c in range(4)] for k in labels}
    tools.check(
        report,
        source="msd",
        classes=classes,
        channels=tuple(modality.values()),
        cases={k: (expected[k], v, classes) for k, v in labels.items()},
    )
    assert all(set(i.how) == {"through a header of its own"} for i in report.converted.values())
    assert sum(i.stat().st_size for i in (report.folder / "imagesTr").iterdir()) < 8 * 1000


def test_leftovers_of_macos_are_skipped(tools, task, run):
    folder, labels = task(
        "Task",
        {"0": "CT"},
        {"0": "background", "1": "spleen"},
        extra=[{"image": "./imagesTr/._a_001.nii.gz", "label": "./labelsTr/._a_001.nii.gz"}],
    )
    assert set(run("msd", folder).converted) == {"a_001", "a_002"}


@pytest.mark.parametrize("path", ["../../elsewhere/secret.nii.gz", "/etc/passwd", "imagesTr/../../../x.nii.gz"])
def test_paths_of_dataset_json_do_not_lead_outside(path, task, run, raw):
    folder, _ = task("Task", {"0": "CT"}, {"0": "background", "1": "spleen"}, extra=[{"image": path, "label": path}])
    with pytest.raises(UserError, match="lies outside"):
        run("msd", folder)
    assert not any(raw.iterdir())


def test_real_hippocampus(run):
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    folder = Path(os.environ["NNUNET_PARTIAL_DATA"]) / "Task04_Hippocampus"
    report = run("msd", folder, "--organs", "hippocampus=Anterior+Posterior,Posterior", "--processes", "2")
    assert len(report.converted) == 213 and not report.skipped
    for case in list(report.converted)[::40]:
        original = sitk.ReadImage(str(folder / "labelsTr" / f"{case}.nii.gz"))
        written = sitk.ReadImage(str(report.folder / report.converted[case].label))
        assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(original))
        assert written.GetDirection() == original.GetDirection() and np.allclose(written.GetOrigin(), original.GetOrigin())
