"""Bad input is one line and exit code 2; a defect shows its traceback."""

import dataclasses
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from unittest import mock

import cv2
import pytest
import torch
from conftest import nobody_reads_stdout, picture, train
from fresh import HIDING, run_python
from packaging.requirements import Requirement

from wrcan_arch import __version__, cli, doctor, ending
from wrcan_arch.errors import NO_TOOLBOX, RunError
from wrcan_arch.inference import Request
from wrcan_arch.photos.bulk_restore import Options


def basicsr(capsys, *arguments):
    """Run a command; return its exit code, and the lines on standard error that are not progress."""
    code = cli.main(list(map(str, arguments)))
    return code, [line for line in capsys.readouterr().err.splitlines() if line.strip() and '%|' not in line]


def test_ctrl_c_while_libraries_load_is_not_swallowed_by_an_import(capfd):
    with mock.patch('os._exit', side_effect=SystemExit) as end, pytest.raises(SystemExit), ending.ctrl_c_ends():
        with suppress(BaseException):  # as some import may
            os.kill(os.getpid(), signal.SIGINT)
        assert end.call_args == mock.call(130)
        raise SystemExit
    assert capfd.readouterr().err == 'basicsr: stopped\n'
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, 'given back'
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ending.ctrl_c_ends():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN, 'as in a background job'
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize('processes', ['1', '2'])
def test_of_several_processes_a_signal_just_ends_each(workplace, monkeypatch, processes):
    """One may wait for the others in a call that Python does not interrupt."""
    monkeypatch.setenv('WORLD_SIZE', processes)
    handlers = []

    def look(*_, **options):
        handlers.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP))

    with mock.patch('wrcan_arch.train.pipelines.run_pipeline', look):
        assert train() == 0
    assert [each is signal.SIG_DFL for each in handlers] == [processes == '2'] * 2


@pytest.mark.parametrize(('error', 'code'), [(KeyboardInterrupt(), 130), (RunError('stopped', 143), 143)])
def test_exit_code_is_the_same_if_nobody_reads_stderr(monkeypatch, error, code):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'w', buffering=1) as stderr, mock.patch.object(cli, 'run_doctor', side_effect=error):
        monkeypatch.setattr('sys.stderr', stderr)
        assert cli.main(['doctor']) == code


@pytest.mark.parametrize('processes', [1, 2])
def test_errors_do_not_go_to_stdout_if_stderr_is_closed(monkeypatch, capsys, processes):
    monkeypatch.setattr('sys.stderr', None)
    monkeypatch.setattr(cli, 'is_one_of_several', lambda: processes > 1)
    assert cli.main(['report', '--figure', 'nowhere']) == 2
    assert capsys.readouterr().out == ''


def test_the_older_launchers_argument_may_stand_before_the_command(capsys):
    """python -m torch.distributed.launch, from BasicSR's documentation, passes it there."""
    assert basicsr(capsys, '--local-rank=0', 'train', '-opt', 'gone.yml')[1] == [
        'basicsr train: gone.yml: there is no such option file'
    ]


def test_full_memory_of_a_gpu_is_one_line(capsys):
    with mock.patch.object(cli, 'run_doctor', side_effect=torch.cuda.OutOfMemoryError('CUDA out of memory. Tried')):
        assert basicsr(capsys, 'doctor') == (2, [
            "basicsr doctor: the GPU's memory is full; take a smaller image or patch, or compute on the CPU "
            '(CUDA_VISIBLE_DEVICES=)'
        ])  # fmt: skip


