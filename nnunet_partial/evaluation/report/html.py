"""How every page is made: one skeleton, one style sheet, one palette. One self-contained file, in which no script runs."""

from collections.abc import Mapping
from typing import Any

from nnunet_partial import palette
from nnunet_partial.evaluation.report import tables

PACKAGES = ("nnunet_partial.evaluation.report", "nnunet_partial.evaluation.atso_report")


def render(template: str, content: Mapping[str, Any]) -> str:
    """A page as text: ``template``, which extends ``base.html.j2``, filled with ``content``, of which ``title`` is the name.

    Whatever is in ``content`` is text, not markup. A name that the template does not get is an error, not an empty place.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(i, ".") for i in PACKAGES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["palette"] = palette
    environment.filters["duration"] = tables.duration
    return environment.get_template(template).render(**content).lstrip()
