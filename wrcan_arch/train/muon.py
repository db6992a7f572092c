"""The Muon optimizer: a kernel's step is equally long in all of its directions."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's: five steps bring singular values above 0.01 into 0.7 to 1.2
STEPS = 5
IMAGE_CHANNELS = 3


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return roughly the nearest matrices with orthonormal rows or columns: singular values become 0.7 to 1.2.

    Uses five steps of the Newton-Schulz iteration (Jordan et al., "Muon: an optimizer for hidden layers in neural
    networks", 2024).

    Args:
        matrices: (N, rows, columns).
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def is_hidden_kernel(parameter: Tensor) -> bool:
    """Whether it is the weight of a convolution between feature maps, not a bias or a layer from or to an image."""
    return parameter.ndim == 4 and min(parameter.shape[:2]) > IMAGE_CHANNELS


class Muon(torch.optim.Optimizer):
    """Update kernels (see `is_hidden_kernel`) by Muon, all other parameters by Adam.

    Fine detail is weak beside a picture's large areas, and so is its part of a gradient: Adam's steps follow the large
    areas. Here a kernel's averaged gradient, as a matrix (out, in * height * width), is first made orthogonal, so that
    weak directions move as far as strong ones.

    Args:
        params: tensors alone, neither dicts of groups nor named parameters: the groups are made here.
        lr: learning rate of the kernels. A step's singular values are about `lr`, times sqrt(rows / columns) if the
            kernel's matrix has more rows than columns.
        adam_lr: learning rate of the others.
        momentum: how much of a kernel's averaged gradient is kept at each step (Nesterov's momentum).
        betas, eps: parameters of Adam (Kingma and Ba, 2015).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 6e-3,
        *,
        adam_lr: float = 5e-4,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        for name, value in {'momentum': momentum, 'betas[0]': betas[0], 'betas[1]': betas[1]}.items():
            if not 0 <= value < 1:
                raise ValueError(f'{name} must be from 0 to less than 1, not {value}')
        if min(lr, adam_lr) < 0:
            raise ValueError(f'lr and adam_lr must be at least 0, not {lr} and {adam_lr}')
        params = list(params)
        kernels = [each for each in params if is_hidden_kernel(each)]
        others = [each for each in params if not is_hidden_kernel(each)]
        groups = [{'params': kernels, 'lr': lr}, {'params': others, 'lr': adam_lr}]
        super().__init__(groups, {'momentum': momentum, 'betas': betas, 'eps': eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step; first call `closure`, if given, which computes the gradients, and return its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kernels, others = self.param_groups
        self._muon_step(kernels)
        self._adam_step(others)
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        by_shape = defaultdict(list)  # matrices of one shape are multiplied in one batch
        for kernel in group['params']:
            if kernel.grad is not None:
                by_shape[kernel.shape[0], kernel[0].numel()].append(kernel)
        for (rows, columns), kernels in by_shape.items():
            averaged = []
            for kernel in kernels:
                state = self.state[kernel]
                if not state:
                    state['momentum'] = torch.zeros_like(kernel)
                state['momentum'].lerp_(kernel.grad, 1 - group['momentum'])
                averaged.append(kernel.grad.lerp(state['momentum'], group['momentum']).reshape(rows, columns))
            length = group['lr'] * max(1, rows / columns) ** 0.5
            for kernel, step in zip(kernels, orthogonalize(torch.stack(averaged)), strict=True):
                kernel.sub_(step.view(kernel.shape), alpha=length)

    def _adam_step(self, group: dict[str, Any]) -> None:
        beta1, beta2 = group['betas']
        for parameter in group['params']:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state.update(steps=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state['steps'] += 1
            state['mean'].lerp_(parameter.grad, 1 - beta1)
            state['square'].lerp_(parameter.grad.square(), 1 - beta2)
            deviation = (state['square'] / (1 - beta2 ** state['steps'])).sqrt_().add_(group['eps'])
            parameter.addcdiv_(state['mean'], deviation, value=-group['lr'] / (1 - beta1 ** state['steps']))
