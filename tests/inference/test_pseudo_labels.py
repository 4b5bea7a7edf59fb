"""Pseudo labels: who labels what, what is never touched, restarts; prediction against nnU-Net's from raw images."""

import os
import shutil
import signal

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_partial.cli import main
from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, sha256
from nnunet_partial.inference import preprocessed, pseudo_labels

CLASSES = ("liver", "kidney", "pancreas")
pytestmark = pytest.mark.usefixtures("one_thread")
ORGANS_OF_SOURCE = {"lits": "liver", "kits": "kidney", "nih": "pancreas"}
# organ -> box (z, y, x) and logit of its teacher there; the kidney's box overlaps the pancreas', which is surer
BOXES = {
    "liver": (slice(1, 5), slice(0, 6), slice(0, 6), 2.0),
    "kidney": (slice(6, 10), slice(0, 6), slice(0, 6), 1.0),
    "pancreas": (slice(8, 12), slice(0, 6), slice(0, 6), 3.0),
}


@pytest.fixture
def drawn(monkeypatch):
    return draw_boxes(monkeypatch)


def draw_boxes(patch):
    """Teachers that draw boxes. Returns what was loaded: each model once, on its device."""
    loaded = []

    def load(files, device, mirroring):
        loaded.append((files.source, str(device), mirroring))
        return files.classes

    def predict(classes, image):
        logits = torch.zeros((len(classes) + 1, *image.shape[1:]))
        for i, name in enumerate(classes, 1):
            *box, height = BOXES[name]
            logits[i] = -1
            logits[(i, *box)] = height
        return logits

    patch.setattr(pseudo_labels, "load_predictor", load)
    patch.setattr(pseudo_labels, "predict_logits", predict)
    return loaded


def label(tiny, out, **changes):
    arguments = {"plans": tiny.plans, "fold": 0, "progress": False, **changes}
    return pseudo_labels.pseudo_label(tiny.id, "3d_fullres", out, **arguments)


def truth_of(tiny, case, identifier="nnUNetPlans_3d_fullres"):
    return preprocessed.load_case(tiny.preprocessed / identifier, case)[1]


def labels_of(folder, case):
    return label_directory.load_labels(folder, case)[0][:]


