import base64
import html
import json
import os
import re
import shutil
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import yaml
from basicsr.metrics import calculate_psnr
from basicsr.utils.registry import METRIC_REGISTRY
from conftest import picture

from wrcan_arch import InputError
from wrcan_arch.cli import main
from wrcan_arch.data.image_files import write_png
from wrcan_arch.data.store_writer import StoreWriter
from wrcan_arch.look.crops import busiest_crops
from wrcan_arch.look.finished import open_test_set, read_restored
from wrcan_arch.look.page import rounded
from wrcan_arch.look.report import plot, plot_losses, read_curves, write_report
from wrcan_arch.train.results import describe_stores, write_result

LOG = """2026-01-01 10:00:00,000 INFO: [small..][epoch:  0, iter:       1, lr:(1.000e-03,)] [eta: 0:00:00, time (data): 1.239 (0.086)] l_pix: 6.1602e-01 l_ae: 4.8760e-02
2026-01-01 10:00:00,000 INFO: [small..][epoch:  2, iter:   1,200, lr:(5.000e-04,)] [eta: 0:00:01, time (data): 0.5 (0.06)] l_pix: 5.0251e-01 l_ae: 3.4787e-02
2026-01-01 10:00:00,000 INFO: Validation small_val
\t # psnr: 26.6165\tBest: 26.6165 @ 1200 iter
\t # ssim: 0.8034\tBest: 0.8034 @ 1200 iter
"""  # noqa: E501  (as the toolbox writes them)


def test_curves_are_what_the_logs_say_and_a_later_log_counts(tmp_path):
    (tmp_path / 'train_small_20260101_100000.log').write_text(LOG)
    later = LOG.replace('5.0251e-01', '4.0000e-01').splitlines()[1].encode() + b'\n/data/caf\xe9 is not of UTF-8'
    (tmp_path / 'train_small_20260102_100000.log').write_bytes(later)
    curves = read_curves(tmp_path)
    assert curves.losses == {'l_pix': [(1, 0.61602), (1200, 0.4)], 'l_ae': [(1, 0.04876), (1200, 0.034787)]}
    assert curves.metrics == {'PSNR': [(1200, 26.6165)], 'SSIM': [(1200, 0.8034)]}


def test_curves_of_a_run_from_an_older_state_lack_what_came_after_it(tmp_path):
    def logged(name, *iterations, start=''):
        steps = ''.join(
            f'2026 INFO: [a][epoch:  0, iter:  {each}, lr:(1e-04,)] l_pix: {each:.4e} \n'
            f'2026 INFO: Validated small at iteration {each}\n\t # psnr: {each}\tBest: 9 @ 9 iter\n'
            for each in iterations
        )
        (tmp_path / f'train_{name}.log').write_text(start + steps)

    resumed = '2026 INFO: Resuming training from epoch: 0, iter: 4.\n'
    logged('a', 2, 4, 6, 8)
    with (tmp_path / 'train_a.log').open('a') as log:  # curves that begin and end after the older state
        log.write(
            '2026 INFO: [a][epoch:  0, iter:  8, lr:(1e-04,)] l_ae: 8.0000e+00 \n\t # ssim: 8\tBest: 9 @ 9 iter\n'
        )
    logged('b', 4, start=resumed)
    curves = read_curves(tmp_path)
    assert [each for each, _ in curves.losses['l_pix']] == [2, 4, 6, 8], 'no step was made: it is still the same run'
    logged('b', 5, 7, start=resumed)
    curves = read_curves(tmp_path)
    assert curves.losses == {'l_pix': [(each, each) for each in (2, 4, 5, 7)]}
    assert curves.metrics == {'PSNR': [(each, each) for each in (2, 4, 5, 7)]}


def test_numbers_that_a_full_disk_cut_off_do_not_count(tmp_path):
    torn = LOG.splitlines()[1]
    for number, length in enumerate(range(torn.index('5.0251e'), len(torn))):
        (tmp_path / f'train_{number:02}.log').write_text(LOG.splitlines()[0] + '\n' + torn[:length])
    losses = read_curves(tmp_path).losses
    assert losses == {'l_pix': [(1, 0.61602), (1200, 0.50251)], 'l_ae': [(1, 0.04876)]}


