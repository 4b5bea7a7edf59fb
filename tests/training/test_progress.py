"""The picture of the loss terms that a training leaves."""

from types import SimpleNamespace

from matplotlib.figure import Figure

from nnunet_partial.training import progress


def test_axis_labels_are_whole_after_nnunets_own_plot(tmp_path, monkeypatch):
    """nnU-Net's logger sets seaborn's fonts to two and a half times their size for the whole process."""
    import matplotlib
    import seaborn

    drawn = []
    monkeypatch.setenv("NNUNET_PARTIAL_TEST_PICTURES", "1")
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (save(figure, *a, **k), drawn.append(measured(figure))))
    logging = {"loss/marginal": [1.0, 0.5], "dice_per_class_or_region": [[0.1, 0.2], [0.3, 0.4]]}
    logger = SimpleNamespace(local_logger=SimpleNamespace(my_fantastic_logging=logging))
    with matplotlib.rc_context():
        seaborn.set(font_scale=2.5)
        large = matplotlib.rcParams["axes.labelsize"]
        progress.plot_terms(logger, ["marginal"], ["liver", "kidney"], str(tmp_path))
        assert matplotlib.rcParams["axes.labelsize"] == large  # what others have set is theirs
    ((boxes, size),) = drawn
    assert len(boxes) == 4 and (tmp_path / "progress_terms.png").stat().st_size > 1000
    assert all(min(i.x0, i.y0) >= 0 and i.x1 <= size.width and i.y1 <= size.height for i in boxes)


def measured(figure):
    """(boxes of all axis labels, box of the figure) in pixels."""
    labels = [label for axis in figure.axes for label in (axis.xaxis.label, axis.yaxis.label)]
    return [i.get_window_extent() for i in labels], figure.bbox
