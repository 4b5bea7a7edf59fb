"""``nnunet_partial coarse-to-fine prepare|train|predict``."""

from nnunet_partial.commands import device, repeated, trusting
from nnunet_partial.paths import FINAL_CHECKPOINT

DESCRIPTION = """Find the organs in the whole scan at low resolution, then segment their box in one pass.

prepare  makes an nnU-Net dataset of fixed-size volumes, plans and preprocesses it. coarse: whole scans; fine: the box
         around the organs, for cases without labels around what the trained coarse model finds
train    trains a stage by nnUNetv2_train; started again, it goes on
predict  segments scans with both models; the masks lie on the scans' own voxels

Both stages are trained as the paper does (nnunet_partial variant --recipe choi2022: sizes, batch, length, no mirroring, no
deep supervision, networks of the paper's size), unless --set says otherwise; --set cross_teaching.size=plans makes networks
of the planned size, as --set features=... and sizes that 16 does not divide do.
--set takes coarse_size, patch_size, window_overlap, fine_size, box_scale, fallback_box_mm, largest_components (classes
that keep their largest component alone; left out, those that are one piece in nearly all manual labels), and whatever
nnunet_partial variant --set takes. Models are named by the id of their dataset or by their folder."""
EXAMPLE = """nnunet_partial coarse-to-fine prepare coarse 501 --id 701
         nnunet_partial coarse-to-fine train 701
         nnunet_partial coarse-to-fine prepare fine 501 --id 702 --coarse 701
         nnunet_partial coarse-to-fine train 702
         nnunet_partial coarse-to-fine predict -i IMAGES -o PREDICTIONS --coarse 701 --fine 702"""

_TRAINER = "nnUNetTrainerCrossTeaching"


def add_arguments(parser):
    steps = parser.add_subparsers(dest="step", metavar="prepare|train|predict", required=True)
    _add_prepare(steps.add_parser("prepare", help="make the dataset of a stage"))
    _add_train(steps.add_parser("train", help="train a stage"))
    _add_predict(steps.add_parser("predict", help="segment scans with both stages"))


def _add_prepare(parser):
    parser.add_argument("stage", choices=("coarse", "fine"))
    parser.add_argument("dataset", help="id or name of the raw dataset of whole scans")
    parser.add_argument("--id", type=int, required=True, help="id of the dataset that is made")
    parser.add_argument("--name", help="its name (default: that of the source with Coarse or Fine behind it)")
    repeated.add_argument(parser, "--set", "NAME=VALUE", "may be repeated")
    parser.add_argument("--processes", type=int, default=2, help="for coarse volumes, planning and preprocessing (default: 2)")
    parser.add_argument("--overwrite", action="store_true", help="replace volumes made from something else")
    _add_models(parser, "--coarse")


def _add_train(parser):
    parser.add_argument("dataset", help="id of a prepared dataset")
    parser.add_argument("--fold", default="0", help="default: 0")
    parser.add_argument("--trainer", default=_TRAINER, help=f"default: {_TRAINER}")
    device.add_argument(parser)


def _add_predict(parser):
    parser.add_argument("-i", dest="images", required=True, metavar="DIR", help="scans CASE_0000.nii.gz")
    parser.add_argument("-o", dest="out", required=True, metavar="DIR", help="where the masks are written")
    parser.add_argument(
        "--efficiency", metavar="FILE.json", help="also write what each case cost, as nnunet_partial efficiency does"
    )
    parser.add_argument("--overwrite", action="store_true", help="segment cases again that are there")
    _add_models(parser, "--coarse", "--fine")


def _add_models(parser, *stages):
    for stage in stages:
        parser.add_argument(
            stage,
            metavar="ID|MODEL_FOLDER",
            required=len(stages) > 1,
            help=f"the trained {stage[2:]} model" + ("" if len(stages) > 1 else " (for the fine stage)"),
        )
    parser.add_argument("--trainer", default=_TRAINER, help=f"of models named by id (default: {_TRAINER})")
    parser.add_argument("--fold", default="0", help="of the models (default: 0)")
    parser.add_argument("--checkpoint", default=FINAL_CHECKPOINT, help=f"default: {FINAL_CHECKPOINT}")
    device.add_argument(parser)
    trusting.add_argument(parser)