def test_each_case_gets_what_it_lacks_and_keeps_what_it_has(tiny, results, drawn, tmp_path):
    assert (
        main(
            [
                "pseudo-label",
                str(tiny.id),
                "--configuration",
                "3d_fullres",
                "--fold",
                "0",
                "--plans",
                tiny.plans,
                "--from",
                "teachers",
                "--out",
                str(tmp_path / "out"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    file = tmp_path / "out" / "provenance.json"
    content = read_json(file)
    splits = read_json(tiny.preprocessed / "splits_final.json")
    assert sorted(content["cases"]) == sorted(splits[0]["train"])  # validation cases are not labelled
    assert sorted(drawn) == [("kits", "cpu", True), ("lits", "cpu", True), ("nih", "cpu", True)]
    kidney_probability, pancreas_probability = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-3))
    for case, record in content["cases"].items():
        source = case.split("_")[0]
        own = ORGANS_OF_SOURCE.get(source)
        assert record["annotated"] == ([own] if own else [])
        assert record["pseudo"] == [i for i in CLASSES if i != own]
        truth, found = truth_of(tiny, case), labels_of(tmp_path / "out", case)
        assert found.dtype == truth.dtype and np.array_equal(found[truth != 0], truth[truth != 0])
        expected = truth.copy()[0]
        free = expected == 0
        for name in ("liver", "kidney", "pancreas"):  # in the order of rising probability where they overlap
            if name != own:
                box = np.zeros_like(free)
                box[BOXES[name][:3]] = True
                expected[box & free] = CLASSES.index(name) + 1
        assert np.array_equal(found[0], expected)
        for name in CLASSES:
            voxels = (expected == CLASSES.index(name) + 1).sum()
            assert record["volume_mm3"][name] == pytest.approx(voxels * 2.5 * 2 * 2)
        if own not in ("kidney", "pancreas"):
            assert record["mean_confidence"]["kidney"] == pytest.approx(kidney_probability, rel=1e-3)
            assert record["mean_confidence"]["pancreas"] == pytest.approx(pancreas_probability, rel=1e-3)
        locations = label_directory.load_labels(tmp_path / "out", case)[1]["class_locations"]
        for value in (1, 2, 3):
            present = {value} if (expected == value).any() else set()
            assert {int(expected[tuple(i[1:])]) for i in locations[value]} == present
    models = {i["classes"][0]: i for i in content["models"]}
    assert set(models) == set(CLASSES)
    for model in models.values():
        assert model["sha256"] == sha256(model["checkpoint"])


def test_the_contract_is_read_as_often_for_one_case_as_for_all(tiny, results, drawn, tmp_path, monkeypatch):
    read, times = pseudo_labels.Annotations.from_dataset_json, []
    monkeypatch.setattr(pseudo_labels.Annotations, "from_dataset_json", lambda *a: times.append(1) or read(*a))
    counts = []
    for cases in (["lits_000"], ["lits_000", "kits_005", "nih_010"]):
        times.clear()
        label(tiny, tmp_path / str(len(cases)), cases=cases)
        counts.append(len(times))
    assert counts == [1, 1]


def test_outside_the_body_and_ignored_voxels_stay():
    claims = [
        (np.array([1, 1, 0, 2]), np.array([0.6, 0.6, 0.9, 0.6], np.float32)),
        (np.array([2, 0, 0, 1]), np.array([0.7, 0.9, 0.9, 0.6], np.float32)),
    ]
    labels, probability = pseudo_labels.merge_claims(claims, (4,))
    assert labels.tolist() == [2, 1, 0, 2]  # higher wins; background claims nothing; the first of equals
    assert probability == pytest.approx([0.7, 0.6, 0, 0.6])


def test_the_same_organ_from_two_models_and_the_largest_component(tiny, results, models, drawn, tmp_path, monkeypatch):
    def predict(classes, image):  # two parts of an organ; the smaller one is surer
        logits = torch.zeros((2, *image.shape[1:]))
        logits[1] = -1
        logits[1, 1:5, :4, :4], logits[1, 9, :2, :2] = 1, 5
        return logits

    monkeypatch.setattr(pseudo_labels, "predict_logits", predict)
    other = tmp_path / "other"
    shutil.copytree(models["kits", "3d_fullres"], other)
    content = torch.load(other / "fold_0" / "checkpoint_final.pth", weights_only=True)
    content["network_weights"] = {k: v + 1 for k, v in content["network_weights"].items()}
    torch.save(content, other / "fold_0" / "checkpoint_final.pth")
    sources = [models["kits", "3d_fullres"], str(other)]
    case = next(i for i in read_json(tiny.preprocessed / "splits_final.json")[0]["train"] if i.startswith("plain"))
    both = label(tiny, tmp_path / "both", sources=sources, cases=[case])
    assert (labels_of(both.parent, case) == 2).sum() == 4 * 4 * 4 + 4
    assert read_json(both)["cases"][case]["pseudo"] == ["kidney"]
    largest = label(tiny, tmp_path / "largest", sources=sources, cases=[case], largest_component=["kidney"])
    assert (labels_of(largest.parent, case) == 2).sum() == 4 * 4 * 4


def test_only_background_and_lacking_classes_are_possible():
    logits = torch.tensor([[0.0, 2.0], [5.0, 5.0], [1.0, 1.0]])[:, :, None, None].half()  # class 1 is annotated elsewhere
    index, probability = preprocessed.restricted_prediction(logits, [2], slab=1)
    assert index.flatten().tolist() == [1, 0]
    assert probability.flatten().numpy() == pytest.approx([np.e / (1 + np.e)] * 2)


def files_of(folder):
    """Everything but times: case -> labels, properties, record."""
    content = read_json(folder / "provenance.json")
    for record in content["cases"].values():
        record.pop("written")
    content.pop("created")
    cases = {i: (labels_of(folder, i).tobytes(), (folder / f"{i}.pkl").read_bytes()) for i in content["cases"]}
    return content, cases, sorted(i.name for i in folder.rglob("*") if i.is_file())


def test_killed_anywhere_it_continues(tiny, results, drawn, tmp_path, forked):
    """SIGKILL at every move of a file into place, one after the other in one directory, and before it."""
    cases = read_json(tiny.preprocessed / "splits_final.json")[0]["train"][:3]
    label(tiny, tmp_path / "whole", cases=cases)
    expected = files_of(tmp_path / "whole")
    moves = 3 * len(cases) + 1
    for survived in range(moves):
        for after in (False, True):
            out = tmp_path / f"killed_{survived}_{after}"
            process = forked(
                __file__, tiny=tiny, out=out, cases=cases, survived=survived, after=after, environment=dict(os.environ)
            )
            process.join()
            assert process.exitcode == -signal.SIGKILL
            if survived + after < moves:
                with pytest.raises(UserError, match="not finished|does not exist"):
                    label_directory.LabelDirectory.read(out)
            done = [i for i in cases if label_directory.read_record(out, i)]
            assert len(done) == (survived + after) // 3
            drawn.clear()
            label(tiny, out, cases=cases)
            assert files_of(out) == expected
            assert bool(drawn) == (len(done) < len(cases))


def die_at_move(survived, after):
    """From now on this process kills itself before (or after) the file move number ``survived``."""
    replace, moves = os.replace, []

    def counted(*args):
        if len(moves) == survived and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)
        moves.append(None)
        if len(moves) == survived + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted


def test_a_changed_model_is_refused_or_done_again(tiny, results, models, drawn, tmp_path):
    cases = read_json(tiny.preprocessed / "splits_final.json")[0]["train"]
    model = tmp_path / "model"
    shutil.copytree(models["kits", "3d_fullres"], model)
    out = tmp_path / "out"
    first = label(tiny, out, sources=[str(model)])
    created = read_json(first)["created"]
    drawn.clear()
    assert read_json(label(tiny, out, sources=[str(model)]))["created"] == created and not drawn
    content = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=True)
    content["current_epoch"] = 99
    torch.save(content, model / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(UserError, match="made from other models.*--overwrite"):
        label(tiny, out, sources=[str(model)])
    assert read_json(first)["created"] == created  # nothing was touched
    label(tiny, out, sources=[str(model)], overwrite=True)
    sha = sha256(model / "fold_0" / "checkpoint_final.pth")
    records = read_json(first)["cases"]
    for case in cases:
        # a case that has the kidney already was not made from this model
        assert records[case]["inputs"]["models"] == ({} if case.startswith("kits") else {sha: ["kidney"]})


def test_several_processes_give_the_same(tiny, results, tmp_path):
    """Real networks."""
    cases = read_json(tiny.preprocessed / "splits_final.json")[0]["train"][:3]
    one, two = (
        label(tiny, tmp_path / str(len(i)), cases=cases, mirroring=False, devices=i).parent for i in (["cpu"], ["cpu", "cpu"])
    )
    assert files_of(one)[0] == files_of(two)[0] and files_of(one)[2] == files_of(two)[2]
    for case in cases:
        assert np.array_equal(labels_of(one, case), labels_of(two, case))


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_prediction_agrees_with_nnunets_from_raw_images(tiny, results, models, stock, configuration):
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    folder, case = models["nih", configuration], "lits_000"
    expected = stock(folder, case)

    plans = read_json(tiny.preprocessed / f"{tiny.plans}.json")
    predictor = preprocessed.load_predictor(
        preprocessed.find_model(folder, 0, CLASSES, plans, configuration), torch.device("cpu")
    )
    data, _, properties = preprocessed.load_case(tiny.preprocessed / f"nnUNetPlans_{configuration}", case)
    logits = preprocessed.predict_logits(predictor, data)
    found = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, predictor.plans_manager, predictor.configuration_manager, predictor.label_manager, properties
    )
    assert set(np.unique(expected)) == {0, 1}
    assert np.array_equal(found, expected)
    assert np.array_equal(logits.float().argmax(0).numpy(), preprocessed.restricted_prediction(logits, [1])[0].numpy())


