"""``nnunet_partial views``."""

DESCRIPTION = """Write plans of a 2D network along each axis of the images, so that three views of a scan can be fused.

nnU-Net's 2D networks see slices along one axis. Each of these plans takes another one; patch, spacing and network are planned
for its slices. Preprocessing, training and prediction are nnU-Net's own commands; they are printed.
"""
EXAMPLE = """nnunet_partial views 501
         nnUNetv2_preprocess -d 501 -plans_name nnUNetPlans_coronal -c 2d
         nnUNetv2_train 501 2d 0 -tr nnUNetTrainerPartial -p nnUNetPlans_coronal
         nnUNetv2_predict -i images -o predictions/coronal -d 501 -c 2d -f 0 -tr nnUNetTrainerPartial \\
             -p nnUNetPlans_coronal --save_probabilities
         nnunet_partial fuse --pred predictions/axial predictions/coronal predictions/sagittal --rule vote --dataset 501 \\
             --out predictions/fused"""


def add_arguments(parser):
    parser.add_argument("dataset", help="dataset id or name, planned and preprocessed")
    parser.add_argument("--base", default="nnUNetPlans", help="plans that nnU-Net has made (default: nnUNetPlans)")
    parser.add_argument(
        "--array-axes",
        action="store_true",
        help="call the views axis0, axis1, axis2, of the array as nnU-Net reads it, whatever the headers say",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace plans of these names that say something else")


def run(arguments):
    from nnunet_partial import api

    written = api.views(arguments.dataset, arguments.base, arguments.array_axes, arguments.overwrite)
    for file in written.values():
        print(f"wrote {file}")
    for file in written.values():
        print(f"preprocess with: nnUNetv2_preprocess -d {arguments.dataset} -plans_name {file.stem} -c 2d")
    example = next(iter(written.values())).stem
    print(f"train with: nnUNetv2_train {arguments.dataset} 2d FOLD -tr TRAINER -p {example}, and so on")
    print(
        "predict each with --save_probabilities, then: nnunet_partial fuse --rule vote --pred "
        f"{' '.join(i.upper() for i in written)} --dataset {arguments.dataset} --out FUSED"
    )
