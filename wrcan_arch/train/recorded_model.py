"""A model that records a run: scores, the best network, checkpoints to resume from."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from torch import distributed, nn

from .. import __version__, checkpoint, inference
from ..errors import InputError, RunError, one_line
from ..source_commit import source_commit
from . import results, run_folder, scoring
from .options import as_overrides, kind_of_phase
from .resumed_state import match_weight_layout, place_in_schedule, with_own_settings
from .stopping import ending_error

Records = dict[str, dict[str, dict[str, Any]]]  # best values, by validation set and metric, as in the toolbox


def _record(records: Records, best_by: list[str]) -> dict[str, Any] | None:
    """Return the record of the set and metric that choose the best network; None if they have not been scored."""
    if not best_by:
        return None
    chooser, metric = best_by
    record = records.get(chooser, {}).get(metric)
    return record if record and record['iter'] >= 0 else None


def _is_better(one: dict[str, Any], record: dict[str, Any]) -> bool:
    return one['val'] > record['val'] if record['better'] == 'higher' else one['val'] < record['val']


class RecordedModel(SRModel):
    """SRModel with our validation, checkpoints and results; subclasses define the training step.

    Checkpoints are written whole or not at all; if one cannot be written, RunError ends the run.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        asked = dict((opt.get('val') or {}).get('inference') or {})
        if asked.get('mode') == 'local' and 'train' in opt['datasets']:
            asked['patch_size'] = asked.get('patch_size') or opt['datasets']['train'].get('gt_size')
        self.request = inference.Request(**asked)
        self.validated: set[tuple[str, int]] = set()
        self.metric_results: dict[str, float] = {}
        self.scores: dict[str, dict[str, float]] = {}  # the newest means, by data set and metric
        weights = opt['path'].get('pretrain_network_g')
        reports_weights = opt['rank'] == 0 and not opt['is_train']
        # Both are read now: the file and the checkout may change during the run.
        key = opt['path'].get('param_key_g')
        self.tested_weights = results.describe_weights(weights, key) if weights and reports_weights else None
        self.commit = source_commit() if opt['rank'] == 0 else None
        self.pending_save: tuple[int, int] | None = None  # (epoch, iteration) of a pair that is due after validation
        self.unrecorded_best: dict[str, Any] | None = None  # newer than the resumed state; no worse one replaces it
        self.draws_before: Callable[[int], int] | None = None  # the loader's DrawSampler.draws_before
        self.last_iter = 0
        self.saved_iter: int | None = None  # newest to resume from; None before any step
        super().__init__(opt)

    def extra_state(self) -> dict[str, Any]:
        """Return what else a training state must hold, so that the steps after a resume are the same."""
        return {}

    @property
    def _folder(self) -> Path:
        return Path(self.opt['path']['experiments_root'])

    @master_only
    def check_disk_space(self, start: int) -> None:
        """Raise InputError unless the checkpoints of the iterations after `start` have room on the disk."""
        run_folder.check_disk_space(
            self._folder,
            sum(each.numel() for each in self.net_g.parameters()),
            averaged=self.ema_decay > 0,
            start=start,
            total=int(self.opt['train']['total_iter']),
            every=int(self.opt['logger']['save_checkpoint_freq']),
            keep=self.opt['logger'].get('keep_last'),
        )

    def validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool = False) -> None:
        """Score a data set, its images shared out over the processes; a test also writes its results."""
        name = dataloader.dataset.opt['name']
        current_iter = int(current_iter) if self.is_train else 0  # for a test the toolbox passes its name
        if (name, current_iter) in self.validated:  # the toolbox validates once more at the end of a run
            return
        try:
            self._validate(dataloader.dataset, name, current_iter, tb_logger, save_img)
        except InputError as error:
            if not self.is_train:
                raise RunError(f'{one_line(error)}; fix that and test again') from error
            if self.saved_iter is None:  # there is nothing to save yet
                raise
            self.save_progress(current_iter)
            raise ending_error(error) from error
        except RunError:  # such as of a full disk
            self._save_pending()
            raise
        except BaseException as error:
            if self.is_train:
                self.save_progress(current_iter, meet=isinstance(error, scoring.SharedError))
            raise
        self.validated.add((name, current_iter))
        if self._is_validated(current_iter):
            self._save_pending()

    def _validate(self, dataset: Any, name: str, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        stores = {} if self.is_train else results.describe_stores(dataset.opt)  # now: they may be made anew meanwhile
        scores, seconds = scoring.score_images(self, dataset, current_iter, save_img)
        self.metric_results = self.scores[name] = results.mean_scores(scores)
        how = self.request.describe(self.device)
        if not self.is_train:
            get_root_logger().info(f'Tested {name}: {how}')
        if self.metric_results:
            if self.is_train:
                self._initialize_best_metric_results(name)
                for metric, value in self.metric_results.items():
                    self._update_best_metric_result(name, metric, value, current_iter)
                self._keep_if_best(name, current_iter)
                get_root_logger().info(f'Validated {name} at iteration {current_iter}: {how}')
            self._log_validation_metric_values(current_iter, name, tb_logger)
        if not self.is_train and self.opt['rank'] == 0:
            self._write_results(name, scores, seconds, stores, save_img)

    def image_path(self, dataset_name: str, key: str, current_iter: int) -> Path:
        """Return the toolbox's path of a restored image; of several sets in training each has a folder of its own."""
        folder = Path(self.opt['path']['visualization'])
        if self.is_train:
            folder = folder / dataset_name if len(self._validation_sets()) > 1 else folder
            return folder / key / f'{key}_{current_iter}.png'
        return results.restored_path(folder, dataset_name, key, self.opt)

    def _write_results(
        self, dataset_name: str, scores: results.Scores, seconds: float, stores: dict[str, str], save_img: bool
    ) -> None:
        folder = Path(self.opt['path']['results_root'])
        about = {
            'name': self.opt['name'],
            'protocol': self.request.describe(self.device),
            'metric_options': self.opt['val'].get('metrics') or {},
            'weights': self.tested_weights and {**self.tested_weights, **self._origin_of_weights()},
            'network_g': self.opt['network_g'],
            'stores': stores,
            'seconds_per_image': seconds,
            'options_sha256': self.opt.get('options_sha256'),
            'version': __version__,
            'commit': self.commit,
        }
        results.write_result(folder, dataset_name, scores, about)
        results.write_scores(folder, dataset_name, scores)
        submission = self.opt['val'].get('submission')
        if submission and save_img:
            images = {key: self.image_path(dataset_name, key, 0) for key in scores}
            path = folder / f'submission_{dataset_name}.zip'
            results.write_submission(path, images, seconds, self.device.type == 'cpu', submission)

    def _origin_of_weights(self) -> dict[str, Any]:
        """Return the name and the iteration of the training that the tested weights are from, if their file says so."""
        metadata = getattr(self.get_bare_model(self.net_g), 'metadata', {})
        origin = (('training', metadata.get('name'), str), ('iteration', metadata.get('iter'), int))
        return {name: value for name, value, kind in origin if type(value) is kind}

    def test(self) -> None:
        network = self.get_bare_model(getattr(self, 'net_g_ema', self.net_g))
        was_training = network.training
        network.eval()
        self.output = inference.restore(network, self.lq, **vars(self.request))
        network.train(was_training)

    def _keep_if_best(self, dataset_name: str, current_iter: int) -> None:
        """Write net_g_best.pth if this validation is of the set that chooses it, and the best so far."""
        chooser, metric = self.best_by
        if dataset_name != chooser:
            return
        best = self.best_metric_results[chooser][metric]
        if self.unrecorded_best and _is_better(self.unrecorded_best, best):
            last = int(self.opt['train']['total_iter'])
            if current_iter >= min(last, self.unrecorded_best['iter']):  # until then it matches an undisturbed run's
                best.update(self.unrecorded_best)
        elif (best['iter'], best['val']) == (current_iter, self.metric_results[metric]):
            about = {'iter': current_iter, 'best_by': self.best_by, 'metrics': dict(self.metric_results)}
            self._save_networks('best', about)

    @cached_property
    def best_by(self) -> list[str]:
        """The validation set and the metric that choose the best network; [] if nothing is scored."""
        metrics = (self.opt.get('val') or {}).get('metrics')
        if not (metrics and self._validation_sets()):
            return []
        by_psnr = (name for name, metric in metrics.items() if metric['type'] == 'calculate_psnr')
        return [self._validation_sets()[0], self.opt['val'].get('best_metric') or next(by_psnr, next(iter(metrics)))]

    def save(self, epoch: int, current_iter: int) -> None:
        """Save the networks and the training state; at the end (`current_iter` -1) 'latest' too.

        The toolbox saves before it validates at the same iteration. A state without that validation's best results
        would resume to another best network, so saving waits for the validation, even if it fails.
        """
        at_end = current_iter == -1
        if at_end:
            epoch, current_iter = 0, self.last_iter  # the loaders compute the epoch
            self._save_networks('latest', {'iter': current_iter})
            if self.saved_iter in (None, current_iter):
                return
        self.pending_save = epoch, current_iter
        validation = self.opt.get('val') or {}
        frequency = validation.get('val_freq')
        validates_next = validation if at_end else frequency and current_iter % frequency == 0
        if not validates_next or self._is_validated(current_iter):
            self._save_pending()

    def _validation_sets(self) -> list[str]:
        return [data['name'] for phase, data in self.opt['datasets'].items() if kind_of_phase(phase) == 'val']

    def _is_validated(self, iteration: int) -> bool:
        return all((name, iteration) in self.validated for name in self._validation_sets())

    def _save_pending(self) -> None:
        """Save the pair that is due, if there is one."""
        if self.pending_save:
            due, self.pending_save = self.pending_save, None
            self.save_pair(*due)

    def save_progress(self, iteration: int, *, meet: bool = True) -> None:
        """Save the pair of `iteration`, unless it is saved or no step was made; with `meet`, wait for all processes."""
        if self.saved_iter is not None and self.saved_iter < iteration:
            self.save_pair(0, iteration)  # the loaders compute the epoch
            if meet and self.opt['dist']:
                distributed.barrier()  # a launcher ends all processes when one ends, saved or not

    def save_pair(self, epoch: int, current_iter: int) -> None:
        """Save the weights, then the training state with their checksum, then remove old pairs."""
        validated = any(iteration == current_iter for _, iteration in self.validated)
        metrics = self.scores.get(self._validation_sets()[0], {}) if validated else {}
        checksums = self._save_networks(str(current_iter), {'iter': current_iter, 'metrics': metrics})
        self._save_training_state(epoch, current_iter, checksums)
        self.saved_iter = current_iter

    @master_only
    def _save_networks(self, label: str, about: dict[str, Any]) -> dict[str, str]:
        networks = {'params': self.net_g}
        if hasattr(self, 'net_g_ema'):
            networks['params_ema'] = self.net_g_ema
        if about['iter'] == 0:  # untrained here: keep what the loaded weights say
            loaded = getattr(self.get_bare_model(self.net_g), 'metadata', {})
            about_data = {name: loaded.get(name) for name in ('patch_size', 'jpeg_quality')}
        else:
            data = self.opt['datasets']['train']
            about_data = {
                'patch_size': data.get('gt_size'),
                'jpeg_quality': data.get('blurred_quality') or data.get('jpeg_quality'),
            }
        metadata = {
            'network_g': dict(self.opt['network_g']),
            'name': self.opt['name'],
            'options_sha256': self.opt.get('options_sha256'),
            'version': __version__,
            'commit': self.commit,
            **{name: value for name, value in about_data.items() if value is not None},
            **about,
        }
        tensors = {
            key: {name: tensor.cpu() for name, tensor in self.get_bare_model(each).state_dict().items()}
            for key, each in networks.items()
        }
        path = run_folder.weights_path(self._folder, label)
        return run_folder.write_with_retries(lambda: checkpoint.write_weights(path, tensors, metadata))

    @master_only
    def _save_training_state(self, epoch: int, current_iter: int, checksums: dict[str, str]) -> None:
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'weights': checksums,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'best_metric_results': getattr(self, 'best_metric_results', {}),
            'best_by': self.best_by,
            'draws': self.draws_before and self.draws_before(current_iter),
            **self.extra_state(),
        }
        path = run_folder.state_path(self._folder, current_iter)
        run_folder.write_with_retries(lambda: checkpoint.write_atomically(path, state))
        if keep := self.opt['logger'].get('keep_last'):
            run_folder.remove_old(self._folder, current_iter, keep)

    def outcome(self) -> str:
        """Report the training's outcome in one line: the best score, and the weights to use."""
        best = _record(getattr(self, 'best_metric_results', {}), self.best_by)
        if best is None:
            return f'Trained: {run_folder.weights_path(self._folder, "latest")}'
        path, (_, metric) = run_folder.weights_path(self._folder, 'best'), self.best_by
        no_better = '' if best['iter'] else ', the weights that the run began with: no later ones scored better'
        return f'Best {metric}: {best["val"]:.4f} at iteration {best["iter"]}{no_better}, {path}'

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Resume. The state says how far the schedules are, the options what their rates are there."""
        schedulers = [place_in_schedule(each) for each in resume_state['schedulers']]
        saved = resume_state['optimizers']
        try:
            optimizers = [with_own_settings(own, each) for own, each in zip(self.optimizers, saved, strict=True)]
            super().resume_training({**resume_state, 'schedulers': schedulers, 'optimizers': optimizers})
        except ValueError as error:
            raise InputError(
                f'the training state is of another optimizer or network ({" ".join(str(error).split())}); leave '
                'train:optim_g:type and network_g as they were, or begin a new run with its weights as '
                'path:pretrain_network_g'
            ) from error
        for optimizer in self.optimizers:
            match_weight_layout(optimizer)
        self.last_iter = resume_state['iter']
        self._restore_records(resume_state.get('best_metric_results', {}), resume_state.get('best_by', self.best_by))

    def _restore_records(self, saved: Records, saved_by: list[str]) -> None:
        """Restore the records of what is still scored. Rename a best network that another set or metric chose."""
        for name in self._validation_sets() if self.best_by else ():
            if name in saved:
                self._initialize_best_metric_results(name)
                for metric, record in self.best_metric_results[name].items():
                    earlier = saved[name].get(metric, {})
                    chooses_anew = self.best_by == [name, metric] != saved_by
                    if earlier.get('better') == record['better'] and not chooses_anew:
                        record.update(earlier)
        recalled = _record(getattr(self, 'best_metric_results', {}), self.best_by)
        path = run_folder.weights_path(self._folder, 'best')
        if recalled:
            self._compare_with_best_file(recalled, path)
        if self.best_by and _record(saved, saved_by) and not recalled and self.opt['rank'] == 0 and path.is_file():
            (chooser, metric), (old_chooser, old_metric) = self.best_by, saved_by
            aside = run_folder.weights_path(self._folder, f'best_until_{self.last_iter}')
            path.rename(aside)
            get_root_logger().warning(
                f'{aside} is the best by {old_metric} of {old_chooser}; from here on {path.name} is the best by '
                f'{metric} of {chooser}.'
            )

    def _compare_with_best_file(self, recalled: dict[str, Any], path: Path) -> None:
        """Forget the record of a best network whose file is not there, so that the next one is saved.

        A killed run may have saved a better network after its last state; `unrecorded_best` remembers it. A run that
        resumes from a named older state goes on without the networks that came later.
        """
        chooser, _ = self.best_by
        in_file = self._best_of_file(path)
        goes_back = not self.opt.get('auto_resume') and self.last_iter < int(self.opt['train']['total_iter'])
        if not in_file or in_file['iter'] <= self.last_iter:
            is_lost = not path.is_file()
        elif goes_back:
            is_lost = True
        elif _is_better(in_file, recalled):
            self.unrecorded_best = in_file
            is_lost = False
        else:
            is_lost = in_file['iter'] != recalled['iter']
        if is_lost:
            self.best_metric_results.pop(chooser)

    def _best_of_file(self, path: Path) -> dict[str, Any] | None:
        """Return the record of the best network in a file; None if it is missing, damaged or chosen in another way."""
        with suppress(InputError):
            about = checkpoint.read_weights(path)[1]
            if about.get('best_by') == self.best_by:
                _, metric = self.best_by
                return {'val': about['metrics'][metric], 'iter': about['iter']}
        return None

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        content = checkpoint.read_file(load_path)
        if param_key == 'params_ema' and not (isinstance(content, Mapping) and param_key in content):
            param_key = self.opt['path'].get('param_key_g')  # the average begins with the weights that are trained
        tensors, metadata = checkpoint.weights_in(content, load_path, param_key or 'params')
        which = f', with param key: [{param_key}]' if param_key in content else ''
        get_root_logger().info(f'Loading weights from {load_path}{which}.')
        if not strict:  # what does not fit is not loaded; list it
            self._print_different_keys_loading(net, tensors, strict)
        bare = self.get_bare_model(net)
        bare.metadata = metadata
        try:
            bare.load_state_dict(tensors, strict=strict)
        except RuntimeError as error:
            hint = ' '.join(str(error).split())[:300]
            with suppress(KeyError):  # not of a WRCAN
                held = checkpoint.infer_config(tensors)
                if unlike := as_overrides(held, getattr(bare, 'config', self.opt['network_g'])):
                    hint = f'set {unlike}'
            raise InputError(f'{load_path}: not the weights of the network in the option file; {hint}') from error
