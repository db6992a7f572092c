import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from conftest import picture
from videos import HEIGHT, WIDTH, moving, write_folder, write_video

import average_frames
import pair_writer
from wrcan_arch.data import store_writer
from wrcan_arch.data.lmdb_store import open_store
from wrcan_arch.data.store_writer import StoreWriter
from wrcan_arch.errors import InputError
from wrcan_arch.jpeg_quality import estimate_quality

PREP = Path(__file__).parent.parent / 'datasets_prep'


@pytest.fixture
def run(run_script):
    return partial(run_script, average_frames)


def images(path):
    """Decoded images by key."""
    store = open_store(path)
    return {key: cv2.imdecode(np.frombuffer(store.get(key), np.uint8), cv2.IMREAD_COLOR) for key in store.keys()}


def scene_of(key):
    return re.fullmatch(r'(.+_\d{3})_\d{8}', key)[1]


def reference_average(frames):
    """The mean in linear light, in double precision, computed as IEC 61966-2-1 has it."""
    encoded = np.stack(frames).astype(np.float64) / 255
    light = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).mean(axis=0)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize('count', [3, 7, 13])
def test_average_is_the_mean_in_linear_light(count):
    frames = moving(count, step=5)
    expected = reference_average(frames)
    assert np.abs(np.mean(frames, axis=0) - expected).max() > 10  # unlike the mean of the encoded values
    averaged = average_frames.average(frames)
    assert averaged.dtype == np.uint8 and np.abs(averaged - expected).max() < 0.51


def test_frames_of_a_folder_become_pairs_with_the_middle_frame_bit_for_bit(run, tmp_path):
    frames = moving(19)  # the last window misses one
    write_folder(tmp_path / 'clip.1', frames, '{}.png')  # 10.png comes after 9.png
    printed = run('clip.1', '-o', 'out', '--frames', '5', '--files')
    assert printed.out == (
        'out: 3 pairs (1 of 1 scene)\nwindows left out: 0 over a cut, 0 standing still, 1 too short\n'
    )
    blurred, sharp = images(tmp_path / 'out_blur.lmdb'), images(tmp_path / 'out_sharp.lmdb')
    assert list(blurred) == list(sharp) == [f'clip_1_000_{first:08d}' for first in (0, 5, 10)]
    for first, key in zip((0, 5, 10), sharp, strict=True):
        np.testing.assert_array_equal(sharp[key], frames[first + 2])
        average = np.rint(reference_average(frames[first : first + 5])).astype(np.uint8)
        jpeg = cv2.imencode('.jpg', average, [cv2.IMWRITE_JPEG_QUALITY, 25])[1]
        assert np.abs(blurred[key].astype(int) - cv2.imdecode(jpeg, cv2.IMREAD_COLOR)).mean() < 0.1
        assert (tmp_path / 'out_blur' / f'{key}.jpg').read_bytes() == open_store(tmp_path / 'out_blur.lmdb').get(key)
        assert (tmp_path / 'out_sharp' / f'{key}.png').read_bytes() == open_store(tmp_path / 'out_sharp.lmdb').get(key)


def test_script_runs_by_its_path_and_says_what_is_wrong_in_one_line(tmp_path):
    command = [sys.executable, str(PREP / 'average_frames.py'), 'broken.mp4', '-o', 'out']
    (tmp_path / 'broken.mp4').write_bytes(b'broken' * 100)
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    expected = 'average_frames: broken.mp4: not a readable video; leave it out or convert it\n'
    assert (result.returncode, result.stdout, result.stderr) == (2, '', expected)


def test_video_files_are_cut_into_scenes_and_read_like_folders(run, tmp_path):
    (tmp_path / 'videos').mkdir()
    path = tmp_path / 'videos' / 'clip.avi'
    write_video(path, moving(24, seed=1) + moving(18, seed=2))  # the cut is before the last frame of a window
    printed = run('videos', '-o', 'out', '--frames', '5')
    assert 'windows left out: 1 over a cut, 0 standing still, 1 too short' in printed.out
    sharp = images(tmp_path / 'out_sharp.lmdb')
    first_scene = [f'videos_clip_000_{first:08d}' for first in (0, 5, 10, 15)]
    assert list(sharp) == [*first_scene, *(f'videos_clip_001_{first:08d}' for first in (25, 30, 35))]
    capture = cv2.VideoCapture(str(path))
    decoded = [capture.read()[1] for _ in range(42)]
    for key, image in sharp.items():
        np.testing.assert_array_equal(image, decoded[int(key[-8:]) + 2])


