"""nnU-Net's sliding window."""

import io
from contextlib import redirect_stdout

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


def make_predictor(device: torch.device, mirroring: bool = True) -> nnUNetPredictor:
    """nnU-Net's predictor at its own defaults (half overlap, Gaussian), which prints nothing; it has no network yet."""
    with redirect_stdout(io.StringIO()):  # on the CPU it tells that results stay on the CPU
        return nnUNetPredictor(
            use_mirroring=mirroring, perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False
        )