@pytest.mark.parametrize('workers', [0, 1])
def test_broken_value_is_one_line_also_from_a_worker(workplace, capsys, workers):
    import lmdb

    with lmdb.open('data_blur.lmdb', map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        transaction.put(b'photo3_000', b'rubbish')
    overrides = ['--force_yml', f'datasets:train:num_worker_per_gpu={workers}']
    code, lines = basicsr(capsys, 'train', '-opt', 'train.yml', *overrides)
    assert code == 2
    message = "data set small_train: 'photo3_000' in data_blur.lmdb is not a readable image"
    assert lines[-1] == f'basicsr train: {message}'
    assert not any('Traceback' in line for line in lines)


def test_overrides_may_be_given_more_than_once(workplace, capsys):
    overrides = ['train:total_iter=7', 'num_gpu=0'], ['name=mine']
    assert (
        cli.main(['show', '-opt', 'train.yml', *(each for some in overrides for each in ('--force_yml', *some))]) == 0
    )
    shown = capsys.readouterr().out
    assert all(f'# --force_yml {each}' in shown for some in overrides for each in some)


def test_missing_option_file_is_one_line(workplace, capsys):
    assert basicsr(capsys, 'train', '-opt', 'nowhere.yml') == (
        2, ['basicsr train: nowhere.yml: there is no such option file']
    )  # fmt: skip
    assert not Path('experiments').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere.jpg', '-w', 'good.pth'], 'nowhere.jpg: no such photograph or folder'),
        (['photo.png', '-w', 'nowhere.pth'], 'nowhere.pth: cannot be opened (No such file or directory)'),
        (['photo.png', '-w', 'photo.png'], 'photo.png: not a readable weight file'),
        (['photo.png', '-w', 'good.pth', '--mode', 'tile'], "inference mode 'tile' is not one of exact, local, chop"),
        (['photo.png', '-w', 'good.pth', '--precision', 'fp8'], "precision 'fp8' is not one of"),
        (['photo.png', '-w', 'good.pth', '--mode', 'local'], 'mode local: the weights do not say their patch size'),
    ],
)
def test_wrong_restore_is_one_line(tmp_path, monkeypatch, capsys, official_weights, arguments, message):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('photo.png', picture(16, 16))
    Path('good.pth').write_bytes(official_weights.read_bytes())
    code, lines = basicsr(capsys, 'restore', *arguments, '-o', 'out')
    assert code == 2 and lines == [f'basicsr restore: {lines[0].removeprefix("basicsr restore: ")}']
    assert message in lines[0]
    assert not list(Path().glob('out/*'))


def test_each_flag_of_restore_is_named_as_what_it_sets():
    """A flag with another name would have no effect."""
    of_the_command = {'command', 'run', 'debug', 'local_rank', 'photos', 'list', 'weights', 'format'}
    fields = {field.name for kind in (Request, Options) for field in dataclasses.fields(kind)} - {'request'}
    assert vars(cli.build_parser().parse_args(['restore'])).keys() == fields | of_the_command


