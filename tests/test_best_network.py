"""Which network counts as the best of a run that was resumed."""

import re

import pytest
from conftest import train
from runs import FOLDER

from wrcan_arch.checkpoint import read_file


def best_of_log():
    return re.search(r'Best (\w+): ([\d.]+) at iteration (\d+)', max(FOLDER.glob('train_*.log')).read_text()).groups()


def test_best_network_stays_when_a_metric_is_added_or_removed(quick):
    """No worse network of later iterations replaces it."""
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8', 'train:start_from_image=true') == 0
    kept, (metric, score, _) = best.read_bytes(), best_of_log()
    worse = ('train:pixel_opt:loss_weight=-1.0', 'train:optim_g:lr=0.01')
    for total, more in ((12, ['val:metrics:ssim={type: calculate_ssim, crop_border: 0}']), (16, [])):
        assert train(f'train:total_iter={total}', *worse, *more, resume=True) == 0
        assert best.read_bytes() == kept and best_of_log()[:2] == (metric, score)


def test_best_network_that_the_last_state_does_not_know_stays(quick):
    """The run was killed after a validation, before the next state was saved."""
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8', 'val:val_freq=4', 'logger:save_checkpoint_freq=6') == 0
    kept, (metric, score, iteration) = best.read_bytes(), best_of_log()
    assert iteration == '8'
    (FOLDER / 'training_states/8.state').unlink()
    assert train('train:total_iter=12', 'val:val_freq=4', 'train:optim_g:lr=1e-9', resume=True) == 0
    assert best.read_bytes() == kept and best_of_log() == (metric, score, '8')


def test_best_network_beyond_the_end_of_the_resumed_run_is_its_outcome(quick):
    """Even if the run is trained on: the network at the same iteration may be worse then."""
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8', 'logger:save_checkpoint_freq=6') == 0
    kept, found = best.read_bytes(), best_of_log()
    assert found[2] == '8'
    (FOLDER / 'training_states/8.state').unlink()
    for total in (7, 12):
        assert train(f'train:total_iter={total}', 'train:optim_g:lr=1e-9', resume=True) == 0
        assert best.read_bytes() == kept and best_of_log() == found


def test_run_from_an_older_state_has_a_best_network_of_its_own(quick):
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8') == 0
    kept = best.read_bytes()
    assert best_of_log()[2] == '8'
    worse = 'train:optim_g:lr=0.5'  # than the best of the record of iteration 4, whose file is there no more
    assert train(f'path:resume_state={FOLDER}/training_states/4.state', 'train:total_iter=8', worse) == 0
    assert (FOLDER / 'models/net_g_best.pth.after_4').read_bytes() == kept
    about = read_file(best)['metadata']
    own = f'{about["metrics"]["psnr"]:.4f}'
    assert best.read_bytes() != kept and best_of_log() == ('psnr', own, '8') and about['iter'] == 8


def test_record_without_its_network_is_forgotten(quick):
    """A run from a named older state was killed after the best network was put aside, before its first checkpoint."""
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8') == 0
    best.rename(f'{best}.after_4')
    assert train('train:total_iter=12', 'train:optim_g:lr=0.5', resume=True) == 0  # a worse network than the record's
    assert read_file(best)['metadata']['iter'] == int(best_of_log()[2]) > 8


def test_older_state_that_nothing_is_trained_from_leaves_the_best_network(quick):
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8') == 0
    kept, found = best.read_bytes(), best_of_log()
    assert found[2] == '8'
    assert train(f'path:resume_state={FOLDER}/training_states/4.state', 'train:total_iter=4') == 0
    assert best.read_bytes() == kept and best_of_log() == found


SSIM = 'val:metrics:ssim={type: calculate_ssim, crop_border: 0}'


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        ([], ['datasets:val:name=other']),
        ([SSIM], [SSIM, 'val:best_metric=ssim']),
        ([], ['val:metrics:psnr={type: calculate_ssim, crop_border: 0, better: lower}']),
    ],
    ids=['another set', 'another metric', 'the other direction'],
)
def test_best_network_that_something_else_chose_is_put_aside(quick, before, after):
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8', *before) == 0
    kept = best.read_bytes()
    for total in (12, 16):
        assert train(f'train:total_iter={total}', *after, resume=True) == 0
        assert (FOLDER / 'models/net_g_best_until_8.pth').read_bytes() == kept
        iteration = read_file(best)['metadata']['iter']
        assert iteration > 8 and str(iteration) == best_of_log()[2]
    logs = ''.join(path.read_text() for path in FOLDER.glob('train_*.log'))
    assert logs.count('net_g_best_until_8.pth is the best by psnr of small_val; from here on net_g_best.pth is') == 1
