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