def test_several_processes_cannot_share_standard_input(monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr(cli, 'exit_code_of_several', lambda error, *_, **options: print(error) or 2)
    assert cli.main(['restore', '--list', '-']) == 2
    assert 'several processes cannot share one standard input' in capsys.readouterr().out


def test_what_cannot_be_read_or_found_is_named_and_the_rest_done(tmp_path, monkeypatch, capsys, official_weights):
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    cv2.imwrite('a.png', picture(16, 16))
    Path('b.png').write_text('broken')
    code, lines = basicsr(capsys, 'restore', 'empty', 'a.png', 'b.png', '-o', 'out', '-w', official_weights)
    assert code == 1 and lines[0] == 'b.png: not an image that can be read; convert it to PNG or JPEG'
    assert len(lines) == 2 and lines[1].startswith('empty: no photographs in it (.jpg ')
    assert [path.name for path in Path('out').iterdir()] == ['a.png']


@pytest.mark.parametrize('several', [False, True])
def test_debug_adds_the_traceback(workplace, monkeypatch, capsys, several):
    monkeypatch.setattr(cli, 'is_one_of_several', lambda: several)
    assert cli.main(['train', '--debug', '-opt', 'nowhere.yml']) == 2
    said = capsys.readouterr().err
    assert 'Traceback (most recent call last):\n' in said
    assert said.endswith('nowhere.yml: there is no such option file\n')


def test_names_that_a_terminal_cannot_show_are_escaped(tmp_path, monkeypatch, official_weights):
    monkeypatch.chdir(tmp_path)
    Path('海.png').write_text('broken')
    cv2.imwritemulti('海.tif', [picture(16, 16), picture(16, 16)])
    out = io.TextIOWrapper(io.BytesIO(), 'ascii')
    err = io.TextIOWrapper(io.BytesIO(), 'ascii', errors='backslashreplace')  # like Python's own stderr
    with mock.patch('sys.stdout', out), mock.patch('sys.stderr', err):
        assert cli.main(['restore', '.', '-o', 'out', '-w', str(official_weights)]) == 1
    err.flush()
    printed, said = (each.buffer.getvalue().decode('ascii') for each in (out, err))
    assert printed.startswith('1 of 2 restored')
    assert 'warning: \\u6d77.tif: the file holds several pictures' in printed
    assert '\\u6d77.png: not an image' in said and 'Traceback' not in said


CLEARS = '\x1b[2J\x07'  # an escape sequence that clears a terminal, and its bell


@pytest.mark.parametrize(
    'arguments',
    [
        ['show', '-opt', 'a.yml'],
        ['show', '-opt', 'a.yml', '--force_yml', f'name={CLEARS}'],
        ['train', '-opt', 'a.yml'],
        ['train', '-opt', 'a.yml', '--debug'],
        ['convert', 'a.pth', '-o', 'b.pth'],
        ['doctor', '--data', 'data'],
        ['tables'],
    ],
)
@pytest.mark.parametrize('several', [False, True])
def test_a_terminal_gets_no_escape_sequence_from_a_file(tmp_path, monkeypatch, capsys, arguments, several):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, 'is_one_of_several', lambda: several)
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', 'torchruns.json')
    Path('a.yml').write_text('name: "a\\e[2J"\n"\\e[2J\\a": 1\n')
    torch.save({CLEARS: 1}, 'a.pth')
    Path(f'data/{CLEARS}.lmdb').mkdir(parents=True)
    result = {'metrics': {'psnr': 24.9}, 'protocol': CLEARS, 'images': 3000, 'network_g': {'type': CLEARS}}
    result['metric_options'] = {}
    Path('results/test_table2_row1').mkdir(parents=True)
    Path('results/test_table2_row1/result_REDS_val.json').write_text(json.dumps({**result, 'weights': None}))
    cli.main(arguments)
    said = ''.join(capsys.readouterr())
    if Path('torchruns.json').exists():
        said += json.loads(Path('torchruns.json').read_text())['message']['message']
    assert '\\x1b[2J' in said and not {'\x1b', '\x07'} & set(said)


def test_the_log_shows_escape_sequences_of_option_files(quick, capfd):
    Path('data_blur.lmdb').rename(f'{CLEARS}.lmdb')
    assert train('train:total_iter=1', 'val=~', 'datasets:train:dataroot_lq="\\e[2J\\a.lmdb"', 'datasets:val=~') == 0
    said = ''.join(capfd.readouterr())
    assert 'dataroot_lq: \\x1b[2J\\x07' in said and not {'\x1b', '\x07'} & set(said)
    assert '\n\tPyTorch: ' in said, 'the toolbox indents by tabs'


@pytest.mark.parametrize('flags', [[], ['--debug']])
def test_a_defects_traceback_shows_once(monkeypatch, capsys, flags):
    monkeypatch.setattr('wrcan_arch.doctor.report', mock.Mock(side_effect=KeyError('a defect')))
    with pytest.raises(KeyError, match='a defect'):  # Python prints it
        cli.main(['doctor', *flags])
    assert 'Traceback' not in capsys.readouterr().err


