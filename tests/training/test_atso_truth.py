"""Truth is never thrown away: what is annotated by hand is in the loss of every model of ATSO's loop."""

import json
import shutil

import numpy as np
import pytest
import torch

from nnunet_partial.data.preprocessed.label_directory import load_labels
from nnunet_partial.variants import write_variant


@pytest.mark.parametrize("pseudo", (None, "subset_1", "subset_2", "", "excluded"))
def test_every_manual_label_reaches_the_loss_of_every_model(tiny, tmp_path, monkeypatch, write_labels, pseudo):
    """M0, both models of a generation, the last one, and one whose pseudo labels are all left out."""
    preprocessed = tmp_path / "nnUNet_preprocessed" / tiny.name
    shutil.copytree(tiny.preprocessed, preprocessed)
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nnUNet_results"))
    split = {"train": ["kits_005", "lits_000", "nih_010", "plain_015"], "val": ["lits_001"]}
    (preprocessed / "splits_final.json").write_text(json.dumps([split]))
    manual = {"kits_005": 2, "lits_000": 1, "nih_010": 3}
    parts = {"subset_1": ["kits_005", "plain_015"], "subset_2": ["lits_000", "nih_010"]}
    for name, cases in parts.items():
        write_labels(tiny, tmp_path / "labels" / name, cases=cases)
    labelled = [case for name, cases in parts.items() for case in cases if pseudo in (name, "")]
    settings = {} if pseudo is None else {"labels": str(tmp_path / "labels" / (pseudo if pseudo in parts else ""))}
    if pseudo == "excluded":
        (tmp_path / "out.json").write_text(json.dumps({"excluded": [*manual, "plain_015"]}))
        settings["atso"] = {"exclude": str(tmp_path / "out.json")}
    plans = write_variant(tiny.name, "truth", {"untaught": "mask", **settings}, "nnUNetPlans_tiny").stem
    trainer = trainer_of(plans)
    trainer.initialize()
    assert trainer.do_split()[0] == sorted({*manual, *labelled})  # what annotates nothing is there with pseudo labels alone
    trainer.get_dataloaders()
    dataset, _ = trainer.get_tr_and_val_datasets()
    logits = torch.randn(1, 4, *(12, 20, 20), generator=torch.Generator().manual_seed(0))
    for case, value in manual.items():
        own = load_labels(preprocessed / "nnUNetPlans_3d_fullres", case)[0][:]
        seg = dataset.load_case(case)[1][:]
        assert np.array_equal(seg == value, own == value) and (own == value).any()
        seen = np.argwhere(own[0] == value).mean(0).astype(int)
        corner = [min(max(0, i - j // 2), k - j) for i, j, k in zip(seen, logits.shape[2:], own.shape[1:])]
        patch = torch.from_numpy(np.array(seg))[(None, slice(None), *(slice(i, i + j) for i, j in zip(corner, logits.shape[2:])))]
        batch = trainer.to_device({"data": logits, "target": patch.float(), "keys": [case]})
        others = {1, 2, 3} - {value}
        assert batch.groups.tolist() == [[0, *(i if i == value or case in labelled else 0 for i in (1, 2, 3))]]
        loss = trainer.marginal_loss(logits, batch)
        batch.target = torch.where(patch == value, 0, patch).float()
        assert trainer.marginal_loss(logits, batch) != loss  # the manual labels are in it
        batch.target = torch.where(torch.isin(patch, torch.tensor([*others])), 0, patch).float()
        assert (trainer.marginal_loss(logits, batch) != loss) == (case in labelled)  # and pseudo labels where there are any


def trainer_of(plans):
    from nnunetv2.run.run_training import get_trainer_from_args

    return get_trainer_from_args("Dataset501_Tiny", "3d_fullres", 0, "nnUNetTrainerATSO", plans, False, torch.device("cpu"))


# ---- super-classes as a task of their own


def test_a_super_class_task_and_the_network_that_its_labels_supervise(tiny, tmp_path, monkeypatch):
    """M0 of {liver+kidney, pancreas} is trained, labels a case with unions, and these supervise a network of all classes."""
    from nnunet_partial.data.preprocessed.label_directory import LabelDirectory
    from nnunet_partial.files import read_json
    from nnunet_partial.inference.pseudo_labels import pseudo_label

    preprocessed = tmp_path / "nnUNet_preprocessed" / tiny.name
    shutil.copytree(tiny.preprocessed, preprocessed)
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nnUNet_results"))
    content = read_json(preprocessed / "dataset.json")
    for case in ("lits_000", "lits_001"):
        content["nnunet_partial"]["cases"][case]["annotated"] = ["liver", "kidney", "pancreas"]
    (preprocessed / "dataset.json").write_text(json.dumps(content))
    split = {"train": ["kits_005", "lits_000", "nih_010", "plain_015"], "val": ["lits_001"]}
    (preprocessed / "splits_final.json").write_text(json.dumps([split]))
    task = {"task": "super_classes", "super_classes": {"organs": ["kidney", "liver"]}, "final_validation": False}
    plans = write_variant(tiny.name, "coarse", {"num_epochs": 1, "atso": task}, "nnUNetPlans_tiny").stem
    trainer = trainer_of(plans)
    trainer.run_training()
    model = tmp_path / "nnUNet_results" / tiny.name / f"nnUNetTrainerATSO__{plans}__3d_fullres"
    assert list(read_json(model / "dataset.json")["labels"]) == ["background", "liver+kidney", "pancreas"]
    # labels of both members are the union's, of the pancreas the second class; a kidney alone says nothing of the union
    data = torch.zeros(3, 1, 2, 2, 2)
    keys = ["lits_000", "nih_010", "kits_005"]
    assert trainer.to_device({"data": data, "target": data, "keys": keys}).groups.tolist() == [[0, 1, 2], [0, 0, 2], [0, 0, 0]]
    own = trainer.get_tr_and_val_datasets()[0].load_case("lits_000")[3]["class_locations"]
    assert set(own) == {1, 2}
    relabelled = trainer._renumbered(lambda **i: i)(image=data[0], segmentation=torch.tensor([[[[0, 1], [2, 3]]]]))
    assert relabelled["segmentation"].flatten().tolist() == [0, 1, 1, 2]

    out = pseudo_label(
        tiny.name, "3d_fullres", tmp_path / "labels", fold=0, plans="nnUNetPlans_tiny", sources=[str(model)], progress=False
    )
    cases = read_json(out)["cases"]
    assert cases["plain_015"]["pseudo"] == [["liver", "kidney"], "pancreas"] and cases["kits_005"]["pseudo"] == ["pancreas"]
    labels = LabelDirectory.read(tmp_path / "labels")
    assert set(np.unique(load_labels(labels.folder, "plain_015")[0][:])) <= {-1, 0, 1, 3}  # the union's lowest value
    target = trainer_of(write_variant(tiny.name, "target", {"labels": str(labels.folder)}, "nnUNetPlans_tiny").stem)
    target.initialize()
    target.get_dataloaders()
    keys = ["lits_000", "plain_015", "kits_005"]
    groups = target.to_device({"data": data, "target": data, "keys": keys}).groups.tolist()
    assert groups == [[0, 1, 2, 3], [0, 1, 1, 3], [0, 0, 2, 3]]  # all classes; the super-class as one; the own kidney
    assert list(target.dataset_json["labels"]) == ["background", "liver", "kidney", "pancreas"]