def test_voxel_volume():
    assert pseudo_labels.voxel_volume_mm3([5, 1, 1], [0, 1, 2], [2.5, 2, 2]) == 10
    assert pseudo_labels.voxel_volume_mm3([1, 1, 5], [2, 0, 1], [2, 3]) == 30  # 2D: slices keep their distance


def test_bad_input_is_one_line(tiny, results, models, drawn, tmp_path, capsys, monkeypatch):
    def refused(*words, **options):
        arguments = {
            "--configuration": "3d_fullres",
            "--plans": tiny.plans,
            "--fold": "0",
            "--from": "teachers",
            "--out": str(tmp_path / "out"),
            **{f"--{k}": v for k, v in options.items()},
        }
        with pytest.raises(SystemExit) as end:
            main(["pseudo-label", str(tiny.id), *(i for pair in arguments.items() for i in pair)])
        errors = capsys.readouterr().err.strip().splitlines()
        assert end.value.code == 2 and len(errors) == 1 and all(i in errors[0] for i in words), errors
        assert not (tmp_path / "out").exists()

    refused("no configuration '3d'", "3d_fullres", configuration="3d")
    refused("has the folds 0 to 4", fold="7")
    refused("holds no fold_0/checkpoint_final.pth", **{"from": str(tmp_path)})
    refused("spleen is no class", "liver, kidney", **{"largest-component": "spleen"})
    refused("at least one process", processes="0")
    refused("this machine has", gpus="17")
    stranger = tmp_path / "stranger"
    shutil.copytree(models["nih", "3d_fullres"], stranger)
    label_directory.write_json({"labels": {"background": 0, "spleen": 1}}, stranger / "dataset.json")
    refused("segments spleen", "liver, kidney, pancreas", "--map", **{"from": str(stranger)})
    refused("segments no 'liver', but spleen", **{"from": f"x={stranger}", "map": "x:liver=liver"})
    two_channels = {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "T1", "1": "T2"}}
    label_directory.write_json(two_channels, stranger / "dataset.json")
    plans = read_json(stranger / "plans.json")
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 1.0]
    label_directory.write_json(plans, stranger / "plans.json")
    refused("takes 2 channels", "has 1 (CT)", **{"from": str(stranger)})
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    refused("the teachers of the sources 'kits', 'lits', 'nih' are missing", "-tr nnUNetTrainerIndividual", "-device cpu")