def test_losses_that_are_no_numbers_are_in_the_curves(tmp_path):
    (tmp_path / 'train_a.log').write_text(LOG.replace('6.1602e-01', 'nan').replace('4.8760e-02', '-inf'))
    losses = read_curves(tmp_path).losses
    assert np.isnan(losses['l_pix'][0][1]) and losses['l_ae'][0] == (1, -np.inf)


def test_validations_stand_at_their_own_iteration_and_set(tmp_path):
    said = '2026 INFO: Validated {} at iteration {}: exact fp32\n INFO: Validation\n\t # psnr: {}\tBest: 1 @ 1 iter\n'
    text = (
        LOG.splitlines()[0]
        + '\n'
        + said.format('one', 7, 20.0)
        + said.format('two', 7, 30.0)
        + said.format('one', 9, 21.0)
    )
    (tmp_path / 'train_a.log').write_text(text)
    assert read_curves(tmp_path).metrics == {'PSNR (one)': [(7, 20.0), (9, 21.0)], 'PSNR (two)': [(7, 30.0)]}


def test_sets_of_the_toolboxs_own_model_have_curves_of_their_own(tmp_path):
    """It logs the scores alone, under the iteration that was printed last."""
    first = LOG.splitlines()[0]
    said = ''.join(f'2026 INFO: Validation {name}\n\t # psnr: {psnr}\tBest: 1 @ 1 iter\n\n' for name, psnr in (
        ('my photos', 20.0), ('two', 30.0)))  # fmt: skip
    (tmp_path / 'train_a.log').write_text(f'{first}\n{said}{first.replace("1, lr", "2, lr")}\n{said}')
    assert read_curves(tmp_path).metrics == {
        'PSNR (my photos)': [(1, 20.0), (2, 20.0)], 'PSNR (two)': [(1, 30.0), (2, 30.0)]
    }  # fmt: skip


def test_sets_and_metrics_may_be_called_anything(tmp_path):
    said = (
        '2026 INFO: Validated my photos at iteration 7\n2026 INFO: Validation\n\t # psnr-y: 20.5\tBest: 20.5 @ 7 iter\n'
    )
    (tmp_path / 'train_a.log').write_text(said)
    assert read_curves(tmp_path).metrics == {'PSNR-Y': [(7, 20.5)]}


