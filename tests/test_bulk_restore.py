"""Photographs restored one after another: failures, results there already, comparisons, warnings, memory."""

import gc
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from tiny_restore import Same, names, network, save

from wrcan_arch import WRCAN, InputError, cli, restore
from wrcan_arch.inference import Request
from wrcan_arch.photos import bulk_restore
from wrcan_arch.photos.bulk_restore import Options, in_thread, restore_photos
from wrcan_arch.photos.photo import Photo
from wrcan_arch.photos.plan import plan
from wrcan_arch.photos.read_photo import read_photo
from wrcan_arch.photos.summary import Summary
from wrcan_arch.photos.write_photo import write_photo
from wrcan_arch.system.processes import Team

FP32, INPUT = Options(request=Request(precision='fp32')), Options(request=Request(mode='input'))


def test_files_and_folders_are_restored_as_restore_does(tmp_path):
    single, below = save(tmp_path / 'single.png'), save(tmp_path / 'folder' / 'a' / 'Zoë 海.tif', 1)
    summary = restore_photos(network(), plan([single, tmp_path / 'folder'], out=tmp_path / 'out'), options=FP32)
    assert summary.restored == 2 and summary.failures == []
    for source, target in ((single, 'single.png'), (below, 'a/Zoë 海.tif')):
        expected = restore(network(), read_photo(source).pixels, precision='fp32')
        np.testing.assert_array_equal(read_photo(tmp_path / 'out' / target).pixels, expected)


def test_one_that_fails_does_not_stop_the_others(tmp_path):
    for number in range(4):
        save(tmp_path / 'in' / f'{number}.png')
    (tmp_path / 'in' / '1.png').write_text('broken')
    Image.fromarray(picture(12, 16)).convert('RGBA').save(tmp_path / 'in' / '3.png')
    (tmp_path / 'out' / '2.png').mkdir(parents=True)
    summary = restore_photos(network(), plan([tmp_path / 'in'], out=tmp_path / 'out'), options=FP32)
    assert len(summary.failures) == 2 and summary.restored == 2
    assert '1.png: not an image' in summary.failures[0] and '2.png: cannot be written' in summary.failures[1]
    assert names(tmp_path / 'out') == ['0.png', '3.png']


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from wrcan_arch.photos.comparison import pictures_on_page
from wrcan_arch.photos.photo import Photo
from wrcan_arch.photos.write_photo import write_photo
Path(sys.argv[2]).touch()
while len([*Path().glob('[0-9]*')]) < 2: time.sleep(0.001)
for number in range(15):
    shade = np.full((300, 400, 3), int(sys.argv[2]), np.uint8)
    write_photo(sys.argv[1], Photo(pixels=shade, metadata={'exif-data': EXIF}))
