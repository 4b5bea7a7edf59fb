"""``nnunet_partial variant``."""

from nnunet_partial.commands import repeated, trusting
from nnunet_partial.recipes import read_recipe, recipe_names
from nnunet_partial.settings import parse_assignments

DESCRIPTION = """Write a plans variant: other settings, network, batch or patch size; the same preprocessing.

--set takes any setting of a run (--help-settings lists them, --help-settings WORD those about something), those of a method
with a dot (mskd.lambda_feature=5), and features, batch_size, patch_size of nnU-Net's own configuration. Values with commas
are lists. A wrong name lists the valid ones. --recipe writes out how a paper trains, all of it; --set overrides. Settings that a
trainer of your own declares are checked by naming it: --trainer nnUNetTrainerMine --set mine.x=1.

--from-model takes the plans of a trained model for this dataset, as nnUNetPlans_NAME: images are then preprocessed as the model
saw them, and its weights fit. That data is preprocessed by itself."""
EXAMPLE = """nnunet_partial variant 501 --name tiny --set num_epochs=20 --set num_iterations_per_epoch=50 \\
             --set features=8,16,32,64 --set batch_size=2
         nnunet_partial variant --help-settings learning
         nnunet_partial variant 501 --recipe feng2021 --trainer nnUNetTrainerMSKD --per-source"""


def add_arguments(parser):
    parser.add_argument("dataset", nargs="?", help="dataset id or name, planned and preprocessed")
    parser.add_argument("--name", help="the plans are written as BASE_NAME (default: the name of the recipe)")
    parser.add_argument("--recipe", metavar="NAME", help=f"settings of a paper: {', '.join(recipe_names())}")
    parser.add_argument("--base", default="nnUNetPlans", help="plans to start from (default: nnUNetPlans)")
    parser.add_argument(
        "--from-model", metavar="FOLDER", help="take the plans of this nnU-Net model folder, with nothing changed"
    )
    repeated.add_argument(parser, "--set", "NAME=VALUE", "may be repeated")
    repeated.add_argument(
        parser, "--trainer", "NAME", "trainer whose own settings --set names; any that nnUNetv2_train -tr finds; may be repeated"
    )
    parser.add_argument("--configuration", help="change the network of this configuration only, for example 3d_fullres")
    parser.add_argument(
        "--per-source",
        action="store_true",
        help="also write one variant for each source that annotates something (plans of the teachers)",
    )
    parser.add_argument(
        "--help-settings",
        nargs="?",
        const="",
        metavar="WORD",
        help="list every setting (with WORD in its name or meaning): meaning, unit, default, methods that read it; write nothing",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a variant of this name")
    trusting.add_argument(parser)


def run(arguments):
    from nnunet_partial import api
    from nnunet_partial.errors import UserError

    if arguments.help_settings is not None:
        _list_settings(arguments)
        return
    if arguments.dataset is None:
        raise UserError("name the dataset: nnunet_partial variant 501 --name NAME --set NAME=VALUE")
    if arguments.from_model is not None:
        return _from_model(arguments)
    name = arguments.name or arguments.recipe
    if name is None and not arguments.per_source:
        raise UserError("give --name NAME, or --per-source for the plans of the teachers.")
    changes = parse_assignments(arguments.set)
    options = {"configuration": arguments.configuration, "overwrite": arguments.overwrite, "trainers": arguments.trainer}
    base, written, teachers = arguments.base, [], []
    if name is not None:
        written.append(api.variant(arguments.dataset, name, changes, base, recipe=arguments.recipe, **options))
        base, changes = written[0].stem, {}
    if arguments.per_source:
        teachers = api.source_variants(arguments.dataset, changes, base, **options)
    for path in (*written, *teachers):
        print(f"wrote {path}")
    if arguments.recipe is not None:
        _explain(read_recipe(arguments.recipe), written[0], arguments.configuration)
    _tell_training(arguments, written, teachers)


def _list_settings(arguments):
    from nnunet_partial.settings import BLOCKS
    from nnunet_partial.settings_help import as_text, sections
    from nnunet_partial.variants import declared_block

    declared = dict(declared_block(i) for i in arguments.trainer)
    print(
        as_text(
            sections({k: v for k, v in declared.items() if k is not None and k not in BLOCKS}), arguments.help_settings or None
        )
    )


def _tell_training(arguments, written, teachers):
    """Every training command, ready to be typed."""
    from nnunet_partial.orchestration.compare.methods import TEACHER

    student = arguments.trainer[0] if arguments.trainer else "nnUNetTrainerPartial"
    if arguments.recipe is not None and not arguments.trainer:
        student = read_recipe(arguments.recipe).trainers[0]
    configuration = arguments.configuration or _likely_configuration((*written, *teachers)[0])
    for about, trainer, plans in (("the teachers", TEACHER, teachers), ("", student, written)):
        if plans:
            print(f"train {about + ' ' if about else ''}with (fold 0; on a machine without a GPU add -device cpu):")
        for path in plans:
            print(f"  nnUNetv2_train {arguments.dataset} {configuration} 0 -tr {trainer} -p {path.stem}")


def _likely_configuration(plans):
    """3d_fullres, or what the plans have in its place."""
    from nnunet_partial.files import read_json

    names = list(read_json(plans)["configurations"])
    return "3d_fullres" if "3d_fullres" in names else names[0]


def _from_model(arguments):
    from nnunet_partial import api
    from nnunet_partial.errors import UserError

    if arguments.name is None or arguments.set or arguments.recipe or arguments.per_source or arguments.trainer:
        raise UserError(
            "--from-model takes plans as they are, under --name NAME and nothing else. Change settings afterwards: nnunet_partial "
            f"variant {arguments.dataset} --base nnUNetPlans_NAME --name OTHER --set ..."
        )
    written = api.plans_of_model(
        arguments.dataset, arguments.name, arguments.from_model, overwrite=arguments.overwrite, trusted=arguments.trust
    )
    print(f"wrote {written}\nnext: nnUNetv2_preprocess -d {arguments.dataset} -plans_name {written.stem} -c CONFIGURATION")


def _explain(recipe, plans, configuration):
    """What the plans now follow, and where they cannot."""
    from nnunet_partial.files import read_json
    from nnunet_partial.variants import patch_axes

    print(f"recipe {recipe.name}: {recipe.paper}\nits trainers: {', '.join(recipe.trainers)}")
    left_out = recipe.left_out(patch_axes(read_json(plans), configuration) if configuration else None)
    if left_out:
        print(f"left out, as it is of patches of {recipe.axes} axes: {', '.join(left_out)}")
    for line in recipe.not_reproduced:
        print(f"not reproduced: {line}")