if __name__ == "__main__":  # run by the fork server, with the names of test_killed_anywhere_it_continues
    os.environ.update(environment)  # noqa: F821
    torch.set_num_threads(1)
    draw_boxes(pytest.MonkeyPatch())
    die_at_move(survived, after)  # noqa: F821
    label(tiny, out, cases=cases)  # noqa: F821


def test_the_largest_component_without_names_is_of_what_the_manual_labels_show_in_one_piece(tiny, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(pseudo_labels, "pseudo_label", lambda *a, **k: asked.append(k["largest_component"]) or tiny.preprocessed)
    monkeypatch.setattr("nnunet_partial.data.check.audit.audit", lambda folder: None)  # there are no labels to look at
    monkeypatch.setattr("nnunet_partial.data.check.audit.by_class", lambda audit: [])
    argv = ["pseudo-label", str(tiny.id), "--configuration", "3d_fullres", "--from", "teachers", "--out", "x", "--device", "cpu"]
    main([*argv, "--largest-component"])
    assert asked == [CLASSES] and "liver, kidney, pancreas" in capsys.readouterr().out  # balls
    folder = tiny.preprocessed / "gt_segmentations"
    files = {i: i.read_bytes() for i in sorted(folder.glob("kits_*"))}
    try:
        for file in files:
            image = sitk.ReadImage(str(file))
            label = sitk.GetArrayFromImage(image)
            label[:3, :3, -4:] = 2  # a second kidney
            second = sitk.GetImageFromArray(label)
            second.CopyInformation(image)
            sitk.WriteImage(second, str(file))
        main([*argv, "--largest-component"])
        main([*argv, "--largest-component", "kidney"])
    finally:
        for file, content in files.items():
            file.write_bytes(content)
    assert asked[1:] == [("liver", "pancreas"), ["kidney"]]


def test_soft_labels_are_of_every_model_on_every_case(tiny, results, models, drawn, tmp_path):
    from nnunet_partial.data.preprocessed.soft_labels import SoftLabels

    cases, plain = ["lits_000", "plain_015"], tmp_path / "plain"
    label(tiny, plain, cases=cases)
    with pytest.raises(UserError, match="made from other choices of --soft"):
        label(tiny, plain, cases=cases, soft=True)
    arguments = ["--configuration", "3d_fullres", "--fold", "0", "--plans", tiny.plans, "--from", "teachers", "--soft"]
    (tmp_path / "cases.txt").write_text("\n".join(cases))
    out = tmp_path / "out"
    argv = ["pseudo-label", tiny.id, *arguments, "--out", out, "--cases", tmp_path / "cases.txt", "--device", "cpu"]
    assert main([str(i) for i in argv]) == 0
    soft = SoftLabels.of(label_directory.LabelDirectory.read(out))
    assert soft.models == (("kidney",), ("liver",), ("pancreas",))
    for case in cases:
        assert np.array_equal(labels_of(out, case), labels_of(plain, case))  # the labels are those without
        found = soft.load(case)[:]
        for channel, (name,) in zip(found, soft.models):
            *box, height = BOXES[name]
            expected = np.full(channel.shape, np.round(255 / (1 + np.exp(1))))
            expected[tuple(box)] = np.round(255 / (1 + np.exp(-height)))
            assert np.array_equal(channel, expected)
    before = (out / "lits_000_soft.b2nd").stat().st_mtime_ns
    label(tiny, out, cases=cases, soft=True)
    assert (out / "lits_000_soft.b2nd").stat().st_mtime_ns == before  # done is done
    with pytest.raises(UserError, match="choices of --soft"):
        label(tiny, out, cases=cases)
    label(tiny, out, cases=cases, overwrite=True)
    assert not (out / "lits_000_soft.b2nd").exists()


def test_labels_can_be_looked_at_as_images_and_are_told_by_class(tiny, results, drawn, tmp_path, capsys):
    """On the scans' voxels, which here are those of the preprocessed images, and in their geometry."""
    out, images = tmp_path / "labels", tmp_path / "images"
    argv = [
        "pseudo-label",
        str(tiny.id),
        "--configuration",
        "3d_fullres",
        "--plans",
        tiny.plans,
        "--fold",
        "0",
        "--out",
        str(out),
    ]
    argv += ["--from", "teachers", "--device", "cpu", "--nifti", str(images)]
    assert main(argv) == 0
    told = capsys.readouterr().out
    cases = label_directory.LabelDirectory.read(out).known
    for case in cases:
        scan = sitk.ReadImage(str(tiny.folders.raw / tiny.name / "imagesTr" / f"{case}_0000.nii.gz"))
        mask = sitk.ReadImage(str(images / f"{case}.nii.gz"))
        for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(mask, part)() == getattr(scan, part)()
        assert np.array_equal(sitk.GetArrayFromImage(mask), labels_of(out, case)[0])
    lacking = sum(not case.startswith("kits") for case in cases)
    (line,) = [i for i in told.splitlines() if i.startswith("kidney: ")]
    assert line.startswith(f"kidney: found on {lacking} of {lacking} cases, median ")
    assert " ml, outlined by hand " in line and ", confidence 0." in line and "provenance.json" in told
    before = {i: i.stat().st_mtime_ns for i in images.iterdir() if i.suffix == ".gz"}
    assert main(argv) == 0 and before == {i: i.stat().st_mtime_ns for i in before}
    other = argv[: argv.index("--out")] + ["--out", str(tmp_path / "others"), *argv[argv.index("--from") :]]
    with pytest.raises(SystemExit):
        main(other)
    assert "predictions made from something else" in capsys.readouterr().err