@pytest.mark.timeout(20)
def test_time_for_a_line_of_a_log_grows_with_its_length_only(tmp_path):
    """Else one such line would take an hour."""
    parts = ('Validated ', ' INFO: Validated a at iteration ', 'iter: 1,1', 'l_', ' l_: ', ' ', ': a ')
    lines = [start + part * (1_000_000 // len(part)) for part in parts for start in ('2026 INFO: Validated ', '\t # ')]
    (tmp_path / 'train_a.log').write_text('\n'.join(lines))
    assert read_curves(tmp_path).metrics == {}


def test_folder_without_a_log_is_an_error(tmp_path):
    with pytest.raises(InputError, match='give the folder of a training run'):
        read_curves(tmp_path)


def test_losses_are_on_a_logarithmic_axis():
    drawn = plot_losses({'l_pix': [(1, 0.5), (2, 0.4)], 'l_ae': [(1, 0.001)]})
    assert '<figcaption>training loss</figcaption>' in drawn
    assert '<!-- $\\mathdefault{10^{-3}}$ -->' in drawn  # a label of the axis


@pytest.mark.parametrize('broken', [float('nan'), float('inf'), float('-inf')])
def test_losses_that_are_no_numbers_do_not_choose_the_axis(broken):
    """min() keeps a NaN that comes first."""
    drawn = plot_losses({'l_pix': [(1, broken), (2, 0.5), (3, 0.4)], 'l_ae': [(1, broken), (2, 0.001)]})
    assert '<!-- $\\mathdefault{10^{-3}}$ -->' in drawn and 'PSNR' not in drawn
    assert '<svg' in plot_losses({'l_pix': [(1, broken)]})


def test_losses_below_zero_are_drawn_too_and_said_to_be_psnr():
    """PSNRLoss is negative; a logarithmic axis would leave it out."""
    drawn = plot_losses({'l_pix': [(1, -0.3), (2, -0.2)], 'l_ae': [(1, 0.001)]})
    assert '<!-- −0.30 -->' in drawn and '<!-- −0.20 -->' in drawn
    assert '<figcaption>training loss (l_pix: -PSNR x loss_weight)</figcaption>' in drawn


def test_labels_of_a_long_trainings_iterations_stand_apart():
    drawn = plot('psnr', {'psnr': [(0, 20.0), (450_000, 21.0)]})
    places = sorted(map(float, re.findall(r'<!-- \d{6} -->\s*<g transform="translate\(([\d.]+) ', drawn)))
    digit = 6.4  # points wide; six of them, and a gap
    assert len(places) > 1 and np.diff(places).min() > 7 * digit


@pytest.mark.parametrize('scale', ['linear', 'log'])
def test_labels_of_the_axes_are_the_values_themselves(scale):
    """Without an offset such as +2.768e1 to add to each."""
    drawn = plot('psnr', {'psnr': [(300_001, 27.6810), (300_009, 27.6812)]}, scale=scale)
    assert '<!-- 300004 -->' in drawn and '<!-- +' not in drawn
    assert scale == 'log' or '<!-- 27.6811' in drawn


def mean_error(img, img2):
    return float(np.abs(img - img2).mean())


@pytest.fixture
def finished_test(tmp_path, monkeypatch):
    """The options of a finished test that restored one image of 240 x 200, with its files."""
    monkeypatch.chdir(tmp_path)
    images = {
        'blur/a.png': picture(200, 240),
        'sharp/a.png': picture(200, 240, 1),
        'results/some/visualization/small/a_some.png': picture(200, 240, 2),
    }
    for name, image in images.items():
        Path(name).parent.mkdir(parents=True)
        cv2.imwrite(name, image)
    about = {'protocol': 'chop x8 bf16', 'weights': None, 'network_g': {'type': 'WRCAN'}, 'metric_options': {}}
    write_result(Path('results/some'), 'small', {'a': {'psnr': 28.0}}, about)
    dataset = {
        'name': 'small', 'type': 'PairedImageDataset', 'dataroot_lq': 'blur', 'dataroot_gt': 'sharp',
        'io_backend': {'type': 'disk'},
    }  # fmt: skip
    metrics = {'psnr': {'type': 'calculate_psnr', 'crop_border': 0}}
    return {'name': 'some', 'scale': 1, 'datasets': {'test': dataset}, 'val': {'metrics': metrics}}


def test_page_shows_images_at_1_to_1_and_crops_at_2_to_1(finished_test):
    write_report(finished_test, None, Path('report.html'))
    page = Path('report.html').read_text()
    widths = re.findall(r'alt="([^"]*)" width="(\d+)"', page)
    shown = [(f'a, {name}', '240') if part == 0 else (f'a, {name}, crop', '320')
             for name in ('blurred', 'restored', 'sharp') for part in range(2)]  # fmt: skip
    assert widths == shown and 'crops at 2:1' in page
    found = {name: cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
             for content, name in re.findall(r'base64,([^"]*)" alt="a, ([^"]*)"', page)}  # fmt: skip
    (top, left), *_ = busiest_crops([picture(200, 240), picture(200, 240, 1)], 1)
    for seed, name in enumerate(('blurred', 'sharp', 'restored')):
        assert np.abs(found[name].astype(int) - picture(200, 240, seed)).mean() < 5, 'a JPEG'
        crop = picture(200, 240, seed)[top : top + 160, left : left + 160]
        np.testing.assert_array_equal(found[f'{name}, crop'], crop)


@pytest.mark.parametrize(
    ('size', 'shown'), [((90, 1300), (89, 1280)), ((1300, 90), (1280, 89)), ((1, 4000), (1, 1280))]
)
def test_large_images_are_shown_smaller_and_their_crops_as_they_are(finished_test, size, shown):
    for place, path in enumerate(('blur/a.png', 'sharp/a.png', 'results/some/visualization/small/a_some.png')):
        cv2.imwrite(path, picture(*size, place))
    write_report(finished_test, None, Path('report.html'))
    contents = re.findall(r'base64,([^"]*)" alt="a, sharp', Path('report.html').read_text())
    images = [np.frombuffer(base64.b64decode(content), np.uint8) for content in contents]
    whole, *crops = [cv2.imdecode(image, cv2.IMREAD_COLOR) for image in images]
    assert whole.shape == (*shown, 3)
    expected = cv2.resize(picture(*size, 1), shown[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(whole.astype(int) - expected).mean() < 5, 'a JPEG'
    assert all(max(crop.shape) == 160 for crop in crops) and len(crops) == 2


def test_a_metric_of_ones_own_is_given_what_a_test_gives_it(finished_test, monkeypatch):
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'mean_error', mean_error)
    finished_test['val']['metrics'] = {'error': {'type': 'mean_error', 'better': 'lower'}}
    means = write_report(finished_test, None, Path('report.html'))['small']
    assert means.blurred['error'] == pytest.approx(mean_error(picture(200, 240), picture(200, 240, 1)))


def test_scores_are_of_blurred_and_restored_and_what_was_gained(finished_test):
    write_png(Path('results/some/visualization/small/a_some.png'), cv2.blur(picture(200, 240, 1), (2, 1)))
    blurred, restored = (cv2.PSNR(picture(200, 240, 1), image) for image in (
        picture(200, 240), cv2.blur(picture(200, 240, 1), (2, 1))))  # fmt: skip
    means = write_report(finished_test, None, Path('report.html'))['small']
    assert (means.blurred['psnr'], means.restored['psnr']) == pytest.approx((blurred, restored), abs=1e-3)
    assert restored > blurred + 1
    row = f'<td>PSNR</td><td>{blurred:.2f}</td><td>{restored:.2f}</td><td>{restored - blurred:+.2f}</td>'
    page = Path('report.html').read_text()
    assert row in page
    assert f'<b>blurred</b> PSNR {blurred:.2f}<' in page and f'<b>restored</b> PSNR {restored:.2f}<' in page


def test_names_are_text_on_the_page_whatever_they_are(finished_test):
    for path in ('blur/{}.png', 'sharp/{}.png', 'results/some/visualization/small/{}_some.png'):
        Path(path.format('a')).rename(path.format('<i>"&'))
    write_report(finished_test, None, Path('report.html'))
    page = Path('report.html').read_text()
    assert '<i>' not in page and '<h3>&lt;i&gt;&quot;&amp;</h3>' in page
    assert 'alt="&lt;i&gt;&quot;&amp;, sharp"' in page


def test_of_many_pictures_some_from_all_over_the_test_are_shown(finished_test, monkeypatch):
    monkeypatch.setattr('wrcan_arch.look.report.MAX_PICTURES', 3)
    finished_test['datasets']['test']['type'] = 'JPEGDeblurDataset'  # this class sorts its images
    for path in ('blur/{}.png', 'sharp/{}.png', 'results/some/visualization/small/{}_some.png'):
        for name in 'bcde':
            Path(path.format(name)).write_bytes(Path(path.format('a')).read_bytes())
    assert write_report(finished_test, None, Path('report.html'))['small'].images == 5
    page = Path('report.html').read_text()
    assert re.findall('<h3>(.)</h3>', page) == ['a', 'c', 'e'] and '3 of 5 images, spread evenly over the test' in page


@pytest.mark.parametrize('wrong', ['log', 'result'])
def test_what_is_missing_or_damaged_is_said_before_anything_is_scored(finished_test, wrong):
    if wrong == 'result':
        Path('results/some/result_small.json').write_text('{')
    with (
        mock.patch('wrcan_arch.look.report.measure') as score,
        pytest.raises(InputError, match={'log': 'no train_', 'result': 'result_small.json: not a result'}[wrong]),
    ):
        write_report(finished_test, Path('nowhere') if wrong == 'log' else None, Path('report.html'))
    assert not score.called


def test_test_of_the_toolboxs_own_model_which_writes_no_result_has_a_page(finished_test):
    Path('results/some/result_small.json').unlink()
    assert write_report(finished_test, None, Path('report.html'))['small'].images == 1
    assert '<p>small: 1 image.</p>' in Path('report.html').read_text()


def test_means_of_each_data_set_are_those_of_its_result(finished_test, capsys):
    """They are equal to the bit; a plain sum of these scores is not. Each data set is opened once."""
    Path('results/some/visualization/more').mkdir()
    scores = {}
    for number in range(9):
        image = picture(60, 70, number)
        images = {'blur2/{}.png': cv2.blur(image, (5, 5)), 'sharp2/{}.png': image}
        images['results/some/visualization/more/{}_some.png'] = restored = cv2.blur(image, (3, 3))
        for name, content in images.items():
            write_png(Path(name.format(number)), content)
        scores[str(number)] = {'psnr': calculate_psnr(restored, image, 0)}
    more = {'name': 'more', 'type': 'JPEGDeblurDataset', 'dataroot_lq': 'blur2', 'dataroot_gt': 'sharp2'}
    finished_test['datasets']['test_2'] = finished_test['datasets']['test'] | more
    about = {'protocol': 'exact fp32', 'weights': None, 'network_g': {}, 'metric_options': {}}
    write_result(Path('results/some'), 'more', scores, about)
    Path('results/some/options.yml').write_text(yaml.safe_dump(finished_test))
    Path('test.yml').write_text('name: some\n')
    with mock.patch('wrcan_arch.look.report.open_test_set', wraps=open_test_set) as opened:
        means = write_report(finished_test, None, Path('report.html'))
    assert opened.call_count == 2
    result = json.loads(Path('results/some/result_more.json').read_text())
    assert means['more'].restored == result['metrics'] and list(means) == ['small', 'more']
    page = Path('report.html').read_text()
    assert page.index('small: 1 image; protocol: chop x8 bf16.') < page.index('more: 9 images; protocol: exact fp32.')
    assert main(['report', '-opt', 'test.yml']) == 0
    printed = capsys.readouterr()
    said = printed.out.splitlines()
    assert 'more: 100%|' in printed.err
    assert [line.partition(': blurred')[0] for line in said[:2]] == ['small: PSNR of 1 image', 'more: PSNR of 9 images']


def test_the_tested_iteration_is_marked_in_the_curves_of_its_own_training(finished_test):
    log = '2026 INFO: Validated small at iteration {}\n\t # psnr: 20.0\tBest: 20.0 @ 7 iter\n'
    for training, first in ('own', 7), ('other', 0):
        Path(training).mkdir()
        Path(training, 'train_a.log').write_text(log.format(first) + log.format(9))
    weights = {'path': 'net.pth', 'sha256': '0', 'training': 'own', 'iteration': 9}
    about = {'protocol': 'exact fp32', 'weights': weights, 'network_g': {}, 'metric_options': {}}
    write_result(Path('results/some'), 'small', {'a': {'psnr': 28.0}}, about)
    pages = {}
    for training in ('own', 'other'):
        write_report(finished_test, Path(training), Path(f'{training}.html'))
        pages[training] = Path(f'{training}.html').read_text()
        assert '; weights: net.pth, iteration 9 of own.' in pages[training]
    Path('net.pth').touch()
    write_report(finished_test, None, Path('replaced.html'))
    said = '; weights: net.pth (the file has changed since: test again), iteration 9 of own.'
    assert said in Path('replaced.html').read_text()
    assert '<p>At iteration 0: the weights that the training began with. </p>' in pages['other']
    dotted = 'stroke-dasharray'
    assert pages['own'].count(dotted) == pages['other'].count(dotted) + 1
    assert '<p>Dotted line: the iteration whose weights were tested.</p>' in pages['own']
    with mock.patch('matplotlib.axes.Axes.axvline') as line:
        plot('psnr', {'psnr': [(7, 20.0), (11, 21.0)]}, tested=9)
    assert line.call_args.args == (9,)


def test_names_of_charts_are_text_whatever_they_are():
    """matplotlib draws boxes for the first, cuts the second off at both ends, and reads the third as mathematics."""
    for name in ('写真', 'long ' * 30, r'$\frac$ & <i>"'):
        drawn, escaped = plot(name, {name: [(1, 0.5)]}), html.escape(name)
        title = f'<figure><figcaption>{escaped}</figcaption><svg role="img" aria-label="{escaped}" '
        assert drawn.startswith(title) and drawn.endswith('</svg>\n</figure>')


def test_names_of_metrics_are_text_and_those_of_sets_stay_as_they_are(finished_test):
    finished_test['val']['metrics'] = {'<i>': {'type': 'calculate_psnr', 'crop_border': 0}}
    Path('run').mkdir()
    said = '2026 INFO: Validated {} at iteration 7\n\t # psnr: 20.0\tBest: 20.0 @ 7 iter\n'
    Path('run/train_a.log').write_text(said.format('REDS_val') + said.format('Other'))
    write_report(finished_test, Path('run'), Path('report.html'))
    page = Path('report.html').read_text()
    assert '<i>' not in page.lower().replace('&lt;', '') and page.count('&lt;I&gt;') == 3
    assert '<figcaption>validation PSNR (REDS_val)</figcaption>' in page


def test_page_does_not_replace_a_file_that_is_no_page(finished_test):
    Path('README.md').write_text('a text')
    with pytest.raises(InputError, match='^README.md: a page ends in .html; name it, as in README.html$'):
        write_report(finished_test, None, Path('README.md'))
    assert Path('README.md').read_text() == 'a text'
    write_report(finished_test, None, Path('REPORT.HTM'))


def test_page_is_not_written_under_a_folders_name(finished_test):
    with (
        mock.patch('wrcan_arch.look.report.measure') as score,
        pytest.raises(InputError, match='^results: a folder; name the page, as in results/page.html$'),
    ):
        write_report(finished_test, None, Path('results'))
    assert not score.called


def test_stores_made_anew_after_the_test_are_said(finished_test):
    """Their images may have the same names and sizes. A result of an older test, without checksums, says nothing."""
    dataset = finished_test['datasets']['test']
    dataset |= {'type': 'JPEGDeblurDataset', 'dataroot_lq': 'blur.lmdb', 'dataroot_gt': 'sharp.lmdb'}
    dataset['io_backend'] = {'type': 'lmdb'}
    said = {}
    for seed, state in enumerate(('tested', 'made anew', 'older')):
        for name in ('blur', 'sharp'):
            shutil.rmtree(f'{name}.lmdb', ignore_errors=True)
            with StoreWriter(f'{name}.lmdb') as store:
                image = picture(200, 240, seed if name == 'sharp' else 9)
                store.put('a', '.png', cv2.imencode('.png', image)[1].tobytes(), image.shape)
        if state != 'made anew':
            stores = {'stores': describe_stores(dataset)} if state == 'tested' else {}
            about = {'protocol': 'exact fp32', 'weights': None, 'network_g': {}, 'metric_options': {}, **stores}
            write_result(Path('results/some'), 'small', {'a': {'psnr': 28.0}}, about)
        write_report(finished_test, None, Path('report.html'))
        said[state] = re.findall('<p>(small.*?);', Path('report.html').read_text())
    changed = 'small: 1 image (the data have changed since: test again)'
    assert said == {'tested': ['small: 1 image'], 'made anew': [changed], 'older': ['small: 1 image']}


def test_data_of_another_size_than_in_the_test_are_said(finished_test):
    cv2.imwrite('sharp/a.png', picture(200, 238, 1))
    with pytest.raises(InputError, match='^a is 240 x 200 in blurred, 240 x 200 in restored, 238 x 200 in sharp; give'):
        write_report(finished_test, None, Path('report.html'))


def test_report_reads_what_was_tested(finished_test, capsys):
    """Even if the option file has changed since, or the test got its name on the command line."""
    Path('results/some/options.yml').write_text(yaml.safe_dump(finished_test))
    Path('test.yml').write_text(
        'name: other\npath: {pretrain_network_g: gone.pth}\ndatasets: {test: {name: else, type: JPEGDeblurDataset}}\n'
    )
    assert main(['report', '-opt', 'test.yml', '--force_yml', 'name=some']) == 0
    assert 'PSNR of 1 image: blurred' in capsys.readouterr().out and Path('report.html').is_file()
    assert main(['report', '-opt', 'test.yml']) == 2
    said = 'basicsr report: results/other: no such test yet; run basicsr test -opt test.yml first\n'
    assert capsys.readouterr().err == said
    Path('results/some/options.yml').write_text('')
    assert main(['report', '-opt', 'test.yml', '--force_yml', 'name=some']) == 2
    assert 'results/some/options.yml: damaged, no options in it; test again' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['-opt', 'test.yml', '--crops', '003/00000060'], '--crops is for --figure'),
        (['--figure', 'a', '--experiment', 'b'], '--experiment and --force_yml are for -opt'),
    ],
)
def test_flags_without_effect_are_refused(capsys, arguments, message):
    assert main(['report', *arguments]) == 2
    assert capsys.readouterr().err == f'basicsr report: {message}\n'


