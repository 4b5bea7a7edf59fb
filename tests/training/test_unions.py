"""Two sources, one of which outlines kidney and pancreas as one structure: from merge to evaluation."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunet_partial.cli import main
from nnunet_partial.data.preprocessed.label_directory import load_labels
from nnunet_partial.evaluation.results import read_metrics
from nnunet_partial.files import read_json
from nnunet_partial.inference.preprocessed import load_case
from nnunet_partial.training.validation import annotated_counts
from nnunet_partial.variants import write_source_variants, write_variant
from tests.conftest import phantom, run, tiny_settings, write_nifti
from tests.training.conftest import make_trainer

UNION = "kidney+pancreas"


def write_raw(raw, number, name, labels, of_value, seeds):
    folder = raw / f"Dataset{number:03d}_{name}"
    for i, seed in enumerate(seeds):
        image, label = phantom(seed)
        write_nifti(image, folder / "imagesTr" / f"{i:03d}_0000.nii.gz")
        write_nifti(np.array(of_value, np.uint8)[label], folder / "labelsTr" / f"{i:03d}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **labels}, "numTraining": len(seeds)}
    (folder / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))


@pytest.fixture(scope="module")
def joint(own_datasets):
    """Dataset 511 of the sources ``apart`` (liver, kidney) and ``joint`` (kidney and pancreas as one), with teachers."""
    write_raw(own_datasets.raw, 131, "Apart", {"liver": 1, "kidney": 2}, (0, 1, 2, 0), range(5))
    write_raw(own_datasets.raw, 132, "Joint", {"organ": 1}, (0, 0, 1, 1), range(5, 10))
    merge = "merge --dataset-id 511 --name Joint --source apart=131 --source joint=132 --map joint:organ=kidney+pancreas"
    assert main(merge.split()) == 0
    command = ("nnUNetv2_plan_and_preprocess", "-d", 511, "-c", "3d_fullres", "-np", 1, "-npfp", 1, "--verify_dataset_integrity")
    run(*command, env={"nnUNet_n_proc_DA": "1"})
    write_variant(511, "tiny", tiny_settings())
    folders = own_datasets
    made = SimpleNamespace(id=511, plans="nnUNetPlans_tiny", preprocessed=folders.preprocessed / "Dataset511_Joint")
    made.results, made.raw = folders.results / "Dataset511_Joint", folders.raw / "Dataset511_Joint"
    for plans in write_source_variants(511, {}, made.plans):
        make_trainer(made, "nnUNetTrainerIndividual", plans.stem).run_training()
    return made


@pytest.fixture(scope="module")
def student(joint):
    """A trained and validated nnUNetTrainerPartial."""
    made = make_trainer(joint, "nnUNetTrainerPartial")
    made.run_training()
    made.perform_actual_validation()
    return joint.results / "nnUNetTrainerPartial__nnUNetPlans_tiny__3d_fullres"


@pytest.fixture(scope="module")
def labels(joint, student, tmp_path_factory):
    """Pseudo labels of the student, which knows every class."""
    out = tmp_path_factory.mktemp("labels") / "out"
    command = (
        f"pseudo-label 511 --configuration 3d_fullres --plans nnUNetPlans_tiny --fold 0 --from {student} --out {out} --device cpu"
    )
    assert main(command.split()) == 0
    return out


def test_the_merged_contract(joint):
    content = read_json(joint.raw / "dataset.json")
    assert content["labels"] == {"background": 0, "liver": 1, "kidney": 2, "pancreas": 3}
    assert content["nnunet_partial"]["version"] == 2
    assert content["nnunet_partial"]["cases"]["joint_000"]["annotated"] == [["kidney", "pancreas"]]
    assert main(["check", "511"]) == 0


def test_a_teacher_has_one_output_for_a_union(joint):
    model = joint.results / "nnUNetTrainerIndividual__nnUNetPlans_tiny_joint__3d_fullres"
    content = read_json(model / "dataset.json")
    assert content["labels"] == {"background": 0, UNION: 1}
    assert content["nnunet_partial"]["cases"]["joint_000"]["annotated"] == [UNION]


def test_batches_know_the_partition_of_each_case(joint, student):
    made = make_trainer(joint, "nnUNetTrainerPartial")
    made.initialize()
    made.on_train_start()
    expected = {"apart": ([1, 1, 1, 0], [0, 1, 2, 0]), "joint": ([1, 0, 0, 0], [0, 0, 2, 2])}
    for _ in range(4):
        batch = made.to_device(next(made.dataloader_train))
        sources = [i.split("_")[0] for i in batch.cases]
        assert batch.annotated.int().tolist() == [expected[i][0] for i in sources]
        assert batch.groups.tolist() == batch.truth_groups.tolist() == [expected[i][1] for i in sources]


def test_validation_scores_a_union_in_its_own_row(joint, student, tmp_path):
    summary = read_json(student / "fold_0" / "validation" / "summary.json")
    assert set(summary["mean"]) == {"1", "2", "3", "(2, 3)"}
    of_case = {i["prediction_file"].rsplit("/", 1)[1].split("_")[0]: i["metrics"] for i in summary["metric_per_case"]}
    assert of_case["joint"]["(2, 3)"]["n_ref"] > 0 and of_case["joint"]["2"]["n_ref"] == of_case["joint"]["2"]["n_pred"] == 0
    assert of_case["apart"]["2"]["n_ref"] > 0 and of_case["apart"]["(2, 3)"]["n_ref"] == 0
    command = (
        f"evaluate --pred {student}/fold_0/validation_all_classes --truth {joint.raw}/labelsTr --dataset 511 --out {tmp_path}"
    )
    assert main([*command.split(), "--allow-missing", "--metrics", "dice"]) == 0
    rows = {(i["source"], i["class"]): i["dice"] for i in read_metrics(tmp_path)}
    assert set(rows) == {("apart", "liver"), ("apart", "kidney"), ("joint", UNION)}
    assert rows["joint", UNION] == pytest.approx(of_case["joint"]["(2, 3)"]["Dice"])


def test_pseudo_labels_divide_the_outline_and_leave_it_where_it_is(joint, labels):
    content = read_json(labels / "provenance.json")["cases"]
    images = joint.preprocessed / "nnUNetPlans_3d_fullres"
    for case, record in content.items():
        truth, found = load_case(images, case)[1], load_labels(labels, case)[0][:]
        if case.startswith("joint"):
            assert record["annotated"] == [["kidney", "pancreas"]] and record["pseudo"] == ["liver", "kidney", "pancreas"]
            np.testing.assert_array_equal(truth == 2, np.isin(found, (2, 3)))
            assert set(record["volume_mm3"]) == {"liver", "kidney", "pancreas"}
        else:
            assert record["annotated"] == ["liver", "kidney"] and record["pseudo"] == ["pancreas"]
            np.testing.assert_array_equal(found[truth > 0], truth[truth > 0])


def test_teachers_that_do_not_know_all_members_leave_the_union_whole(joint, tmp_path):
    command = (
        f"pseudo-label 511 --configuration 3d_fullres --plans nnUNetPlans_tiny --fold 0 --from teachers --out {tmp_path}/out"
    )
    assert main([*command.split(), "--device", "cpu"]) == 0
    content = read_json(tmp_path / "out" / "provenance.json")["cases"]
    assert {k.split("_")[0]: v["pseudo"] for k, v in content.items()} == {"apart": [], "joint": ["liver"]}
    case = next(i for i in content if i.startswith("joint"))
    truth = load_case(joint.preprocessed / "nnUNetPlans_3d_fullres", case)[1]
    np.testing.assert_array_equal(truth == 2, load_labels(tmp_path / "out", case)[0][:] == 2)


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainerMSKD",
        "nnUNetTrainerMSKDPlus",
        "nnUNetTrainerNaive",
        "nnUNetTrainerSelfTraining",
        "nnUNetTrainerCoTraining",
        "nnUNetTrainerCrossTeaching",
        "nnUNetTrainerATSO",
    ],
)
def test_every_method_takes_steps(joint, labels, name, tmp_path):
    uses_labels = name.endswith(("SelfTraining", "CoTraining", "ATSO"))
    settings = {"labels": str(labels)} if uses_labels else {}
    if name.endswith("Naive"):
        settings["untaught"] = "mask"  # no label file holds the value of the pancreas
    plans = write_variant(511, f"of{name[13:]}", settings, joint.plans).stem
    made = make_trainer(joint, name, plans)
    made.initialize()
    made.on_train_start()
    before = [p.detach().clone() for p in made.network.parameters()]
    for _ in range(2):
        result = made.train_step(next(made.dataloader_train))
        assert all(np.isfinite(v).all() for v in result.values())
    assert any((a != b).any() for a, b in zip(before, made.network.parameters()))
    counts = made.validation_step(next(made.dataloader_val))
    assert counts["tp_hard"].shape[-1] == (3 if name.endswith("Naive") else 4)
    if uses_labels:
        batch = made.to_device(next(made.dataloader_train))
        joint_ones = [i for i, case in enumerate(batch.cases) if case.startswith("joint")]
        assert all(batch.groups[i].tolist() == [0, 1, 2, 3] for i in joint_ones)
        assert all(batch.truth_groups[i].tolist() == [0, 0, 2, 2] for i in joint_ones)


def test_a_unions_counts_are_those_of_its_members_together():
    from nnunetv2.training.loss.dice import get_tp_fp_fn_tn

    rng = np.random.default_rng(0)
    logits, target = torch.from_numpy(rng.normal(size=(3, 4, 5, 6))), torch.from_numpy(rng.integers(0, 5, (3, 1, 5, 6)))
    groups = torch.tensor([[0, 1, 2, 2], [0, 1, 2, 3], [0, 2, 2, 2]])
    annotated = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    groups[2] = torch.tensor([0, 1, 1, 1])
    found = annotated_counts(logits, target, annotated, 4, get_tp_fp_fn_tn, groups, [(2, 3), (1, 2, 3)])
    said, true, valid = logits.argmax(1), target[:, 0], target[:, 0] != 4
    for column, sample, members in ((3, 0, (2, 3)), (4, 2, (1, 2, 3))):
        p, t = np.isin(said[sample], members), np.isin(true[sample], members)
        for name, expected in (("tp_hard", p & t), ("fp_hard", p & ~t), ("fn_hard", ~p & t)):
            assert found[name][column] == (expected & valid[sample].numpy()).sum()
    alone = annotated_counts(logits, target, annotated, 4, get_tp_fp_fn_tn)
    assert all(np.array_equal(found[i][:3], alone[i]) for i in alone)
