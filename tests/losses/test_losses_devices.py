"""The losses on a device that is not the CPU, with partitions left on the CPU: "meta" refuses to mix devices, as a GPU does."""

import torch

from nnunet_partial.losses import co_training, cross_teaching, ms_kd
from nnunet_partial.losses.partial import MarginalDiceCELoss, marginal_log_probs

GROUPS = torch.tensor([[0, 1, 0, 3], [0, 0, 0, 0], [0, 1, 2, 3]])


def case():
    logits = torch.empty(3, 4, 5, 6, device="meta", dtype=torch.float16, requires_grad=True)
    return logits, torch.empty(3, 1, 5, 6, device="meta")


def check(loss, logits):
    assert loss.device.type == "meta" and loss.ndim == 0
    loss.backward()
    assert logits.grad.shape == logits.shape and logits.grad.dtype == logits.dtype


def test_marginal_loss():
    for batch_dice in (False, True):
        for ignore in (None, 9):
            logits, target = case()
            check(MarginalDiceCELoss(batch_dice, ignore_label=ignore)(logits, target, GROUPS), logits)
    logits, _ = case()
    check(marginal_log_probs(logits, GROUPS).sum(), logits)


def test_ms_kd():
    logits, _ = case()
    check(sum(ms_kd.logit_loss(logits, [logits[:, :2], logits[:, :3]], [(1,), (2, 3)])), logits)


def test_co_training():
    logits, target = case()
    region = co_training.region_mask(target[:, 0], torch.ones(3, 4, dtype=torch.bool), "dilated")
    check(
        co_training.focal_loss(logits, target, torch.ones(4))
        + co_training.soft_dice_loss(logits, target)
        + co_training.soft_cross_entropy(logits, logits, region),
        logits,
    )


def test_cross_teaching():
    logits, target = case()
    check(
        cross_teaching.cross_teaching(logits, logits, GROUPS)
        + cross_teaching.dice_focal(logits, target, GROUPS)
        + cross_teaching.pseudo_supervision(logits, logits, logits)
        + cross_teaching.distillation(logits, logits, logits),
        logits,
    )
