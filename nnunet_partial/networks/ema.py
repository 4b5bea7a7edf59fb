"""The temporal average of a network's weights."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nnunet_partial.networks.unwrap import unwrap


class EMA:
    """Exponential moving average of a network's weights (Huang et al. 2020, Eq. 3).

    After every optimiser step, with theta the trained weights, theta' the averaged ones and theta'_0 = theta_0:
    ``theta'_t = decay * theta'_(t-1) + (1 - decay) * theta_t``.

    ``module`` is the averaged network: an independent copy in evaluation mode that never has a gradient; ``ema(x)``
    runs it as it stands, without gradient. Its weights are kept in full precision even where the model's are not.
    Buffers, such as the running statistics of batch normalisation, are copied and not averaged. ``model`` may be
    wrapped by torch.compile or DDP, now or later; what is averaged is the network inside.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, found {decay}.")
        self.model, self.decay, self.num_updates = unwrap(model), decay, 0
        self.module = copy.deepcopy(self.model).eval().requires_grad_(False)
        for parameter in self.module.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present weights: once after each optimiser step."""
        averaged, trained = dict(self.module.named_parameters()), dict(self.model.named_parameters())
        if averaged.keys() != trained.keys():
            raise RuntimeError(
                f"the model's parameters changed since its average was made: {sorted(averaged.keys() ^ trained.keys())[:3]}."
            )
        present = [trained[k].detach().to(v) for k, v in averaged.items()]
        self._average(list(averaged.values()), present, self.num_updates)
        buffers = dict(self.model.named_buffers())
        for name, buffer in self.module.named_buffers():
            buffer.copy_(buffers[name])
        self.num_updates += 1

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again with the model's present weights, which something else than an optimiser has changed."""
        trained = self.model.state_dict()
        for name, value in self.module.state_dict().items():
            value.copy_(trained[name])
        self.num_updates = 0

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Output of the averaged network, without gradient."""
        return self.module(*args, **kwargs)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged weights and the buffers under the model's own names, ready for ``model.load_state_dict``."""
        return self.module.state_dict()

    def checkpoint_state(self) -> dict:
        """Everything that an exact continuation needs, as tensors and numbers."""
        return {"decay": self.decay, "num_updates": self.num_updates, "weights": self.state_dict()}

    def load_checkpoint_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`checkpoint_state`. Raises ValueError if that was an average with another decay."""
        if state["decay"] != self.decay:
            raise ValueError(f"the checkpoint's average has decay {state['decay']}, this run with {self.decay}.")
        self.module.load_state_dict(state["weights"])
        self.num_updates = state["num_updates"]
