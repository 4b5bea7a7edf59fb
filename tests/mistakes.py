"""Mistakes that people make in their first hour, and what they are told. ``tests/test_mistakes.py`` makes each of them;
``scripts/write_docs.py`` writes them into docs/troubleshooting.md. Plain data, standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """``command`` is typed in a folder with ``livers/NAME/ct.nii.gz`` and ``liver.nrrd`` beside it, ``mr/NAME/t1.nii.gz``, the
    converted datasets 101 (livers) and 102 (kidneys), and 501, planned but not trained. ``says``: part of the line that
    follows, word by word; ``code``: how the command ends."""

    what: str
    command: str
    says: str
    code: int = 2


GENERIC = "nnunet_partial convert generic livers --dataset-id 111 --name X"
MISTAKES = (
    Mistake("a command misspelt", "nnunet_partial convrt kits /data", "Did you mean convert?"),
    Mistake("an option misspelt", "nnunet_partial variant 501 --pre-source", "Did you mean --per-source?"),
    Mistake("the converter of another dataset", "nnunet_partial convert kits livers --dataset-id 111", "its files are not named as in the release"),
    Mistake("a folder that is not there", "nnunet_partial convert lits liver --dataset-id 111", "source folder liver does not exist"),
    Mistake("an archive that is not unpacked", "nnunet_partial convert lits packed --dataset-id 111", "unpack"),
    Mistake("a pattern that finds nothing", GENERIC + ' --channels CT --image-glob "*/scan"', "nothing matches */scan, relative to that folder"),
    Mistake("an image without label", GENERIC + ' --channels CT --image-glob "*/ct" --label-glob "*/liver" --labels liver=1', "CLEO/liver is not there", 3),
    Mistake("another label value than expected", GENERIC + ' --channels CT --image-glob "*/ct" --label-glob "*/mask" --labels liver=1', "if that is liver, write --labels liver=255"),
    Mistake("labels, but not what their values mean", GENERIC + ' --channels CT --image-glob "*/ct" --label-glob "*/liver"', "--label-glob needs --labels, which says what the values of these files mean"),
    Mistake("a class that no label shows", GENERIC.replace("111", "112") + ' --channels CT --image-glob "*/ct" --label-glob "*/liver" --labels liver=1,spleen=2 --skip-bad', "--allow-absent"),
    Mistake("MR images taken for CT", 'nnunet_partial convert generic mr --dataset-id 113 --name X --image-glob "*/t1"', "Name what the image shows: --channels MR"),
    Mistake("a dataset that is there already", 'nnunet_partial convert generic livers --dataset-id 101 --name Other --channels CT --image-glob "*/ct"', "Choose another --dataset-id, or --name Livers"),
    Mistake("the id of no dataset", "nnunet_partial check 110", "There are: Dataset101_Livers"),
    Mistake("a class misspelt", "nnunet_partial merge --dataset-id 502 --name X --source livers=101:livr", "Did you mean liver?"),
    Mistake("a label that is neither used nor dropped", "nnunet_partial merge --dataset-id 502 --name X --source kidneys=102:kidney", "if it is not to be used: --map kidneys:tumor=background"),
    Mistake("the id of another dataset for the merged one", "nnunet_partial merge --dataset-id 101 --name X --source kidneys=102", "Choose another --dataset-id, or remove that folder"),
    Mistake("a case to leave out that is not there", "nnunet_partial merge --dataset-id 502 --name X --source livers=101:liver --exclude ANA", "Did you mean ANNA"),
    Mistake("a dataset that is not planned yet", "nnunet_partial variant 101 --name x --set num_epochs=5", "Run nnUNetv2_plan_and_preprocess -d 101"),
    Mistake("a setting misspelt", "nnunet_partial variant 501 --name x --set num_epoch=5", "Did you mean num_epochs"),
    Mistake("a value that a setting cannot have", "nnunet_partial variant 501 --name x --set num_epochs=0", "must be at least 1, found 0"),
    Mistake("plans misspelt, or of another dataset", "nnunet_partial variant 501 --name x --base nnUNetPlans_tiny", "Plans of this dataset: nnUNetPlans"),
    Mistake("a trainer misspelt", "nnunet_partial variant 501 --name x --trainer nnUNetTrainerPartail", "Did you mean nnUNetTrainerPartial"),
    Mistake("a method misspelt", "nnunet_partial compare 501 --methods naive partail --out c", "Did you mean partial"),
    Mistake("an export before the training", "nnunet_partial export --dataset 501 --trainer nnUNetTrainerMSKD --configuration 3d_fullres --zip m.zip", "is not there: train it first"),
    Mistake("a prediction before the training", "nnunet_partial predict -i livers -o masks --model m", "the model m is not there"),
    Mistake("a test set that is not there", "nnunet_partial compare 501 --test test --out c", "the test set's folder test/imagesTs does not exist"),
    Mistake("a direction that there is not", "nnunet_partial relabel 101 --flip up-down --case ANNA", "write left-right, front-back, head-feet"),
)  # fmt: skip
