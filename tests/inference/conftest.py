"""Untrained single-source models of the tiny dataset, where nnU-Net keeps trained ones."""

import io
import os
from contextlib import redirect_stdout

import pytest
import torch

from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.variants import write_source_variants
from tests import pictures

pictures.leave_out()


@pytest.fixture(scope="session")
def models(tiny, tmp_path_factory):
    """Untrained teachers under their conventional names: (source, configuration) -> model folder."""
    from nnunetv2.run.run_training import get_trainer_from_args

    before = os.environ["nnUNet_results"]
    os.environ["nnUNet_results"] = str(tmp_path_factory.mktemp("results"))
    folders = {}
    try:
        for plans in write_source_variants(tiny.id, {}, tiny.plans, overwrite=True):
            for configuration in ("3d_fullres", "2d"):
                made = get_trainer_from_args(
                    str(tiny.id), configuration, 0, "nnUNetTrainerIndividual", plans.stem, False, torch.device("cpu")
                )
                made.initialize()
                made.do_split()  # writes splits_final.json
                made.save_checkpoint(os.path.join(made.output_folder, "checkpoint_final.pth"))
                for name in ("plans", "dataset"):
                    content = made.plans_manager.plans if name == "plans" else made.dataset_json
                    label_directory.write_json(content, os.path.join(made.output_folder_base, f"{name}.json"))
                folders[plans.stem.split("_")[-1], configuration] = made.output_folder_base
    finally:
        os.environ["nnUNet_results"] = before
    return folders


@pytest.fixture
def results(models, monkeypatch):
    """nnUNet_results is where these models lie."""
    monkeypatch.setenv("nnUNet_results", os.path.dirname(os.path.dirname(models["lits", "3d_fullres"])))


@pytest.fixture
def stock(tiny):
    """``stock(model folder, case)``: what nnU-Net's own predictor makes of the raw image, in the model's values."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    def predict(folder, case):
        with redirect_stdout(io.StringIO()):
            predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
            predictor.initialize_from_trained_model_folder(folder, (0,))
            image = str(tiny.folders.raw / tiny.name / "imagesTr" / f"{case}_0000.nii.gz")
            return predictor.predict_from_files_sequential([[image]], None)[0]

    return predict