@pytest.mark.parametrize('arguments', ['show -opt train.yml', 'tables'])
def test_reader_that_leaves_early_is_no_error(workplace, arguments):
    command = f'{shlex.quote(sys.executable)} -m wrcan_arch {arguments} | true; test ${{PIPESTATUS[0]}} = 0'
    buffered = {**os.environ, 'PYTHONUNBUFFERED': ''}  # so that a short output is printed only at the end
    result = subprocess.run(['bash', '-c', command], capture_output=True, text=True, env=buffered)
    assert result.returncode == 0 and result.stderr == ''


@pytest.mark.parametrize(
    ('command', 'code'),
    [
        ('restore . -o out 2>&1 | true', 141),  # SIGPIPE: output is lost
        ('tables >&-', 0),
    ],
)
def test_closed_output_gives_no_traceback(tmp_path, command, code):
    cv2.imwrite(str(tmp_path / 'a.png'), picture(8, 8))
    command = f'{shlex.quote(sys.executable)} -m wrcan_arch {command}; exit ${{PIPESTATUS[0]}}'
    buffered = {**os.environ, 'PYTHONUNBUFFERED': ''}
    result = subprocess.run(['bash', '-c', command], capture_output=True, text=True, cwd=tmp_path, env=buffered)
    assert result.returncode == code and 'Traceback' not in result.stderr, result.stderr


@pytest.mark.parametrize('buffering', [1, -1], ids=['by line', 'by block'])
@pytest.mark.parametrize(
    ('command', 'code', 'said'),
    [
        ('restore a.png b.png -o out', 1, 'b.png: '),
        ('doctor --data bad', 1, 'b.png: '),
        ('show -opt train.yml --force_yml train:amp=wrong', 2, 'train:amp'),
        ('doctor', 1, ''),
    ],
)
def test_failures_are_reported_if_nobody_reads_stdout(workplace, monkeypatch, capfd, buffering, command, code, said):
    monkeypatch.setattr('wrcan_arch.doctor.report', lambda: ('a row', False))
    Path('bad').mkdir()
    for path in ('b.png', 'bad/b.png'):
        Path(path).touch()
    cv2.imwrite('a.png', picture(8, 8))
    with nobody_reads_stdout(buffering):
        assert cli.main(command.split()) == code
    assert said in capfd.readouterr().err


@pytest.mark.parametrize('buffering', [1, -1], ids=['by line', 'by block'])
def test_pages_are_written_if_nobody_reads_stdout(tmp_path, monkeypatch, buffering):
    monkeypatch.chdir(tmp_path)
    with nobody_reads_stdout(buffering):
        assert cli.main(['tables', '--html', 'tables.html', '--csv', 'tables.csv']) == 0
    assert Path('tables.html').is_file() and Path('tables.csv').is_file()


def test_training_goes_on_if_nobody_reads_stdout(quick, capfd):
    """The toolbox prints before it trains."""
    with nobody_reads_stdout(buffering=1):
        assert train('train:total_iter=1', 'val=~') == 0
    assert Path('experiments/small/models/net_g_latest.pth').is_file()
    assert 'Disable distributed.' in capfd.readouterr().err


