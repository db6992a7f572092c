from pathlib import Path

import pytest
import yaml

from wrcan_arch import InputError, options

ROOT = Path(__file__).parent.parent


def write(path, text):
    path.write_text(text)
    return path


def test_numbers_are_numbers_and_texts_are_texts(tmp_path):
    path = write(
        tmp_path / 'a.yml', 'a: 1e-4\nb: 2E+3\nc: !!float 1e-3\nd: 1.5e-3\ne: -1e-8\nf: e4\ng: 10\nh: ~\ni: 1e4x\n'
    )
    read = options.read_options(path)
    assert [read[key] for key in 'abcdefghi'] == [1e-4, 2e3, 1e-3, 1.5e-3, -1e-8, 'e4', 10, None, '1e4x']


def test_resolved_options_survive_the_toolboxs_own_reader(tmp_path):
    from basicsr.utils.options import ordered_yaml

    path = write(tmp_path / 'a.yml', 'lr: 1e-4\nwd: 1e-8\nlist: [1, 2e-5, ~]\nname: yes_no\nflag: true\n')
    read = options.read_options(path)
    assert yaml.load(yaml.safe_dump(read), ordered_yaml()[0]) == read


def test_base_is_overridden_section_by_section(tmp_path):
    write(tmp_path / 'base.yml', 'name: a\ntrain: {lr: 1, loss: {type: x}, ae: {w: 1}}\nlist: [1, 2]\n')
    path = write(tmp_path / 'own.yml', 'base: base.yml\nname: b\ntrain: {lr: 2, ae: ~}\nlist: [3]\n')
    read = options.read_options(path)
    assert read['name'] == 'b' and read['train'] == {'lr': 2, 'loss': {'type': 'x'}} and read['list'] == [3]
    assert 'base' not in read


def test_overrides_set_what_is_there_and_are_parsed_not_run(tmp_path):
    path = write(tmp_path / 'a.yml', 'train: {total_iter: 10, betas: [0, 1]}\n')
    read = options.read_options(path, ['train:total_iter=1e2', 'train:betas=[0.5, 0.9]'])
    assert read['train'] == {'total_iter': 100, 'betas': [0.5, 0.9]}
    evil = options.read_options(path, ['train:total_iter=__import__("os").system("touch evil")'])
    assert evil['train']['total_iter'] == '__import__("os").system("touch evil")'
    for override in ('train:iters=3', 'nothing', 'train:total_iter:x=3'):
        with pytest.raises(InputError, match='there is no option'):
            options.read_options(path, [override])


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a: 1\nb: 2\na: 3\n', r"a\.yml:3: the key 'a' stands twice"),
        ('x:\n  a: 1\n  a: 2\n', r"a\.yml:3: the key 'a' stands twice"),
        ('a: [1, 2\nb: 3\n', r'a\.yml:2: '),
        ('- 1\n- 2\n', 'is a mapping of keys to values'),
        ('a: !!python/object/apply:os.system ["touch evil"]\n', r'a\.yml:1: could not determine a constructor'),
        ('base: nowhere.yml\n', r'nowhere\.yml: there is no such option file \(the base of .*a\.yml'),
        ('base: a.yml\n', 'leads back to itself'),
    ],
)
def test_unreadable_files_say_where_and_what(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        options.read_options(write(tmp_path / 'a.yml', text))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.yml']


def test_missing_and_binary_files_are_errors(tmp_path):
    with pytest.raises(InputError, match=r'nowhere\.yml: there is no such option file'):
        options.read_options(tmp_path / 'nowhere.yml')
    (tmp_path / 'a.yml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(InputError, match='not a text file in UTF-8'):
        options.read_options(tmp_path / 'a.yml')


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The demo's training options, in a folder where its data are."""
    monkeypatch.chdir(tmp_path)
    for name in ('train', 'val', 'test'):
        for role in ('blur', 'sharp'):
            Path(f'datasets/demo_{name}_{role}.lmdb').mkdir(parents=True)
    return options.read_options(ROOT / 'options' / 'train_wrcan_demo.yml')


def set_option(opt, keys, value):
    *parents, last = keys.split(':')
    for parent in parents:
        opt = opt[parent]
    if value is None:
        del opt[last]
    else:
        opt[last] = value


def test_demo_options_are_sound(demo):
    options.check(demo, 'train', 'demo.yml')


@pytest.mark.parametrize(
    ('keys', 'value', 'message'),
    [
        ('model_type', 'WRCANModell', "model_type: there is no 'WRCANModell'; did you mean WRCANModel?"),
        ('network_g:type', 'WCRAN', "network_g:type: there is no 'WCRAN'; did you mean WRCAN?"),
        ('network_g:num_blocks', 3, "WRCAN: got an unexpected keyword argument 'num_blocks'; it takes num_in_ch"),
        ('datasets:train:type', 'Zzz', "datasets:train:type: there is no 'Zzz'; there are "),
        ('datasets:val:type', 'JPEGDeblur', 'did you mean JPEGDeblurDataset?'),
        ('train:pixel_opt:type', 'L3Loss', "train:pixel_opt:type: there is no 'L3Loss'; did you mean L1Loss?"),
        ('train:autoencoder_opt:wight', 1, "JPEGAutoEncoderLoss: got an unexpected keyword argument 'wight'"),
        ('val:metrics:psnr:type', 'calculate_pnsr', 'did you mean calculate_psnr?'),
        ('val:metrics:psnr:crop_border', None, 'val:metrics:psnr:crop_border is missing'),
        ('val:save_img', None, 'val:save_img is missing'),
        ('logger:use_tb_logger', None, 'logger:use_tb_logger is missing'),
        ('train:total_iter', None, 'train:total_iter is missing'),
        ('datasets:train', None, 'datasets:train is missing'),
        ('datasets:train:dataroot_lq', 'nowhere.lmdb', "train:dataroot_lq: there is no 'nowhere.lmdb'; prepare it"),
        ('path:pretrain_network_g', 'nowhere.pth', "path:pretrain_network_g: there is no file 'nowhere.pth'"),
        ('num_gpu', 99, r'num_gpu: 99 asked for, this machine has \d+; write auto'),
        ('datasets:train:num_worker_per_gpu', 0, 'persistent_workers needs num_worker_per_gpu of at least 1'),
    ],
)  # fmt: skip
def test_each_mistake_is_named_before_anything_is_written(demo, keys, value, message):
    set_option(demo, keys, value)
    with pytest.raises(InputError, match=message) as error:
        options.check(demo, 'train', 'demo.yml')
    assert all(line.startswith('demo.yml: ') for line in str(error.value).splitlines())


def test_all_mistakes_are_named_at_once(demo):
    set_option(demo, 'network_g:type', 'WCRAN')
    set_option(demo, 'datasets:train:dataroot_lq', 'nowhere.lmdb')
    with pytest.raises(InputError) as error:
        options.check(demo, 'train', 'demo.yml')
    assert len(str(error.value).splitlines()) == 2
