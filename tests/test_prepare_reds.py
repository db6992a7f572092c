import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from basicsr.data import build_dataset
from conftest import nobody_reads_stdout, picture

import prepare_reds
from wrcan_arch.data import store_writer
from wrcan_arch.data.lmdb_store import open_store, verify_store
from wrcan_arch.data.store_writer import StoreWriter

SCRIPT = Path(__file__).parent.parent / 'datasets_prep' / 'prepare_reds.py'


SEQUENCES, FRAMES, SIZE = {'train': 3, 'val': 2, 'test': 1}, 4, (48, 64)
SETS = {'train_blur_jpeg', 'train_sharp', 'val_blur_jpeg', 'val_sharp', 'test_blur_jpeg'}


def make_reds(folder):
    """Make a small tree in REDS's layout: train/train_sharp/000/00000000.png etc.; the test set has no sharp frames."""
    for split, sequences in SEQUENCES.items():
        for sequence in range(sequences):
            blurred, sharp = (folder / split / f'{split}_{role}' / f'{sequence:03d}' for role in ('blur_jpeg', 'sharp'))
            for place in (blurred, sharp) if split != 'test' else (blurred,):
                place.mkdir(parents=True)
            for number in range(FRAMES):
                frame = picture(*SIZE, seed=1000 * len(split) + 10 * sequence + number)
                name, quality = str(blurred / f'{number:08d}.jpg'), [cv2.IMWRITE_JPEG_QUALITY, 25]
                cv2.imwrite(name, cv2.blur(frame, (5, 3)), quality)
                if sharp.is_dir():
                    cv2.imwrite(str(sharp / f'{number:08d}.png'), frame)


def make_zips(tree, folder):
    """Make an uncompressed zip file of each set, as REDS has, with train/train_sharp/000/00000000.png and so on."""
    folder.mkdir()
    for place in sorted(tree.glob('*/*')):
        with zipfile.ZipFile(folder / f'{place.name}.zip', 'w') as file:
            for path in [place, *sorted(place.rglob('*'))]:
                file.write(path, path.relative_to(tree))


@pytest.fixture(scope='session')
def reds(tmp_path_factory):
    """tree/, zips/, and what an undisturbed run makes of the tree: stores/ and, with raw sharp frames, raw/."""
    folder = tmp_path_factory.mktemp('reds')
    make_reds(folder / 'tree')
    make_zips(folder / 'tree', folder / 'zips')
    command = [sys.executable, SCRIPT, 'tree', '-o', 'stores', '--any-size']
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0 and '12/12 [' in result.stderr, result.stderr
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(monkeypatch, folder / 'tree', '-o', folder / 'raw', '--any-size', '--store', 'raw') == 0
    return folder


@pytest.fixture
def downloads(reds, tmp_path, monkeypatch):
    """The current folder, with copies of tree/ and zips/ to damage; prepare_reds expects REDS to be as small."""
    for name in ('tree', 'zips'):
        shutil.copytree(reds / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare_reds, 'SEQUENCES', SEQUENCES)
    monkeypatch.setattr(prepare_reds, 'FRAMES', FRAMES)
    monkeypatch.setattr(prepare_reds, 'SIZE', SIZE)
    return tmp_path


def run(monkeypatch, *arguments):
    """Run prepare_reds.py in this process and return its exit code."""
    monkeypatch.setattr(sys, 'argv', ['prepare_reds.py', '--workers', '2', *map(str, arguments)])
    try:
        prepare_reds.main()
    except SystemExit as end:
        return end.code
    return 0


