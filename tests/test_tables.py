"""The papers' tables: every command is one that the program accepts, published figures are typed as printed, data steps run."""

import importlib.util
import math
import re
import shlex
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from nnunet_partial import cli
from nnunet_partial.data.raw import read_raw_dataset
from nnunet_partial.demo import phantoms
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json
from nnunet_partial.methods import find_trainer_source
from nnunet_partial.orchestration.compare.methods import find_methods
from nnunet_partial.recipes import read_recipe
from tests import downloads
from tests.downloads import VOXELS
from tests.untrained import Untrained

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
    """Prepare sets it; nothing here may set anything else but the steps of an epoch, as no fold holds anything out."""
    prepared = [shlex.split(i) for i in printed(tables, name, tmp_path, capsys) if "coarse-to-fine prepare" in i]
    assert len(prepared) >= 2
    assert all(cli.verb_parser("coarse-to-fine").parse_args(i[2:]).set == ["num_iterations_per_epoch=40"] for i in prepared)


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


# ------------------------------------------------------------------ every table, from tiny downloads to its figures

FENG = {"Individual": "individual", "LW": "mskdlw", "MS-KD": "mskd", "Co-training": "cotraining", "DoDNet": "dodnet"}
HUANG1 = {"individual": "individual", "self-training": "selftraining-focal", "CT": "cotraining-ct", "WA": "cotraining-wa"}
HUANG1 |= {"CT+WA": "cotraining-ctwa", "CT+WA+RM": "cotraining", "Ours (CT+WA+RM+IBN)": "cotraining-ibn"}
HUANG2 = {"conditionCNN": "conditioncnn", "Ours": "cotraining-ibn"}
HUANG3 = {**HUANG2, "individual": "individual", "self-training": "selftraining-focal"}
CHOI = {"FSL": "FSL", "FSL + KD": "FSLKD", "SSL + KD": "SSLKD", "SSL + PSV": "SSLPSV", "SSL + KD + PSV": "SSLKDPSV", "CTS": "CTS"}
CHOI |= {"CTT, no KD": "NoKD", "CTT, no PSV": "NoPSV", "CTT, same decoders": "SD", "proposed": ""}
SINGLE = ("spleen", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "pancreas", "duodenum")


def of_methods(dataset, methods):
    return {row: f"{dataset} {method}" for row, method in methods.items()}


def of_atso(generations, **datasets):
    """Rows of the strategies; ``datasets``: dataset -> what its rows begin with."""
    last = f"g{generations}s1"
    models = {"ATSO": "atso final", "STSO": f"stso {last}", "Self-learning": f"self-learning {last}", "M0": "atso m0"}
    return {begin + row: f"{dataset} {model}" for dataset, begin in datasets.items() for row, model in models.items()}


def of_stages(rows, fine="FlareTrainFine", coarse=""):
    name = "nnUNetTrainerCrossTeaching"
    return {row: f"FlareTrainCoarse {name}{coarse} {fine} {name}{suffix}" for row, suffix in rows.items()}


@dataclass(frozen=True)
class Expected:
    """``downloads``: function and arguments of each, by its folder; ``trained``: merged dataset -> (source, what it annotates) ->
    cases; ``tested``: folder below --out -> cases; ``models``: row -> model; ``never_labelled``: cases whose truth no report knows."""

    downloads: dict
    trained: dict
    tested: dict
    models: dict
    never_labelled: int = 0


MSD_SPLEEN = {"msd_spleen": (downloads.make_msd, {"spleen": ("spleen", 1)}, 501)}
MSD_PANCREAS = {"msd_pancreas": (downloads.make_msd, {"pancreas": ("pancreas", 1), "cancer": ("tumour", 2)}, 601)}
LITS, KITS, BTCV, FLARE22, CITYSCAPES = (
    {name: (getattr(downloads, f"make_{name}"),)} for name in ("lits", "kits", "btcv", "flare22", "cityscapes")
)
FLARE_CASES = {"FlareTrain": {("flare22", "all"): 4, ("flare22", "nothing"): 3}}
FENG_CASES = {"SpleenKidneyPancreas": {("msd", "spleen"): 5, ("kits", "kidney"): 5, ("nih", "pancreas"): 5}}
HUANG_CASES = {"LitsKitsPancreas": {("lits", "liver"): 5, ("kits", "kidney"): 5, ("msd", "pancreas"): 5}}
HUANG_SCANS = {**LITS, **KITS, **MSD_PANCREAS}