def test_defect_is_not_hidden(monkeypatch):
    monkeypatch.setattr('wrcan_arch.doctor.report', lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(['doctor'])


def test_doctor_prints_versions_repairs_and_what_is_missing(capsys, monkeypatch):
    assert cli.main(['doctor']) == 0
    text = capsys.readouterr().out
    for part in ('basicsr', '1.4.2', 'torch', 'GPU', 'functional_tensor', 'load_resume_state', 'Nothing is missing'):
        assert part in text
    assert max(map(len, text.splitlines())) > 120, 'in a pipe a row is a line'
    monkeypatch.setenv('COLUMNS', '80')
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    assert cli.main(['doctor']) == 0
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 80 and narrow.split() == text.split()
    monkeypatch.setenv('COLUMNS', '5')
    assert cli.main(['doctor']) == 0
    assert capsys.readouterr().out.split() == text.split()
    asked = [Requirement('torch>=99'), Requirement('no-such-package'), Requirement('numpy')]
    monkeypatch.setattr('wrcan_arch.doctor.requirements', lambda: asked)
    assert cli.main(['doctor']) == 1
    assert 'Missing, unfit or unusable: torch, no-such-package\n' in capsys.readouterr().out


def test_doctor_computes_on_each_gpu(monkeypatch):
    """As a GPU may be of a kind for which this PyTorch has no kernels."""
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.get_device_name', 'GPU of {}'.format)
    images = mock.Mock(return_value=torch.zeros(1, 3, 8, 8))
    monkeypatch.setattr('torch.zeros', images)
    answers = [torch.ones(1), RuntimeError('CUDA error: no kernel image\nCompile with')]
    monkeypatch.setattr('torch.nn.functional.conv2d', mock.Mock(side_effect=answers))
    first, second, *_ = doctor._processors()
    assert first == ('GPU 0', 'GPU of 0', 'usable')
    assert second == ('GPU 1', 'GPU of 1', 'UNUSABLE: CUDA error: no kernel image')
    assert [call.kwargs['device'] for call in images.call_args_list] == ['cuda:0', 'cuda:1']


def test_doctor_says_that_the_driver_is_too_old(monkeypatch):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 1)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('torch.__version__', '2.13.0+cu130')
    expected = ('GPU', 'none usable', 'the driver is too old for PyTorch 2.13.0+cu130, or does not work')
    assert doctor._processors()[0] == expected


def test_doctor_says_that_linux_is_needed(capsys, monkeypatch):
    monkeypatch.setattr('wrcan_arch.doctor.requirements', list)
    monkeypatch.setattr('platform.system', lambda: 'Windows')
    assert cli.main(['doctor']) == 1
    said = capsys.readouterr().out
    assert re.search(r'system +Windows .* UNFIT: Linux is needed\n', said) and 'unfit or unusable: system\n' in said


def test_doctor_answers_by_its_code_where_stdout_is_closed(monkeypatch):
    monkeypatch.setattr('sys.stdout', None)
    assert cli.main(['doctor']) == 0


@pytest.mark.parametrize('error', [OSError('cannot load libvips.so.42'), ImportError('no libGL.so.1')])
def test_doctor_tries_what_is_installed(capsys, monkeypatch, error):
    monkeypatch.setattr('wrcan_arch.doctor.requirements', lambda: [Requirement('opencv-python'), Requirement('numpy')])

    def import_one(name):
        if name == 'cv2':
            raise error

    monkeypatch.setattr('wrcan_arch.doctor.import_module', import_one)
    assert cli.main(['doctor']) == 1
    said = capsys.readouterr().out
    assert f'UNUSABLE: {error}\n' in said and 'Missing, unfit or unusable: opencv-python\n' in said


@pytest.mark.parametrize(
    ('package', 'advice'),
    [
        ('wrcan-arch', 'pip install --no-build-isolation -e .'),
        ('basicsr==1.4.2; python_version < "3.13"', 'pip install --no-build-isolation "basicsr==1.4.2"'),
        ('lmdb>=1.4', 'pip install "lmdb>=1.4"'),
    ],
)
def test_doctor_says_how_to_install_what_is_missing(monkeypatch, package, advice):
    monkeypatch.setattr(metadata, 'version', mock.Mock(side_effect=metadata.PackageNotFoundError))
    assert doctor._row_of(Requirement(package))[1:] == ('MISSING', advice)


def test_doctor_tells_the_version_that_runs(monkeypatch):
    monkeypatch.setattr(metadata, 'version', lambda _: '0.0.1')  # of an install before the checkout was updated
    assert doctor._row_of(Requirement('wrcan-arch')) == ('wrcan-arch', __version__, '')


