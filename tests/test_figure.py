import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import yaml
from basicsr.metrics import calculate_psnr
from conftest import picture

from wrcan_arch import InputError
from wrcan_arch.data.store_writer import StoreWriter
from wrcan_arch.look.figure import PAPER_FRAMES, draw, make_figure, read_rows

FRAMES = [f'{sequence:03}_{frame:08}' for sequence in range(5) for frame in range(2)]
SIZE = (200, 240)
SPOTS = {key: (10 * place, 8 * place) for place, key in enumerate(FRAMES)}  # where the methods differ


def make_store(path, images):
    with StoreWriter(path) as store:
        for key, image in images.items():
            store.put(key, '.png', cv2.imencode('.png', image)[1].tobytes(), image.shape)


def make_result(name, images, suffix=None, sharp='sharp.lmdb'):
    folder = Path('results', name, 'visualization', 'small')
    folder.mkdir(parents=True)
    for key, image in images.items():
        cv2.imwrite(str(folder / f'{key}_{suffix or name}.png'), image)
    dataset = {
        'name': 'small',
        'type': 'JPEGDeblurDataset',
        'dataroot_lq': 'blur.lmdb',
        'dataroot_gt': sharp,
        'io_backend': {'type': 'lmdb'},
    }
    options = {'name': name, 'scale': 1, 'datasets': {'test': dataset}, 'val': {'save_img': True, 'suffix': suffix}}
    Path('results', name, 'options.yml').write_text(yaml.safe_dump(options))
    return Path('results', name)


@pytest.fixture
def frames(tmp_path, monkeypatch):
    """Five sequences of two frames: sharp, blurred, and restored by two methods that differ in one spot per frame."""
    monkeypatch.chdir(tmp_path)
    sharp = {key: picture(*SIZE, seed) for seed, key in enumerate(FRAMES)}
    blurred = {key: cv2.blur(image, (5, 5)) for key, image in sharp.items()}
    first = {key: cv2.blur(image, (3, 3)) for key, image in sharp.items()}
    second = {key: image.copy() for key, image in first.items()}
    for strength, (key, (top, left)) in enumerate(SPOTS.items()):
        spot = second[key][top : top + 4, left : left + 4]
        spot += np.where(spot < 128, 10 + strength, -10 - strength).astype(np.uint8)
    make_store('sharp.lmdb', sharp)
    make_store('blur.lmdb', blurred)
    make_result('first', first)
    make_result('second', second, suffix='x8')
    return {'input': blurred, 'first': first, 'second': second, 'sharp': sharp}


RESULTS = [Path('results/first'), Path('results/second')]


def test_named_crops_are_the_files_pixels_under_their_psnr(frames):
    (row,) = read_rows(RESULTS, ['003/00000001:7,31'])
    assert row.crop == '003/00000001:7,31'
    assert [cell.title for cell in row.cells] == ['input', 'first', 'second', 'sharp']
    for cell in row.cells:
        image = frames[cell.title]['003_00000001']
        np.testing.assert_array_equal(cell.crop, image[7:167, 31:191])
        if cell.title == 'sharp':
            assert cell.psnr is None
        else:
            assert cell.psnr == calculate_psnr(image, frames['sharp']['003_00000001'], 0)


def test_rows_are_where_the_methods_differ_most(frames):
    """Later frames differ more: the rows are each sequence's second frame, the last sequence first."""
    rows = read_rows(RESULTS, [])
    assert [row.crop.partition(':')[0] for row in rows] == [
        '004/00000001', '003/00000001', '002/00000001', '001/00000001'
    ]  # fmt: skip
    for row in rows:
        frame, top, left = re.split('[:,]', row.crop)
        spot_top, spot_left = SPOTS[frame.replace('/', '_')]
        assert 0 <= spot_top - int(top) <= 156 and 0 <= spot_left - int(left) <= 156


def test_papers_frames_come_first_where_the_data_set_has_them(frames):
    names = dict(zip([frame.replace('/', '_') for frame in PAPER_FRAMES], FRAMES, strict=False))
    for store, column in (('blur.lmdb', 'input'), ('sharp.lmdb', 'sharp')):
        shutil.rmtree(store)
        make_store(store, {name: frames[column][key] for name, key in names.items()})
    for result, ending in (('first', 'first'), ('second', 'x8')):
        folder = Path('results', result, 'visualization/small')
        for name, key in names.items():
            (folder / f'{key}_{ending}.png').rename(folder / f'{name}_{ending}.png')
    assert [row.crop.partition(':')[0] for row in read_rows(RESULTS, [])] == list(PAPER_FRAMES)


