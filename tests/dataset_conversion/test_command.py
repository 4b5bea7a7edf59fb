"""How a conversion ends: exit codes."""

import pytest

from nnunet_partial import cli


def convert(src, *arguments, converter="generic"):
    cli.main(["convert", converter, str(src), "--dataset-id", "7", "--processes", "1", *arguments])


def test_fewer_cases_than_were_found_end_with_3_unless_that_is_said(src, raw, tools, capsys):
    for name in "ab":
        tools.write(src / "img" / f"{name}.mha", tools.grey(1))
    tools.write(src / "lab" / "a.mha", tools.label_with(0, (1,)))
    arguments = ("--image-glob", "img/*", "--label-glob", "lab/*", "--labels", "liver=1")
    with pytest.raises(SystemExit) as end:
        convert(src, *arguments)
    shown = capsys.readouterr()
    assert end.value.code == 3 and shown.out.startswith(f"looking for cases in {src}\n")
    assert "ATTENTION: 1 of 2 cases are NOT in Dataset007_Generic" in shown.err.splitlines()[-1]
    convert(src, *arguments, "--skip-bad")
    assert "ATTENTION" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        convert(src, *arguments, "--strict", "--overwrite")
    assert end.value.code == 2


def test_what_a_release_has_no_labels_of_is_told_and_no_loss(src, raw, tools, capsys):
    """Scans of its test set; but one that is asked for and cannot be read is lost."""
    tools.write(src / "Training" / "img" / "img0001.nii.gz", tools.grey(1))
    tools.write(src / "Training" / "label" / "label0001.nii.gz", tools.label_with(0, (1,)))
    (src / "Testing").mkdir()
    (src / "Testing" / "img0061.nii.gz").write_bytes(b"no image")
    convert(src, "--organs", "spleen", converter="btcv")
    assert "ATTENTION: 1 of 2 cases are NOT in Dataset007_BTCV" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        convert(src, "--organs", "spleen", "--unlabelled", "--overwrite", converter="btcv")
    assert end.value.code == 3 and "skipped: btcv_0061" in capsys.readouterr().out
