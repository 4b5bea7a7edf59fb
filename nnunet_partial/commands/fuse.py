"""``nnunet_partial fuse``."""

from nnunet_partial.inference.rules import CLAIMS, RULES

DESCRIPTION = """Fuse several models' predictions of the same images into one label map each: every class comes from the
models that know it, and where two claim a voxel the higher probability decides. With the single-source models
(nnUNetTrainerIndividual) this is the baseline "individual". The folders are those of nnUNetv2_predict
--save_probabilities; finished cases are skipped, and done again when the probabilities have changed since.

--rule fuses models that all know the same classes, for example the three views of nnunet_partial views:
""" + "\n".join(f"{name:6}{text}" for name, text in RULES.items())
EXAMPLE = """nnUNetv2_predict -i images -o predictions/lits -d 501 -c 3d_fullres -f 0 -tr nnUNetTrainerIndividual \\
             -p nnUNetPlans_lits --save_probabilities
         nnunet_partial fuse --pred predictions/lits predictions/kits predictions/nih --dataset 501 --out predictions/fused"""


def add_arguments(parser):
    parser.add_argument("--pred", required=True, nargs="+", metavar="DIR", help="folders of predictions, one a model")
    parser.add_argument(
        "--dataset", required=True, help="id or name of the dataset whose classes the result has, or a dataset.json"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the fused label maps")
    parser.add_argument(
        "--remove-probabilities",
        action="store_true",
        help="delete the probabilities (.npz, .pkl) of a case when it is fused; they are large",
    )
    parser.add_argument(
        "--rule",
        default=CLAIMS,
        choices=(CLAIMS, *RULES),
        help=f"default: {CLAIMS}, every class from the models that know it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what was fused from other folders")


def run(arguments):
    from nnunet_partial.inference.fuse import fuse

    cases = fuse(
        arguments.pred,
        arguments.dataset,
        arguments.out,
        arguments.remove_probabilities,
        overwrite=arguments.overwrite,
        rule=arguments.rule,
    )
    print(f"fused {len(cases)} cases of {len(arguments.pred)} models in {arguments.out}")