def nih(cases):
    return {"nih": (phantoms.make_nih, cases)}


def halves(source, labelled, unlabelled):
    return {(source, "all"): labelled, ("rest", "nothing"): unlabelled}


# of predictions that keep a share of every structure, in percent
KNOWN = {"dice": lambda share: 200 * share / (1 + share), "global iou": lambda share: 100 * share}
KNOWN["global dice"] = KNOWN["dice"]
EXPECTED = {
    "choi2022-table3": Expected(
        FLARE22,
        FLARE_CASES,
        {"test": 1},
        {**of_stages(CHOI), **of_stages({"FSL, coarse too (baseline)": "FSL"}, "FlareTrainFineOfFSL", "FSL")},
    ),
    "choi2022-table4": Expected(FLARE22, FLARE_CASES, {"test": 1}, of_stages({"proposed": ""})),
    "feng2021-table1": Expected({**MSD_SPLEEN, **KITS, **nih(5)}, FENG_CASES, {}, of_methods("SpleenKidneyPancreas", FENG)),
    "feng2021-table2": Expected(
        {**MSD_SPLEEN, **KITS, **nih(5), **BTCV}, FENG_CASES, {"test": 4}, of_methods("SpleenKidneyPancreas", FENG)
    ),
    "huang2020-table1": Expected(HUANG_SCANS, HUANG_CASES, {}, of_methods("LitsKitsPancreas", HUANG1)),
    "huang2020-table2": Expected(HUANG_SCANS, HUANG_CASES, {}, of_methods("LitsKitsPancreas", HUANG2)),
    "huang2020-table3": Expected(
        {"moba": (downloads.make_moba, 3), "tcia": nih(3)["nih"], **BTCV},
        {"MobaBySingleOrgans": {(i, i): 6 for i in SINGLE}, "MobaCombined": {("moba", "all"): 6}},
        {"test": 1},
        {**of_methods("MobaBySingleOrgans", HUANG3), "combine": "MobaCombined partial"},
    ),
    "huo2021-table1": Expected(nih(18), {"NihTenPercent": halves("nih", 6, 8)}, {"split": 4}, of_atso(5, NihTenPercent="")),
    "huo2021-table2": Expected(
        nih(18),
        {"NihTenPercent": halves("nih", 6, 8), "NihTwentyPercent": halves("nih", 12, 2)},
        {"split": 4, "split20": 4},
        of_atso(5, NihTenPercent="10 %: ", NihTwentyPercent="20 %: "),
    ),
    "huo2021-table3": Expected(
        {**nih(6), **MSD_PANCREAS},
        {"NihToMsd": {("nih", "all"): 4, ("msd", "nothing"): 4}},
        {"nih": 2, "split": 1},
        of_atso(4, NihToMsd=""),
        never_labelled=1,
    ),
    "huo2021-table4": Expected(
        CITYSCAPES,
        {"Cityscapes100": halves("fine", 1, 11), "Cityscapes372": halves("fine", 3, 9), "Cityscapes744": halves("fine", 7, 5)},
        {"split100": 3, "split372": 3, "split744": 3},
        of_atso(3, Cityscapes100="100: ", Cityscapes372="372: ", Cityscapes744="744: "),
    ),
    "huo2021-table5": Expected(
        CITYSCAPES, {"CityscapesFull": halves("fine", 10, 4)}, {"split": 3}, of_atso(3, CityscapesFull=""), never_labelled=2
    ),
}


