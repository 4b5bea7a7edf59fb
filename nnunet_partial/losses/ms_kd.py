"""Multi-teacher single-student knowledge distillation (MS-KD).

Feng et al., "MS-KD: Multi-Organ Segmentation with Multiple Binary-Labeled Datasets", 2021. Equation numbers are
the paper's. ``valid`` (B, *S) bool marks the voxels that count (an ignore label's do not): R and every region hold these
alone; None for all. Teacher k has one output for background and one for each of its n_k organs (the paper has n_k = 1); the
student has K + 1 outputs. An output may stand for several of the student's classes, their union, where the teacher's source
does not tell them apart. Teachers are references: no gradient reaches them.

    L = sum_k L_logit^k + lambda_1 L_logit^B + lambda_2 sum_k L_feature^k,  lambda_1 = 1, lambda_2 = 10     (8)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ._common import check_voxels, log_softmax, softmax, working_dtype

#: what a teacher's output stands for: one class of the student, or the union of several
Output = int | tuple[int, ...]


def teacher_regions(teacher_logits: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Where each teacher supervises alone, and where all of them do.

        M^k = 1 where teacher k predicts one of its organs, else 0                                          (2)
        M^B = (1 - M^1) and (1 - M^2) ... and (1 - M^K)

    ``teacher_logits``  list of (B, n_k + 1, *S), background first
    returns             list of M^k, (B, *S) bool, and M^B, (B, *S) bool

    A tie goes to background, as with argmax. The M^k may overlap.
    """
    _check_teachers(teacher_logits)
    with torch.no_grad():
        organs = [logits[:, 1:].amax(1) > logits[:, 0] for logits in teacher_logits]
        return organs, ~torch.stack(organs).any(0)


def transfer(teacher_probs: Tensor, classes: Sequence[Output], num_classes: int) -> Tensor:
    """Places a teacher's probabilities at the student's classes.

        q_hat_c = q_0 if c = 0,  q_j if c is the class of the teacher's j-th output,  else 0                 (3)

    ``teacher_probs`` q  (B, n_k + 1, *S)
    ``classes``          the student's class of each foreground output of the teacher, n_k of them. A tuple of classes is their
                         union, whose probability stands at the lowest of them
    ``num_classes``      K + 1
    returns q_hat        (B, K + 1, *S)
    """
    _check_classes(teacher_probs, classes, num_classes)
    transferred = teacher_probs.new_zeros((teacher_probs.shape[0], num_classes, *teacher_probs.shape[2:]))
    transferred[:, [0, *(min(_members(i)) for i in classes)]] = teacher_probs
    return transferred


