"""How BasicSR trains WRCAN: the joint step of Eq. 9, on one device or several, in the precision asked for."""

import ctypes
import os
from collections import OrderedDict
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from basicsr.losses import build_loss
from basicsr.models.lr_scheduler import MultiStepRestartLR
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from .. import precision
from ..convolution import set_channels_last
from ..errors import InputError, RunError
from ..wrcan_arch import WRCAN, ResidualBlock, start_from_image
from .muon import Muon
from .recorded_model import RecordedModel
from .step_guard import StepGuard

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
AMP_TYPES = {'off': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def is_wrcan_model(model_type: str) -> bool:
    """Whether an option file's `model_type` is a WRCANModel.

    Such a model looks, before each iteration, for a reason to save and end, and takes one GPU a process.
    """
    return issubclass(MODEL_REGISTRY.get(model_type), WRCANModel)


def be_deterministic() -> None:
    """The same bits from every run on one kind of GPU, more slowly. What has no such kernel becomes an error."""
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # which takes whatever kernel was the fastest this time


def keep_freed_memory() -> None:
    """Have glibc keep what a step on a CPU frees for the next one; its peak, that is.

    It would give large blocks back and get them again page by page, each cleared by the kernel: up to an eighth of a
    step in fp32, a fifth of what matrix units leave to do (benchmarks/RESULTS.md).
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # which other C libraries have not
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def as_bf16(group: distributed.ProcessGroup, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """PyTorch's hook under another name: under its own it is refused where there is no NCCL, though gloo can do it."""
    return bf16_compress_hook(group, bucket)


def _end_warmup(scheduler: MultiStepRestartLR) -> None:
    """Have the rates where they would be without a warm-up."""
    now, restarts = scheduler.last_epoch, zip(scheduler.restarts, scheduler.restart_weights, strict=True)
    begun, weight = max((each for each in restarts if each[0] <= now), default=(0, 1))
    falls = sum(count for milestone, count in scheduler.milestones.items() if begun < milestone <= now)
    for group in scheduler.optimizer.param_groups:
        group['lr'] = group['initial_lr'] * weight * scheduler.gamma**falls


def _as_float(pixels: Tensor) -> Tensor:
    """uint8 to [0, 1]; what is float stays as it is."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels


@MODEL_REGISTRY.register()
class WRCANModel(RecordedModel):
    """SRModel with the auto-encoder loss, mixed precision, every inference mode, and the best checkpoint kept.

    Options beyond SRModel's:
        train:autoencoder_opt: the loss of the auto-encoder path, JPEGAutoEncoderLoss; without it that path is not run.
        train:accumulate: parts that a process's share of the batch goes in, 1 by default; 'auto': as many as the memory
            needs.
        train:amp: 'off', 'bf16', 'fp16' (with a loss scaler), or 'auto', the default: bf16 if there are units for it.
        train:channels_last: keep weights and feature maps in that memory layout; 'auto', the default: unless fp32 is
            computed on a CPU, where it takes longer.
        train:checkpointing: keep each block's input alone and compute the block again for its gradient: a third more
            arithmetic, for a GPU of little memory. False by default.
        train:start_from_image: begin as a network that gives its input back, for a short training. False by default.
        train:optim_g:type: 'Adam', or 'Muon', see `muon.Muon`, for a short training on a CPU.
        train:optim_g:fused: Adam in one pass over the weights, which the host does not wait for; true by default.
        val:inference: `{mode, ensemble, precision, patch_size, max_memory}`, see `wrcan_arch.restore`.
        val:best_metric: the metric, by its name under val:metrics, whose best network on the first validation set is
            kept as net_g_best.pth; by default the first that is a calculate_psnr, else the first.
        train:max_skipped_steps: steps in a row that may be skipped because a loss or gradient is not finite; 20 by
            default.
        train:gradient_compression: 'bf16' halves what several processes send; 'none' by default.
        logger:keep_last: how many checkpoints are kept; all by default.
        deterministic: take kernels alone that give the same bits each time, for an exact resume on a GPU.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt.get('deterministic'):
            be_deterministic()
        self.graph_is_known = False  # to DDP
        self.first_iter = 0  # that the run has begun at
        super().__init__(opt)

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        autoencoder_opt = train_opt.get('autoencoder_opt')
        self.cri_ae: nn.Module | None = build_loss(autoencoder_opt).to(self.device) if autoencoder_opt else None
        accumulate = train_opt.get('accumulate', 1)
        self.accumulate_auto = accumulate == 'auto'
        self.accumulate = 1 if self.accumulate_auto else accumulate
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        self.guard = StepGuard(
            limit=train_opt.get('max_skipped_steps', 20),  # fp16's loss scale goes from 65,536 to below 1 in 17 steps
            device=self.device,
            dist=self.opt['dist'],
        )
        if self.device.type == 'cpu':
            keep_freed_memory()
        super().init_training_settings()
        if self.ema_decay > 0 and self.keeps_channels_last:
            set_channels_last(self.net_g_ema)

    @cached_property
    def amp_dtype(self) -> torch.dtype:
        """What a training step computes in."""
        amp = self.opt['train'].get('amp', 'auto')
        if amp != 'auto' and amp not in AMP_TYPES:
            raise InputError(f"train:amp '{amp}' is not one of auto, {', '.join(AMP_TYPES)}")
        return precision.autocast_dtype(amp, self.device) if amp == 'auto' else AMP_TYPES[amp]

    @cached_property
    def keeps_channels_last(self) -> bool:
        channels_last = self.opt['train'].get('channels_last', 'auto')
        if channels_last == 'auto':
            return self.amp_dtype != torch.float32 or self.device.type != 'cpu'
        return channels_last

    def prepare_for_training(self, net: nn.Module) -> None:
        train_opt = self.opt['train']
        if train_opt.get('start_from_image', False):
            assert isinstance(net, WRCAN)  # or the options are refused
            start_from_image(net)  # weights that are loaded come after this
        if self.keeps_channels_last:
            set_channels_last(net)
        if train_opt.get('checkpointing', False):
            for module in net.modules():
                if isinstance(module, ResidualBlock):
                    module.checkpointing = True

    def model_to_device(self, net: nn.Module) -> nn.Module:
        if self.is_train:
            self.prepare_for_training(net)
        else:  # without gradients it is faster everywhere
            set_channels_last(net)
        net = net.to(self.device)
        return self._data_parallel(net) if self.is_train and self.opt['dist'] else net

    def _data_parallel(self, net: nn.Module) -> nn.parallel.DistributedDataParallel:
        """The toolbox's needs a GPU. Every step has the same graph, and gradients lie where they are sent from."""
        unused = self.opt.get('find_unused_parameters', False)
        parallel = nn.parallel.DistributedDataParallel(
            net,
            device_ids=[torch.cuda.current_device()] if self.device.type == 'cuda' else None,
            find_unused_parameters=unused,
            static_graph=not unused,
            gradient_as_bucket_view=True,
        )
        if self.opt['train'].get('gradient_compression') == 'bf16':
            parallel.register_comm_hook(None, as_bf16)
        return parallel

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        if optim_type == 'Muon':
            return Muon(params, lr, **kwargs)
        return super().get_optimizer(optim_type, params, lr, **{'fused': not kwargs.get('foreach'), **kwargs})

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """The toolbox begins an iteration with this: the one before is whole, so a run that has to end ends here."""
        if self.saved_iter is None:
            self.saved_iter = self.first_iter = current_iter - 1
        if reason := self.guard.verdict(made=current_iter - 1):
            self.save_what_is_learnt(current_iter - 1)
            raise reason
        super().update_learning_rate(current_iter, warmup_iter)
        if current_iter == warmup_iter:  # the toolbox's MultiStepLR would go on from the warm-up's last step
            for scheduler in self.schedulers:
                if isinstance(scheduler, MultiStepRestartLR):
                    _end_warmup(scheduler)

    def feed_data(self, data: dict[str, Any]) -> None:
        if 'gt' not in data and hasattr(self, 'gt'):
            del self.gt  # of the item before
        for value in data.values():  # a prefetching stream must not take their memory before this one has read them
            if isinstance(value, Tensor) and value.is_cuda:
                value.record_stream(torch.cuda.current_stream())
        data = {
            name: _as_float(value.to(self.device, non_blocking=True)) if isinstance(value, Tensor) else value
            for name, value in data.items()
        }
        super().feed_data(data)
        self.gt_jpeg = data.get('gt_jpeg')
        self.keys = data.get('key') or data.get('lq_path', ())

    def optimize_parameters(self, current_iter: int) -> None:
        """One step on the whole batch, in `accumulate` parts where the memory does not hold it."""
        self.last_iter = current_iter
        losses = None
        while losses is None:
            try:
                losses = self._accumulate_gradients(self.accumulate)
            except torch.cuda.OutOfMemoryError as error:
                self._split_further(error)
            if losses is None:  # here, where the error no longer holds on to its tensors
                torch.cuda.empty_cache()
        self.losses = losses
        gradients = [each.grad for each in self.net_g.parameters() if each.grad is not None]
        broken = self.guard.check(current_iter, [*losses.values(), *gradients], self.keys)
        self._step(broken, gradients)
        if self.ema_decay > 0:
            self._average(broken)

    def _step(self, broken: Tensor, gradients: list[Tensor]) -> None:
        """The optimizer's step unless it is `broken`. A fused optimizer leaves it out on the device: no one waits."""
        if self.scaler.is_enabled():
            gradients[0].add_(torch.where(broken > 0, torch.nan, 0.0))  # which is all that the scaler looks at
            self.scaler.step(self.optimizer_g)
            self.scaler.update()
        elif self.optimizer_g.defaults.get('fused'):
            self.optimizer_g.found_inf = broken
            self.optimizer_g.step()
        elif not broken:
            self.optimizer_g.step()

    @torch.no_grad()
    def _average(self, broken: Tensor) -> None:
        """The averaged weights' step, the toolbox's `model_ema` but for rounding, left out on the device as well."""
        share = (1 - self.ema_decay) * (1 - broken)
        weights = self.get_bare_model(self.net_g).parameters()
        for averaged, weight in zip(self.net_g_ema.parameters(), weights, strict=True):
            averaged.lerp_(weight, share)

    def _split_further(self, error: torch.cuda.OutOfMemoryError) -> None:
        """Twice as many parts after running out of memory, where that is left to us."""
        if not self.accumulate_auto or 2 * self.accumulate > len(self.lq):
            in_parts = '' if self.accumulate_auto else 'train:accumulate=auto, '
            raise RunError(
                f"the GPU's memory does not hold {len(self.lq)} patches in {self.accumulate} part(s); "
                f'set {in_parts}train:checkpointing=true, or a smaller gt_size'
            ) from error
        if self.opt['dist']:  # the other processes are already waiting for this one's gradients
            advice = (
                f'out of memory with {self.accumulate} part(s); several processes cannot find the number out together: '
                f'set train:accumulate to {2 * self.accumulate} or more'
            )
            if self.last_iter > self.first_iter + 1:
                raise RunError(f'{advice}, and go on with --auto_resume') from error
            raise InputError(advice) from error
        self.accumulate *= 2
        get_root_logger().info(f'Out of memory: the batch goes in {self.accumulate} parts from here on.')

    def _accumulate_gradients(self, parts: int) -> OrderedDict[str, Tensor]:
        """Gradients of the batch's mean losses, summed over `parts`; processes exchange them once, in the last part.

        In its very first pass DDP learns the graph, exchanges always, and then orders its buckets anew. That pass is
        made for nothing, so that the first step of a run, also of a resumed one, adds in the order of all others.
        """
        batch = {'lq': self.lq, 'gt': self.gt, 'gt_jpeg': self.gt_jpeg}
        pieces = {name: whole.chunk(parts) for name, whole in batch.items() if whole is not None}
        count = len(pieces['lq'])
        if self.opt['dist'] and not self.graph_is_known:
            self._backward(1, {name: chunks[0] for name, chunks in pieces.items()})
            self.graph_is_known = True
        self.optimizer_g.zero_grad(set_to_none=True)
        total: OrderedDict[str, Tensor] = OrderedDict()
        for part in range(count):
            piece = {name: chunks[part] for name, chunks in pieces.items()}
            share = len(piece['lq']) / len(self.lq)
            exchange = part == count - 1 or not self.opt['dist']
            with nullcontext() if exchange else self.net_g.no_sync():
                losses = self._backward(share, piece)
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + share * loss.detach()
        return total

    def _backward(self, share: float, piece: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype != torch.float32):
            losses = self._losses(**piece)
        self.scaler.scale(share * torch.stack(list(losses.values())).sum()).backward()
        return losses

    def _losses(self, lq: Tensor, gt: Tensor, gt_jpeg: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted terms of Eq. 9, and the toolbox's perceptual ones where they are asked for."""
        if self.cri_ae is None:
            output = self.net_g(lq)
        elif gt_jpeg is None:
            raise InputError(
                'train:autoencoder_opt needs the sharp frames after JPEG: set jpeg_quality on a JPEGDeblurDataset, '
                'or leave the loss out'
            )
        else:
            output, autoencoded = self.net_g(lq, gt_jpeg)
        output = output.float()
        self.output = output.detach()  # or the graph of an attempt that fails would stay in memory

        losses = {}
        if self.cri_pix is not None:
            losses['l_pix'] = self.cri_pix(output, gt)
        if self.cri_ae is not None:
            losses['l_ae'] = self.cri_ae(autoencoded.float(), gt)
        if self.cri_perceptual is not None:
            l_percep, l_style = self.cri_perceptual(output, gt)
            losses |= {name: x for name, x in {'l_percep': l_percep, 'l_style': l_style}.items() if x is not None}
        return losses

    def get_current_log(self) -> dict[str, float]:
        """The last step's losses. Only here does the host wait for them: the toolbox asks when it prints."""
        return self.reduce_loss_dict(self.losses)

    def state_of_steps(self) -> dict[str, Any]:
        return {'scaler': self.scaler.state_dict(), 'accumulate': self.accumulate}

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        if self.accumulate_auto:
            self.accumulate = resume_state.get('accumulate', 1)  # other parts would round otherwise
        if resume_state.get('scaler'):
            self.scaler.load_state_dict(resume_state['scaler'])
