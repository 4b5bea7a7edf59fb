"""Plans variants: settings of the package's methods and of one's own."""

from pathlib import Path

import pytest

from nnunet_partial.errors import UserError
from nnunet_partial.settings import KEY
from nnunet_partial.variants import make_variant

EXAMPLES = Path(__file__).parent.parent / "examples"
PLANS = {"plans_name": "nnUNetPlans", "configurations": {}}
TRAINER = "nnUNetTrainerMeanTeacher"


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(EXAMPLES))


def variant(settings, *trainers, base=PLANS):
    return make_variant(base, "nnUNetPlans_x", settings, trainers=trainers)


def test_settings_of_ones_own_trainer_are_checked_and_noted(found):
    made = variant({"mean_teacher": {"weight": 2}}, TRAINER)
    assert made[KEY]["mean_teacher"] == {"weight": 2} and made[KEY]["trainers"] == {"mean_teacher": TRAINER}
    for wrong, message in (
        ({"weight": -1}, "mean_teacher.weight must be at least 0, found -1"),
        ({"wait": 1}, "unknown setting mean_teacher.wait. .*Valid settings: mean_teacher.decay, mean_teacher.weight"),
    ):
        with pytest.raises(UserError, match=message):
            variant({"mean_teacher": wrong}, TRAINER)
        # plans that were made with a trainer remember it
        with pytest.raises(UserError, match=message):
            variant({"mean_teacher": wrong}, base=made)
    again = variant({"mean_teacher": {"noise": 0.2}}, base=made)
    assert again[KEY]["mean_teacher"] == {"weight": 2, "noise": 0.2}


def test_settings_without_their_trainer_are_refused_with_its_name(found):
    with pytest.raises(UserError, match=f"mean_teacher holds settings of {TRAINER}: add --trainer {TRAINER}"):
        variant({"mean_teacher": {"weight": 2}})
    with pytest.raises(UserError, match="unknown setting mean_techer"):
        variant({"mean_techer": {"weight": 2}})


def test_a_trainer_that_is_not_found_is_refused():
    with pytest.raises(UserError, match="finds no trainer called nnUNetTrainerMeanTeacher"):
        variant({"mean_teacher": {"weight": 2}}, TRAINER)


def test_a_trainer_of_this_package_may_be_named_and_need_not_be():
    given = {"mskd": {"lambda_feature": 5}}
    assert variant(given) == variant(given, "nnUNetTrainerMSKDPlus") == variant(given, "nnUNetTrainerPartial")
    assert "trainers" not in variant(given)[KEY]