def test_still_shots_are_left_out_though_they_are_noisy(run, tmp_path):
    rng = np.random.default_rng(0)
    large = [cv2.resize(frame, None, fx=8, fy=8) for frame in moving(21)]
    still = [cv2.add(large[0], rng.normal(0, 3, large[0].shape), dtype=cv2.CV_8U) for _ in range(14)]
    write_folder(tmp_path / 'clip', still + large)
    printed = run('clip', '-o', 'out', '--frames', '7')
    assert 'windows left out: 0 over a cut, 2 standing still, 0 too short' in printed.out
    assert open_store(tmp_path / 'out_blur.lmdb').keys() == [f'clip_000_{first:08d}' for first in (14, 21, 28)]


def test_no_window_goes_over_missing_frames(run, tmp_path):
    """Else the sharp frame would not be at the mean position of the blur."""
    write_folder(tmp_path / 'clip', moving(25))
    for missing in ('009', '016'):
        (tmp_path / 'clip' / f'{missing}.png').unlink()
    printed = run('clip', '-o', 'out', '--frames', '5')
    assert printed.out == (
        'out: 3 pairs (1 of 1 scene)\n'
        'windows left out: 0 over a cut, 0 standing still, 1 too short, 1 over a gap\n'
        "clip: 2 gaps in the frames' numbers, the first before 010.png\n"
    )
    assert open_store(tmp_path / 'out_blur.lmdb').keys() == [f'clip_000_{first:08d}' for first in (0, 10, 15)]


def test_lengths_are_drawn_in_their_range_and_windows_follow_on_each_other():
    def windows(number=3, **options):
        arguments = {'seed': 0, 'frames': [7, 13], 'stride': None} | options
        placed = average_frames.place_windows(average_frames.argparse.Namespace(**arguments), number)
        return [next(placed) for _ in range(50)]

    drawn = windows()
    assert {last - first + 1 for first, last in drawn} == {7, 9, 11, 13}
    assert all(after.first == before.last + 1 for before, after in zip(drawn, drawn[1:], strict=False))
    assert windows() == drawn and drawn not in (windows(seed=1), windows(number=4))
    assert windows(frames=[5], stride=2)[:3] == [(0, 4), (2, 6), (4, 8)]


