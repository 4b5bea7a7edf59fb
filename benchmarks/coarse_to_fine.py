"""Coarse to fine against nnU-Net's sliding window on one large volume: time, memory, arithmetic, on the same machine.

    python benchmarks/coarse_to_fine.py --out benchmarks/results/coarse_to_fine.json [--device cuda]

Three contenders, each in a process of its own, from file to file: coarse to fine with the paper's student (96 x 64 x 96,
5.23 M parameters a stage), the same student as a sliding window over the whole volume, and plain nnU-Net (PlainConvUNet of
six stages, 32 to 320 features, patch 128 x 128 x 128). 13 organs, the volume at nnU-Net's target spacing, no mirroring.

Time and memory do not depend on what networks have learned, so they are not trained. Only the size of the box does: the
coarse network is made to find nothing, so that the box is the paper's 240 x 160 x 240 mm about the centre, an abdomen. The
fine network's mask is noise, which takes longer to clean up than organs. Bars: at least 5 x faster than plain nnU-Net with
less memory, and under 2 GB of GPU memory (without a GPU: of RAM).
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from circumstances import circumstances  # beside this file

from nnunet_partial.errors import exit_on_user_error
from nnunet_partial.files import save_checkpoint, write_json
from nnunet_partial.inference.coarse_to_fine.passes import CoarseToFineSettings
from nnunet_partial.inference.coarse_to_fine.stages import KEY, Description
from nnunet_partial.inference.efficiency.contenders import Contender, compare
from nnunet_partial.inference.efficiency.measure import write_report
from nnunet_partial.trainers.cross_teaching import nnUNetTrainerCrossTeaching

BAR_SPEED, BAR_MB = 5.0, 2000.0
SPACING_MM = (1.0, 0.8, 0.8)  # (z, y, x)
ORGANS = 13
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[300, 512, 512], metavar=("Z", "Y", "X"), help="in voxels")
    parser.add_argument("--cases", type=int, default=1, help="volumes; the first also pays for the first call of everything")
    parser.add_argument("--window", type=int, nargs=3, default=[128, 128, 128], help="patch of plain nnU-Net")
    parser.add_argument("--features", type=int, nargs="+", default=[32, 64, 128, 256, 320, 320], help="of plain nnU-Net")
    parser.add_argument("--tta", action="store_true", help="mirror in the sliding window, as nnU-Net does by default")
    parser.add_argument("--skip", nargs="+", default=[], choices=("student", "nnU-Net"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="written as JSON, and beside it as Markdown")
    arguments = parser.parse_args()
    with exit_on_user_error(), tempfile.TemporaryDirectory() as folder:
        content = measure(Path(folder), arguments)
    print(json.dumps(content["ratios"], indent=1))
    if arguments.out:
        write_report(content, arguments.out)
        write_json(content, arguments.out)


def measure(folder: Path, arguments) -> dict:
    write_images(folder / "images", arguments.size, arguments.cases)
    settings = CoarseToFineSettings()
    stages = [write_student(folder / stage, settings, stage) for stage in ("coarse", "fine")]
    contenders = [Contender("coarse to fine", tuple(map(str, stages)))]
    if "student" not in arguments.skip:
        contenders.append(
            Contender("student, sliding window", (str(write_student(folder / "student", settings)),), mirroring=arguments.tta)
        )
    if "nnU-Net" not in arguments.skip:
        contenders.append(Contender("plain nnU-Net", (str(write_plain(folder / "plain", arguments)),), mirroring=arguments.tta))
    content = compare(contenders, folder / "images", arguments.device)
    content.update(
        circumstances(),
        hardware=content["machine"],
        volume_zyx=arguments.size,
        spacing_mm_zyx=SPACING_MM,
        mirroring=arguments.tta,
        window=arguments.window,
        features=arguments.features,
        ratios=ratios(content),
    )
    return content


def ratios(content: dict) -> dict:
    """Each contender over coarse to fine, and coarse to fine against the bars."""
    totals = {k: v["total"] for k, v in content["methods"].items()}
    own = totals["coarse to fine"]
    memory = "peak_gpu_memory_mb" if own["peak_gpu_memory_mb"] is not None else "peak_memory_mb"
    result = {
        k: {"time": v["wall_time_s"] / own["wall_time_s"], "memory": v[memory] / own[memory]}
        for k, v in totals.items()
        if v is not own
    }
    plain = result.get("plain nnU-Net")
    return {
        **result,
        "bars": {
            "memory is": memory,
            "peak MB": own[memory],
            "under 2 GB": own[memory] < BAR_MB,
            "5 x faster": plain and plain["time"] >= BAR_SPEED,
            "less memory": plain and plain["memory"] > 1,
        },
    }


# ------------------------------------------------------------------ volumes and untrained models


def write_images(folder: Path, size_zyx, cases: int) -> None:
    """Smooth noise of the grey values of a CT."""
    folder.mkdir()
    for case in range(cases):
        coarse = np.random.default_rng(case).normal(0, 150, [max(2, i // 8) for i in size_zyx]).astype(np.float32)
        small = sitk.GetImageFromArray(coarse)
        image = sitk.Cast(sitk.Expand(small, [8, 8, 8], sitk.sitkLinear), sitk.sitkInt16)
        array = sitk.GetArrayFromImage(image)
        array = np.pad(array, [(0, max(0, n - m)) for n, m in zip(size_zyx, array.shape)], mode="edge")
        image = sitk.GetImageFromArray(np.ascontiguousarray(array[tuple(slice(n) for n in size_zyx)]))
        image.SetSpacing(SPACING_MM[::-1])
        sitk.WriteImage(image, str(folder / f"case{case:03d}_0000.nii.gz"), True)


def write_student(folder: Path, settings: CoarseToFineSettings, stage=None) -> Path:
    """An untrained student of the paper's size, as a stage or as an ordinary model; the coarse one finds nothing."""
    network = {"features": [32, 64, 128, 256, 512], "patch": settings.patch_size if stage != "fine" else settings.fine_size}
    plans = plans_of("NoNormalization" if stage else "CTNormalization", **network)
    plans["nnunet_partial"] = {"cross_teaching": {"size": "paper"}}
    extra = {KEY: Description(stage, "Dataset999_Benchmark", ("CT",), ".nii.gz", settings).to_json()} if stage else {}

    def nothing(built):
        built.decoder.seg_layers[-1].weight.data.zero_()  # background wins ties

    return write_model(folder, plans, nnUNetTrainerCrossTeaching, extra, nothing if stage == "coarse" else None)