def test_one_result_is_compared_with_its_input(frames):
    restored = {key: image.copy() for key, image in frames['input'].items()}
    for key, (top, left) in SPOTS.items():
        restored[key][top : top + 4, left : left + 4] = frames['second'][key][top : top + 4, left : left + 4]
    restored['002_00000000'][100:104, 200:204] ^= 255
    rows = read_rows([make_result('alone', restored)], [])
    assert len(rows) == 4 and [cell.title for cell in rows[0].cells] == ['input', 'alone', 'sharp']
    frame, top, left = re.split('[:,]', rows[0].crop)
    assert frame == '002/00000000' and int(left) >= 44


def test_crops_of_low_images_are_as_wide_as_they_can_be(frames):
    low = {key: image[:100] for key, image in frames['second'].items()}
    for store, column in (('blur.lmdb', 'input'), ('sharp.lmdb', 'sharp')):
        shutil.rmtree(store)
        make_store(store, {key: image[:100] for key, image in frames[column].items()})
    rows = read_rows([make_result('low', low)], ['000/00000000', '001/00000000'])
    assert {cell.crop.shape for row in rows for cell in row.cells} == {(100, 160, 3)}


def test_figure_without_sharp_images(frames):
    shutil.rmtree('results')
    result = make_result('third', frames['first'], sharp=None)
    (row,) = read_rows([result], ['000/00000000'])
    assert [(cell.title, cell.psnr) for cell in row.cells] == [('input', None), ('third', None)]


def test_a_figure_can_be_made_of_a_data_set_of_the_toolbox(frames):
    for folder in ('blur', 'sharp'):
        Path(folder).mkdir()
        for key, image in frames['input' if folder == 'blur' else 'sharp'].items():
            cv2.imwrite(f'{folder}/{key}.png', image)
    options = yaml.safe_load(Path('results/first/options.yml').read_text())
    options['datasets']['test'] |= {
        'type': 'PairedImageDataset',
        'dataroot_lq': 'blur',
        'dataroot_gt': 'sharp',
        'io_backend': {'type': 'disk'},
    }
    Path('results/first/options.yml').write_text(yaml.safe_dump(options))
    (row,) = read_rows(RESULTS, ['001/00000000:0,0'])
    np.testing.assert_array_equal(row.cells[0].crop, frames['input']['001_00000000'][:160, :160])


def test_figure_is_a_png_and_a_page_at_2_to_1(frames):
    crops = ['000/00000000:0,0', '001/00000000:40,80']
    page = Path('pages/figure.html')
    image = make_figure(RESULTS, crops, page)
    assert image == Path('pages/figure.png')
    drawn = cv2.imread(str(image))
    np.testing.assert_array_equal(drawn[:, :, ::-1], draw(read_rows(RESULTS, crops)))
    enlarged = frames['second']['001_00000000'][40:200, 80:240].repeat(2, axis=0).repeat(2, axis=1)
    left, top = cv2.minMaxLoc(cv2.matchTemplate(drawn, enlarged, cv2.TM_SQDIFF))[2]
    np.testing.assert_array_equal(drawn[top : top + 320, left : left + 320], enlarged)
    text = page.read_text()
    assert text.count('<img') == text.count('width="320"') == 8
    assert all(crop in text for crop in crops) and 'http' not in text
    assert text.count('PSNR ') == 7, 'six images have one, and the page says whose it is'
    psnr = calculate_psnr(frames['first']['001_00000000'], frames['sharp']['001_00000000'], 0)
    assert f'PSNR {psnr:.2f}' in text


def test_each_psnr_stands_below_its_crop(frames):
    rows = read_rows(RESULTS, ['000/00000000:0,0', '001/00000000:40,80'])
    with mock.patch('wrcan_arch.look.figure.ImageDraw.Draw') as pen:
        draw(rows)
    written = [(text, place) for place, text, *_ in (call.args for call in pen.return_value.text.call_args_list)]
    captions = [[cell.psnr and f'PSNR {cell.psnr:.2f}' or '' for cell in row.cells] for row in rows]
    titles = [cell.title for cell in rows[0].cells]
    assert [text for text, _ in written] == [*titles, rows[0].crop, *captions[0], rows[1].crop, *captions[1]]
    columns = [left for _, (left, _) in written[: len(titles)]]
    for first in (5, 10):
        assert [left for _, (left, _) in written[first : first + 4]] == columns
        assert {top - written[first - 1][1][1] for _, (_, top) in written[first : first + 4]} == {30 + 320 + 4}


