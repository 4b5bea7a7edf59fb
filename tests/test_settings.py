import dataclasses
import math

import pytest

from nnunet_partial.errors import UserError
from nnunet_partial.settings import (
    BLOCKS,
    KEY,
    MSKDSettings,
    RunSettings,
    merged,
    parse_assignments,
    read_block,
    setting,
    unknown_blocks,
    without_optimizer_paper,
)


@dataclasses.dataclass(frozen=True)
class MineSettings:
    x: float = setting(1.0, "of a method that is not of this package", low=0)


def plans(**settings):
    return {"plans_name": "nnUNetPlans_x", KEY: settings}


def read(blocks=(), **settings):
    return RunSettings.from_plans(plans(**settings), dict(blocks))


def test_plans_without_settings_give_the_defaults():
    assert RunSettings.from_plans({"plans_name": "nnUNetPlans"}) == RunSettings()


def test_settings_and_blocks_are_read():
    given = {"num_epochs": 20, "source": "lits", "mskd": {"lambda_feature": 5, "sources": ["lits"], "teachers": {"lits": "/x"}}}
    settings, own = read(**given), read_block(plans(**given), "mskd", MSKDSettings)
    assert (settings.num_epochs, settings.source) == (20, "lits")
    assert own.lambda_feature == 5.0 and isinstance(own.lambda_feature, float)
    assert own.sources == ["lits"] and own.teachers == {"lits": "/x"}
    assert read_block(plans(), "mskd", MSKDSettings) == MSKDSettings()


def test_a_block_is_checked_by_whoever_knows_it():
    mine, whose = {"mine": MineSettings}, {"mine": "nnUNetTrainerMine"}
    assert read(mine, mine={"x": 2}) == RunSettings()
    with pytest.raises(UserError, match="nnUNetPlans_x: setting mine.x must be at least 0, found -1"):
        read(mine, mine={"x": -1})
    with pytest.raises(UserError, match="unknown setting mine"):
        read(mine={"x": 2})  # a misspelt block, for all that is known
    assert read(mine={"x": "?"}, trainers=whose).trainers == whose  # a run of another trainer with the same plans
    with pytest.raises(UserError, match="unknown setting num_epoch"):
        read(num_epoch=3, trainers={"num_epoch": "nnUNetTrainerMine"})  # never a block
    assert unknown_blocks({"num_epochs": 3, "mskd": {}, "mine": {}, "other": 3}) == ["mine"]
    assert unknown_blocks({"mine": {}, "trainers": whose}) == unknown_blocks({"mine": {}}, mine) == []


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": 3}, "unknown setting epochs. Did you mean num_epochs.*Valid settings: num_epochs"),
        ({"mskd": {"lambda": 3}}, "unknown setting mskd.lambda. Did you mean .*Valid settings: mskd.lambda_background"),
        ({"num_epochs": 0}, "setting num_epochs must be at least 1, found 0"),
        ({"num_epochs": 2.5}, "num_epochs must be of type int, found 2.5"),
        ({"num_epochs": True}, "num_epochs must be of type int, found True"),
        ({"initial_lr": math.nan}, "initial_lr must be at least 0, found nan"),
        ({"initial_lr": "fast"}, "initial_lr must be of type float"),
        ({"oversample_foreground_percent": 1.5}, "between 0 and 1, found 1.5"),
        ({"optimizer": "lamb"}, "optimizer must be one of sgd, adam, adamw, found 'lamb'"),
        (
            {"optimizer": "paper"},
            "optimizer=paper is no more.*--recipe.*huang2020.*--set initial_lr=0.05.*--set schedule=.cosine",
        ),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum=0.9 has no effect with optimizer=adam.*--set momentum=None"),
        ({"optimizer": "adamw", "nesterov": False}, "nesterov=false has no effect with optimizer=adamw"),
        ({"momentum": 0, "nesterov": True}, "nesterov=true has no effect without momentum"),
        ({"plateau_factor": 0.5}, "plateau_factor=0.5 has no effect with schedule=poly.*set schedule=plateau"),
        ({"schedule": "cosine", "plateau_patience": 3}, "plateau_patience=3 has no effect with schedule=cosine"),
        ({"schedule": "plateau", "plateau_factor": 1.0}, "plateau_factor must lie between 0 and 1, found 1.0"),
        ({"mirroring": [0, 3]}, "mirroring must list different axes"),
        ({"mirroring": [1, 1]}, "mirroring must list different axes"),
        ({"mirroring": ["x"]}, "mirroring must list different axes"),
        ({"mirroring": False}, "mirroring must be of type list, found False"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"mskd": 3}, "mskd. must be a mapping"),
        ({"mskd": {"sources": "lits"}}, "mskd.sources must be of type list, found 'lits'. Write it as .\"lits\""),
    ],
)
def test_wrong_settings_name_plans_key_and_what_is_allowed(settings, message):
    with pytest.raises(UserError, match=f"plans nnUNetPlans_x: .*{message}"):
        read(**settings)


def test_what_is_left_out_is_nnunets():
    assert RunSettings().sgd == {"momentum": 0.99, "nesterov": True}
    assert read(momentum=0.0).sgd == {"momentum": 0.0, "nesterov": False}
    assert read(momentum=0.9, nesterov=False).sgd == {"momentum": 0.9, "nesterov": False}
    assert read(schedule="plateau", plateau_patience=2).plateau == {"factor": 0.8, "threshold": 1e-3, "patience": 2}


def test_plans_of_version_0_1_with_the_optimiser_of_a_paper_are_written_out():
    old = plans(optimizer="paper", initial_lr=0.01, num_epochs=3)
    now = RunSettings.from_plans(without_optimizer_paper(old))
    assert (now.optimizer, now.initial_lr, now.weight_decay, now.schedule) == ("sgd", 0.05, 5e-4, "cosine")
    assert now.sgd == {"momentum": 0.9, "nesterov": False} and now.num_epochs == 3
    assert old[KEY]["optimizer"] == "paper"
    assert without_optimizer_paper(plans(optimizer="adam")) == plans(optimizer="adam")


def test_optional_settings_may_be_none():
    assert read(seed=None, source=None).seed is None


def test_defaults_are_never_shared():
    MSKDSettings().teachers["a"] = 1
    assert MSKDSettings().teachers == {}


def test_every_setting_is_described_and_its_default_is_allowed():
    defaults = RunSettings()
    assert read(**dataclasses.asdict(defaults)) == defaults
    for name, cls in BLOCKS.items():
        assert read_block(plans(**{name: dataclasses.asdict(cls())}), name, cls) == cls()
    for cls in (RunSettings, *BLOCKS.values()):
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