def test_overlapping_windows_hold_their_own_frames():
    frames = moving(30)
    windows = [average_frames.Window(*window) for window in ((0, 12), (3, 9), (4, 12), (20, 22))]
    made = {window: pair for window, *pair in average_frames.average_windows(iter(frames), windows)}
    assert set(made) == set(windows)
    for first, last in windows:
        averaged, sharp = made[first, last]
        np.testing.assert_array_equal(averaged, average_frames.average(frames[first : last + 1]))
        np.testing.assert_array_equal(sharp, frames[(first + last) // 2])


def test_only_a_window_of_frames_is_held():
    alive, most = set(), 0

    class Frame(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def frames():
        nonlocal most
        for frame in moving(60):
            frame = frame.copy().view(Frame)
            alive.add(id(frame))
            most = max(most, len(alive))
            yield frame

    windows = [average_frames.Window(first, first + 4) for first in range(0, 60, 5)]
    assert len([None for _ in average_frames.average_windows(frames(), windows)]) == 12
    assert 5 <= most <= 7


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Two videos with three scenes each, and a folder of frames with one."""
    folder = tmp_path_factory.mktemp('scenes')
    for number in range(2):
        write_video(folder / f'v{number}.avi', [f for seed in range(3) for f in moving(20, 3 * number + seed + 1)])
    write_folder(folder / 'frames', moving(20, 9))
    return folder


def split_of(folder, name):
    """The values of both sides' blurred stores, by key."""
    stores = {side: open_store(folder / f'{name}_{side}_blur.lmdb') for side in ('train', 'val')}
    return {side: {key: store.get(key) for key in store.keys()} for side, store in stores.items()}


def test_split_is_by_video_and_from_the_seed(scenes, run, tmp_path):
    """Shots of one video look alike, above all if a cut was found where there is none."""

    def split(name, seed):
        inputs = [scenes / 'v0.avi', scenes / 'v1.avi', scenes / 'frames']
        options = ['--frames', '5', '--val', '0.4', '--seed', seed]
        printed = run(*inputs, '-o', name, *options)
        assert f'{name}_train: 12 pairs (1 of 3 videos)' in printed.out
        assert f'{name}_val: 16 pairs (2 of 3 videos)' in printed.out
        assert not (tmp_path / f'{name}_blur.lmdb').exists()
        return split_of(tmp_path, name)

    found = split('a', 0)
    train, val = ({scene_of(key) for key in found[side]} for side in ('train', 'val'))
    assert not {scene[:-4] for scene in train} & {scene[:-4] for scene in val}
    assert train | val == {*(f'v{video}_00{scene}' for video in range(2) for scene in range(3)), 'frames_000'}
    assert split('b', 0) == found
    assert any(split(f'c{seed}', seed)['val'].keys() != found['val'].keys() for seed in (1, 2, 3))


def test_split_of_a_single_video_is_by_scene(scenes, run, tmp_path):
    write_folder(tmp_path / 'still', moving(1) * 15)  # gives no pair
    for name, inputs in (('alone', ['v0.avi']), ('beside', ['v0.avi', tmp_path / 'still'])):
        printed = run(*(scenes / each for each in inputs), '-o', name, '--frames', '5', '--val', '0.3')
        assert f'{name}_train: 8 pairs (2 of 3 scenes)\n{name}_val: 4 pairs (1 of 3 scenes)\n' in printed.out
        train, val = ({scene_of(key) for key in side} for side in split_of(tmp_path, name).values())
        assert not train & val and train | val == {f'v0_00{scene}' for scene in range(3)}


def test_a_stopped_run_goes_on_with_another_split(scenes, run, tmp_path):
    arguments = ['--frames', '5', '--val', '0.3']
    with mock.patch.object(StoreWriter, '_write_text', side_effect=InputError('the last')):
        run(scenes / 'v0.avi', '-o', 'a', *arguments, exit_code=2)
    both = [scenes / 'v0.avi', scenes / 'v1.avi']
    printed = run(*both, '-o', 'a', *arguments)
    run(*both, '-o', 'b', *arguments)
    assert 'of them from an earlier run' in printed.out
    assert split_of(tmp_path, 'a') == split_of(tmp_path, 'b')


def test_copies_of_a_video_are_one(scenes, run, tmp_path):
    """Otherwise copies could be on both sides of --val."""
    for name in ('v0.avi', 'v1.avi'):
        shutil.copy(scenes / name, tmp_path / name)
        shutil.copytree(scenes / 'frames', tmp_path / f'{name}.frames')
    shutil.copy(scenes / 'v0.avi', tmp_path / 'backup.avi')
    size = (scenes / 'v0.avi').stat().st_size
    (tmp_path / 'v1.avi').write_bytes((scenes / 'v1.avi').read_bytes().ljust(size, b'\0')[:size])  # the same size as v0
    frame = tmp_path / 'v1.avi.frames' / '007.png'
    inputs = ['backup.avi', 'v0.avi', 'v1.avi', 'v0.avi.frames', 'v1.avi.frames']
    printed = run(*inputs, '-o', 'a', '--frames', '5')
    assert printed.out.startswith('2 videos left out, the same as another\n')
    found = {scene_of(key)[:-4] for key in open_store(tmp_path / 'a_blur.lmdb').keys()}
    assert found == {'backup', 'v1', 'v0_avi_frames'}
    frame.write_bytes(frame.read_bytes() + b'\0')
    assert '1 video left out' in run(*inputs, '-o', 'b', '--frames', '5').out


def test_what_is_no_video_and_no_frame_is_counted(scenes, run, tmp_path):
    (tmp_path / 'in/frames').mkdir(parents=True)
    shutil.copy(scenes / 'v0.avi', tmp_path / 'in')
    for name in ('a.ts', 'b.TS', 'c.mxf', 'thumbnail.jpg', 'notes', '.DS_Store', 'frames/info.txt'):
        (tmp_path / 'in' / name).touch()
    for frame in (scenes / 'frames').iterdir():
        shutil.copy(frame, tmp_path / 'in/frames')
    printed = run('in', scenes / 'v1.avi', '-o', 'out', '--frames', '5')
    assert printed.out.splitlines()[0] == (
        '6 files left out (1 .jpg, 1 .mxf, 2 .ts, 1 .txt, 1 without ending); '
        'convert those that are videos to MP4, and put frames into a folder without videos'
    )
    assert 'files left out' not in run(scenes, '-o', 'all', '--frames', '5').out


@pytest.mark.parametrize('place', ['out_train_blur.lmdb', 'out_val_sharp.lmdb', 'out_val_sharp'])
def test_what_is_there_is_found_before_any_video_is_read(scenes, run, tmp_path, place):
    (tmp_path / place).mkdir()
    with mock.patch('average_frames.read_frames', side_effect=AssertionError('read')):
        printed = run(scenes / 'v0.avi', '-o', 'out', '--val', '0.5', '--files', exit_code=2)
    assert printed.err == f'average_frames: {place}: exists already; remove it or choose another name\n'


@pytest.mark.parametrize('change', ['nothing', 'date', 'frames', 'quality'])
def test_a_stopped_run_goes_on_where_it_was(scenes, run, tmp_path, monkeypatch, change):
    monkeypatch.setattr(store_writer, 'BATCH_SIZE', 1)
    put, calls = StoreWriter.put, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        put(*arguments)

    videos = tmp_path / 'videos'
    shutil.copytree(scenes, videos)
    arguments = ['videos', '--frames', '5', '--stride', '5', '--quality', '15-95', '--files']
    with mock.patch.object(StoreWriter, 'put', stopping):
        printed = run(*arguments, '-o', 'a', exit_code=130)
    assert printed.err.splitlines()[-1] == 'average_frames: stopped; run it again to go on'
    if change == 'date':
        os.utime(videos / 'v0.avi', (0, 0))
    if change == 'frames':  # as many pairs, of the same names
        arguments += ['--frames', '3']
    if change == 'quality':
        arguments += ['--quality', '25']
    kept = 9 if change == 'nothing' else 0
    with mock.patch.object(average_frames, 'progress_bar', wraps=average_frames.progress_bar) as shown:
        printed = run(*arguments, '-o', 'a')
    assert shown.call_args.kwargs['initial'] == kept, 'the time left would be that of copying'
    assert 'a: 28 pairs (3 of 3 videos)' + (', 9 of them from an earlier run' if kept else '') + '\n' in printed.out
    run(*arguments, '-o', 'b')
    for role in ('blur', 'sharp'):
        a, b = ((tmp_path / f'{name}_{role}.lmdb' / 'manifest.json').read_text() for name in 'ab')
        files = [{path.name: path.read_bytes() for path in (tmp_path / f'{name}_{role}').iterdir()} for name in 'ab']
        assert a == b and files[0] == files[1] and len(files[0]) == 28


def test_a_frame_that_changed_makes_the_pairs_of_its_folder_again(run, tmp_path):
    write_folder(tmp_path / 'clip', moving(20))
    with mock.patch.object(StoreWriter, '_write_text', side_effect=InputError('the last')):
        run('clip', '-o', 'a', '--frames', '5', exit_code=2)
    os.utime(tmp_path / 'clip' / '007.png', (0, 0))
    with mock.patch('pairs.source_checksum', wraps=average_frames.pairs.source_checksum) as checksum:
        assert 'earlier run' not in run('clip', '-o', 'a', '--frames', '5').out
    assert sum('007.png' in str(call) for call in checksum.call_args_list) == 1  # not for each pair


def test_each_video_has_qualities_of_its_own(scenes, run, tmp_path):
    run(scenes, '-o', 'a', '--frames', '5', '--quality', '15-95')
    store, drawn = open_store(tmp_path / 'a_blur.lmdb'), defaultdict(list)
    for key in store.keys():
        drawn[scene_of(key)[:-4]].append(estimate_quality(BytesIO(store.get(key))))
    first, second = (drawn[f'{scenes.name}_v{number}'] for number in range(2))
    assert len(first) == len(second) == 12 and first != second and len({*first}) > 5


def test_a_share_of_the_pairs_is_chosen_in_whole_groups():
    pair_counts = {f'scene{number}': 10 * number for number in range(1, 21)}
    for seed in range(20):
        chosen = pair_writer.choose_validation(pair_counts, 0.25, seed)
        assert abs(sum(pair_counts[name] for name in chosen) / sum(pair_counts.values()) - 0.25) < 0.03
    assert pair_writer.choose_validation(pair_counts, 0.001, 0) == {'scene1'}  # at least one: the smallest
    assert pair_writer.choose_validation({'a': 1, 'b': 1}, 0.999, 0) < {'a', 'b'}  # never all
    for count, fraction, expected in ((6, 0.3, 2), (6, 0.2, 1), (5, 0.3, 2), (100, 0.29, 29), (9, 0.01, 1)):
        equal = {str(number): 8 for number in range(count)}
        found = [pair_writer.choose_validation(equal, fraction, seed) for seed in range(9)]
        assert {len(chosen) for chosen in found} == {expected} and len(set(map(frozenset, found))) > 1


def test_what_is_added_later_hardly_changes_the_draw():
    """Weights that are trained further should not be validated on what they were trained on before."""
    pair_counts = {f'photo{number}': 8 for number in range(40)}
    before = pair_writer.choose_validation(pair_counts, 0.25, 0)
    for number in range(100, 120):
        after = pair_writer.choose_validation({f'photo{number}': 8, **pair_counts}, 0.25, 0)
        assert len(before - after) <= 1 and len(after - before) <= 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere.mp4'], 'nowhere.mp4: no such video or folder'),
        (['empty'], 'empty: no videos'),
        (['broken.mp4'], 'broken.mp4: not a readable video'),
        (['broken'], '3.png: not a readable image'),
        (['unequal'], '12.png: 32 x 24, but the frames before it are 64 x 48'),
        (['twice'], 'twice/7.jpg and twice/7.png have the same name; remove one if they show the same frame'),
        (['good/0.png'], '0.png: a single image; give the folder'),
        (['good', '--frames', '21', '31'], 'good: 20 frames, too few to average 21; leave it out or set --frames'),
        (['good', '--frames', '6'], '--frames 6: give one odd number from 3 up'),
        (['good', '--frames', '1'], '--frames 1: give one odd'),
        (['good', '--frames', '9', '7'], '--frames 9 7: give one odd'),
        (['good', '--frames', '5', '7', '9'], '--frames 5 7 9: give one odd'),
        (['good', '--stride', '0'], '--stride 0: at least 1'),
        (['good', '--val', '1'], '--val 1.0: give a fraction between 0 and 1'),
        (['good', '--val', '0.1'], '--val 0.1: there is only one scene, good_000'),
        (['good', 'other/good'], 'good and other/good have the same name; leave one out if it is the same'),
        (['other', 'other/good'], 'other/good: given twice'),
        (['.', '-o', 'other/mine', '--files'], '-o other/mine: its --files would lie in .; choose a folder elsewhere'),
        (['good', '-o', 'empty'], '-o empty: a folder; give a name in it, such as empty/mine'),
        (['still'], 'no pair left, windows left out: 0 over a cut, 1 standing still, 1 too short'),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, arguments, message):
    for name in ('good', 'other/good', 'broken', 'unequal', 'twice'):
        write_folder(tmp_path / name, moving(20), '{}.png')
    write_folder(tmp_path / 'still', moving(1) * 15)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken.mp4').write_bytes(b'broken' * 100)
    (tmp_path / 'broken' / '3.png').write_text('broken')
    cv2.imwrite(str(tmp_path / 'unequal' / '12.png'), picture(24, 32))
    cv2.imwrite(str(tmp_path / 'twice' / '7.jpg'), picture(HEIGHT, WIDTH))
    before = sorted(tmp_path.rglob('*'))
    printed = run('-o', 'out', *arguments, exit_code=2)
    lines = [line for line in printed.err.splitlines() if line and '%|' not in line]
    assert len(lines) == 1 and lines[0].startswith('average_frames: ') and message in lines[0]
    assert sorted(tmp_path.rglob('*')) == before


def test_names_that_are_too_long_are_found_before_any_video_is_read(run, tmp_path):
    for letters in (238, 239):
        write_folder(tmp_path / ('a' * letters), moving(20))
    run('a' * 238, '-o', 'out', '--frames', '5', '--files')
    with mock.patch('average_frames.read_frames', side_effect=AssertionError('read')):
        printed = run('a' * 239, '-o', 'more', '--frames', '5', '--files', exit_code=2)
    assert 'aa: its pairs would have names of 252 letters, at most 251 fit; shorten its name' in printed.err


def test_short_clips_and_pictures_beside_videos_are_no_obstacle(scenes, run, tmp_path):
    folder = tmp_path / 'clips'
    folder.mkdir()
    shutil.copy(scenes / 'v0.avi', folder / 'v0.avi')
    cv2.imwrite(str(folder / 'thumbnail.jpg'), picture(24, 32))
    write_folder(folder / 'frames', moving(3), '{}.png')
    printed = run('clips', '-o', 'out', '--frames', '5')
    assert re.search(r'clips/frames: 3 frames, too few to average 5$', printed.out, re.MULTILINE)
    assert all(key.startswith('clips_v0_') for key in open_store(tmp_path / 'out_blur.lmdb').keys())
    run('clips/frames', '-o', 'three', '--frames', '3')  # just enough
    for inputs in (scenes / 'frames', scenes):  # named itself or not, its 20 frames are enough for some windows
        assert 'too few' not in run(inputs, '-o', f'some_{inputs.name}', '--frames', '5', '21').out
    printed = run('clips/frames', '-o', 'none', '--frames', '5', exit_code=2)
    assert 'clips/frames: 3 frames, too few to average 5; leave it out or set --frames' in printed.err


def test_a_video_that_was_cut_short_is_named(scenes, run, tmp_path):
    content = (scenes / 'v0.avi').read_bytes()
    (tmp_path / 'cut\x1b[2J.avi').write_bytes(content[: len(content) * 2 // 3])
    printed = run('.', '-o', 'out', '--frames', '5')
    assert re.search(r'cut\\x1b\[2J\.avi: only \d\d of 60 frames could be read', printed.out)


def test_pairs_that_the_second_reading_does_not_give_are_said_and_not_counted(run, tmp_path, monkeypatch):
    write_folder(tmp_path / 'clip', moving(20))
    read, times = average_frames.read_frames, []

    def less_each_time(video):
        times.append(video)
        return islice(read(video), 20 if len(times) == 1 else 12)

    monkeypatch.setattr(average_frames, 'read_frames', less_each_time)
    printed = run('clip', '-o', 'out', '--frames', '5')
    assert 'out: 2 pairs (1 of 1 scene)' in printed.out and len(open_store(tmp_path / 'out_sharp.lmdb').keys()) == 2
    assert 'clip: 2 pairs less than planned, since fewer frames could be read the second time' in printed.out


def test_broken_frames_are_told_all_at_once(run, tmp_path):
    for name, count in (('a', 10), ('b', 10), ('short', 3)):
        write_folder(tmp_path / name, moving(count))
    for broken in ('a/003', 'a/007', 'b/000'):
        (tmp_path / f'{broken}.png').write_text('broken')
    cv2.imwrite(str(tmp_path / 'b' / '001.png'), moving(1)[0])
    cv2.imwrite(str(tmp_path / 'b' / '002.png'), moving(1)[0][:20])
    printed = run('a', 'b', 'short', '-o', 'out', '--frames', '5', exit_code=2)
    assert [line.removeprefix('average_frames: ') for line in printed.err.splitlines() if '%|' not in line] == [
        'a/003.png: not a readable image; remove it or convert it to PNG',
        'a/007.png: not a readable image; remove it or convert it to PNG',
        'b/000.png: not a readable image; remove it or convert it to PNG',
        'b/002.png: 64 x 20, but the frames before it are 64 x 48; put each video into a folder of its own',
        'short: 3 frames, too few to average 5; leave it out or set --frames',
    ]


def test_a_frame_that_broke_since_the_first_reading_is_not_skipped(run, tmp_path, monkeypatch):
    """Else the later frames would be taken for others."""
    write_folder(tmp_path / 'clip', moving(22))
    write = average_frames.write_video

    def breaking(*arguments):
        (tmp_path / 'clip' / '003.png').write_text('broken')
        return write(*arguments)

    monkeypatch.setattr(average_frames, 'write_video', breaking)
    printed = run('clip', '-o', 'out', '--frames', '5', exit_code=2)
    assert 'average_frames: clip/003.png: not a readable image' in printed.err


def test_names_that_are_not_utf8_do_not_end_the_process(tmp_path):
    """OpenCV ends the process if it is given such a path."""
    frame, video = (tmp_path / os.fsdecode(name) for name in (b'f\xe9.png', b'v\xe9.mp4'))
    frame.write_bytes(cv2.imencode('.png', picture(HEIGHT, WIDTH))[1].tobytes())
    video.touch()
    assert [each.shape for each in average_frames.read_frames(tmp_path)] == [(HEIGHT, WIDTH, 3)]
    with pytest.raises(InputError, match='v\udce9.mp4: a name that is not UTF-8; rename it'):
        average_frames.count_frames(video)