def logit_loss(
    student_logits: Tensor,
    teacher_logits: Sequence[Tensor],
    teacher_classes: Sequence[Sequence[Output]],
    valid: Tensor | None = None,
    unknown: Sequence[int] = (),
    by_region: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Supervision of the student's probabilities by the teachers', region by region.

        organ      = sum_k 1/|R| sum_{i in R} KL(q_hat_i^k || q_i^S) M_i^k                                   (4)
        q_hat^B    = (q_hat^1 + ... + q_hat^K) / K                                                           (5)
        background = 1/|R| sum_{i in R} KL(q_hat_i^B || q_i^S) M_i^B                                         (6)

    with KL(p || q) = sum_c p_c (log p_c - log q_c), 0 log 0 = 0, R all voxels of the batch, q_hat as in ``transfer``
    and M as in ``teacher_regions``. Where several M^k overlap every one of their terms stays.

    A union U of classes is one class to a teacher that does not tell them apart, and the student's probability of it is the
    sum of its members': the term of U is q_hat_U (log q_hat_U - log sum_{c in U} q_c^S), and how the student divides U is
    left alone. In (5) a teacher's q_hat_U is divided among the members as the student, held fixed, divides it. Where all
    teachers cut alike this is (5) with the classes merged; where they do not, it is the only division that adds nothing to
    the gradient.

    Classes that no teacher knows lie in what all of them call background: its term is that of the union {0, ``unknown``}, and
    how the student divides it is left alone.

    ``student_logits``   (B, K + 1, *S), q^S is their softmax
    ``teacher_logits``   list of (B, n_k + 1, *S), q^k is the softmax of the k-th
    ``teacher_classes``  list of the student's class, or tuple of classes, of each foreground output: [(1,), (2, (3, 4))]
    ``unknown``          the student's classes that no teacher knows
    ``by_region``        b in 0 to 1, not in the paper: 1/|R| becomes (1 - b)/|R| + b/|M^k|, and b/|M^B| in (6), so that with
                         b = 1 each term is the mean over its own region, however small. With 0 these are (4) and (6)
    returns              (organ, background); an empty region gives 0, with a gradient of 0
    """
    if len(teacher_classes) != len(teacher_logits):
        raise ValueError(f"{len(teacher_logits)} teachers but the classes of {len(teacher_classes)}")
    if not 0 <= by_region <= 1:
        raise ValueError(f"by_region is {by_region}, expected 0 to 1")
    for logits, classes in zip(teacher_logits, teacher_classes):
        _check_classes(logits, classes, student_logits.shape[1], unknown)
        check_voxels("a teacher's output", logits[:, 0], student_logits)
    organ_regions, background_region = teacher_regions(teacher_logits)
    student = log_softmax(student_logits).unbind(1)
    voxels: int | Tensor = max(background_region.numel(), 1)
    if valid is not None:
        check_voxels("valid", valid, student_logits)
        organ_regions, background_region = [i & valid for i in organ_regions], background_region & valid
        voxels = valid.sum().clamp_min(1)

    # q_hat is zero at most classes: the sums run over channels that a teacher has, so K teachers cost K channels, not K^2
    organ = student[0].new_zeros(())
    mean_teacher = {}
    for logits, classes, region in zip(teacher_logits, teacher_classes, organ_regions):
        own_term = student[0].new_zeros(())
        for output, reference in zip(((0, *unknown), *classes), softmax(logits.detach()).unbind(1)):
            log_prob, shares = _union_of_student(student, _members(output))
            own_term = own_term + _masked_kl(reference, log_prob, region)
            for c, share in shares.items():
                own = reference if share is None else reference * share
                mean_teacher[c] = mean_teacher.get(c, 0) + own / len(teacher_logits)
        organ = organ + _divided(own_term, region, voxels, by_region)
    background = student[0].new_zeros(())
    for c, reference in mean_teacher.items():
        background = background + _masked_kl(reference, student[c], background_region)
    return organ, _divided(background, background_region, voxels, by_region)


def feature_loss(
    student_features: Tensor,
    teacher_features: Sequence[Tensor],
    teacher_masks: Sequence[Tensor],
    valid: Tensor | None = None,
) -> Tensor:
    """Supervision of the student's features by each teacher's, in that teacher's organ region.

        L = sum_k 1/|R^l| sum_{i in R^l} KL(sort(F_i^k) || sort(F_i^S)) M_i^{k,l}                            (7)

    with F the softmax over channels of the features of one level l, sort ascending along channels (the channels of
    separately trained networks are permuted against each other), R^l all voxels of the batch at that level.

    ``student_features``  (B, F, *S)
    ``teacher_features``  list of (B, F, *S), as many channels as the student
    ``teacher_masks``     list of M^{k,l}, (B, *S) bool; ``reduce_mask`` makes it from M^k
    returns               0-dim; empty masks (and no teachers) give 0, with a gradient of 0

    Softmax and sort are taken at the voxels of the mask alone.
    """
    if len(teacher_features) != len(teacher_masks):
        raise ValueError(f"features of {len(teacher_features)} teachers but masks of {len(teacher_masks)}")
    total = student_features[:0].sum(dtype=working_dtype(student_features))
    voxels = max(student_features[:, 0].numel(), 1) if valid is None else valid.sum().clamp_min(1)
    for features, mask in zip(teacher_features, teacher_masks):
        _check_features(student_features, features, mask)
        if valid is not None:
            check_voxels("valid", valid, student_features)
            mask = mask & valid
        log_student = log_softmax(_voxels(student_features, mask)).sort(1).values
        teacher = softmax(_voxels(features.detach(), mask)).sort(1).values.to(log_student.dtype)
        total = total + F.kl_div(log_student, teacher, reduction="sum") / voxels
    return total


def reduce_mask(mask: Tensor, spatial_shape: Sequence[int]) -> Tensor:
    """M^{k,l}: a region (B, *S) bool at the resolution ``spatial_shape`` of a feature level, by nearest neighbour.

    The neighbour is the one nearest to the centre of the coarse voxel, as nnU-Net reduces labels for deep supervision.
    """
    spatial_shape = tuple(spatial_shape)
    if mask.shape[1:] == spatial_shape:
        return mask
    return F.interpolate(mask[:, None].to(torch.uint8), size=spatial_shape, mode="nearest-exact")[:, 0].bool()


def _members(output: Output) -> tuple[int, ...]:
    """The student's classes that a teacher's output stands for."""
    return (output,) if isinstance(output, int) else tuple(output)


def _union_of_student(student: Sequence[Tensor], classes: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor | None]]:
    """The student's log probability (B, *S) of the union of ``classes``, and the share of each in it, without a gradient; None
    for all of it.

    ``student``: its log probability (B, *S) of every class.
    """
    if len(classes) == 1:
        return student[classes[0]], {classes[0]: None}
    log_prob = torch.logsumexp(torch.stack([student[c] for c in classes]), 0)
    return log_prob, {c: (student[c] - log_prob).detach().exp() for c in classes}


def _masked_kl(reference: Tensor, log_student: Tensor, region: Tensor) -> Tensor:
    """sum over the region of one channel's term of KL(reference || student), all (B, *S)."""
    return (F.kl_div(log_student, reference.to(log_student.dtype), reduction="none") * region).sum()


def _divided(term: Tensor, region: Tensor, voxels: int | Tensor, by_region: float) -> Tensor:
    """A sum over a region by all ``voxels``, and to the part ``by_region`` by those of the region (B, *S) alone."""
    if by_region == 0:
        return term / voxels
    return (1 - by_region) * term / voxels + by_region * term / region.sum().clamp_min(1)


def _voxels(features: Tensor, mask: Tensor) -> Tensor:
    """The channels of the voxels of the mask: (B, F, *S), (B, *S) -> (n, F)."""
    return features.movedim(1, -1)[mask]


def _check_teachers(teacher_logits: Sequence[Tensor]) -> None:
    if not teacher_logits:
        raise ValueError("no teachers given, expected at least one")
    shapes = [tuple(logits.shape) for logits in teacher_logits]
    if any(shape[1] < 2 for shape in shapes) or len({(shape[0], *shape[2:]) for shape in shapes}) != 1:
        raise ValueError(f"teachers have outputs of shapes {shapes}, expected (B, 2.., *S) with one B and one S")


def _check_classes(teacher_output: Tensor, classes: Sequence[Output], num_classes: int, unknown: Sequence[int] = ()) -> None:
    classes = tuple(classes)
    if len(classes) != teacher_output.shape[1] - 1:
        raise ValueError(
            f"a teacher of {teacher_output.shape[1]} outputs was given the classes {classes}, expected "
            f"{teacher_output.shape[1] - 1} of them, background left out"
        )
    every = [*unknown, *(c for i in classes for c in _members(i))]
    if len(set(every)) != len(every) or not all(0 < c < num_classes for c in every) or not all(map(_members, classes)):
        beside = f" beside {tuple(unknown)}, which no teacher knows," if unknown else ""
        raise ValueError(f"classes {classes} of a teacher{beside} must be distinct and lie in 1 to {num_classes - 1}")


def _check_features(student: Tensor, teacher: Tensor, mask: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"student features have shape {tuple(student.shape)}, teacher features {tuple(teacher.shape)}: "
            f"sorted channels can only be compared where both have as many; train the teachers with the "
            f"student's plans or set the feature weight to 0"
        )
    check_voxels("a teacher's mask", mask, student)