def test_doctor_tells_of_heic(capsys, monkeypatch):
    version = metadata.version

    def without_heic(name):
        if name == 'pi-heif':
            raise metadata.PackageNotFoundError
        return version(name)

    monkeypatch.setattr('wrcan_arch.doctor.requirements', list)
    monkeypatch.setattr(metadata, 'version', without_heic)
    assert cli.main(['doctor']) == 0
    said = capsys.readouterr().out
    assert re.search(r'pi-heif +none +for HEIC: pip install "pi-heif>=1.0"\n', said) and 'Nothing is' in said


@pytest.mark.parametrize(('set_before', 'then'), [(None, 'passive'), ('active', 'active')])
def test_threads_wait_asleep_unless_somebody_says_how(monkeypatch, set_before, then):
    monkeypatch.setenv('OMP_WAIT_POLICY', '')  # so that monkeypatch restores it
    monkeypatch.delenv('OMP_WAIT_POLICY')
    if set_before:
        monkeypatch.setenv('OMP_WAIT_POLICY', set_before)
    assert cli.main(['tables']) == 0
    assert os.environ['OMP_WAIT_POLICY'] == then


def test_module_and_command_are_the_same(tmp_path):
    command = Path(sys.executable).with_name('basicsr')
    for start in ([sys.executable, '-m', 'wrcan_arch'], [command]):
        result = subprocess.run([*start, 'restore'], capture_output=True, text=True, cwd=tmp_path, env=os.environ)
        assert result.returncode == 2 and 'no photographs were given' in result.stderr
        result = subprocess.run([*start, '--version'], capture_output=True, text=True, cwd=tmp_path, env=os.environ)
        assert (result.returncode, result.stdout) == (0, f'wrcan-arch {__version__}\n')


@pytest.mark.parametrize(
    'error', [ModuleNotFoundError("No module named 'lmdb'"), ImportError('libGL.so.1: no such file')]
)
def test_what_cannot_be_imported_leads_to_doctor(error):
    assert ending.message_for_user(error) == f'{error}; basicsr doctor says what is missing'


def test_a_gpu_that_this_pytorch_has_no_kernels_for_is_named():
    """Its message goes on with advice for programmers."""
    error = 'CUDA error: no kernel image is available for execution on the device'
    message = ending.message_for_user(RuntimeError(f"{error}\nSearch for `cudaErrorNoKernelImageForDevice'"))
    assert message == f'{error}; see basicsr doctor, or compute on the CPU (CUDA_VISIBLE_DEVICES=)'
    busy = ending.message_for_user(RuntimeError('CUDA error: CUDA-capable device(s) is/are busy or unavailable'))
    assert busy is not None and 'CUDA_VISIBLE_DEVICES=' in busy
    assert ending.message_for_user(RuntimeError('CUDA error: device-side assert triggered')) is None


def test_a_python_that_the_toolbox_cannot_be_installed_on_is_named(monkeypatch):
    monkeypatch.setattr(metadata, 'version', mock.Mock(side_effect=metadata.PackageNotFoundError))
    monkeypatch.setattr('wrcan_arch.doctor.requirements', list)
    monkeypatch.setattr('sys.version_info', (3, 13))
    assert ('basicsr', 'none', NO_TOOLBOX) in doctor._installed()
    assert ending.message_for_user(ModuleNotFoundError("No module named 'basicsr'", name='basicsr')) == NO_TOOLBOX


def test_doctor_speaks_when_a_package_is_missing():
    """Even one that our own import needs."""
    for missing in ('lmdb', 'torch', 'basicsr'):
        code = (
            'import sys\n'
            f'for name in [*sys.modules]:  # torch is loaded in the process that is forked\n'
            f'    if name.split(".")[0] == {missing!r}: del sys.modules[name]\n'
            f'{HIDING.format(hidden=missing)}\n'
            'from wrcan_arch.cli import main; sys.exit(main(["doctor"]))'
        )
        result = run_python(code)
        assert 'Versions' in result.stdout and 'not known' in result.stdout, result.stderr[-500:]
        assert missing in result.stdout.partition('not known')[2] and 'Traceback' not in result.stderr