def message(capsys):
    """The only line on stderr that is not a progress bar."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line and '%|' not in line]
    assert len(lines) == 1 and lines[0].startswith('prepare_reds: '), lines
    return lines[0]


def content(path):
    """The texts and values of a store."""
    store = open_store(path)
    texts = [(path / name).read_text() for name in ('meta_info.txt', 'manifest.json')]
    return texts, [store.get(key) for key in store.keys()]


def names_in(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def files_of(tree, set_name):
    return sorted((tree / set_name.partition('_')[0] / set_name).rglob('*.*g'))


def test_stores_hold_the_files_bytes_under_basicsrs_keys(reds):
    assert names_in(reds / 'stores') == {f'{name}.lmdb' for name in SETS}
    for name in SETS:
        files = files_of(reds / 'tree', name)
        path = reds / 'stores' / f'{name}.lmdb'
        keys = [f'{file.parent.name}_{file.stem}' for file in files]
        expected = [f'{key}{file.suffix} (48,64,3) 0' for key, file in zip(keys, files, strict=True)]
        assert (path / 'meta_info.txt').read_text().splitlines() == expected
        assert content(path)[1] == [file.read_bytes() for file in files]
        assert len(files) == SEQUENCES[name.partition('_')[0]] * FRAMES
        assert names_in(path) == {'data.mdb', 'meta_info.txt', 'manifest.json'}
        assert verify_store(path) == []


@pytest.mark.parametrize('source', ['zips', 'zips/train_sharp.zip', 'tree/train/train_sharp', 'both'])
def test_zips_and_folders_make_the_same_stores(reds, downloads, monkeypatch, source):
    sources = ['tree', 'zips'] if source == 'both' else [source]
    assert run(monkeypatch, *sources, '-o', 'out') == 0
    names = {'train_sharp'} if 'train_sharp' in source else SETS
    assert names_in(downloads / 'out') == {f'{name}.lmdb' for name in names}
    for name in names:
        assert content(downloads / 'out' / f'{name}.lmdb') == content(reds / 'stores' / f'{name}.lmdb')


def test_zips_that_are_not_needed_are_passed_over(downloads, monkeypatch):
    for name in ('._train_sharp', 'train_blur', 'train_blur_comp', 'val_sharp'):  # macOS's, of other tracks and splits
        (downloads / f'zips/{name}.zip').write_bytes(b'no zip')
    assert run(monkeypatch, 'zips', '-o', 'out', '--splits', 'train') == 0
    assert names_in(downloads / 'out') == {'train_blur_jpeg.lmdb', 'train_sharp.lmdb'}


def test_folders_may_be_given_twice_and_hold_links(reds, downloads, monkeypatch):
    (downloads / 'tree/again').symlink_to('train/train_sharp')
    assert run(monkeypatch, 'tree', 'tree/train', '-o', 'out') == 0
    for name in SETS:
        assert content(downloads / 'out' / f'{name}.lmdb') == content(reds / 'stores' / f'{name}.lmdb')


def test_what_cannot_be_done_with_what_is_there_is_said_in_one_line(reds, downloads, monkeypatch, capsys):
    assert run(monkeypatch, 'tree/train/train_blur_jpeg', '-o', 'out') == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        'warning: no training without train_sharp; no validation and no tests of Tables 1 and 2 without val_blur_jpeg '
        'and val_sharp; no Table 3 without test_blur_jpeg'
    )
    assert run(monkeypatch, 'tree/val', '-o', 'out', '--splits', 'train', 'val') == 0
    assert 'warning: no training without train_sharp\n' in capsys.readouterr().out
    assert run(monkeypatch, 'tree/train/train_sharp', '-o', 'out', '--splits', 'train') == 0
    assert 'warning' not in capsys.readouterr().out, 'train_blur_jpeg.lmdb is there already'


def test_help_names_the_downloads(monkeypatch, capsys):
    assert run(monkeypatch, '--help') == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in SETS)


def test_workers_start_where_opencv_has_threads_of_its_own(downloads, monkeypatch):
    """As in a program that has used OpenCV, whose threads a forked worker does not inherit."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.zeros((2000, 2000), np.float32), (0, 0), 9)
    try:
        assert run(monkeypatch, 'tree', '-o', 'threads', '--workers', '2') == 0
        assert cv2.getNumThreads() == 4
    finally:
        cv2.setNumThreads(threads)


