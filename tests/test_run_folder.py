"""A run's folder: which checkpoints are kept, failing and full disks, one run at a time."""

import errno
import multiprocessing
import os
import re
import time
from pathlib import Path
from unittest import mock

import pytest
from conftest import train

from wrcan_arch import InputError, WRCANModel
from wrcan_arch.checkpoint import read_file, write_atomically
from wrcan_arch.train import run_folder
from wrcan_arch.train.step_guard import StepGuard

FOLDER = Path('experiments/small')


def test_old_checkpoints_go_once_the_new_one_is_safe(quick):
    """The best, the latest and the only whole one always stay: a run that passed over a damaged pair keeps its own."""
    text = Path('train.yml').read_text().replace('save_checkpoint_freq: 4', 'save_checkpoint_freq: 2, keep_last: 2')
    Path('train.yml').write_text(text)
    assert train() == 0
    assert run_folder.iterations(FOLDER) == [10, 8]
    names = ['net_g_10.pth', 'net_g_8.pth', 'net_g_best.pth', 'net_g_latest.pth']
    assert sorted(path.name for path in (FOLDER / 'models').iterdir()) == names

    (FOLDER / 'training_states/12.state').write_bytes(b'damaged')
    run_folder.remove_old(FOLDER, 10, 1)
    assert run_folder.iterations(FOLDER) == [12, 10]


def test_an_old_checkpoint_stays_where_the_new_one_cannot_be_written(quick):
    from wrcan_arch import checkpoint

    write = checkpoint.write_atomically

    def full(path, content):
        if path.name == '8.state':
            raise OSError(28, 'No space left on device', str(path))
        write(path, content)

    with mock.patch('wrcan_arch.checkpoint.write_atomically', full), mock.patch('time.sleep'):
        assert train('logger:keep_last=1') == 1
    assert run_folder.iterations(FOLDER) == [4] and run_folder.read_pair(FOLDER, 4, ['g'])


@pytest.mark.parametrize('states_are_gone', [False, True])
def test_kill_before_the_last_save_s_removals_leaves_nothing_more(quick, states_are_gone):
    """The resumed run removes what the killed save should have, whether the old states are gone already or not."""
    text = Path('train.yml').read_text().replace('save_checkpoint_freq: 4', 'save_checkpoint_freq: 2, keep_last: 2')
    Path('train.yml').write_text(text)
    assert train('logger:keep_last=5') == 0
    expected = [FOLDER / 'training_states/10.state', FOLDER / 'training_states/8.state']
    if states_are_gone:
        for each in (6, 4, 2):
            (FOLDER / f'training_states/{each}.state').unlink()
    assert train(resume=True) == 0
    assert sorted((FOLDER / 'training_states').iterdir()) == expected
    names = ['net_g_10.pth', 'net_g_8.pth', 'net_g_best.pth', 'net_g_latest.pth']
    assert sorted(path.name for path in (FOLDER / 'models').iterdir()) == names


def test_newest_run_that_was_put_aside_is_of_this_name_and_has_states(tmp_path):
    for name in ('a[1]_archived_20261029', 'a[1]_archived_20261130', 'a1_archived_20271130'):
        (tmp_path / name / 'training_states').mkdir(parents=True)
        (tmp_path / name / 'training_states/4.state').touch()
    (tmp_path / 'a[1]_archived_20281130').mkdir()
    assert run_folder.newest_archive(tmp_path / 'a[1]') == tmp_path / 'a[1]_archived_20261130'
    assert run_folder.newest_archive(tmp_path / 'a') is None


def test_what_is_wrong_with_the_newest_checkpoint_is_said_first(tmp_path):
    (tmp_path / 'training_states').mkdir()
    run_folder.state_path(tmp_path, 4).write_bytes(b'damaged')
    write_atomically(run_folder.state_path(tmp_path, 8), {'iter': 8})
    with pytest.raises(InputError, match=r'none of its 2 checkpoints is whole \(.*8\.state: not a training state'):
        run_folder.newest_pair(tmp_path, ['g'])


def test_failed_save_is_tried_again(quick):
    """A disk fails twice, then takes the file: nothing is lost, and only the log reports it."""
    from wrcan_arch import checkpoint

    failures = iter([OSError(5, 'Input/output error'), OSError(5, 'Input/output error')])
    write = checkpoint.write_atomically

    def flaky(path, content):
        if path.suffix == '.state' and (error := next(failures, None)):
            error.filename = str(path)
            raise error
        write(path, content)

    with mock.patch('wrcan_arch.checkpoint.write_atomically', flaky), mock.patch('time.sleep'):
        assert train() == 0
    assert run_folder.iterations(FOLDER) == [10, 8, 4]
    assert (FOLDER / 'training_states/8.state').stat().st_size > 0
    assert max(FOLDER.glob('train_*.log')).read_text().count('Input/output error; trying again in') == 2


@pytest.mark.parametrize(
    ('number', 'hint'),
    [(errno.ENOSPC, 'make room'), (errno.ENOENT, 'put its folder back'), (errno.EROFS, 'check the disk')],
)
def test_save_that_keeps_failing_ends_the_run_with_exit_code_1(quick, capsys, number, hint):
    """Writing the best network fails first, then the checkpoint, which the message names."""

    def flush(descriptor, flush=os.fsync):
        if Path(f'/proc/self/fd/{descriptor}').readlink().parent.name == 'models':
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    with mock.patch('os.fsync', flush), mock.patch('time.sleep'):
        assert train() == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert re.findall(r'net_g_4\.pth: .* trying again in (\d+) s', '\n'.join(said)) == ['1', '5', '30']
    assert said[-1] == (
        f'basicsr train: {FOLDER.resolve()}/models/net_g_4.pth: {os.strerror(number)}; '
        f'the run ends, {hint} and go on with --auto_resume'
    )


