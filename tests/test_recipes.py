"""Recipes are data: complete, checked, written out in full, and part of the package."""

import fnmatch
import json
import re
from pathlib import Path

import pytest

from nnunet_partial import recipes, variants
from nnunet_partial.errors import UserError
from nnunet_partial.methods import package_trainers
from nnunet_partial.settings import KEY, RunSettings

ROOT = Path(__file__).parent.parent
NAMES = ("choi2022", "feng2021", "huang2020", "huo2021")
# seven cases of 10 slices, three of which annotate something
SHAPES = [[10, 40, 50]] * 7
CASES = {f"c{i}": {"source": "a" if i < 3 else "b", "annotated": ["liver"] if i < 3 else []} for i in range(7)}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A preprocessed dataset as far as plans go: one configuration of 2D, one of 3D."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):  # no other dataset 501 is to be found
        monkeypatch.setenv(name, str(tmp_path))
    folder = tmp_path / "Dataset501_X"
    folder.mkdir()

    def configuration(axes):
        return {
            "batch_size": 9,
            "patch_size": [64] * axes,
            "architecture": {"arch_kwargs": {"n_stages": 3, "strides": [[1] * axes, [2] * axes, [2] * axes]}},
        }

    plans = {
        "dataset_name": "Dataset501_X",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "configurations": {"2d": configuration(2), "3d_fullres": configuration(3)},
    }
    for name, content in (
        ("nnUNetPlans", plans),
        ("dataset_fingerprint", {"shapes_after_crop": SHAPES}),
        ("dataset", {"labels": {"background": 0, "liver": 1}, "nnunet_partial": {"version": 1, "cases": CASES}}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def written(name, changes=(), configuration=None, recipe=None):
    file = variants.write_variant(501, "x", dict(changes), configuration=configuration, recipe=recipe or name, overwrite=True)
    return json.loads(file.read_text())


def test_there_are_these_and_no_others():
    assert recipes.recipe_names() == list(NAMES)
    with pytest.raises(
        UserError, match="--recipe feng: there is no such recipe. .*Recipes: choi2022, feng2021, huang2020, huo2021"
    ):
        recipes.read_recipe("feng")


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_says_where_it_is_from(name):
    recipe = recipes.read_recipe(name)
    assert recipe.paper and recipe.not_reproduced and set(recipe.trainers) <= set(package_trainers())
    for setting, entry in recipe.settings.items():
        assert entry["from"] and set(entry) <= {"value", "count", "from", "axes"}, setting
        assert ("value" in entry) != ("count" in entry), setting
        assert entry.get("axes", recipe.axes) == recipe.axes
    assert {"optimizer", "schedule", "initial_lr", "clip_gradient"} <= set(recipe.settings)


@pytest.mark.parametrize("name", NAMES)
def test_all_of_it_is_written_into_the_plans(dataset, name):
    recipe, plans = recipes.read_recipe(name), written(name)
    settings = RunSettings.from_plans(plans)
    assert settings.recipe == name and plans[KEY]["recipe"] == name
    for setting, entry in recipe.settings.items():
        if setting in variants.NETWORK_CHANGES:
            found = {len(i["patch_size"]): i[setting] for i in plans["configurations"].values()}
            assert found.pop(recipe.axes) == entry["value"]
            assert all(i in (9, [64] * n) for n, i in found.items())  # the other configuration stays as planned
            continue
        found = plans[KEY]
        for part in setting.split("."):
            found = found[part]
        assert found == entry["value"] if "value" in entry else found > 0


def test_what_the_dataset_decides(dataset):
    # 56 of 70 slices are of training cases of a fold: three batches of 24
    assert written("huang2020")[KEY]["num_iterations_per_epoch"] == 3
    assert written("huang2020", {"batch_size": 8})[KEY]["num_iterations_per_epoch"] == 7
    assert written("huang2020", {"num_iterations_per_epoch": 5})[KEY]["num_iterations_per_epoch"] == 5
    # 0.8 times three labelled cases and as many unlabelled ones, two in a batch
    assert written("choi2022")[KEY]["num_iterations_per_epoch"] == 3


def test_settings_override(dataset):
    changed = written("feng2021", {"patch_size": [32, 32], "initial_lr": 0.1, "mskd": {"lambda_feature": 5}})
    assert changed["configurations"]["2d"]["patch_size"] == [32, 32] and changed["configurations"]["2d"]["batch_size"] == 4
    assert changed[KEY]["initial_lr"] == 0.1 and changed[KEY]["plateau_factor"] == 0.8
    assert changed[KEY]["mskd"] == {"lambda_background": 1, "lambda_feature": 5, "feature_level": 1}
    with pytest.raises(UserError, match="plateau_factor=0.8 has no effect with schedule=poly"):
        written("feng2021", {"schedule": "poly"})


def test_a_configuration_of_other_axes_takes_what_does_not_depend_on_them(dataset):
    plans = written("huang2020", configuration="3d_fullres")
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 9 and "num_epochs" not in plans[KEY]
    assert plans[KEY]["momentum"] == 0.9 and plans[KEY]["co_training"]["lambda_dice"] == 0.1
    planned = json.loads((dataset / "nnUNetPlans.json").read_text())
    del planned["configurations"]["2d"]
    (dataset / "nnUNetPlans.json").write_text(json.dumps(planned))
    with pytest.raises(UserError, match="huang2020 is of networks with patches of 2 axes.*plan_and_preprocess -c 2d.*3d_fullres"):
        written("huang2020")


def test_the_command_says_what_is_not_reproduced(dataset, capsys):
    from nnunet_partial.cli import main

    main(["variant", "501", "--recipe", "huang2020", "--configuration", "3d_fullres"])
    out = capsys.readouterr().out
    assert "nnUNetPlans_huang2020.json" in out and "Co-training Weight-averaged" in out
    assert "left out, as it is of patches of 2 axes: batch_size, num_epochs" in out
    assert "not reproduced: DeepLab on a ResNet-50" in out


def test_files_of_data_are_in_the_wheel():
    text = (ROOT / "pyproject.toml").read_text()
    patterns = re.search(r'"nnunet_partial.recipes" = (\[.*\])', text)
    assert patterns and all(
        any(fnmatch.fnmatch(i.name, j) for j in json.loads(patterns[1])) for i in recipes.FOLDER.iterdir() if i.suffix == ".json"
    )


def test_the_method_guide_knows_every_recipe():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+\d{4})` \|", text, re.MULTILINE) == sorted(NAMES)
