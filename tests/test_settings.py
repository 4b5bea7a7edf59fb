import dataclasses
import math

import pytest

from nnunet_partial.errors import UserError
from nnunet_partial.settings import KEY, RunSettings, merged, parse_assignments


def read(**settings):
    return RunSettings.from_plans({"plans_name": "nnUNetPlans_x", KEY: settings})


def test_plans_without_settings_give_the_defaults():
    assert RunSettings.from_plans({"plans_name": "nnUNetPlans"}) == RunSettings()


def test_settings_are_read_and_nested():
    settings = read(num_epochs=20, source="lits", mskd={"lambda_feature": 5, "sources": ["lits"], "teachers": {"lits": "/x"}})
    assert (settings.num_epochs, settings.source) == (20, "lits")
    assert settings.mskd.lambda_feature == 5.0 and isinstance(settings.mskd.lambda_feature, float)
    assert settings.mskd.sources == ["lits"] and settings.mskd.teachers == {"lits": "/x"}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": 3}, "unknown setting epochs. Valid settings: num_epochs"),
        ({"mskd": {"lambda": 3}}, "unknown setting mskd.lambda. Valid settings: mskd.lambda_background"),
        ({"num_epochs": 0}, "setting num_epochs must be at least 1, found 0"),
        ({"num_epochs": 2.5}, "num_epochs must be of type int, found 2.5"),
        ({"num_epochs": True}, "num_epochs must be of type int, found True"),
        ({"initial_lr": math.nan}, "initial_lr must be at least 0, found nan"),
        ({"initial_lr": "fast"}, "initial_lr must be of type float"),
        ({"oversample_foreground_percent": 1.5}, "between 0 and 1, found 1.5"),
        ({"optimizer": "lamb"}, "optimizer must be one of sgd, adamw, paper, found 'lamb'"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"mskd": 3}, "mskd. must be a mapping"),
        ({"mskd": {"sources": "lits"}}, "mskd.sources must be of type list, found 'lits'. Write it as .\"lits\""),
    ],
)
def test_wrong_settings_name_plans_key_and_what_is_allowed(settings, message):
    with pytest.raises(UserError, match=f"plans nnUNetPlans_x: .*{message}"):
        read(**settings)


def test_optional_settings_may_be_none():
    assert read(seed=None, source=None).seed is None


def test_defaults_are_never_shared():
    RunSettings().mskd.teachers["a"] = 1
    assert RunSettings().mskd.teachers == {}


def test_every_setting_is_described_and_its_default_is_allowed():
    defaults = RunSettings()
    assert read(**dataclasses.asdict(defaults)) == defaults
    for cls in (RunSettings, type(defaults.mskd)):
        assert all(field.metadata["help"] for field in dataclasses.fields(cls))


def test_assignments_are_parsed():
    parsed = parse_assignments(
        [
            "num_epochs=20",
            "features=8,16,32",
            "mskd.lambda_feature=5.5",
            "source=lits",
            "seed=None",
            "deep_supervision=false",
            "mskd.teachers.lits=/a=b",
            'mskd.sources=["lits"]',
        ]
    )
    assert parsed == {
        "num_epochs": 20,
        "features": [8, 16, 32],
        "source": "lits",
        "seed": None,
        "deep_supervision": False,
        "mskd": {"lambda_feature": 5.5, "teachers": {"lits": "/a=b"}, "sources": ["lits"]},
    }


@pytest.mark.parametrize("assignments", [["num_epochs"], ["=3"], ["mskd=1", "mskd.lambda_feature=2"]])
def test_assignments_that_cannot_be_parsed(assignments):
    with pytest.raises(UserError, match="--set"):
        parse_assignments(assignments)


def test_merged_changes_neither_argument():
    base, changes = {"a": {"b": 1, "c": [1]}}, {"a": {"b": 2}, "d": 3}
    result = merged(base, changes)
    assert result == {"a": {"b": 2, "c": [1]}, "d": 3}
    result["a"]["c"].append(2)
    assert base == {"a": {"b": 1, "c": [1]}} and changes == {"a": {"b": 2}, "d": 3}
