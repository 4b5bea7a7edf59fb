"""S and R, and the parts of R."""

import random
from collections.abc import Sequence

from nnunet_partial.errors import UserError
from nnunet_partial.labels import Annotations


def split_reference(annotations: Annotations, cases: Sequence[str], subsets: int, seed: int = 0) -> tuple:
    """``(labelled, parts)``: the cases that train M0 and the reference cases in ``subsets`` parts.

    Reference cases lack at least one class. A case that annotates some classes is in both: M0 learns what it annotates,
    and what it lacks is pseudo-labelled. Every source is spread over the parts, whose sizes differ by one at most.
    """
    labelled = sorted(i for i in cases if annotations.of(i).annotated)
    reference = sorted(i for i in cases if len(annotations.of(i).annotated) < len(annotations.classes))
    if not labelled:
        raise UserError(f"{annotations.file}: no training case of this fold annotates anything, so M0 has nothing to learn from.")
    if len(reference) < subsets:
        raise UserError(
            f"{annotations.file}: {len(reference)} training cases of this fold lack a class, too few for {subsets} subsets."
        )
    order = random.Random(seed)
    by_source: dict = {}
    for case in reference:
        by_source.setdefault(annotations.of(case).source, []).append(case)
    dealt = []
    for source in sorted(by_source):
        order.shuffle(by_source[source])
        dealt += by_source[source]
    return labelled, [sorted(dealt[i::subsets]) for i in range(subsets)]
