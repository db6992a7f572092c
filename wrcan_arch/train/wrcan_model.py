"""The training step of WRCAN in BasicSR: the joint loss of Eq. 9, on one device or several, in the chosen precision."""

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
from ..errors import InputError, RunError, is_out_of_memory
from ..strips.convolution import set_channels_last
from ..wrcan_arch import WRCAN, ResidualBlock
from .muon import Muon
from .recorded_model import RecordedModel
from .start_from_image import start_from_image
from .step_guard import StepGuard

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h


def is_wrcan_model(model_type: str) -> bool:
    """Whether an option file's `model_type` is a WRCANModel.

    Such a model checks before each iteration whether it must save and end, and uses one GPU per process.
    """
    return issubclass(MODEL_REGISTRY.get(model_type), WRCANModel)


def be_deterministic() -> None:
    """Make runs on one kind of GPU bit-identical, at the cost of time. Operations without such a kernel raise."""
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # it picks the kernel that was fastest this time


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a CPU step frees for the next step, so the process stays at its peak.

    By default glibc returns large blocks to the kernel, which clears every page again on reuse: up to an eighth of a
    small step in fp32 (benchmarks/WHY.md).
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # other C libraries lack it
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def bf16_hook(group: distributed.ProcessGroup, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """PyTorch's hook under another name: under its own it is refused without NCCL, though gloo can run it."""
    return bf16_compress_hook(group, bucket)


def _set_rates(scheduler: MultiStepRestartLR) -> None:
    """Set this iteration's learning rates from the initial ones.

    The toolbox computes them from the rates of the iteration before, which may be those of a warm-up, or of the options
    that a resumed run had then.
    """
    now, restarts = scheduler.last_epoch, zip(scheduler.restarts, scheduler.restart_weights, strict=True)
    begun, weight = max((each for each in restarts if each[0] <= now), default=(0, 1))
    falls = sum(count for milestone, count in scheduler.milestones.items() if begun < milestone <= now)
    for group in scheduler.optimizer.param_groups:
        group['lr'] = group['initial_lr'] * weight * scheduler.gamma**falls


def _as_float(pixels: Tensor) -> Tensor:
    """Convert uint8 to float in [0, 1]; leave floats as they are."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels


@MODEL_REGISTRY.register()
class WRCANModel(RecordedModel):
    """SRModel with the auto-encoder loss, mixed precision and every inference mode, which keeps its best network.

    Options beyond SRModel's:
        train:autoencoder_opt: the loss of the auto-encoder path, JPEGAutoEncoderLoss; without it that path is not run.
        train:accumulate: number of parts that a process's share of the batch is split into, 1 by default; 'auto': as
            many as the memory requires.
        train:amp: 'off', 'bf16', 'fp16' (with a loss scaler), or 'auto', the default: bf16 if there are units for it.
        train:channels_last: keep weights and feature maps in that memory layout; 'auto', the default: except in fp32 on
            a CPU, where it is slower.
        train:checkpointing: keep only each block's input and compute the block again for its gradient: a third more
            arithmetic, for GPUs with little memory. False by default.
        train:start_from_image: begin as a network that returns its input, for a short training. False by default.
        train:optim_g:type: 'Adam', or 'Muon', see `muon.Muon`, for a short training on a CPU.
        train:optim_g:fused: Adam in one pass over the weights, without a host wait; true by default.
        val:inference: `{mode, ensemble, precision, patch_size, max_memory}`, see `wrcan_arch.restore`.
        val:best_metric: the name under val:metrics of the metric that chooses net_g_best.pth on the first validation
            set; by default the first calculate_psnr, else the first metric.
        train:max_skipped_steps: steps in a row that may be skipped because a loss or gradient is not finite; 20 by
            default.
        train:gradient_compression: 'bf16' halves what several processes send; 'none' by default.
        logger:keep_last: how many checkpoints are kept; all by default.
        deterministic: use only kernels that give the same bits each time, for an exact resume on a GPU.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt.get('deterministic'):
            be_deterministic()
        self.ddp_is_warmed_up = False  # whether DDP has seen its first pass
        self.first_iter = 0  # the iteration that this run started or resumed at
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
        get_root_logger().info(f'Training steps compute in {precision.name_of(self.amp_dtype)} on {self.device.type}.')
        if self.ema_decay > 0 and self.keeps_channels_last:
            set_channels_last(self.net_g_ema)

    @cached_property
    def amp_dtype(self) -> torch.dtype:
        """The type that a training step computes in."""
        amp = self.opt['train'].get('amp', 'auto')
        return precision.dtype_for('fp32' if amp == 'off' else amp, self.device)

    @cached_property
    def keeps_channels_last(self) -> bool:
        channels_last = self.opt['train'].get('channels_last', 'auto')
        if channels_last == 'auto':
            return self.amp_dtype != torch.float32 or self.device.type != 'cpu'
        return channels_last

    def _prepare_for_training(self, net: nn.Module) -> None:
        train_opt = self.opt['train']
        if train_opt.get('start_from_image', False):
            assert isinstance(net, WRCAN)  # option_checks refuses other networks
            start_from_image(net)  # pretrained weights are loaded after this
        if self.keeps_channels_last:
            set_channels_last(net)
        if train_opt.get('checkpointing', False):
            for module in net.modules():
                if isinstance(module, ResidualBlock):
                    module.checkpointing = True

    def model_to_device(self, net: nn.Module) -> nn.Module:
        if self.is_train:
            self._prepare_for_training(net)
        else:  # without gradients channels_last is faster on every device
            set_channels_last(net)
        net = net.to(self.device)
        return self._data_parallel(net) if self.is_train and self.opt['dist'] and self.opt['world_size'] > 1 else net

    def _data_parallel(self, net: nn.Module) -> nn.parallel.DistributedDataParallel:
        """Wrap `net` in DDP, on CPUs too, which the toolbox cannot.

        By default the graph is the same in every step. Gradients are views of the communication buckets.
        """
        unused = self.opt.get('find_unused_parameters', False)
        parallel = nn.parallel.DistributedDataParallel(
            net,
            device_ids=[torch.cuda.current_device()] if self.device.type == 'cuda' else None,
            find_unused_parameters=unused,
            static_graph=not unused,
            gradient_as_bucket_view=True,
        )
        if self.opt['train'].get('gradient_compression') == 'bf16':
            parallel.register_comm_hook(None, bf16_hook)
        return parallel

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        if optim_type == 'Muon':
            return Muon(params, lr, **kwargs)
        return super().get_optimizer(optim_type, params, lr, **{'fused': not kwargs.get('foreach'), **kwargs})

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Set the rates; save and raise here if the run has to end.

        The toolbox begins each iteration with this call, so the previous one is complete.
        """
        if self.saved_iter is None:
            self.saved_iter = self.first_iter = current_iter - 1
        if reason := self.guard.verdict(made=current_iter - 1):
            self.save_progress(current_iter - 1)
            raise reason
        self.rates_before = self._rates()
        super().update_learning_rate(current_iter, warmup_iter)
        if current_iter >= warmup_iter:
            for scheduler in self.schedulers:
                if isinstance(scheduler, MultiStepRestartLR):
                    _set_rates(scheduler)

    def _rates(self) -> tuple[list[dict[str, Any]], list[float]]:
        """Return the schedulers' states and the learning rates that they have set."""
        rates = [group['lr'] for group in self.optimizer_g.param_groups]
        return [each.state_dict() for each in self.schedulers], rates

    def _take_rates(self, states: list[dict[str, Any]], rates: list[float]) -> None:
        """Set what `_rates` returned."""
        for scheduler, state in zip(self.schedulers, states, strict=True):
            scheduler.load_state_dict(state)
        for group, rate in zip(self.optimizer_g.param_groups, rates, strict=True):
            group['lr'] = rate

    def feed_data(self, data: dict[str, Any]) -> None:
        if 'gt' not in data and hasattr(self, 'gt'):
            del self.gt  # of the previous item
        for value in data.values():  # a prefetching stream must not reuse their memory before this stream has read them
            if isinstance(value, Tensor) and value.is_cuda:
                value.record_stream(torch.cuda.current_stream())
        data = {name: self._on_device(value) if isinstance(value, Tensor) else value for name, value in data.items()}
        super().feed_data(data)
        self.gt_jpeg = data.get('gt_jpeg')
        keys = data.get('key', data.get('lq_path', ()))
        self.keys = [str(each) for each in (keys.tolist() if isinstance(keys, Tensor) else keys)]

    def _on_device(self, value: Tensor) -> Tensor:
        if self.device.type == 'cuda' and not value.is_cuda:
            # Else the host waits for the copy. A loader pins in a thread, which fails when its workers are killed.
            value = value.pin_memory()
        return _as_float(value.to(self.device, non_blocking=True))

    def optimize_parameters(self, current_iter: int) -> None:
        """Make one step on the whole batch in `accumulate` parts; with 'auto', in more parts if memory runs out."""
        self.last_iter = current_iter
        while isinstance(outcome := self._losses_or_lack_of_memory(), Exception):
            self.optimizer_g.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self._split_further(outcome)
        losses = self.losses = outcome
        gradients = [each.grad for each in self.net_g.parameters() if each.grad is not None]
        broken = self.guard.check(current_iter, [*losses.values(), *gradients], self.keys)
        self._step(broken, gradients)
        if self.ema_decay > 0:
            self._average(broken)

    def _step(self, broken: Tensor, gradients: list[Tensor]) -> None:
        """Make the optimizer's step unless it is `broken`; a fused optimizer skips it on the device, without a wait."""
        if self.scaler.is_enabled():
            gradients[0].add_(torch.where(broken > 0, torch.nan, 0.0))  # the scaler skips steps with such a gradient
            self.scaler.step(self.optimizer_g)
            self.scaler.update()
        elif self.optimizer_g.defaults.get('fused'):
            self.optimizer_g.found_inf = broken
            self.optimizer_g.step()
        elif not broken:
            self.optimizer_g.step()

    @torch.no_grad()
    def _average(self, broken: Tensor) -> None:
        """Update the averaged weights as the toolbox's `model_ema` does, up to rounding; skip it on a broken step."""
        share = (1 - self.ema_decay) * (1 - broken)
        weights = self.get_bare_model(self.net_g).parameters()
        for averaged, weight in zip(self.net_g_ema.parameters(), weights, strict=True):
            averaged.lerp_(weight, share)

    def _losses_or_lack_of_memory(self) -> OrderedDict[str, Tensor] | Exception:
        try:
            return self._accumulate_gradients(self.accumulate)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return error.with_traceback(None)  # the traceback holds the step's tensors

    def _split_further(self, error: Exception) -> None:
        """Double the number of parts after running out of memory, at most to single patches; else save and raise."""
        alone = self.opt['world_size'] == 1
        more = min(2 * self.accumulate, len(self.lq))
        if self.accumulate_auto and more > self.accumulate:
            if alone:
                self.accumulate = more
                get_root_logger().info(f'Out of memory: the batch is computed in {self.accumulate} parts from here on.')
                return
            advice = (  # the other processes already wait for this one's gradients
                f'out of memory with {self.accumulate} part(s); several processes cannot find a number that fits: '
                f'set train:accumulate to {more} or more'
            )
        else:
            in_parts = '' if self.accumulate_auto else 'train:accumulate=auto, '
            advice = (
                f'the memory does not hold {len(self.lq)} patches in {self.accumulate} part(s); '
                f'set {in_parts}train:checkpointing=true, or a smaller gt_size'
            )
        if self.last_iter == self.first_iter + 1:
            raise InputError(advice) from error
        if alone:
            self._take_rates(*self.rates_before)
            self.save_progress(self.last_iter - 1)
        raise RunError(f'{advice}, and go on with --auto_resume') from error

    def _accumulate_gradients(self, parts: int) -> OrderedDict[str, Tensor]:
        """Compute the gradients of the batch's mean losses in `parts` and return these losses.

        Processes exchange gradients once, in the last part. In its first pass DDP learns the graph, always exchanges,
        and then reorders its buckets. That pass is made beforehand and discarded, so that a run's first step, resumed
        or not, adds in the same order as all others.
        """
        batch = {'lq': self.lq, 'gt': self.gt, 'gt_jpeg': self.gt_jpeg}
        pieces = {name: whole.chunk(parts) for name, whole in batch.items() if whole is not None}
        count = len(pieces['lq'])
        is_parallel = isinstance(self.net_g, nn.parallel.DistributedDataParallel)
        if is_parallel and not self.ddp_is_warmed_up:
            self._backward(1, {name: chunks[0] for name, chunks in pieces.items()})
            self.ddp_is_warmed_up = True
        self.optimizer_g.zero_grad(set_to_none=True)
        total: OrderedDict[str, Tensor] = OrderedDict()
        for part in range(count):
            piece = {name: chunks[part] for name, chunks in pieces.items()}
            fraction = len(piece['lq']) / len(self.lq)
            exchange = part == count - 1 or not is_parallel
            with nullcontext() if exchange else self.net_g.no_sync():
                losses = self._backward(fraction, piece)
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + fraction * loss.detach()
        return total

    def _backward(self, fraction: float, piece: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype != torch.float32):
            losses = self._losses(**piece)
        self.scaler.scale(fraction * torch.stack(list(losses.values())).sum()).backward()
        return losses

    def _losses(self, lq: Tensor, gt: Tensor, gt_jpeg: Tensor | None = None) -> dict[str, Tensor]:
        """Return the weighted terms of Eq. 9, and the toolbox's perceptual ones if they are configured."""
        if self.cri_ae is None:
            output = self.net_g(lq)
        elif gt_jpeg is None:
            raise InputError(
                'train:autoencoder_opt needs the sharp frames compressed as JPEG: set jpeg_quality on a '
                'JPEGDeblurDataset, or leave the loss out'
            )
        else:
            output, autoencoded = self.net_g(lq, gt_jpeg)
        if not isinstance(output, Tensor):
            raise InputError(
                f'network_g:type: {self.opt["network_g"]["type"]} returns a {type(output).__name__}; train it by a '
                'model that derives from WRCANModel and has its own _losses and test'
            )
        output = output.float()
        self.output = output.detach()  # or a failed attempt would keep its graph in memory

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
        """Return the last step's losses. The host waits for them only here, when the toolbox is about to print."""
        return self.reduce_loss_dict(self.losses)

    def extra_state(self) -> dict[str, Any]:
        return {'scaler': self.scaler.state_dict(), 'accumulate': self.accumulate}

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        if self.accumulate_auto:
            self.accumulate = resume_state.get('accumulate', 1)  # another number would round differently
        if resume_state.get('scaler'):
            self.scaler.load_state_dict(resume_state['scaler'])