def test_raw_store_gives_the_decoded_frames(reds):
    assert open_store(reds / 'raw' / 'train_blur_jpeg.lmdb').kind == 'encoded'
    for name in ('train_sharp', 'val_sharp'):
        store = open_store(reds / 'raw' / f'{name}.lmdb')
        assert store.kind == 'raw' and verify_store(store.path) == []
        for file in files_of(reds / 'tree', name):
            key, frame = f'{file.parent.name}_{file.stem}', cv2.imread(str(file))
            assert store.shape(key) == frame.shape
            with store.view(key) as view:
                np.testing.assert_array_equal(view, frame)


def test_basicsrs_own_data_set_reads_the_encoded_stores(reds):
    options = {
        'name': 'reds', 'type': 'PairedImageDataset', 'phase': 'val', 'scale': 1, 'io_backend': {'type': 'lmdb'},
        'dataroot_lq': str(reds / 'stores' / 'val_blur_jpeg.lmdb'),
        'dataroot_gt': str(reds / 'stores' / 'val_sharp.lmdb'),
    }  # fmt: skip
    dataset = build_dataset(options)
    blurred, sharp = (files_of(reds / 'tree', name) for name in ('val_blur_jpeg', 'val_sharp'))
    assert len(dataset) == len(blurred) == len(sharp)
    for item, files in zip(dataset, zip(blurred, sharp, strict=True), strict=True):
        for role, file in zip(('lq', 'gt'), files, strict=True):
            frame = item[role].numpy().transpose(1, 2, 0)[:, :, ::-1] * 255
            np.testing.assert_array_equal(np.rint(frame), cv2.imread(str(file)))


def test_second_run_changes_nothing_and_refuses_another_request(downloads, monkeypatch, capsys):
    assert run(monkeypatch, 'zips', '-o', 'out', '--splits', 'val') == 0
    assert names_in(downloads / 'out') == {'val_blur_jpeg.lmdb', 'val_sharp.lmdb'}
    before = [path.stat().st_mtime_ns for path in sorted((downloads / 'out').rglob('*'))]
    assert run(monkeypatch, 'zips', '-o', 'out', '--splits', 'val') == 0
    assert 'val_sharp.lmdb: 8 frames, exists already' in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in sorted((downloads / 'out').rglob('*'))] == before
    assert run(monkeypatch, 'zips', '-o', 'out', '--splits', 'val', '--store', 'raw') == 2
    assert 'out/val_sharp.lmdb: exists already and is encoded, not raw' in message(capsys)
    shutil.rmtree('zips')
    whole = {path: path.read_bytes() for path in Path('tree/val').rglob('*.*g')}
    for path in whole:
        cv2.imwrite(str(path), np.zeros((40, 64, 3), np.uint8))
    assert run(monkeypatch, 'tree', '-o', 'out', '--splits', 'val', '--any-size') == 2
    assert 'out/val_blur_jpeg.lmdb: exists already with other frames' in message(capsys)
    for path, content in whole.items():
        path.write_bytes(content) if path.parent.name == '000' else path.unlink()
    assert run(monkeypatch, 'tree', '-o', 'out', '--splits', 'val', '--any-size') == 2
    assert 'out/val_blur_jpeg.lmdb: exists already with other frames' in message(capsys)


def test_a_store_that_is_there_is_refused_before_another_is_written(downloads, monkeypatch, capsys):
    assert run(monkeypatch, 'tree/val', '-o', 'out') == 0
    capsys.readouterr()
    assert run(monkeypatch, 'tree', '-o', 'out', '--store', 'raw') == 2
    assert 'out/val_sharp.lmdb: exists already and is encoded, not raw' in message(capsys)
    assert names_in(downloads / 'out') == {'val_blur_jpeg.lmdb', 'val_sharp.lmdb'}


def kill_at(name, count):
    """Make this process kill itself at the `count`-th call of StoreWriter's method `name`."""
    method, calls = getattr(StoreWriter, name), []

    def dying(self, *arguments, **options):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *arguments, **options)

    setattr(StoreWriter, name, dying)


def run_and_die(place, batch, arguments):
    store_writer.BATCH_SIZE = batch
    kill_at(*place)
    sys.argv = ['prepare_reds.py', '--workers', '2', *arguments]
    prepare_reds.main()