@pytest.mark.parametrize(
    ('changes', 'parts'),  # parts: of 4 bytes for each of 1,000 weights
    [
        ({}, 3 * (1 + 2) + 3),  # saved at 4, 8 and 10
        ({'averaged': True}, 3 * (2 + 2) + 6),
        ({'start': 4}, 2 * 3 + 3),
        ({'start': 9}, 1 * 3 + 3),
        ({'start': 4, 'weights': ['latest']}, 2 * 3 + 2),
        ({'start': 4, 'weights': ['best', 'latest']}, 2 * 3 + 1),
        ({'total': 8}, 2 * 3 + 3),
        ({'keep': 5}, 3 * 3 + 3),
        ({'keep': 1}, 2 * 3 + 3),  # the old pair stays until the new one is written
        ({'keep': 3, 'total': 100}, 4 * 3 + 3),
        ({'keep': 3, 'total': 100, 'there': 3, 'start': 2}, 1 * 3 + 3),
        ({'keep': 1, 'total': 100, 'there': 5, 'start': 4}, 1 * 3 + 3),
        ({'keep': 3, 'total': 100, 'there': 3}, 3 * 3 + 3),  # later pairs are put aside, not replaced
    ],
)
def test_room_that_checkpoints_need(tmp_path, changes, parts):
    changes = dict(changes)
    for folder in ('training_states', 'models'):
        (tmp_path / folder).mkdir()
    for label in changes.pop('weights', ()):
        run_folder.weights_path(tmp_path, label).touch()
    for number in range(changes.pop('there', 0)):
        (tmp_path / f'training_states/{number}.state').touch()
    arguments = {'averaged': False, 'start': 0, 'total': 10, 'every': 4, 'keep': None, **changes}
    with mock.patch('shutil.disk_usage', return_value=mock.Mock(free=4000 * parts)):
        run_folder.check_disk_space(tmp_path, 1000, **arguments)
    with (
        mock.patch('shutil.disk_usage', return_value=mock.Mock(free=4000 * parts - 1)),
        pytest.raises(InputError, match=f'need {4000 * parts:,} bytes'),
    ):
        run_folder.check_disk_space(tmp_path, 1000, **arguments)


def test_room_on_the_disk_is_checked_before_the_first_iteration(quick, capsys):
    usage = mock.Mock(free=100_000)
    with mock.patch('shutil.disk_usage', return_value=usage), mock.patch.object(StepGuard, 'check') as step:
        assert train() == 2
    assert not step.called
    said = capsys.readouterr().err.strip().splitlines()[-1]
    needed, free = (int(number.replace(',', '')) for number in re.findall(r'([\d,]+) (?:bytes|are free)', said))
    assert free == 100_000 and 'logger:keep_last' in said
    assert train() == 0
    files = {path.name: path.stat().st_size for path in FOLDER.rglob('net_g_*.pth')}
    states = sum(path.stat().st_size for path in FOLDER.rglob('*.state'))
    values = sum(value.numel() for value in read_file(FOLDER / 'models/net_g_8.pth')['params'].values())
    assert needed == 4 * values * (3 * 3 + 3), 'three pairs of three parts, and the best, the latest and one underway'
    assert needed < 4 * values + sum(files.values()) + states, 'without what the files have around the tensors'
    (FOLDER / 'models/net_g_8.pth').rename('begin.pth')
    with mock.patch('shutil.disk_usage', return_value=usage), mock.patch.object(WRCANModel, 'validation') as scored:
        assert train('path:pretrain_network_g=begin.pth') == 2
    assert not scored.called and 'logger:keep_last' in capsys.readouterr().err, 'nor are weights to train on scored'


@pytest.mark.parametrize('target', ['pathlib.Path.mkdir', 'os.open'])
def test_folder_that_may_not_be_written_to_is_said_with_what_to_do(tmp_path, target):
    folder = tmp_path / 'experiments/small'
    if target == 'os.open':
        folder.parent.mkdir()
    with (
        mock.patch(target, side_effect=PermissionError(errno.EACCES, os.strerror(errno.EACCES), 'some file')),
        pytest.raises(InputError) as error,
        run_folder.only_run_in(folder),
    ):
        pass
    hint = 'run this where it can be made'
    assert str(error.value) == f'{folder.parent}: cannot be written (Permission denied); {hint}'


def test_an_error_of_the_run_is_not_one_of_its_lock(tmp_path):
    with pytest.raises(PermissionError), run_folder.only_run_in(tmp_path / 'experiments/small'):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), 'some file')


def hold(locked):
    with run_folder.only_run_in(FOLDER):
        locked.set()
        time.sleep(600)


def test_second_run_in_the_folder_is_refused(quick, capsys):
    """A resume is refused too. The lock is the kernel's: a killed run leaves none."""
    context = multiprocessing.get_context('fork')
    locked = context.Event()
    holder = context.Process(target=hold, args=(locked,), daemon=True)  # ends with the tests if one fails
    holder.start()
    assert locked.wait()
    for resume in (False, True):
        assert train(resume=resume) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f'experiments/small: another run is at work there (process {holder.pid} on ' in said
    assert not FOLDER.exists()
    holder.kill()
    holder.join()
    assert train('train:total_iter=1') == 0