@pytest.mark.parametrize('name', ['IMG_20260708_123456_HDR_' * 3, 'IMG\n' * 30])
def test_name_of_a_crop_is_shown_whole(frames, name):
    """It is longer than the row of crops is wide; the name of a file may have more than one line."""
    (row,) = read_rows([Path('results/first')], ['000/00000000:0,0'])
    margin = draw([replace(row, crop=f'{name}:1200,1400')])[:, -12:]
    assert (margin == 255).all()


def test_columns_of_the_papers_rows_are_headed_as_in_the_paper(frames):
    names = {
        'test_table2_row3': 'WRCAN, L1',
        'test_table2_row4': 'WRCAN, L1 + L_AE-JPEG',
        'test_table1_case2': 'Table 1, case 2',
        'mine': 'mine',
    }
    results = [make_result(name, frames['first']) for name in names]
    (row,) = read_rows(results, ['000/00000000'])
    assert [cell.title for cell in row.cells] == ['input', *names.values(), 'sharp']


@pytest.mark.parametrize(
    ('results', 'crops', 'message'),
    [
        (
            ['first'],
            ['009/00000000'],
            "--crops 009/00000000: the data set has no such frame; there are '000/00000000' and",
        ),
        (['first'], ['000/00000000:41,0'], 'not inside 240 x 200; TOP is 40 at most, LEFT 80'),
        (['first'], ['000/00000000:0,81'], 'not inside 240 x 200; TOP is 40 at most, LEFT 80'),
        (['first'], ['000/00000000:1'], "no such frame; there are '000/00000000' and '000/00000000:TOP,LEFT'"),
        (['first', 'first'], [], 'need different names'),
        (['absent'], [], 'no options.yml in it; give the folder that basicsr test wrote'),
        (['first', 'unsaved'], [], 'not all have restored images of small; test with save_img: true'),
        (['first', 'smaller'], ['000/00000000'], '000/00000000 is 240 x 200 in input'),
        (['few'], ['000/00000001'], 'no restored image 000_00000001_few.png'),
    ],
)
def test_wrong_requests_say_what_to_do(frames, results, crops, message):
    make_result('smaller', {'000_00000000': frames['first']['000_00000000'][:100]})
    make_result('few', {'000_00000000': frames['first']['000_00000000']})
    make_result('unsaved', {})
    Path('results/unsaved/visualization/small').rmdir()
    with pytest.raises(InputError, match=re.escape(message)):
        read_rows([Path('results', name) for name in results], crops)


def renamed(frames, name):
    """Write all frames under other names: input and sharp to folders, the first method's as the result 'own'."""
    for folder, column in (('blur', 'input'), ('sharp', 'sharp')):
        Path(folder).mkdir()
        for number, key in enumerate(FRAMES):
            cv2.imwrite(f'{folder}/{name(number)}.png', frames[column][key])
    result = make_result('own', {name(number): frames['first'][key] for number, key in enumerate(FRAMES)})
    options = yaml.safe_load((result / 'options.yml').read_text())
    options['datasets']['test'] |= {'dataroot_lq': 'blur', 'dataroot_gt': 'sharp', 'io_backend': {'type': 'disk'}}
    (result / 'options.yml').write_text(yaml.safe_dump(options))
    return result


def test_photographs_of_one_camera_fill_the_rows(frames):
    """By their names they are all of one sequence."""
    rows = read_rows([renamed(frames, 'IMG_{:04}'.format)], [])
    assert len({row.crop.partition(':')[0] for row in rows}) == 4


@pytest.mark.parametrize('name', ['12:30:0{}', 'at_{}:1,2'])
def test_names_with_colons_are_frames_as_others(frames, name):
    result = renamed(frames, name.format)
    frame = name.format(3).replace('_', '/')
    assert len(read_rows([result], [])) == 4
    (row,) = read_rows([result], [f'{frame}:7,31'])
    assert row.crop == f'{frame}:7,31'


@pytest.mark.parametrize('name', ['fig.png', 'fig.HEIC', 'fig.md', 'fig'])
def test_page_is_not_written_under_another_files_name(frames, name):
    with pytest.raises(InputError, match=f'^{name}: a page ends in .html; name it, as in fig.html$'):
        make_figure([Path('results/first')], [], Path(name))
    assert not list(Path().glob('fig*'))


@pytest.mark.parametrize(
    ('name', 'hint'), [('', 'page.html'), ('..', '../page.html'), ('/', '/page.html'), ('results', 'results/page.html')]
)
def test_page_is_not_written_under_a_folders_name(frames, name, hint):
    before = {*Path().iterdir(), *Path('..').iterdir()}
    with pytest.raises(InputError, match=re.escape(f'{Path(name)}: a folder; name the page, as in {hint}')):
        make_figure([Path('results/first')], [], Path(name))
    assert {*Path().iterdir(), *Path('..').iterdir()} == before