@pytest.mark.parametrize(
    ('place', 'batch', 'kept'),
    [
        (('put', 1), 1, 0),
        (('put', 8), 1, 7),
        (('put', 8), 20_000, range(1, 7)),
        (('flush', 12), 1, 11),
        (('_write_text', 1), 1, 12),
        (('_write_text', 2), 1 << 20, 12),
    ],
)
def test_killed_run_goes_on_where_it_was(reds, downloads, monkeypatch, capsys, place, batch, kept):
    arguments = ['tree/train/train_sharp', '-o', 'out']
    child = multiprocessing.get_context('fork').Process(target=run_and_die, args=(place, batch, arguments))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert names_in(downloads / 'out') == {'train_sharp.lmdb.partial'}
    capsys.readouterr()
    assert run(monkeypatch, *arguments) == 0
    found = re.search(r'12 frames(?:, (\d+) of them from an earlier run)?$', capsys.readouterr().out, re.MULTILINE)
    assert int(found[1] or 0) in ([kept] if isinstance(kept, int) else kept)
    path = downloads / 'out' / 'train_sharp.lmdb'
    assert names_in(path.parent) == {path.name} and verify_store(path) == []
    assert content(path) == content(reds / 'stores' / path.name)


def alive(process_id):
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f'/proc/{process_id}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(('method', 'count'), [('fork', 2), pytest.param('spawn', 1, marks=pytest.mark.slow)])
def test_killed_program_leaves_no_process_and_no_store(downloads, method, count):
    """The real program, killed from outside while its workers run; a slow disk stands for a long run."""
    program = (
        'import multiprocessing, time, prepare_reds as p\n'
        'from wrcan_arch.data import store_writer\n'
        "if __name__ == '__main__':\n"
        f'    multiprocessing.set_start_method({method!r})\n'
        '    put = store_writer.StoreWriter.put\n'
        '    def slow_put(*a):\n'
        '        put(*a)\n'
        '        print([process.pid for process in multiprocessing.active_children()], flush=True)\n'
        '        time.sleep(60)\n'
        '    store_writer.StoreWriter.put = slow_put\n'
        '    p.main()\n'
    )
    Path('slow.py').write_text(program)
    path = os.pathsep.join(filter(None, [str(SCRIPT.parent), os.environ.get('PYTHONPATH')]))
    environment = {**os.environ, 'PYTHONPATH': path}
    command = [sys.executable, 'slow.py', 'tree/val', '-o', 'out', '--any-size', '--workers', str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        line = next(line for line in process.stdout if line.startswith('['))
        workers = [int(number) for number in re.findall(r'\d+', line)]
        process.kill()
    end = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(workers) == count and not any(map(alive, workers))
    assert names_in(downloads / 'out') == {'val_blur_jpeg.lmdb.partial'}


def cut_zip(folder):
    path = folder / 'zips' / 'train_sharp.zip'
    os.truncate(path, path.stat().st_size * 2 // 3)


def zip_of_a_newer_format(folder):
    path = folder / 'zips' / 'train_sharp.zip'
    content = bytearray(path.read_bytes())
    content[content.index(b'PK\x01\x02') + 6] = 250  # the version needed to read it
    path.write_bytes(content)


def zip_with_a_flipped_bit(folder):
    path = folder / 'zips' / 'val_sharp.zip'
    with zipfile.ZipFile(path) as file:
        place = file.getinfo('val/val_sharp/001/00000002.png').header_offset + 500
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def cut_frame(folder):
    path = folder / 'tree/train/train_sharp/001/00000002.png'
    os.truncate(path, path.stat().st_size - 5)


def cut_jpeg(folder):
    path = folder / 'tree/val/val_blur_jpeg/001/00000003.jpg'
    os.truncate(path, path.stat().st_size - 40)


def frame_with_a_flipped_bit(folder):
    path = folder / 'tree/train/train_sharp/002/00000000.png'
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def image(name, array):
    def spoil(folder):
        cv2.imwrite(str(folder / name), array)

    return spoil


def rename(old, new):
    def spoil(folder):
        (folder / old).rename(folder / new)

    return spoil


def copy(old, new):
    def spoil(folder):
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / old, folder / new)

    return spoil


GREY = np.zeros(SIZE, np.uint8)
FIRST = 'tree/train/train_sharp/000/00000000.png'
LAST = 'tree/val/val_sharp/001/00000003.png'


@pytest.mark.parametrize(
    ('spoil', 'arguments', 'expected'),
    [
        (cut_zip, ['zips'], r'zips/train_sharp\.zip: not a whole zip file .*; download it again'),
        (
            zip_of_a_newer_format,
            ['zips'],
            r'train_sharp\.zip: not a whole zip file \(zip file version 25\.0\)',
        ),
        (
            zip_with_a_flipped_bit,
            ['zips'],
            r'val_sharp\.zip: val/val_sharp/001/00000002\.png: cannot be read \(Bad CRC',
        ),
        (cut_frame, ['tree'], r'train_sharp/001/00000002\.png: it was cut; download'),
        (cut_jpeg, ['tree'], r'val_blur_jpeg/001/00000003\.jpg: it was cut; download'),
        (frame_with_a_flipped_bit, ['tree'], r'train_sharp/002/00000000\.png: its IDAT chunk is damaged; download'),
        (
            rename('tree/val/val_sharp/001/00000002.png', 'tree/val/val_sharp/001/0000002.png'),
            ['tree'],
            r'val_sharp: 1 frame missing \(7 found, REDS has 8\), the first is 001/00000002\.png; ',
        ),
        (
            copy(LAST, 'tree/val/val_sharp/001/00000004.png'),
            ['tree'],
            r'val_sharp: 1 frame too many \(9 .*, the first is 001/00000004\.png; ',
        ),
        (
            rename(LAST, 'tree/frame.png'),
            ['tree', '--any-size'],
            r'val_blur_jpeg/001/00000003\.jpg: there is no such frame in val_sharp \(1 frame without a partner\);',
        ),
        (
            rename('tree/val/val_blur_jpeg/001', 'tree/val/val_blur_jpeg/001_'),
            ['tree', '--any-size'],
            r'val_sharp/001/00000000\.png: there is no such frame in val_blur_jpeg \(4 frames',
        ),
        (image(LAST, np.zeros((48, 60, 3), np.uint8)), ['tree'], r'001/00000003\.png: it is 60 x 48, not 64 x 48 like'),
        (image(LAST, np.zeros((40, 64, 3), np.uint8)), ['tree', '--any-size'], r'png: it is 64 x 40, not 64 x 48 like'),
        (image(LAST, GREY), ['tree'], r'001/00000003\.png: not an 8-bit colour image but uint8 of shape \(48, 64\)'),
        (image(LAST, np.zeros((*SIZE, 3), np.uint16)), ['tree'], r'3\.png: not an 8-bit colour image but uint16'),
        (copy(FIRST, LAST.replace('png', 'jpg')), ['tree'], r'00000003\.jpg: the frames of val_sharp are \.png files'),
        (
            copy(FIRST, 'more/train_sharp/000/00000000.png'),
            ['tree', 'more'],
            r'train_sharp/000/00000000\.png and .*train_sharp/000/00000000\.png: the same frame twice',
        ),
        (cut_frame, ['tree/test', '--splits', 'train'], r'tree/test: no frames of REDS \(train\) such as '),
        (cut_frame, ['nowhere'], r'nowhere: no such folder or zip file'),
        (cut_frame, ['tree', '--workers', '0'], r'--workers 0: at least 1'),
    ],
)
def test_bad_input_is_named_in_one_line_and_makes_no_store(downloads, monkeypatch, capsys, spoil, arguments, expected):
    spoil(downloads)
    assert run(monkeypatch, *arguments, '-o', 'out') == 2
    assert re.search(expected, message(capsys))
    assert not any(name.endswith('.partial') for name in names_in(downloads / 'out'))  # none written: all in one batch
    assert all(verify_store(path) == [] for path in (downloads / 'out').glob('*'))


def test_reds_own_numbers_and_size_are_expected(reds, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, reds / 'zips', '-o', tmp_path / 'out') == 2
    assert 'train_blur_jpeg: 23988 frames missing (12 found, REDS has 24000)' in message(capsys)
    for split, found in (('val', 8), ('test', 4)):
        assert run(monkeypatch, reds / 'zips', '-o', tmp_path / 'out', '--splits', split) == 2
        said = f'{split}_blur_jpeg: {3000 - found} frames missing ({found} found, REDS has 3000)'
        assert said in message(capsys)
    monkeypatch.setattr(prepare_reds, 'SEQUENCES', SEQUENCES)
    monkeypatch.setattr(prepare_reds, 'FRAMES', FRAMES)
    assert run(monkeypatch, reds / 'zips', '-o', tmp_path / 'out') == 2
    assert 'it is 64 x 48, not 1280 x 720' in message(capsys)
    assert names_in(tmp_path / 'out') == set()


def test_run_after_a_repaired_frame_takes_only_what_is_missing(reds, downloads, monkeypatch, capsys):
    """Frames stored before the damaged one are kept, except one that changed since, which is read again."""
    monkeypatch.setattr(store_writer, 'BATCH_SIZE', 1)
    good, bad = Path(FIRST), Path('tree/train/train_sharp/002/00000001.png')
    shutil.copy(LAST, good)
    bad.rename('kept')
    shutil.copy(LAST, bad)
    os.truncate(bad, 100)
    assert run(monkeypatch, 'tree/train/train_sharp', '-o', 'out') == 2
    assert '002/00000001.png: it was cut' in message(capsys)
    assert names_in(downloads / 'out') == {'train_sharp.lmdb.partial'}
    shutil.copy(reds / FIRST, good)
    Path('kept').replace(bad)
    assert run(monkeypatch, 'tree/train/train_sharp', '-o', 'out') == 0
    assert '12 frames, 8 of them from an earlier run' in capsys.readouterr().out
    path = downloads / 'out' / 'train_sharp.lmdb'
    assert names_in(path.parent) == {path.name} and verify_store(path) == []
    assert content(path) == content(reds / 'stores' / path.name)


def test_partial_store_of_the_other_kind_is_refused_and_a_cut_one_is_started_anew(reds, downloads, monkeypatch, capsys):
    monkeypatch.setattr(store_writer, 'BATCH_SIZE', 1)
    partial = downloads / 'out' / 'train_sharp.lmdb.partial'
    arguments = ['tree/train/train_sharp', '-o', 'out']
    last = Path('tree/train/train_sharp/002/00000003.png')
    whole = last.read_bytes()
    last.write_bytes(b'')
    assert run(monkeypatch, *arguments, '--store', 'raw') == 2
    assert partial.exists()
    capsys.readouterr()
    assert run(monkeypatch, *arguments) == 2
    assert 'give --store raw again, or remove it' in message(capsys)
    os.truncate(partial / 'data.mdb', (partial / 'data.mdb').stat().st_size // 2)
    last.write_bytes(whole)
    capsys.readouterr()
    assert run(monkeypatch, *arguments) == 0
    assert 'earlier run' not in capsys.readouterr().out
    assert content(downloads / 'out' / 'train_sharp.lmdb') == content(reds / 'stores' / 'train_sharp.lmdb')


def test_full_disk_is_named_and_the_next_run_goes_on(reds, downloads, monkeypatch, capsys):
    """A limit on file size stands for a full disk: the same system call of the writer fails."""
    import resource

    monkeypatch.setattr(store_writer, 'BATCH_SIZE', 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        assert run(monkeypatch, 'tree/train/train_sharp', '-o', 'out', '--store', 'raw') == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search(r'train_sharp\.lmdb\.partial: cannot be written \(.*GB free; make room or', message(capsys))
    assert names_in(downloads / 'out') <= {'train_sharp.lmdb.partial'}
    assert run(monkeypatch, 'tree/train/train_sharp', '-o', 'out', '--store', 'raw') == 0
    assert 'of them from an earlier run' in capsys.readouterr().out
    path = downloads / 'out' / 'train_sharp.lmdb'
    assert content(path) == content(reds / 'raw' / path.name) and verify_store(path) == []


def test_verify_finds_a_flipped_bit_and_a_changed_list(reds, tmp_path, monkeypatch, capsys):
    for name in ('good', 'bit', 'list'):
        shutil.copytree(reds / 'stores' / 'val_sharp.lmdb', tmp_path / f'{name}.lmdb')
    data = tmp_path / 'bit.lmdb' / 'data.mdb'
    content = bytearray(data.read_bytes())
    content[content.index((reds / LAST).read_bytes()[100:200])] ^= 1
    data.write_bytes(content)
    meta_info = tmp_path / 'list.lmdb' / 'meta_info.txt'
    meta_info.write_text(meta_info.read_text().replace('(48,64,3)', '(64,48,3)', 1))
    assert run(monkeypatch, '--verify', tmp_path / 'good.lmdb') == 0
    assert capsys.readouterr().out == f'{tmp_path}/good.lmdb: sound\n'
    assert run(monkeypatch, '--verify', *(tmp_path / f'{name}.lmdb' for name in ('good', 'bit', 'list'))) == 1
    printed = capsys.readouterr()
    assert printed.out == f'{tmp_path}/good.lmdb: sound\n'
    assert "bit.lmdb: '001_00000003' was changed" in printed.err
    assert 'list.lmdb: meta_info.txt disagrees with manifest.json' in printed.err
    assert 'bit.lmdb: 1 problem; move it away and prepare it again' in printed.err


@pytest.mark.parametrize('buffering', [1, -1], ids=['by line', 'by block'])
def test_all_stores_are_verified_if_nobody_reads_stdout(reds, tmp_path, monkeypatch, capfd, buffering):
    shutil.copytree(reds / 'stores' / 'val_sharp.lmdb', tmp_path / 'cut.lmdb')
    os.truncate(tmp_path / 'cut.lmdb' / 'data.mdb', 8192)
    with nobody_reads_stdout(buffering):
        assert run(monkeypatch, '--verify', reds / 'stores' / 'val_sharp.lmdb', tmp_path / 'cut.lmdb') == 1
    assert 'cut.lmdb: 1 problem' in capfd.readouterr().err


def test_verify_takes_a_folder_of_stores(reds, tmp_path, monkeypatch, capsys):
    shutil.copytree(reds / 'stores', tmp_path / 'stores' / '\x1b[2J')
    assert run(monkeypatch, '--verify', tmp_path / 'stores') == 0
    expected = sorted(rf'{tmp_path}/stores/\x1b[2J/{name}.lmdb: sound' for name in SETS)
    assert capsys.readouterr().out.splitlines() == expected
    (tmp_path / 'stores' / '\x1b[2J' / 'val_sharp.lmdb' / 'data.mdb').unlink()
    assert run(monkeypatch, '--verify', tmp_path / 'stores') == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == len(SETS) - 1
    assert all(rf'\x1b[2J/val_sharp.lmdb: {said}' in printed.err for said in ('not an LMDB data set', '1 problem'))


@pytest.mark.parametrize('place', ['nowhere', 'tree/train', 'zips/train_sharp.zip'])
def test_verify_of_what_is_no_store_is_one_line(reds, downloads, monkeypatch, capsys, place):
    assert run(monkeypatch, '--verify', reds / 'stores' / 'train_sharp.lmdb', place) == 2
    assert (
        message(capsys) == f'prepare_reds: {place}: no store and no folder of stores; give one, such as datasets/REDS'
    )


def test_downloads_or_stores_must_be_given(monkeypatch, capsys):
    assert run(monkeypatch) == 2
    assert 'give DOWNLOADS to prepare, or --verify STORE' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('error', 'code', 'expected'),
    [
        (KeyboardInterrupt(), 130, 'prepare_reds: stopped; run it again to go on'),
        (
            BrokenProcessPool(),
            2,
            'prepare_reds: a worker was killed, perhaps because memory ran out; run it again, with',
        ),
    ],
)
def test_what_ends_it_from_outside_says_how_to_go_on(monkeypatch, capsys, error, code, expected):
    monkeypatch.setattr(prepare_reds, 'prepare', mock.Mock(side_effect=error))
    assert run(monkeypatch, 'tree') == code
    assert capsys.readouterr().err.startswith(expected)
