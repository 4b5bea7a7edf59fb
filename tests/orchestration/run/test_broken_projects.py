"""What is wrong with a project file is told in one line, before anything is written."""

import pytest

BROKEN = {
    "unknown key": ('converter = "lits"', 'convertor = "lits"', "unknown setting convertor. Did you mean converter?"),
    "unknown table": ("[plan]", "[plans]", "unknown table [plans]. Did you mean plan?"),
    "no TOML": ("[plan]", "[plan", "is not valid TOML"),
    "wrong type": ("dataset = 501", 'dataset = "501"', "[project]: setting dataset must be of type int"),
    "unknown converter": ('converter = "lits"', 'converter = "list"', "no converter 'list'. Did you mean lits?"),
    "no such path": ("downloads/lits", "downloads/LITS", "downloads/LITS does not exist"),
    "organ that no source has": ('organs = ["liver"]', 'organs = ["livre"]', "'livre' is not a structure of this dataset"),
    "class that the source has not": ('organs = ["liver"]', 'organs = ["liver"]\nclasses = ["spleen"]', "'spleen'"),
    "id given twice": ("dataset = 102", "dataset = 101", "[[source]] kits has dataset = 101, which is that of [[source]] lits"),
    "id taken": ("dataset = 501", "dataset = 601", "[project] dataset = 601 is taken by"),
    "missing teacher": ('organs = ["liver"]', 'organs = ["liver"]\nteacher = "nowhere"', "nowhere is no model folder"),
    "wrong release": ('organs = ["liver"]', 'organs = ["liver"]\nrelease = "KiTS23"', "release = 'KiTS23', but"),
    "unknown option": (
        'organs = ["liver"]',
        'organs = ["liver"]\noptions = { ircad = "x" }',
        "no option 'ircad'. Did you mean ircadb?",
    ),
    "unknown method": ('name = "partial"', 'name = "partiel"', "there is no such method"),
    "unknown recipe": ('name = "partial"', 'name = "partial"\nrecipe = "feng2020"', "there is no such recipe"),
    "unknown setting": ("num_epochs = 3", "num_epoch = 3", "unknown setting num_epoch. Did you mean num_epochs?"),
    "setting out of range": ("num_epochs = 3", "num_epochs = 0", "num_epochs must be at least 1"),
    "configuration": ('["2d"]', '["2D"]', "Did you mean 2d?"),
    "test label missing": ("test/labelsTs", "test/imagesTs", "the label of a test image"),
    "test images missing": ("test/imagesTs", "test/imagesTS", "imagesTS does not exist"),
    "half a test set": ('labels = "test/labelsTs"', "", "images and labels belong together"),
    "metric": ("[test]", '[test]\nmetric = "dise"', "'dise' is none. Did you mean dice?"),
    "stages for deep supervision": ("num_epochs = 3", "features = [8, 16]", "deep supervision needs three stages"),
    "patch of other axes": ("num_epochs = 3", "patch_size = [8, 8, 8]", "patch_size [8, 8, 8] does not fit configuration 2d"),
    "a source without a number": ("[[method]]", "[[source]]", "[[source]] partial has no dataset"),
    "same class in two spellings": ('organs = ["kidney"]', 'organs = ["Liver=liver"]', "look like the same organ"),
    "export of what is not trained": ("[test]", '[export]\nmethods = ["naive"]\n[test]', "'naive' is none of this project"),
    "export of a network that stock nnU-Net does not have": (
        "[test]",
        '[export]\nmethods = ["dodnet"]\n[[method]]\nname = "dodnet"\n[test]',
        "[export] methods: stock nnU-Net does not have the network of 'dodnet'",
    ),
    "cases that do not exist": ('organs = ["liver"]', 'organs = ["liver"]\ncases = "cases.txt"', "cases.txt cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_project_is_one_line_and_nothing_is_written(place, name):
    old, new, said = BROKEN[name]
    place.change(old, new)
    (place.folder / "nnUNet_raw" / "Dataset601_Other").mkdir()
    before = place.files()
    result = place.run(check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and said in result.stderr, result.stderr
    assert str(place.file) in result.stderr
    assert place.files() == before and not place.out.exists() and not place.started()


def test_a_file_that_is_not_there(place):
    place.file.unlink()
    result = place.run(check=False)
    assert result.returncode == 2 and "nnunet_partial init" in result.stderr


def test_a_disk_that_is_too_small(place, monkeypatch):
    monkeypatch.setattr("nnunet_partial.project.checks.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    result = place.run(check=False)
    assert result.returncode == 2 and "need at least" in result.stderr and not place.out.exists()


def test_a_gpu_that_is_too_small(place, monkeypatch):
    monkeypatch.setattr("nnunet_partial.project.checks.gpu_memory_gb", lambda: [6.0])
    result = place.run("--device", "cuda", check=False)
    assert result.returncode == 2 and "gpu_memory_gb = 6" in result.stderr
    place.change("[plan]", "[plan]\ngpu_memory_gb = 6")
    said = place.run("--device", "cuda", "--dry-run").stdout
    assert "-gpu_memory_target 6 -overwrite_plans_name nnUNetPlans_6GB" in said
    assert "memory:" not in said
    place.change('"selftraining"', '"cotraining"')
    assert (
        "memory: cotraining hold more networks than the one that is planned for 6 GB"
        in place.run("--device", "cuda", "--dry-run").stdout
    )


def test_cases_that_would_be_left_out_are_told_before(place):
    (place.folder / "downloads/lits/segmentation-4.nii").unlink()
    (place.folder / "downloads/lits/volume-3.nii").unlink()
    (place.folder / "downloads/lits/volume-3.nii").symlink_to("/dev/null")
    result = place.run(check=False)
    assert result.returncode == 2 and "1 of 5 cases would be lost, the first: lits_003" in result.stderr
    place.change('organs = ["liver"]', 'organs = ["liver"]\nskip_bad = true')
    assert "lits: 3 cases" in place.run("--dry-run").stdout


def test_nnunet_folders_that_are_not_set(place):
    del place.environment["nnUNet_raw"]
    result = place.run(check=False, environment={"nnUNet_raw": ""})
    assert result.returncode == 2 and "nnUNet_raw is not set" in result.stderr
    place.write(f'{place.file.read_text()}\n[folders]\nraw = "nnUNet_raw"\n')
    assert place.run("--dry-run", environment={"nnUNet_raw": ""}).returncode == 0
