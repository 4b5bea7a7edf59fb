"""Names of version 0.1 that go on working for one version, with a warning. Several methods on one dataset are a comparison
now: :func:`nnunet_partial.api.compare`."""

from nnunet_partial import _moved

__getattr__ = _moved.renamed(
    __name__,
    {
        "TEACHER": "orchestration.compare.methods.TEACHER",
        "run": "orchestration.foreground.run",
        "mean_dice": "evaluation.results.mean_dice",
        "markdown_table": "evaluation.results.markdown_table",
    },
)