def run(arguments):
    {"prepare": _prepare, "train": _train, "predict": _predict}[arguments.step](arguments)


def _prepare(arguments):
    from nnunet_partial.errors import UserError
    from nnunet_partial.inference.coarse_to_fine.derived import prepare
    from nnunet_partial.settings import parse_assignments

    if (arguments.stage == "fine") != (arguments.coarse is not None):
        raise UserError("prepare fine needs --coarse, the trained coarse model; prepare coarse takes none.")
    if not 1 <= arguments.id <= 999:
        raise UserError(f"--id {arguments.id}: ids of datasets are 1 to 999.")
    coarse = _load(arguments, "coarse") if arguments.coarse else None
    plans = prepare(
        arguments.stage,
        arguments.dataset,
        arguments.id,
        arguments.name,
        parse_assignments(arguments.set),
        coarse,
        arguments.overwrite,
        arguments.processes,
    )
    print(f"wrote {plans}\ntrain with: nnunet_partial coarse-to-fine train {arguments.id}")


def _train(arguments):
    from nnunet_partial import paths
    from nnunet_partial.errors import UserError
    from nnunet_partial.files import read_json
    from nnunet_partial.inference.coarse_to_fine.stages import CONFIGURATION, KEY, VARIANT
    from nnunet_partial.orchestration.foreground import run

    plans = f"nnUNetPlans_{VARIANT}"
    file = paths.plans_file(arguments.dataset, plans)
    content = read_json(file.with_name("dataset.json")).get(KEY)
    if content is None:
        raise UserError(f"{file.with_name('dataset.json')} is not of a dataset that coarse-to-fine prepare has made.")
    model = paths.model_folder(arguments.dataset, arguments.trainer, plans, CONFIGURATION)
    if not (paths.fold_folder(model, arguments.fold) / "validation" / "summary.json").is_file():
        dataset = paths.dataset_number(file.parent.name)
        # --c without a checkpoint starts from the beginning
        options = ["-tr", arguments.trainer, "-p", plans, "-device", device.chosen(arguments), "--c"]
        log = model.parent / "logs" / f"train_{dataset}_{arguments.trainer}_{plans}.log"
        run(["nnUNetv2_train", dataset, CONFIGURATION, arguments.fold, *options], log)
    following = (
        f"nnunet_partial coarse-to-fine prepare fine {content['source']} --id N --coarse {model}"
        if content["stage"] == "coarse"
        else f"nnunet_partial coarse-to-fine predict -i IMAGES -o PREDICTIONS --coarse COARSE --fine {model}"
    )
    print(f"trained {model}\ngo on with: {following}")


def _predict(arguments):
    from contextlib import nullcontext

    from nnunet_partial.inference.coarse_to_fine import stages

    coarse, fine = _load(arguments, "coarse"), _load(arguments, "fine")
    measured = []
    done = stages.predict_folder(
        arguments.images,
        arguments.out,
        coarse,
        fine,
        arguments.overwrite,
        _measuring(measured, coarse.device) if arguments.efficiency else nullcontext,
    )
    print(f"wrote {len(done)} masks to {arguments.out}")
    if arguments.efficiency and measured:
        _report(arguments.efficiency, [i.result for i in measured], coarse, fine)


def _measuring(measured, where):
    from nnunet_partial.inference.efficiency.measure import Measurement

    def around(case):
        measured.append(Measurement(case, where))
        return measured[-1]

    return around


def _report(file, results, coarse, fine):
    from nnunet_partial.inference.efficiency import contenders as comparison
    from nnunet_partial.inference.efficiency import measure as efficiency

    costs = comparison.coarse_to_fine_cost(coarse, fine)
    efficiency.write_report(efficiency.report({"coarse to fine": results}, {"coarse to fine": costs}, coarse.device), file)
    print(f"wrote {file}")


def _load(arguments, stage):
    import torch

    from nnunet_partial.inference.coarse_to_fine.stages import load_stage

    return load_stage(
        getattr(arguments, stage),
        stage,
        arguments.fold,
        arguments.checkpoint,
        torch.device(device.chosen(arguments)),
        arguments.trainer,
        arguments.trust,
    )
