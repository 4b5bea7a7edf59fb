"""``nnunet_partial relabel``."""

DESCRIPTION = """Mirror the label maps of cases that were stored mirrored against their images, as nnunet_partial check finds them.

Directions are the patient's: left-right, front-back, head-feet. Images and headers stay as they are, and doing it again
undoes it. Datasets that are merged from this one, or preprocessed, have to be made again."""
EXAMPLE = "nnunet_partial relabel 101 --flip head-feet --case lits_0007"


def add_arguments(parser):
    parser.add_argument("dataset", help="number or name of the dataset in nnUNet_raw")
    parser.add_argument("--flip", nargs="+", required=True, metavar="DIRECTION", help="left-right, front-back, head-feet")
    parser.add_argument("--case", nargs="+", required=True, metavar="CASE", help="cases whose labels are mirrored")


def run(arguments):
    from nnunet_partial.data.flip import flip_labels
    from nnunet_partial.paths import raw_dataset

    folder = raw_dataset(arguments.dataset)
    for file in flip_labels(folder, arguments.case, arguments.flip):
        print(f"mirrored {file} from {' and '.join(arguments.flip)}")
    print(
        f"look again: nnunet_partial check {arguments.dataset}\nthen merge and preprocess again what was made from {folder.name}"
    )
