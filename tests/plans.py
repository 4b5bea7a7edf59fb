"""Plans of nnU-Net written by hand: of one 3D configuration, for tests that need a model and no planning."""


def plans_by_hand(dataset, plans_name, patch, spacing, median_shape, strides, features, residual=False):
    """Plans with the configuration ``3d_fullres``. ``strides``: one a stage, (z, y, x); ``features``: likewise."""
    stages = len(features)
    blocks = {"n_blocks_per_stage" if residual else "n_conv_per_stage": [1] * stages}
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": features,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": strides,
            **blocks,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    resampled = ("data", "seg", "probabilities")
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": [float(i) for i in median_shape],
        "spacing": spacing,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture,
        **{f"resampling_fn_{i}": "resample_data_or_seg_to_shape" for i in resampled},
        **{f"resampling_fn_{i}_kwargs": {**resampling, "is_seg": i == "seg"} for i in resampled},
        "batch_dice": False,
    }
    return {
        "dataset_name": dataset,
        "plans_name": plans_name,
        "image_reader_writer": "SimpleITKIO",
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": list(median_shape),
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "nnUNetPlannerResEncM" if residual else "ExperimentPlanner",
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0}},
    }
