"""`basicsr restore`: its options, how it ends when it is stopped, and several processes of it."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import picture
from forked import environment, srun
from PIL import Image
from tiny_restore import Same, names, network, save

from wrcan_arch import InputError, cli, restore
from wrcan_arch.inference import Request
from wrcan_arch.photos.bulk_restore import Options, restore_photos
from wrcan_arch.photos.comparison import pictures_on_page
from wrcan_arch.photos.plan import plan
from wrcan_arch.photos.read_photo import read_photo
from wrcan_arch.system.processes import Team
from wrcan_arch.weights import BUNDLED

FP32 = Options(request=Request(precision='fp32'))


def test_command_without_options_writes_beside(tmp_path, monkeypatch, capsys, weights):
    monkeypatch.chdir(tmp_path)
    save(Path('a.png'))
    monkeypatch.setitem(BUNDLED, 'small', weights)
    for _ in range(2):  # the second run replaces the first's result, and does not restore it
        assert cli.main(['restore', '.', '--precision', 'fp32']) == 0
        assert capsys.readouterr().out.splitlines()[0] == '1 of 1 restored'
        assert names(tmp_path) == ['a.png', 'a_restored.png', 'net.safetensors']
    expected = restore(network(), picture(12, 16), precision='fp32')
    np.testing.assert_array_equal(read_photo('a_restored.png').pixels, expected)


def test_command_tells_of_failures_with_any_name_and_goes_on(tmp_path, monkeypatch, capsys, weights):
    monkeypatch.chdir(tmp_path)
    save(Path('b.png'))
    bad = os.fsdecode(b'a\xe9.png')
    Path(bad).write_text('broken')
    Path('list.txt').write_bytes(os.fsencode(f'{bad}\nb.png\n\nnowhere/c.png\r\n'))
    assert cli.main(['restore', '--list', 'list.txt', '-w', str(weights), '-o', 'out', '--format', 'webp']) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.strip() and '%|' not in line]
    assert errors == [
        'a\\udce9.png: not an image that can be read; convert it to PNG or JPEG',
        'nowhere/c.png: no such photograph',
    ]
    assert names(tmp_path / 'out') == ['b.webp']


def test_command_tells_of_a_folder_that_cannot_be_read_and_goes_on(tmp_path, monkeypatch, capsys, weights):
    monkeypatch.chdir(tmp_path)
    save(Path('in/shut/a.png'))
    save(Path('in/z/b.png'))
    scandir = os.scandir

    def refuse(path):
        if Path(path) == Path('in/shut'):
            raise PermissionError(13, 'Permission denied', path)
        return scandir(path)

    monkeypatch.setattr('os.scandir', refuse)
    assert cli.main(['restore', 'in', '-w', str(weights), '-o', 'out']) == 1
    said = capsys.readouterr()
    assert 'in/shut: cannot be read (Permission denied)' in said.err.splitlines()
    assert said.out.splitlines()[0] == '1 of 1 restored' and Path('out/z/b.png').exists()


def test_photographs_may_stand_behind_options(tmp_path, monkeypatch, capsys, weights):
    monkeypatch.chdir(tmp_path)
    for name in ('a.png', 'b.png', 'c.png'):
        save(Path(name))
    assert cli.main(['restore', 'a.png', '-w', str(weights), 'b.png', '-o', 'out', 'c.png']) == 0
    assert names(tmp_path / 'out') == ['a.png', 'b.png', 'c.png']
    for command in (['restore', 'a.png', '-o', 'other', '--strengh', '1', 'b.png'], ['tables', 'a.png']):
        with pytest.raises(SystemExit, match='2'):
            cli.main(command)
        assert f'unrecognized arguments: {" ".join(command[4:] or command[1:])}' in capsys.readouterr().err
    assert not Path('other').exists()


def test_list_from_standard_input(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    save(Path('a/b.png'))
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'a/b.png\n')))
    assert cli.main(['restore', '--list', '-', '-w', str(weights), '-o', 'out']) == 0
    assert names(tmp_path / 'out') == ['a/b.png']


def test_sizes_are_read_with_their_unit():
    assert [cli._bytes(text) for text in ('4G', '1.5M', '64K', '12')] == [4 << 30, 3 << 19, 64 << 10, 12]
    for text in ('4X', '4GM', 'G', '', 'inf', 'nan'):
        with pytest.raises(SystemExit):
            cli.main(['restore', 'a.png', '--max-memory', text])


@pytest.mark.parametrize('ending', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_run_says_by_what_and_its_page_has_all_its_pictures(tmp_path, weights, ending):
    """That files are whole is shown by test_files.py and test_damaged_photos.py."""
    photo = save(tmp_path / 'in' / '0.png').read_bytes()
    for number in range(1, 2000):
        (tmp_path / 'in' / f'{number}.png').write_bytes(photo)
    command = [
        sys.executable,
        '-m',
        'wrcan_arch',
        'restore',
        'in',
        '-o',
        'out',
        '-w',
        str(weights),
        '--compare',
        'look',
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while len(list((tmp_path / 'out').glob('*.png'))) < 5:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(ending)
    _, errors = process.communicate()
    assert process.returncode == 128 + ending, errors
    assert 'Traceback' not in errors
    written = list((tmp_path / 'out').iterdir())
    assert 5 <= len(written) < 2000
    for path in written:
        assert path.suffix == '.png' and read_photo(path).pixels.shape == (12, 16, 3)
    assert {*(tmp_path / 'look' / 'in').iterdir()} == pictures_on_page(tmp_path / 'look'), (
        'shown, and known as pictures'
    )


# Several processes


def test_several_processes_begin_with_the_largest(tmp_path, monkeypatch):
    for number, side in enumerate((8, 40, 20)):
        Image.fromarray(picture(side, side)).save(tmp_path / f'{number}.png')
    team = Team()
    monkeypatch.setattr(team, 'size', 2)
    monkeypatch.setattr(team, 'agree_on', mock.Mock(side_effect=InputError('agreed')))
    with pytest.raises(InputError, match='agreed'):
        restore_photos(Same(), plan([tmp_path]), options=FP32, team=team)
    (jobs,) = team.agree_on.call_args.args
    assert [Path(job.source).name for job in jobs] == ['1.png', '2.png', '0.png']


@pytest.mark.slow
def test_processes_share_the_photographs(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        save(tmp_path / 'in' / f'{number}.png', number)
    (tmp_path / 'in' / '3.png').write_text('broken')
    codes, said = srun(2, 'restore', 'in', '-o', 'out', '-w', weights, '--precision', 'fp32', '--compare', 'look')
    assert codes == [1, 0], said
    assert said.count('11 of 12 restored\n') == 1
    assert said.count('3.png: not an image that can be read') == 1 and 'restore: 100%|' in said
    assert names(tmp_path / 'out') == sorted(f'{number}.png' for number in range(12) if number != 3)
    for number in (0, 11):
        expected = restore(network(), picture(12, 16, number), precision='fp32')
        np.testing.assert_array_equal(read_photo(tmp_path / 'out' / f'{number}.png').pixels, expected)
    assert (tmp_path / 'look' / 'index.html').read_text().count('<figure>') == 11


@pytest.mark.slow
def test_death_of_a_process_loses_only_what_it_had_not_done(tmp_path, monkeypatch, capsys, weights):
    photo = save(tmp_path / 'in' / '0.png').read_bytes()
    for number in range(1, 3000):
        (tmp_path / 'in' / f'{number}.png').write_bytes(photo)
    process = subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone']
        + ['--log-dir=logs', '-m', 'wrcan_arch', 'restore', 'in', '-o', 'out', '-w', str(weights)],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )  # fmt: skip
    while len(list((tmp_path / 'out').glob('*.png'))) < 20:
        time.sleep(0.05)
        assert process.poll() is None
    of_threads = Path(f'/proc/{process.pid}/task').glob('*/children')
    ours = [int(number) for path in of_threads for number in path.read_text().split()]
    os.kill(max(ours), signal.SIGKILL)
    process.communicate()
    assert process.returncode == 1
    done = list((tmp_path / 'out').glob('*.png'))
    assert 20 <= len(done) < 3000 and all(read_photo(path).pixels.shape == (12, 16, 3) for path in done)
    for path in sorted((tmp_path / 'in').iterdir())[40:]:
        path.unlink()
    monkeypatch.chdir(tmp_path)
    assert cli.main(['restore', 'in', '-o', 'out', '-w', str(weights), '--skip-existing']) == 0
    assert 'had a result already' in capsys.readouterr().out
    assert {path.name for path in (tmp_path / 'in').iterdir()} <= {path.name for path in (tmp_path / 'out').iterdir()}