def test_image_that_was_not_saved_is_said_once(tmp_path, capfd):
    with pytest.raises(InputError, match=r'no restored image a\.png; test again, with save_img: true'):
        read_restored(tmp_path / 'a.png')
    other = tmp_path / os.fsdecode(b'\xff.png')
    write_png(other, picture(4, 5))
    np.testing.assert_array_equal(read_restored(other), picture(4, 5))
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('size', [(400, 500), (160, 161), (90, 400), (1, 1)])
def test_crops_are_inside_apart_and_where_the_blur_cost_most(size):
    sharp = np.zeros((*size, 3), np.uint8)
    blurred = sharp.copy()
    blurred[size[0] // 2, size[1] // 2] = 200
    corners = busiest_crops([blurred, sharp], 2)
    high, wide = min(160, size[0]), min(160, size[1])
    assert all(0 <= top <= size[0] - high and 0 <= left <= size[1] - wide for top, left in corners)
    top, left = corners[0]
    assert top <= size[0] // 2 < top + high and left <= size[1] // 2 < left + wide
    assert all(abs(top - other) >= high or abs(left - beside) >= wide for other, beside in corners[1:])


@pytest.mark.parametrize('size', [(100, 400), (400, 100), (180, 200)])
def test_first_crop_is_the_one_of_the_largest_sum(size):
    first, second = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    crop = min(160, size[0]), min(160, size[1])
    difference = np.abs(first.astype(int) - second).sum(axis=2)
    sums = np.lib.stride_tricks.sliding_window_view(difference, crop).sum(axis=(2, 3))
    assert busiest_crops([first, second], 1)[0] == np.unravel_index(sums.argmax(), sums.shape)


def test_scores_have_the_papers_digits_and_no_minus_zero():
    assert [rounded('psnr', 28.936), rounded('psnr', 0.036, '+'), rounded('psnr', -0.003, '+')] == [
        '28.94', '+0.04', '+0.00'
    ]  # fmt: skip
    assert [rounded('ssim', 0.81384), rounded('lpips', -0.0012, '+')] == ['0.8138', '-0.0012']
