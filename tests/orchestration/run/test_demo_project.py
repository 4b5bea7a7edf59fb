"""The example's project file, the page about project files, and files that init writes."""

import os
from dataclasses import fields
from pathlib import Path

import pytest

from nnunet_partial import api
from nnunet_partial.demo import phantoms, pipeline
from nnunet_partial.errors import UserError
from nnunet_partial.orchestration.run.project import TABLES, read_project
from nnunet_partial.project.recognise import Recognised, recognise, source_names
from nnunet_partial.project.template import project_text

ROOT = Path(__file__).resolve().parents[3]


def test_the_example_is_the_demo():
    """Same sources, settings and test set, so that both show the same."""
    project = read_project(ROOT / "examples" / "demo.toml")
    assert {i.converter: (i.dataset, i.organs[0]) for i in project.sources} == pipeline.SOURCES
    wanted = {k: [int(i) for i in v.split(",")] if "," in str(v) else v for k, v in pipeline.SETTINGS.items()}
    assert project.settings == wanted
    assert [i.name for i in project.methods] == [pipeline.TEACHERS, *pipeline.STUDENTS]
    assert (project.training.seeds, project.plan.configurations) == ([pipeline.SEED], [pipeline.CONFIGURATION])
    assert project.project.dataset == pipeline.DATASET and not project.test.mirroring


def test_the_page_explains_every_key():
    text = (ROOT / "docs" / "project_file.md").read_text(encoding="utf-8")
    for table, cls in TABLES.items():
        part = text.split(f"### {'[[' if table in ('source', 'method') else '['}{table}]", 1)[1].split("\n### ")[0]
        for key in fields(cls):
            assert f"| `{key.name}` |" in part and key.metadata["help"] in part, f"{table}.{key.name}"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    phantoms.make_lits(folder / "lits", 2)
    phantoms.make_kits(folder / "kits", 2)
    (folder / "unknown").mkdir()
    (folder / "unknown" / "scan.nii.gz").write_text("")
    return folder


@pytest.fixture
def nnunet_folders(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


def test_downloads_are_recognised(downloads, nnunet_folders):
    lits, kits, unknown = (recognise(downloads / i) for i in ("lits", "kits", "unknown"))
    assert (lits.converter, lits.organs, lits.labelled) == ("lits", ("liver",), 2)
    assert (kits.converter, kits.organs, kits.labelled) == ("kits", ("kidney",), 2) and kits.release.startswith("KiTS19")
    assert unknown.converter == "generic"
    with pytest.raises(UserError, match="does not exist"):
        recognise(downloads / "nowhere")
    assert not any((nnunet_folders / "raw").iterdir())


def test_what_init_writes_passes_every_check(downloads, nnunet_folders):
    file = nnunet_folders / "project.toml"
    file.write_text(project_text([recognise(downloads / i) for i in ("lits", "kits")], "Joint", 501, 101))
    before = sorted(os.listdir(nnunet_folders))
    work = api.project(file)
    assert work.plan.taught == ("kits", "lits")
    assert [i.dataset for i in work.plan.project.sources] == [101, 102]
    assert [i.name for i in work.plan.project.methods] == ["partial", "mskdplus"]
    assert sorted(os.listdir(nnunet_folders)) == before


def test_the_command_writes_the_file_and_never_over_another(downloads, nnunet_folders, capsys, monkeypatch):
    from nnunet_partial import cli

    monkeypatch.chdir(nnunet_folders)
    cli.main(["init", str(downloads / "lits"), str(downloads / "unknown"), "--name", "Joint"])
    said = capsys.readouterr().out
    assert "no converter knows it" in said and "to be settled before it runs" in said
    with pytest.raises(SystemExit) as end:
        cli.main(["init", str(downloads / "lits")])
    assert end.value.code == 2 and "exists" in capsys.readouterr().err


def test_names_of_sources_differ():
    one = Recognised(Path("/a/LiTS"), "lits")
    assert source_names([one, one, Recognised(Path("/raw/Dataset104_My_Set"), None, 104)]) == ["lits", "lits-2", "my-set"]
