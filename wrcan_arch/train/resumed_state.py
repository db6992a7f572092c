"""Adapt the saved states of optimizers and schedules to the run that resumes from them."""

from typing import Any

import torch
from torch import Tensor


def match_weight_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give moments their weights' memory layout, which a fused step assumes.

    The saved layout may differ: it depends on the precision, and so on the machine.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, requires_grad=False).copy_(value)


def place_in_schedule(saved: dict[str, Any]) -> dict[str, Any]:
    """Return how far a saved schedule is, without the settings that it had then."""
    return {key: value for key, value in saved.items() if key in ('last_epoch', '_step_count', '_last_lr')}


def with_own_settings(own: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Return `saved` with the settings of `own`, except 'lr', which the schedule sets before each step."""
    groups = []
    for asked, group in zip(own.param_groups, saved['param_groups'], strict=False):  # loading checks their number
        settings = {name: value for name, value in asked.items() if name not in ('params', 'amsgrad', 'lr')}
        groups.append({**group, **settings})
    return {**saved, 'param_groups': groups}