"""


def test_page_shows_no_earlier_pair_of_a_photograph_that_fails_now(tmp_path):
    photos, look = [save(tmp_path / 'in' / f'{number}.png', number) for number in range(2)], tmp_path / 'look'
    options = replace(FP32, compare=look)
    for _ in range(2):
        jobs = plan([tmp_path / 'in'], out=tmp_path / 'out', compare=look)
        failures = restore_photos(Same(), jobs, options=options).failures
        page = (look / 'index.html').read_text()
        assert ('0.png</a>' in page) == (not failures) and '1.png</a>' in page
        Path(photos[0]).write_text('broken')
    assert len(failures) == 1


@pytest.mark.parametrize('ending', ['.jpg', '.tif'])
def test_two_processes_may_write_one_photograph(tmp_path, ending):
    exif = Image.Exif()
    exif[0x010F] = 'a camera'
    code = WRITER.replace('EXIF', repr(exif.tobytes()))
    command = [sys.executable, '-c', code, str(tmp_path / f'a{ending}')]
    writers = [subprocess.Popen([*command, shade], cwd=tmp_path) for shade in ('20', '200')]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert read_photo(tmp_path / f'a{ending}').pixels.std() < 1
    assert names(tmp_path) == ['20', '200', f'a{ending}']


def test_photo_too_large_for_the_memory_is_named(tmp_path, monkeypatch):
    jobs = plan([save(tmp_path / 'a.png')], out=tmp_path / 'out')
    machine, gpu = 'a.png: too large for the memory of this machine', "a.png: the GPU's memory is full; take a smaller"
    for error, said in (
        (torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate'), gpu),
        (RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED'), gpu),
        (RuntimeError('CUDA error: out of memory'), gpu),
        (RuntimeError('GET was unable to find an engine to execute this computation'), gpu),
        (MemoryError(), machine),
        (RuntimeError("can't allocate memory: 9 bytes"), machine),
    ):
        monkeypatch.setattr('wrcan_arch.photos.bulk_restore.restore', mock.Mock(side_effect=error))
        assert said in restore_photos(network(), jobs, options=FP32).failures[0]
    for defect in ('a defect', 'CUDA error: an illegal memory access was encountered'):
        monkeypatch.setattr('wrcan_arch.photos.bulk_restore.restore', mock.Mock(side_effect=RuntimeError(defect)))
        with pytest.raises(RuntimeError, match=defect):
            restore_photos(network(), jobs, options=FP32)
    assert names(tmp_path) == ['a.png']


@pytest.mark.parametrize('option', ['out', 'compare'])
@pytest.mark.parametrize('place', ['file/below', '/proc/nope/below'])
def test_folder_that_cannot_be_written_is_said_before_the_first(tmp_path, monkeypatch, capsys, weights, option, place):
    monkeypatch.chdir(tmp_path)
    save(Path('a.png'))
    Path('file').touch()
    monkeypatch.setattr('wrcan_arch.photos.bulk_restore.restore', mock.Mock(side_effect=AssertionError('computed')))
    before = names(tmp_path)
    assert cli.main(['restore', 'a.png', '-w', str(weights), f'--{option}', place]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf'basicsr restore: {place}: cannot be written \(.+\); choose another folder\n', said)
    assert names(tmp_path) == before


def test_name_that_is_too_long_is_said_before_it_is_computed(tmp_path, monkeypatch):
    save(tmp_path / f'{"n" * 250}.png')
    monkeypatch.setattr('wrcan_arch.photos.bulk_restore.restore', mock.Mock(side_effect=AssertionError('computed')))
    (said,) = restore_photos(Same(), plan([tmp_path]), options=FP32).failures
    assert said.endswith('n.png: the name of its result is too long; name a folder with -o')
    save(tmp_path / f'{"n" * 251}.jpg')
    jobs = plan([tmp_path / f'{"n" * 251}.jpg'], out=tmp_path / 'out', format='webp')
    (said,) = restore_photos(Same(), jobs, options=Options(out=tmp_path / 'out')).failures
    assert said.endswith('n.jpg: the name of its result is too long; give it a shorter name')


def test_photographs_folder_that_takes_no_result_is_said_before_the_first(tmp_path, monkeypatch):
    save(tmp_path / 'a.png')
    monkeypatch.setattr('wrcan_arch.photos.bulk_restore.restore', mock.Mock(side_effect=AssertionError('computed')))
    full = mock.patch('wrcan_arch.system.files.TemporaryFile', side_effect=OSError(30, 'Read-only file system'))
    with full:
        summary = restore_photos(Same(), plan([tmp_path / 'a.png']), options=FP32)
    said = f'{tmp_path}/a.png: {tmp_path}: cannot be written (Read-only file system); choose another folder'
    assert summary.failures == [said]


def test_quality_and_limit_are_those_asked_for(tmp_path, monkeypatch, capsys, weights):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(12, 16)).save('a.jpg')
    Image.fromarray(picture(20, 20)).save('large.jpg')
    assert (
        cli.main(['restore', 'a.jpg', 'large.jpg', '-w', str(weights), '--quality', '20', '--max-pixels', '300']) == 1
    )
    assert 'large.jpg: ' in capsys.readouterr().err and names(tmp_path)[1:3] == ['a_restored.jpg', 'large.jpg']
    assert read_photo('a_restored.jpg').jpeg_quality == 20


def test_large_photographs_are_scaled_down_first(tmp_path, monkeypatch, capsys, weights):
    monkeypatch.chdir(tmp_path)
    save(Path('a.png'))
    command = ['restore', 'a.png', '-w', str(weights), '-o', 'out', '--compare', 'look', '--largest', '8']
    for mode in ('input', 'exact'):
        assert cli.main([*command, '--precision', 'fp32', '--mode', mode]) == 0
    expected = restore(network(), read_photo('a.png', largest=8).pixels, precision='fp32')
    assert expected.shape == (6, 8, 3)
    np.testing.assert_array_equal(read_photo('out/a.png').pixels, expected)
    Path('look/a.png.jpg').unlink()
    assert cli.main([*command, '--skip-existing']) == 0
    assert Image.open('look/a.png.jpg').size == (16, 6)
    Path('look/a.png.jpg').unlink()
    assert cli.main([*command, '--skip-existing', '--largest', '4']) == 1
    assert 'out/a.png: is 8 x 6, but a result of a.png would be 4 x 3; move it away' in capsys.readouterr().err
    assert cli.main([*command, '--max-pixels', '191']) == 1
    assert '16 x 12 is more than 191 pixels' in capsys.readouterr().err, 'of the file'


def test_other_colours_are_warned_about(tmp_path):
    path = save(tmp_path / 'a.png')
    marked = Photo(pixels=picture(12, 16), declares_non_srgb=True)
    with mock.patch('wrcan_arch.photos.bulk_restore.read_photo', return_value=marked):
        summary = restore_photos(Same(), plan([path]), options=FP32)
    (said,) = summary.warnings
    assert said.startswith('its colours are not sRGB')


def test_photograph_that_is_not_there_leaves_no_folder(tmp_path):
    save(tmp_path / 'a.png')
    jobs = plan(listed=[str(tmp_path / 'nowhere' / 'a.png'), str(tmp_path / 'a.png')])
    assert restore_photos(Same(), jobs, options=FP32).restored == 1
    assert names(tmp_path) == ['a.png', 'a_restored.png'] and not (tmp_path / 'nowhere').exists()


def test_comparisons_that_are_missing_are_made_and_results_left(tmp_path):
    for number in range(2):
        save(tmp_path / 'in' / f'{number}.png', number)
    jobs = plan([tmp_path / 'in'], out=tmp_path / 'out')
    restore_photos(Same(), jobs, options=FP32)
    mine = np.full((12, 16, 3), 77, np.uint8)
    Image.fromarray(mine).save(tmp_path / 'out' / '0.png')
    kept = (tmp_path / 'out' / '0.png').read_bytes()
    options = replace(FP32, skip_existing=True, compare=tmp_path / 'look')
    summary = restore_photos(Same(), jobs, options=options)
    assert (summary.restored, summary.skipped) == (0, 2)
    assert (tmp_path / 'out' / '0.png').read_bytes() == kept
    shown = np.asarray(Image.open(next((tmp_path / 'look').rglob('0.png.jpg'))))
    assert shown.shape == (12, 32, 3) and np.abs(shown[:, 16:].astype(int) - mine).max() < 16, 'the result, as it is'
    assert (tmp_path / 'look' / 'index.html').read_text().count('<figure>') == 2
    with mock.patch('wrcan_arch.photos.bulk_restore.read_photo', side_effect=AssertionError('read')):
        assert restore_photos(Same(), jobs, options=options).skipped == 2


def test_result_that_is_no_picture_of_the_photograph_is_not_compared(tmp_path):
    for number in range(2):
        save(tmp_path / 'in' / f'{number}.png', number)
    jobs = plan([tmp_path / 'in'], out=tmp_path / 'out')
    (tmp_path / 'out').mkdir()
    Image.new('RGB', (5, 6)).save(tmp_path / 'out' / '0.png')
    (tmp_path / 'out' / '1.png').write_text('mine')
    options = replace(FP32, skip_existing=True, compare=tmp_path / 'look')
    said = restore_photos(Same(), jobs, options=options).failures
    assert len(said) == 2 and 'out/0.png: is 5 x 6, but a result of' in said[0] and 'out/1.png' in said[1]
    assert (tmp_path / 'out' / '1.png').read_text() == 'mine'


def test_name_of_any_length_has_a_picture_on_the_page(tmp_path):
    save(tmp_path / 'in' / f'{"n" * 250}.png')
    save(tmp_path / 'in' / 'other.png')
    options = replace(FP32, compare=tmp_path / 'look')
    summary = restore_photos(Same(), plan([tmp_path / 'in'], out=tmp_path / 'out'), options=options)
    assert (summary.restored, summary.failures) == (2, [])
    assert (tmp_path / 'look' / 'index.html').read_text().count('<figure>') == 2


def test_picture_that_cannot_be_written_leaves_its_photograph_restored(tmp_path):
    save(tmp_path / 'in' / 'a.png')
    options, made = replace(INPUT, compare=tmp_path / 'look', skip_existing=True), tmp_path / 'out' / 'a.png'
    jobs = plan([tmp_path / 'in'], out=tmp_path / 'out', compare=options.compare)
    restore_photos(Same(), jobs, options=options)
    made.unlink()
    full = mock.patch('wrcan_arch.photos.bulk_restore.write_side_by_side', side_effect=InputError('no room'))
    with full:
        summary = restore_photos(Same(), jobs, options=options)
    assert made.exists() and summary.lines() == ['1 of 1 restored'] and summary.failures == ['no room']
    assert '<figure>' not in (tmp_path / 'look' / 'index.html').read_text(), 'the earlier picture is of another result'
    next((tmp_path / 'look').rglob('a.png.jpg')).unlink()
    with full:
        summary = restore_photos(Same(), jobs, options=options)
    assert summary.lines() == ['0 of 1 restored, 1 had a result already'] and summary.failures == ['no room']


def test_page_that_cannot_be_written_leaves_the_rest_told(tmp_path):
    (tmp_path / 'look' / 'index.html').mkdir(parents=True)
    options = replace(FP32, compare=tmp_path / 'look')
    summary = restore_photos(Same(), plan([save(tmp_path / 'a.png')], out=tmp_path / 'out'), options=options)
    assert summary.lines()[0] == '1 of 1 restored' and names(tmp_path / 'out') == ['a.png']
    assert len(summary.failures) == 1 and 'index.html: cannot be written' in summary.failures[0]


def test_photograph_is_counted_while_it_is_computed_and_once(tmp_path, monkeypatch):
    """This holds if the computing starts over in fp32, and for a photograph that cannot be read."""
    monkeypatch.setattr(bulk_restore, 'TELL_AFTER', 0)
    save(tmp_path / 'in' / '1.png', 1)
    (tmp_path / 'in' / '2.png').write_text('broken')

    def twice(_, image, *, progress, **options):
        for share in (0.25, 0.75, 0.25, 0.5, 1):
            progress(share)
        return image

    monkeypatch.setattr(bulk_restore, 'restore', twice)
    team, counted = Team(), []
    monkeypatch.setattr(team, 'add_done', lambda amount: counted.append(amount) or sum(counted))
    jobs = plan([tmp_path / 'in'], out=tmp_path / 'out')
    summary = restore_photos(network(), jobs, options=Options(), team=team)
    assert summary.lines()[0] == '1 of 2 restored'
    sizes = [Path(job.source).stat().st_size for job in jobs]
    steps = [int(share * bulk_restore.COMPUTING * sizes[0]) for share in (0, 0.25, 0.75, 1)]
    assert sorted(counted) == sorted([*np.diff(steps), sizes[0] - steps[-1], sizes[1]])


def test_what_has_a_result_can_be_left_out(tmp_path):
    for number in range(3):
        save(tmp_path / 'in' / f'{number}.png', number)
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / '1.png').write_text('done before')
    (tmp_path / 'out' / '2.png').symlink_to('on a disk that is not there')
    options = Options(skip_existing=True)
    summary = restore_photos(Same(), plan([tmp_path / 'in'], out=tmp_path / 'out'), options=options)
    assert (summary.restored, summary.skipped) == (1, 2)
    assert (tmp_path / 'out' / '1.png').read_text() == 'done before' and (tmp_path / 'out' / '2.png').is_symlink()
    assert summary.lines()[0] == '1 of 3 restored, 2 had a result already'


def test_time_left_is_of_what_is_not_done(tmp_path, monkeypatch):
    for number in range(4):
        save(tmp_path / 'in' / f'{number}.png', number)
    jobs = plan([tmp_path / 'in'], out=tmp_path / 'out')
    restore_photos(Same(), jobs[1:], options=FP32)
    team, bars, make = Team(), [], bulk_restore._progress_bar
    monkeypatch.setattr(bulk_restore, '_progress_bar', lambda *about: bars.append(make(*about)) or bars[-1])
    options = replace(FP32, skip_existing=True)
    assert restore_photos(Same(), jobs, options=options, team=team).skipped == 3
    assert bars[0].n == bars[0].total == team.done() == Path(jobs[0].source).stat().st_size


def test_a_closed_stderr_does_not_end_it(tmp_path, monkeypatch):
    monkeypatch.setattr('sys.stderr', None)
    assert restore_photos(Same(), plan([save(tmp_path / 'a.png')]), options=FP32).restored == 1


def test_strength_blends(tmp_path):
    path = save(tmp_path / 'a.png')
    before = read_photo(path).pixels.astype(float)
    after = restore(network(), read_photo(path).pixels, precision='fp32').astype(float)
    for strength in (0, 0.25, 0.75, 1):
        restore_photos(network(), plan([path], out=tmp_path / 'out'), options=replace(FP32, strength=strength))
        expected = np.rint((1 - strength) * before + strength * after)
        np.testing.assert_array_equal(read_photo(tmp_path / 'out' / 'a.png').pixels, expected)


def test_drift_is_judged_as_far_as_the_result_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr('wrcan_arch.photos.bulk_restore.restore', lambda network, pixels, **_: 255 - pixels)
    path = save(tmp_path / 'a.png')
    for strength, drifts in ((0, False), (1, True)):
        jobs = plan([path], out=tmp_path / 'out')
        lines = restore_photos(Same(), jobs, options=Options(strength=strength)).lines()
        assert any('differs in brightness or colour' in line for line in lines) == drifts


def test_what_loses_nothing_comes_back_to_the_byte(tmp_path):
    for ending, about in (('.png', {}), ('.tif', {}), ('.webp', {'lossless': True})):
        Image.fromarray(picture(12, 16)).save(tmp_path / f'a{ending}', **about)
        restore_photos(Same(), plan([tmp_path / f'a{ending}'], out=tmp_path / 'out'), options=INPUT)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / f'a{ending}')), picture(12, 16))


def test_refused_computation_names_the_photograph(tmp_path):
    jobs = plan([save(tmp_path / 'a.png')], out=tmp_path / 'out')
    summary = restore_photos(network(), jobs, options=Options(request=Request(max_memory=1)))
    assert len(summary.failures) == 1 and summary.failures[0].startswith(f'{tmp_path}/a.png: ')
    with pytest.raises(InputError, match='the weights do not say their patch size'):
        restore_photos(network(), jobs, options=Options(request=Request(mode='local')))


def test_result_that_the_format_does_not_hold_names_the_photograph(tmp_path):
    Image.fromarray(np.dstack([picture(12, 16), picture(12, 16, 1)[:, :, 0]])).save(tmp_path / 'a.png')
    (said,) = restore_photos(Same(), plan([tmp_path / 'a.png'], format='jpeg'), options=FP32).failures
    assert said.startswith(f'{tmp_path}/a.png: ') and 'jpeg holds no transparency' in said


@pytest.mark.parametrize(('taken', 'made'), [(1, 1), (3, 4), (4, 3)])
def test_network_of_other_images_is_refused_before_the_first(tmp_path, taken, made):
    other = WRCAN(num_feat=4, num_group=1, num_block=1, num_in_ch=taken, num_out_ch=made)
    with pytest.raises(InputError, match=f'the network turns {taken} channels into {made}; a photograph has 3'):
        restore_photos(other, plan([save(tmp_path / 'a.png')], out=tmp_path / 'out'), options=FP32)


@pytest.mark.parametrize(
    ('kind', 'wrong'),
    [
        (Options, {'strength': 1.1}),
        (Options, {'strength': float('nan')}),
        (Options, {'quality': 0}),
        (Options, {'max_pixels': 0}),
        (Options, {'largest': 0}),
        (Request, {'max_memory': 0}),
    ],
)
def test_wrong_options_are_refused(kind, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        kind(**wrong)


def test_warnings_are_told_with_the_photographs_they_are_about(tmp_path, monkeypatch):
    for number in range(5):
        write_photo(tmp_path / 'in' / f'{number}.jpg', Photo(pixels=picture(12, 16)), quality=90 if number else 25)
    save(tmp_path / 'in' / 'z.png')

    def not_finite(network, pixels, **options):
        if pixels.shape == (12, 16, 3):
            warnings.warn('it was computed again in fp32', RuntimeWarning, stacklevel=1)
            warnings.warn('a library will change', FutureWarning, stacklevel=1)
        return 255 - pixels

    monkeypatch.setattr('wrcan_arch.photos.bulk_restore.restore', not_finite)
    trained = Same()
    trained.metadata = {'jpeg_quality': [20, 30]}
    summary = restore_photos(trained, plan([tmp_path / 'in'], out=tmp_path / 'out'), options=Options())
    lines = summary.lines()
    assert lines[:2] == ['6 of 6 restored', 'JPEG quality of the photographs: 25 to 90']
    first = f'{tmp_path}/in/0.jpg, {tmp_path}/in/1.jpg, {tmp_path}/in/2.jpg and 3 more'
    assert f'warning: {first}: it was computed again in fp32' in lines
    assert any(f'{first}: the result differs in brightness or colour over large areas' in line for line in lines)
    others = f'{tmp_path}/in/1.jpg, {tmp_path}/in/2.jpg, {tmp_path}/in/3.jpg and 1 more'
    said = 'its JPEG quality is 90, the weights were trained for 20 to 30; expect a weaker result'
    assert f'warning: {others}: {said}' in lines
    assert len(lines) == 5


def test_large_photographs_are_told_where_their_size_may_be_why_they_stay_blurred(tmp_path, monkeypatch):
    monkeypatch.setattr('wrcan_arch.photos.bulk_restore.restore', lambda network, pixels, **_: pixels)
    for name, width in {'a': 2001, 'b': 2001, 'c': 2000}.items():
        Image.new('RGB', (width, 2)).save(tmp_path / f'{name}.png')
    jobs = plan([tmp_path], out=tmp_path / 'out')
    for options in (INPUT, Options(largest=3000)):
        assert restore_photos(Same(), jobs, options=options).lines() == ['3 of 3 restored']
    done, said = restore_photos(Same(), jobs, options=Options()).lines()
    assert said.startswith('photographs of more than 2000 pixels a side: 2; ') and said.endswith('try --largest 1600')
    again = restore_photos(Same(), jobs, options=Options(skip_existing=True))
    assert again.lines() == ['0 of 3 restored, 3 had a result already']


def test_summaries_survive_json_and_add_up():
    one = Summary(restored=2, failures=['a'])
    one.qualities.update([25, 25, 80])
    one.large = 2
    one.warnings['dark'] = 2
    one.examples['dark'] = ['x', 'y']
    total = Summary.from_json(one.to_json())
    assert total == one
    total.add(one)
    assert (total.restored, total.large) == (4, 4)
    assert total.qualities == {25: 4, 80: 2} and total.failures == ['a', 'a']
    assert total.warnings == {'dark': 4} and total.examples == {'dark': ['x', 'y', 'x']}


def test_steps_overlap_by_one_item():
    began, may_end = threading.Event(), threading.Event()

    def slow(item):
        began.set()
        assert may_end.wait(10)
        return -item

    taken = []

    def items():
        for item in range(4):
            if item == 1:
                assert began.wait(10)  # the first item is in work while the second is made
                may_end.set()
            taken.append(item)
            yield item

    results = in_thread(slow, items())
    assert next(results) == 0 and taken == [0, 1]
    assert list(results) == [-1, -2, -3]
    with pytest.raises(ZeroDivisionError):
        list(in_thread(lambda item: 1 // item, [1, 0]))


def resident():
    gc.collect()
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def grown_by(folder, count, size, monkeypatch):
    """Bytes by which the process grows while it restores `count` photographs, without the first twentieth of them."""
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)  # to be fast on slow disks
    Image.fromarray(picture(*size)).save(folder / 'photo.png')
    (folder / 'in').mkdir()
    for number in range(count):
        shutil.copyfile(folder / 'photo.png', folder / 'in' / f'{number:05}.png')
    jobs = plan([folder / 'in'], out=folder / 'out')
    first = restore_photos(Same(), jobs[: count // 20], options=INPUT)  # loads what is kept in memory once
    before = resident()
    others = restore_photos(Same(), jobs[count // 20 :], options=INPUT)
    assert first.restored + others.restored == len(names(folder / 'out')) == count
    return resident() - before


@pytest.mark.slow
def test_ten_thousand_photographs_take_no_more_memory_than_ten(tmp_path, monkeypatch):
    pixels = Photo(picture(12, 16))
    monkeypatch.setattr(bulk_restore, 'read_photo', lambda path, **_: pixels)  # the next test is about pixels
    monkeypatch.setattr(bulk_restore, 'write_photo', lambda path, photo, quality: Path(path).touch())
    assert grown_by(tmp_path, 10_000, (12, 16), monkeypatch) < 5_000_000  # 500 bytes each


@pytest.mark.slow
def test_pixels_are_freed(tmp_path, monkeypatch):
    assert grown_by(tmp_path, 400, (300, 400), monkeypatch) < 30_000_000  # a tenth of the pixels read and written


# The command


def test_weights_are_in_the_layout_that_is_fastest(tmp_path, weights, monkeypatch):
    taken = []
    monkeypatch.setattr(bulk_restore, 'restore_photos', lambda network, *_, **__: taken.append(network))
    assert cli.main(['restore', str(save(tmp_path / 'a.png')), '--weights', str(weights)]) == 0
    assert taken[0].groups[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