def write_plain(folder: Path, arguments) -> Path:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    return write_model(folder, plans_of("CTNormalization", arguments.features, arguments.window), nnUNetTrainer, {})


def write_model(folder: Path, plans: dict, trainer: type, extra: dict, change=None) -> Path:
    """A model folder as nnU-Net leaves it, with random weights."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.manual_seed(0)
    manager = PlansManager(plans)
    network = trainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, ORGANS + 1, False)
    if change:
        change(network)
    write_json(plans, folder / "plans.json")
    write_json(
        {
            "channel_names": {"0": "noNorm" if extra else "CT"},
            "file_ending": ".nii.gz",
            "numTraining": 0,
            "labels": {"background": 0, **{f"organ{i}": i for i in range(1, ORGANS + 1)}},
            **extra,
        },
        folder / "dataset.json",
    )
    save_checkpoint(
        {
            "network_weights": network.state_dict(),
            "trainer_name": trainer.__name__,
            "init_args": {"configuration": "3d_fullres", "fold": 0},
            "inference_allowed_mirroring_axes": (0, 1, 2),
        },
        folder / "fold_0" / "checkpoint_final.pth",
    )
    return folder


def plans_of(normalisation: str, features, patch) -> dict:
    """nnU-Net plans of one 3D configuration at the volume's own spacing."""
    stages = len(features)
    architecture = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": list(SPACING_MM),
        "normalization_schemes": [normalisation],
        "median_image_size_in_voxels": list(patch),
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": RESAMPLING,
        "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**RESAMPLING, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    grey_values = {
        "max": 1000.0,
        "mean": 0.0,
        "median": 0.0,
        "min": -1000.0,
        "percentile_00_5": -900.0,
        "percentile_99_5": 900.0,
        "std": 150.0,
    }
    return {
        "dataset_name": "Dataset999_Benchmark",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "original_median_spacing_after_transp": list(SPACING_MM),
        "original_median_shape_after_transp": list(patch),
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": grey_values},
        "configurations": {"3d_fullres": configuration},
    }


if __name__ == "__main__":
    main()
