"""How BasicSR trains, validates and saves WRCAN: SRModel with the joint step of Eq. 9."""

import math
import os
import time
from collections import OrderedDict
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from basicsr.losses import build_loss
from basicsr.metrics import calculate_metric
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, imwrite, tensor2img
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.utils.checkpoint import checkpoint as recomputed
from torch.utils.data import default_collate
from tqdm import tqdm

from .. import checkpoint, inference
from ..errors import InputError
from ..wrcan_arch import ResidualBlock
from . import results, run_folder
from .step_guard import StepGuard

SAVED_DATA_OPTIONS = {'patch_size': 'gt_size', 'jpeg_quality': 'jpeg_quality'}  # in a weight file, and in the options
AMP_TYPES = {'off': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def checkpoint_blocks(network: nn.Module) -> None:
    """Make each of WRCAN's blocks keep its input alone for the backward pass, and compute the rest again there."""
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            forward = partial(recomputed, module.forward, use_reentrant=False, preserve_rng_state=False)
            module.forward = forward  # type: ignore[method-assign]


def be_deterministic() -> None:
    """The same bits from every run on one kind of GPU, more slowly. What has no such kernel becomes an error."""
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # which takes whatever kernel was the fastest this time


def as_bf16(group: distributed.ProcessGroup, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """PyTorch's hook under another name: under its own it is refused where there is no NCCL, though gloo can do it."""
    return bf16_compress_hook(group, bucket)


@MODEL_REGISTRY.register()
class WRCANModel(SRModel):
    """SRModel with the auto-encoder loss, mixed precision, every inference mode, and the best checkpoint kept.

    Options beyond SRModel's:
        train.autoencoder_opt: the loss of the auto-encoder path, JPEGAutoEncoderLoss; without it that path is not run.
        train.accumulate: parts that a process's share of the batch goes in, 'auto' for as many as the memory needs.
        train.amp: 'off', 'bf16', 'fp16' (with a loss scaler), or 'auto', the default: bf16 if there are units for it.
        train.channels_last: keep weights and feature maps in that memory layout; true by default.
        train.checkpointing: keep each block's input alone and compute the block again for its gradient: a third more
            arithmetic, for a GPU of little memory. False by default.
        train.optim_g.fused: Adam in one pass over the weights, which the host does not wait for; true by default.
        val.inference: `{mode, ensemble, precision}`, see `wrcan_arch.restore`.
        val.best_metric: the metric, by its name under val.metrics, whose best network on the first validation set is
            kept as net_g_best.pth; by default the first that is a calculate_psnr.
        train.max_skipped_steps: steps in a row that may be skipped because a loss or gradient is not finite.
        train.gradient_compression: 'bf16' halves what several processes send; 'none' by default.
        logger.keep_last: how many checkpoints are kept; all by default.
        deterministic: take kernels alone that give the same bits each time, for an exact resume on a GPU.

    Checkpoints are written whole or not at all; one that cannot be written ends the run with the reason.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt.get('deterministic'):
            be_deterministic()
        self.inference_options = dict((opt.get('val') or {}).get('inference') or {})
        try:
            inference.check_request(**self.inference_options)
        except TypeError as error:
            raise InputError(f'val.inference: {error}') from error
        self.validated: set[tuple[str, int]] = set()
        self.metric_results: dict[str, float] = {}
        self.pending_save: tuple[int, int] | None = None  # epoch and iteration
        self.last_iter = 0
        self.graph_is_known = False  # to DDP
        self.saved_iter: int | None = None  # the newest that a resume could go on from; None before the first iteration
        super().__init__(opt)

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        autoencoder_opt = train_opt.get('autoencoder_opt')
        self.cri_ae: nn.Module | None = build_loss(autoencoder_opt).to(self.device) if autoencoder_opt else None
        accumulate = train_opt.get('accumulate', 1)
        self.accumulate_auto = accumulate == 'auto'
        self.accumulate = 1 if self.accumulate_auto else accumulate
        amp = train_opt.get('amp', 'auto')
        if amp != 'auto' and amp not in AMP_TYPES:
            raise InputError(f"train.amp '{amp}' is not one of auto, {', '.join(AMP_TYPES)}")
        self.amp_dtype = inference.autocast_dtype(amp, self.device) if amp == 'auto' else AMP_TYPES[amp]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        self.guard = StepGuard(
            limit=train_opt.get('max_skipped_steps', 20),  # fp16's loss scale goes from 65,536 to below 1 in 17 steps
            device=self.device,
            dist=self.opt['dist'],
        )
        super().init_training_settings()

    def model_to_device(self, net: nn.Module) -> nn.Module:
        train_opt = self.opt.get('train') or {}
        if train_opt.get('channels_last', True):
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's own types
        if train_opt.get('checkpointing', False):
            checkpoint_blocks(net)
        if not self.opt['dist']:
            return super().model_to_device(net)
        net = net.to(self.device)
        return self._data_parallel(net) if self.is_train else net

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
        return super().get_optimizer(optim_type, params, lr, **{'fused': True, **kwargs})

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """The toolbox begins an iteration with this: the one before is whole, so a run that has to end ends here."""
        if self.saved_iter is None:
            self._check_room(current_iter - 1)
            self.saved_iter = current_iter - 1
        if reason := self.guard.verdict():
            if self.saved_iter < current_iter - 1:
                self.save_pair(0, current_iter - 1)  # the loaders find the epoch out
            raise reason
        super().update_learning_rate(current_iter, warmup_iter)

    @property
    def _folder(self) -> Path:
        return Path(self.opt['path']['experiments_root'])

    @master_only
    def _check_room(self, start: int) -> None:
        run_folder.check_room(
            self._folder,
            sum(each.numel() for each in self.net_g.parameters()),
            averaged=self.ema_decay > 0,
            start=start,
            total=int(self.opt['train']['total_iter']),
            every=self.opt['logger']['save_checkpoint_freq'],
            keep=self.opt['logger'].get('keep_last'),
        )

    def feed_data(self, data: dict[str, Any]) -> None:
        if 'gt' not in data and hasattr(self, 'gt'):
            del self.gt  # of the item before
        data = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
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
        self._step(broken)
        if self.ema_decay > 0 and not broken:  # with averaged weights, the host waits for the step here
            self.model_ema(decay=self.ema_decay)

    def _step(self, broken: Tensor) -> None:
        """The optimizer's step unless it is `broken`. A fused optimizer leaves it out on the device: no one waits."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer_g)  # looks for itself
            self.scaler.update()
        elif self.optimizer_g.defaults.get('fused'):
            self.optimizer_g.found_inf = broken
            self.optimizer_g.step()
        elif not broken:
            self.optimizer_g.step()

    def _split_further(self, error: torch.cuda.OutOfMemoryError) -> None:
        """Twice as many parts after running out of memory, where that is left to us."""
        if not self.accumulate_auto or 2 * self.accumulate > len(self.lq):
            raise error
        if self.opt['dist']:  # the other processes are already waiting for this one's gradients
            raise InputError(
                f'out of memory with {self.accumulate} part(s); several processes cannot find the number out together: '
                f'set train.accumulate to {2 * self.accumulate} or more'
            ) from error
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
                'train.autoencoder_opt needs the sharp frames after JPEG: set jpeg_quality on a JPEGDeblurDataset, '
                'or leave the loss out'
            )
        else:
            output, autoencoded = self.net_g(lq, gt_jpeg)
        self.output = output.float()

        losses = {}
        if self.cri_pix is not None:
            losses['l_pix'] = self.cri_pix(self.output, gt)
        if self.cri_ae is not None:
            losses['l_ae'] = self.cri_ae(autoencoded.float(), gt)
        if self.cri_perceptual is not None:
            l_percep, l_style = self.cri_perceptual(self.output, gt)
            losses |= {name: x for name, x in {'l_percep': l_percep, 'l_style': l_style}.items() if x is not None}
        self.output = self.output.detach()  # or a failed attempt's graph would stay in memory
        return losses

    def get_current_log(self) -> dict[str, float]:
        """The last step's losses. Only here does the host wait for them: the toolbox asks when it prints."""
        return self.reduce_loss_dict(self.losses)

    def validation(self, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool = False) -> None:
        """Score a data set, its images shared out over the processes; a test also writes what `results.py` keeps."""
        name = dataloader.dataset.opt['name']
        if (name, current_iter) in self.validated:  # the toolbox validates once more at the end of a run
            return
        try:
            self._validate(dataloader.dataset, name, current_iter, tb_logger, save_img)
        finally:
            self.validated.add((name, current_iter))
            self._save_pending()

    def _validate(self, dataset: Any, name: str, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        scores, seconds = self._score_images(dataset, current_iter, save_img)
        self.metric_results = results.mean_scores(scores)
        if self.metric_results:
            self._initialize_best_metric_results(name)
            for metric, value in self.metric_results.items():
                self._update_best_metric_result(name, metric, value, current_iter)
            if self.is_train:
                self._keep_if_best(name, current_iter)
            get_root_logger().info(f'Validated {name} at iteration {current_iter}')
            self._log_validation_metric_values(current_iter, name, tb_logger)
        if not self.is_train and self.opt['rank'] == 0:
            self._write_results(name, scores, seconds, save_img)

    def _score_images(self, dataset: Any, current_iter: int, save_img: bool) -> tuple[results.Scores, float]:
        """Each image's scores, and the mean time of restoring one, over all processes; each image once."""
        rank, world_size = self.opt['rank'], self.opt['world_size']
        mine: dict[str, dict[str, float]] = {}
        seconds = 0.0
        for index in tqdm(range(rank, len(dataset), world_size), disable=rank > 0 or not self.opt['val'].get('pbar')):
            item = dataset[index]
            key = item.get('key', Path(item['lq_path']).stem)
            self.feed_data(default_collate([item]))
            started = time.perf_counter()
            self.test()
            visuals = self.get_current_visuals()
            seconds += time.perf_counter() - started
            images = {'img': tensor2img(visuals['result'])}
            if 'gt' in visuals:
                images['img2'] = tensor2img(visuals['gt'])
                del self.gt
            if save_img:
                imwrite(images['img'], self._image_path(dataset.opt['name'], key, current_iter))
            metrics = self.opt['val'].get('metrics') or {}
            mine[key] = {name: float(calculate_metric(images, opt)) for name, opt in metrics.items()}
        if not self.opt['dist']:
            return mine, seconds / max(1, len(mine))
        gathered: list[Any] = [None] * world_size
        distributed.all_gather_object(gathered, (mine, seconds))
        scores = {key: each for part, _ in gathered for key, each in part.items()}
        return scores, math.fsum(part for _, part in gathered) / max(1, len(scores))

    def _image_path(self, dataset_name: str, key: str, current_iter: int) -> str:
        """Where the toolbox puts restored images, while training and in a test."""
        folder = Path(self.opt['path']['visualization'])
        if self.is_train:
            return str(folder / key / f'{key}_{current_iter}.png')
        return str(folder / dataset_name / f'{key}_{self.opt["val"].get("suffix") or self.opt["name"]}.png')

    def _write_results(self, dataset_name: str, scores: results.Scores, seconds: float, save_img: bool) -> None:
        folder = Path(self.opt['path']['results_root'])
        about = {
            'name': self.opt['name'],
            'protocol': inference.describe(self.device, **self.inference_options),
            'weights': results.describe_weights(self.opt['path'].get('pretrain_network_g')),
            'network_g': self.opt['network_g'],
            'seconds_per_image': seconds,
            'options_sha256': self.opt.get('options_sha256'),
        }
        results.write_result(folder, dataset_name, scores, about)
        results.write_scores(folder, dataset_name, scores)
        submission = self.opt['val'].get('submission')
        if submission and save_img:
            images = {key: Path(self._image_path(dataset_name, key, 0)) for key in scores}
            results.write_submission(folder / f'submission_{dataset_name}.zip', images, seconds, submission)

    def test(self) -> None:
        network = self.get_bare_model(getattr(self, 'net_g_ema', self.net_g))
        was_training = network.training
        network.eval()
        self.output = inference.restore(network, self.lq, **self.inference_options)
        network.train(was_training)

    def _keep_if_best(self, dataset_name: str, current_iter: int) -> None:
        """net_g_best.pth, if this validation of the first data set is the best so far."""
        metric = self._best_metric()
        best = self.best_metric_results[dataset_name].get(metric, {})
        if dataset_name == next(iter(self.best_metric_results)) and best.get('iter') == current_iter:
            about = {'iter': current_iter, 'best_metric': metric, 'metrics': dict(self.metric_results)}
            self._save_networks('best', about)

    def _best_metric(self) -> str | None:
        metrics = self.opt['val']['metrics']
        by_psnr = (name for name, metric in metrics.items() if metric['type'] == 'calculate_psnr')
        return self.opt['val'].get('best_metric') or next(by_psnr, None)

    def save(self, epoch: int, current_iter: int) -> None:
        """Save the networks and, but for the end's 'latest' (-1), the training state.

        The toolbox saves before it validates at the same iteration. A state without that validation's best results
        would resume to another best network, so the saving waits for it, also where it fails.
        """
        if current_iter == -1:
            self._save_networks('latest', {'iter': self.last_iter})
        else:
            self.pending_save = epoch, current_iter
            frequency = self.opt['val'].get('val_freq') if self.opt.get('val') else None
            if not (frequency and current_iter % frequency == 0 and self._validation_sets()):
                self._save_now()

    def _validation_sets(self) -> set[str]:
        return {data['name'] for phase, data in self.opt['datasets'].items() if phase.split('_')[0] == 'val'}

    def _save_pending(self) -> None:
        """Save what waits for validation, once every set has been validated."""
        if self.pending_save:
            current_iter = self.pending_save[1]
            if {name for name, iteration in self.validated if iteration == current_iter} >= self._validation_sets():
                self._save_now()

    def _save_now(self) -> None:
        assert self.pending_save is not None
        epoch, current_iter = self.pending_save
        self.pending_save = None
        self.save_pair(epoch, current_iter)

    def save_pair(self, epoch: int, current_iter: int) -> None:
        """The weights, then the training state that names their checksum; then old ones go."""
        validated = any(iteration == current_iter for _, iteration in self.validated)
        metrics = dict(self.metric_results) if validated else {}
        checksums = self._save_networks(str(current_iter), {'iter': current_iter, 'metrics': metrics})
        self._save_training_state(epoch, current_iter, checksums)
        self.saved_iter = current_iter

    @master_only
    def _save_networks(self, label: str, about: dict[str, Any]) -> dict[str, str]:
        networks = {'params': self.net_g}
        if hasattr(self, 'net_g_ema'):
            networks['params_ema'] = self.net_g_ema
        data = self.opt['datasets']['train']
        metadata = {
            'network_g': dict(self.opt['network_g']),
            'name': self.opt['name'],
            'options_sha256': self.opt.get('options_sha256'),
            'commit': checkpoint.source_commit(),
            **{ours: data[key] for ours, key in SAVED_DATA_OPTIONS.items() if data.get(key) is not None},
            **about,
        }
        tensors = {key: self._tensors(each) for key, each in networks.items()}
        path = run_folder.weights_path(self._folder, label)
        return run_folder.persist(lambda: checkpoint.write_weights(path, tensors, metadata))

    def _tensors(self, network: nn.Module) -> dict[str, Tensor]:
        return {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.get_bare_model(network).state_dict().items()
        }

    @master_only
    def _save_training_state(self, epoch: int, current_iter: int, checksums: dict[str, str]) -> None:
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'weights': checksums,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'scaler': self.scaler.state_dict(),
            'accumulate': self.accumulate,
            'best_metric_results': getattr(self, 'best_metric_results', {}),
        }
        path = run_folder.state_path(self._folder, current_iter)
        run_folder.persist(lambda: checkpoint.write_atomically(path, state))
        if keep := self.opt['logger'].get('keep_last'):
            run_folder.remove_old(self._folder, current_iter, keep)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        self.last_iter = resume_state['iter']
        if self.accumulate_auto:
            self.accumulate = resume_state.get('accumulate', 1)  # other parts would round otherwise
        if resume_state.get('scaler'):
            self.scaler.load_state_dict(resume_state['scaler'])
        if resume_state.get('best_metric_results'):
            self.best_metric_results = resume_state['best_metric_results']

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        tensors, _ = checkpoint.read_weights(load_path, param_key)
        get_root_logger().info(f'Loading weights from {load_path}, with param key: [{param_key}].')
        if not strict:  # what does not fit is left out, so it is listed
            self._print_different_keys_loading(net, tensors, strict)
        try:
            self.get_bare_model(net).load_state_dict(tensors, strict=strict)
        except RuntimeError as error:
            hint = ' '.join(str(error).split())[:300]
            with suppress(KeyError):  # of another network than WRCAN
                held = checkpoint.infer_config(tensors)
                if held.items() - self.opt['network_g'].items():
                    hint = f'set network_g to {held}'
            raise InputError(f'{load_path}: not the weights of the network in the option file; {hint}') from error
