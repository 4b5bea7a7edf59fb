"""The papers' tables: every command is one that the program accepts, published figures are typed as printed, data steps run."""

import importlib.util
import json
import math
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial import cli
from nnunet_partial.demo import phantoms
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, write_json
from nnunet_partial.methods import find_trainer_source
from nnunet_partial.orchestration.compare.methods import find_methods
from nnunet_partial.recipes import read_recipe

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(i.stem for i in (ROOT / "benchmarks" / "tables").glob("*.json"))


@pytest.fixture
def tables(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tables", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return module


def printed(tables, name, tmp_path, capsys, *more):
    tables.main([name, "--data", str(tmp_path / "with blank"), "--out", str(tmp_path / "out"), "--dry-run", *more])
    return capsys.readouterr().out.strip().splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_accepted(tables, tmp_path, capsys, name):
    lines = printed(tables, name, tmp_path, capsys, "--device", "cpu", "--set", "num_epochs=2")
    assert len(lines) >= 6 and len(set(lines)) == len(lines)
    for line in lines:
        accept(tables, shlex.split(line))
    assert sum("num_epochs=2" in i for i in lines) >= 1 and sum("--device cpu" in i for i in lines) >= 1
    assert not list(tmp_path.rglob("*.txt")) and not (tmp_path / "out").exists()  # nothing was run


def accept(tables, argv):
    assert not any("{" in i for i in argv), argv
    if argv[0] == "python":
        assert Path(argv[1]) == ROOT / "benchmarks" / "tables.py"
        tables.parser().parse_args(argv[2:])
    elif argv[0] == "nnunet_partial":
        accept_own(argv[1], cli.verb_parser(argv[1]).parse_args(argv[2:]))
    else:
        found = next(i for i in metadata.entry_points(group="console_scripts") if i.name == argv[0])
        package = Path(importlib.util.find_spec("nnunetv2").submodule_search_locations[0]).parent
        source = (package / found.value.split(":")[0].replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        assert all(f"'{i}'" in source or f'"{i}"' in source for i in argv[1:] if i.startswith("-")), argv


def accept_own(verb, arguments):
    """Names within the arguments that a parser takes as they are."""
    if getattr(arguments, "recipe", None):
        read_recipe(arguments.recipe)
    if verb == "compare":
        find_methods(",".join(arguments.methods).split(","))
    for trainer in np.atleast_1d(getattr(arguments, "trainer", None) or []):
        find_trainer_source(str(trainer))
    if verb == "merge":
        sources = {i.partition("=")[0] for i in (*arguments.source, *arguments.unlabelled)}
        assert {i.partition("=")[0] for i in arguments.cases} <= sources
        assert {i.partition(":")[0] for i in arguments.map} <= sources


@pytest.mark.parametrize("name", ["choi2022-table3", "choi2022-table4"])
def test_both_stages_are_prepared_as_the_recipe_says(tables, tmp_path, capsys, name):
    """Prepare sets it; nothing here may set anything else."""
    prepared = [shlex.split(i) for i in printed(tables, name, tmp_path, capsys) if "coarse-to-fine prepare" in i]
    assert len(prepared) >= 2
    assert not any(cli.verb_parser("coarse-to-fine").parse_args(i[2:]).set for i in prepared)


# means that are not those of the organs, as the papers print them: 90.38, 80.51, 71.08, 35.71 would be
_ODD = {
    ("feng2021-table1", "dice", "DoDNet"),
    ("huang2020-table3", "dice", "combine"),
    ("huang2020-table3", "dice", "conditionCNN"),
    ("huang2020-table3", "hausdorff_mean_mm", "individual"),
}


@pytest.mark.parametrize("name", NAMES)
def test_published_means_are_those_of_the_published_classes(tables, name):
    table = tables.Table.read(name)
    for metric, rows in table.published.items():
        assert set(rows) <= set(table.rows), name
        for row, values in rows.items():
            classes = [v for k, v in values.items() if k != "mean"]
            if len(classes) > 1 and "mean" in values and (name, metric, row) not in _ODD:
                assert math.isclose(sum(classes) / len(classes), values["mean"], abs_tol=0.012), (metric, row)


def test_the_list_names_every_table_and_download(tables, capsys):
    tables.main(["list"])
    out = capsys.readouterr().out
    assert all(i in out for i in (*NAMES, "lits=DIR", "Mapillary"))


def test_what_is_missing_or_unknown_is_one_line(tables, tmp_path, capsys):
    for argv, words in (
        (["huang2020-table1", "--data", str(tmp_path), "--out", str(tmp_path / "out")], "needs the download lits"),
        (["huang2020-table1", "--out", "x", "--download", "amos=/x", "--dry-run"], "needs lits, kits, msd_pancreas"),
        (["huang2020-table1", "--out", "x", "--first-id", "5", "--dry-run"], "from 100 to 990"),
    ):
        with pytest.raises(SystemExit) as end:
            tables.main(argv)
        assert end.value.code == 2 and words in capsys.readouterr().err
    with pytest.raises(UserError, match="nothing says what it is"):
        tables.fill("{no}", {})


@pytest.fixture
def stubbed(tables, monkeypatch):
    """Data steps run as they are; what would train and measure only writes figures. Returns the commands that were run."""
    ran = []

    def run(argv, log):
        ran.append(argv)
        if argv[0] == "python":
            tables.main(argv[2:])
        elif argv[0] == "nnunet_partial" and argv[1] in ("convert", "merge"):
            cli.main([*argv[1:], "--processes", "1"])
        elif argv[1] == "evaluate":
            folder = Path(argv[argv.index("--out") + 1])
            overall = {"mean_over_classes": {"dice": {"mean": 0.5}}, "classes": {"pancreas": {"dice": {"mean": 0.25}}}}
            write_json({"summary": {**overall, "global": {}}}, folder / "metrics.json")

    monkeypatch.setattr(tables, "run_command", run)
    return ran


def test_a_table_of_phantoms_from_downloads_to_figures(tables, stubbed, tmp_path, capsys):
    phantoms.make_nih(tmp_path / "Pancreas-CT", num_cases=9)
    argv = ["huo2021-table1", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    tables.main(argv)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| ATSO | 25.00 (81.57) |" in table and "| M0 | 25.00 (72.62) |" in table and "What differs" in table
    merged = read_json(tmp_path / "nnUNet_raw" / "Dataset902_NihTenPercent" / "dataset.json")
    cases = merged["nnunet_partial"]["cases"]
    known = [i for i, v in cases.items() if v["annotated"]]
    test = {i.name[:-7] for i in (tmp_path / "out" / "split" / "labelsTs").iterdir()}
    assert len(known) == 6 and len(cases) == 7 and len(test) == 2  # a quarter of nine is held out
    assert not {i.split("_", 1)[1] for i in cases} & test
    others = [i for i in cases if i not in known]
    truth = {i.name[:-7] for i in (tmp_path / "out" / "split" / "reference").iterdir()}
    assert set(others) == truth and all(i.startswith("rest_") for i in others)
    assert read_json(tmp_path / "out" / "split" / "dataset.json")["labels"] == {"background": 0, "pancreas": 1}
    starts = [i for i in stubbed if i[1:3] == ["atso", "run"]]
    assert [("--initial-model" in i) for i in starts] == [False, True, True]  # one M0 for all three
    number = len(stubbed)
    tables.main(argv)  # nothing is done twice
    assert len(stubbed) == number and "25.00" in capsys.readouterr().out


def test_scans_without_labels_stay_in_training(tables, stubbed, tmp_path):
    source, rng = tmp_path / "FLARE22", np.random.default_rng(0)
    for i in range(8):
        label = np.zeros((6, 8, 8), np.int16)
        label[1:4, 2:6, 2:6] = rng.permutation(np.resize(np.arange(1, 14), 48)).reshape(3, 4, 4)
        labelled = i < 5
        folder = source / ("FLARE22_LabeledCase50/images" if labelled else "FLARE22_UnlabeledCase1-1000")
        put(np.float32(label * 10 + i), folder / (f"FLARE22_Tr_{i:04d}_0000.nii.gz" if labelled else f"Case_{i:05d}_0000.nii.gz"))
        if labelled:
            put(np.uint8(label), source / "FLARE22_LabeledCase50" / "labels" / f"FLARE22_Tr_{i:04d}.nii.gz")
    tables.main(["choi2022-table4", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    cases = read_json(tmp_path / "nnUNet_raw" / "Dataset902_FlareTrain" / "dataset.json")["nnunet_partial"]["cases"]
    assert sorted(bool(i["annotated"]) for i in cases.values()) == [False] * 3 + [True] * 4
    assert len(list((tmp_path / "out" / "test" / "imagesTs").iterdir())) == 1


def put(array, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(file), True)


def test_one_scan_becomes_a_case_of_each_single_organ_dataset(tables, stubbed, tmp_path, capsys):
    organs = ("spleen", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "pancreas", "duodenum")
    raw = tmp_path / "nnUNet_raw" / "Dataset901_MOBA"
    for i in range(5):
        label = np.zeros((5, 8, 8), np.uint8)
        label[1:4, 2:6, 2:6] = np.resize(np.arange(1, 9), 48).reshape(3, 4, 4)
        put(np.float32(label + i), raw / "imagesTr" / f"moba_{i}_0000.nii.gz")
        put(label, raw / "labelsTr" / f"moba_{i}.nii.gz")
    labels = {"background": 0, **{n: i + 1 for i, n in enumerate(organs)}}
    write_json({"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 5, "file_ending": ".nii.gz"}, raw / "dataset.json")
    lines = [shlex.split(i) for i in printed(tables, "huang2020-table3", tmp_path, capsys)]
    for argv in [i for i in lines if i[1] == "merge" or re.search("testset", " ".join(i[:3]))]:
        tables.run_command(argv, None)
    cases = read_json(tmp_path / "nnUNet_raw" / "Dataset902_MobaBySingleOrgans" / "dataset.json")["nnunet_partial"]["cases"]
    assert len(cases) == 8 * 4 and all(v["annotated"] == [v["source"]] for v in cases.values())
    assert len({json.dumps(v.get("patient")) for v in cases.values()}) == 4  # a patient's eight cases stay in one fold
    combined = read_json(tmp_path / "nnUNet_raw" / "Dataset903_MobaCombined" / "dataset.json")
    assert len(combined["dataset"]) == 4 and combined["labels"] == labels