@pytest.fixture
def untrained(tables, monkeypatch):
    monkeypatch.setattr(phantoms, "make_patient", downloads.patient)
    read = tables.Table.read

    def read_in_hundreds(name):
        """A hundred pictures of Cityscapes are one here."""
        table = read(name)
        if "cityscapes" not in table.downloads:
            return table
        hundreds = [re.sub(r"--label (\d+)", lambda i: f"--label {int(i[1]) // 100}", str(i)) for i in table.steps]
        return replace(table, steps=[new if isinstance(old, str) else old for old, new in zip(table.steps, hundreds)])

    monkeypatch.setattr(tables.Table, "read", read_in_hundreds)
    return Untrained(tables, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_from_downloads_to_figures(tables, untrained, tmp_path, capsys, name):
    expected, folders, out = EXPECTED[name], tables.Table.read(name).downloads, tmp_path / "out"
    assert set(expected.downloads) == set(folders)
    for download, (make, *more) in expected.downloads.items():
        make(tmp_path / folders[download], *more)
    argv = [name, "--data", str(tmp_path), "--out", str(out), "--device", "cpu"]
    tables.main(argv)
    check_cases(expected, tmp_path / "nnUNet_raw", out)
    text, number = (out / "table.md").read_text(), len(untrained.ran)
    check_figures(tables.Table.read(name), expected.models, untrained.kept, text)
    tables.main(argv)
    assert len(untrained.ran) == number and capsys.readouterr().out.endswith(f"{text}\n")  # nothing is done twice


def check_cases(expected, raw, out):
    """Every source has as many cases as expected and annotates what is expected; what is tested is not trained on, what is known of
    unlabelled cases is called as they are, and cases of one scan are cases of one patient."""
    tested = {i: {j.name for j in (out / i / "labelsTs").iterdir()} for i in expected.tested}
    assert {k: len(v) for k, v in tested.items()} == expected.tested
    hidden = {i.resolve() for name in tested for i in (out / name / "imagesTs").iterdir()}
    assert len(hidden) >= max(expected.tested.values(), default=0)
    for dataset, cases in expected.trained.items():
        (folder,) = raw.glob(f"Dataset*_{dataset}")
        found, content = read_raw_dataset(folder), read_json(folder / "dataset.json")
        entries = content["nnunet_partial"]["cases"]
        assert dict(Counter(annotates(i, content["labels"]) for i in entries.values())) == cases
        names = {k.removeprefix(f"{v['source']}_") + content["file_ending"] for k, v in entries.items()}
        assert not names & set().union(*tested.values())
        of_scan = defaultdict(list)
        for case, entry in entries.items():
            of_scan[Path(found.cases[case].images[0]).resolve()].append(entry.get("patient", case))
        assert not hidden & of_scan.keys() and len(of_scan) > 1
        assert all(len(set(i)) == 1 for i in of_scan.values())
        assert len({i[0] for i in of_scan.values()}) == len(of_scan)
        if unlabelled := [k for k, v in entries.items() if not v["annotated"]]:
            check_reference(expected, dataset, unlabelled, content, out)


def annotates(entry, labels):
    known, classes = entry["annotated"], [i for i in labels if i not in ("background", "ignore")]
    return entry["source"], "all" if len(known) == len(classes) else ", ".join(known) or "nothing"


def check_reference(expected, dataset, unlabelled, content, out):
    """The report of ATSO finds the truth of unlabelled cases by name, and reads its values as the dataset's own."""
    folders = [i for i in expected.tested if (out / i / "reference").is_dir()]
    if not folders:
        return
    folder = out / dict(zip(expected.trained, folders, strict=True))[dataset]
    truth = {i.name.removesuffix(content["file_ending"]) for i in (folder / "reference").iterdir()}
    assert truth < set(unlabelled) if expected.never_labelled else truth == set(unlabelled)
    assert len(unlabelled) - len(truth) == expected.never_labelled
    assert read_json(folder / "dataset.json")["labels"] == content["labels"]


def check_figures(table, models, kept, text):
    """Every row has the figures of its own model, in every column that the paper prints, beside the printed ones."""
    assert set(models) == set(table.rows) and len(set(kept.values())) == len(kept)
    blocks = {i.splitlines()[0].split(" | ")[0].removeprefix("| "): i.splitlines()[2:] for i in text.split("\n\n") if i[0] == "|"}
    assert list(blocks) == list(table.published)
    for metric, lines in blocks.items():
        assert len(lines) == len(models)
        for row, *cells in (i.strip("| ").split(" | ") for i in lines):
            assert cells, metric
            own = [re.match(r"\d+\.\d\d", i)[0] for i in cells]
            share, published = kept[models[row]] / VOXELS, table.published[metric].get(row, {})
            if metric in KNOWN:
                assert [float(i) for i in own] == pytest.approx([KNOWN[metric](share)] * len(cells), abs=0.0051), (metric, row)
            printed = [f" ({i:.2f})" for i in published.values()]
            assert sorted(i.removeprefix(j) for i, j in zip(cells, own)) == sorted(printed or [""] * len(cells))
