"""Option files: what is read, where each value comes from. What is wrong with them is in test_option_checks.py."""

import re
from pathlib import Path

import pytest
import yaml

from wrcan_arch import InputError
from wrcan_arch.train import option_checks, options

ROOT = Path(__file__).parent.parent


def write(path, text):
    path.write_text(text)
    return path


def test_numbers_are_numbers_and_texts_are_texts(tmp_path):
    path = write(
        tmp_path / 'a.yml',
        'a: 1e-4\nb: 2E+3\nc: !!float 1e-3\nd: 1.5e-3\ne: -1e-8\nf: e4\ng: 10\nh: ~\ni: 1e4x\nj: yEs\nk: true\n',
    )
    read = options.read_options(path).values
    assert [read[key] for key in 'abcdefghijk'] == [
        1e-4, 2e3, 1e-3, 1.5e-3, -1e-8, 'e4', 10, None, '1e4x', 'yEs', True
    ]  # fmt: skip


@pytest.mark.timeout(20)
def test_time_for_a_value_grows_with_its_length_only(tmp_path):
    """Else a long row of digits would take many minutes."""
    text = '1' * 300_000 + 'x'
    assert options.read_options(write(tmp_path / 'a.yml', f'a: {text}\n')).values['a'] == text


def test_resolved_options_survive_the_toolboxs_own_reader(tmp_path):
    from basicsr.utils.options import ordered_yaml

    path = write(
        tmp_path / 'a.yml', 'lr: 1e-4\nwd: 1e-8\nlist: [1, 2e-5, ~]\nname: yes_no\nflag: true\ntrain: {amp: off}\n'
    )
    read = options.read_options(path).values
    assert yaml.load(yaml.safe_dump(read), ordered_yaml()[0]) == read


def test_base_is_overridden_section_by_section(tmp_path):
    write(tmp_path / 'base.yml', 'name: a\ntrain: {lr: 1, loss: {type: x}, ae: {w: 1}}\nlist: [1, 2]\n')
    path = write(tmp_path / 'own.yml', 'base: base.yml\nname: b\ntrain: {lr: 2, ae: ~}\nlist: [3]\n')
    read = options.read_options(path).values
    assert read['name'] == 'b' and read['train'] == {'lr': 2, 'loss': {'type': 'x'}} and read['list'] == [3]
    assert 'base' not in read


def test_a_section_of_another_type_replaces_the_bases(tmp_path):
    write(tmp_path / 'base.yml', 'train: {optim: {type: Adam, betas: [0.9, 0.99]}, loss: {type: L1Loss, weight: 1}}\n')
    path = write(
        tmp_path / 'own.yml', 'base: base.yml\ntrain: {optim: {type: Muon}, loss: {type: L1Loss, reduction: mean}}\n'
    )
    train = options.read_options(path).values['train']
    assert train == {'optim': {'type': 'Muon'}, 'loss': {'type': 'L1Loss', 'weight': 1, 'reduction': 'mean'}}


def test_overrides_set_keys_of_sections_and_are_parsed_not_run(tmp_path):
    path = write(tmp_path / 'a.yml', 'train: {total_iter: 10, betas: [0, 1]}\n')
    read = options.read_options(path, ['train:total_iter=1e2', 'train:betas=[0.5, 0.9]']).values
    assert read['train'] == {'total_iter': 100, 'betas': [0.5, 0.9]}
    evil = options.read_options(path, ['train:total_iter=__import__("os").system("touch evil")']).values
    assert evil['train']['total_iter'] == '__import__("os").system("touch evil")'
    for override in ('nothing', 'train', 'train:total_iter:x=3', 'elsewhere:x=3'):
        with pytest.raises(InputError, match='write SECTION:OPTION=VALUE, with a section that is in'):
            options.read_options(path, [override])
    with pytest.raises(InputError, match='unacceptable character #x0007.*; leave that character out'):
        options.read_options(path, ['name=\x07'])


def doubled(text, times):
    """Return an option file in which each value holds the one before it twice, as `text` says."""
    lines = [f'a{number}: &a{number} {text.format(number - 1)}\n' for number in range(1, times)]
    return 'a0: &a0 {}\n' + ''.join(lines)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a: [1, 2\nb: 3\n', r'a\.yml:2: '),
        ('- 1\n- 2\n', 'is a mapping of keys to values'),
        ('a: !!python/object/apply:os.system ["touch evil"]\n', r'a\.yml:1: could not determine a constructor'),
        ('a: \x07\n', r'a\.yml: not readable as YAML, unacceptable character #x0007'),
        ('base: nowhere.yml\n', r'nowhere\.yml: there is no such option file \(the base of .*a\.yml'),
        ('base: a.yml\n', 'leads back to itself'),
        (doubled('{{x: *a{0}, y: *a{0}}}', 20), r'a\.yml: not readable as YAML, it has more than 10,000 values, with'),
        (doubled('[*a{0}, *a{0}]', 20), r'a\.yml: not readable as YAML, it has more than 10,000 values, with'),
        (doubled('!!pairs [x: *a{0}, y: *a{0}]', 20), r'a\.yml:2: could not determine a constructor for.*pairs'),
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


def test_paths_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    (tmp_path / 'a.yml').write_text(
        'name: ~\npath: {pretrain_network_g: ~/w.pth, resume_state: ~, strict_load_g: true}\n'
        'datasets: {val: {name: ~x, dataroot_lq: ~/blur, dataroot_gt: sharp/, dataroot_gt_jpeg: ~nosuchuser/x}}\n'
    )
    values = options.read_options(tmp_path / 'a.yml').values
    assert values['path'] == {'pretrain_network_g': '/home/me/w.pth', 'resume_state': None, 'strict_load_g': True}
    assert values['datasets']['val'] == {
        'name': '~x', 'dataroot_lq': '/home/me/blur', 'dataroot_gt': 'sharp/', 'dataroot_gt_jpeg': '~nosuchuser/x'
    }  # fmt: skip


def test_override_may_be_a_key_that_no_file_has(demo):
    write(Path('own.yml'), demo)
    file = options.read_options('own.yml', ['path:param_key_g=params'])
    assert file.values['path']['param_key_g'] == 'params'
    option_checks.check(file, 'train')


def test_files_without_a_path_share_none(demo):
    write(Path('own.yml'), yaml.safe_dump({key: each for key, each in yaml.safe_load(demo).items() if key != 'path'}))
    assert options.read_options('own.yml', ['path:pretrain_network_g=other.pth']).values['path']
    assert options.read_options('own.yml').values['path'] == {}


def test_what_the_toolbox_requires_has_defaults(tmp_path):
    path = write(tmp_path / 'own.yml', 'name: a\n')
    expected = {'name': 'a', 'num_gpu': 'auto', 'manual_seed': 0, 'scale': 1, 'path': {}}
    assert options.read_options(path).values == expected


def test_override_can_leave_a_section_out(demo):
    Path('demo.yml').write_text(demo)
    assert 'val' not in options.read_options('demo.yml', ['datasets:val=~']).values['datasets']


@pytest.mark.parametrize(
    ('overrides', 'periods'),
    [
        ((), [200]),
        (['train:total_iter=20'], [20]),
        (['train:scheduler:periods=~'], [200]),
        (['train:scheduler:periods=[300, 100]'], [300, 100]),
    ],
)
def test_a_cosine_is_as_long_as_the_run(demo, overrides, periods):
    Path('demo.yml').write_text(demo)
    scheduler = options.read_options('demo.yml', overrides).values['train']['scheduler']
    assert scheduler['periods'] == periods


def test_show_prints_valid_yaml_with_each_origin(demo):
    write(Path('base.yml'), demo)
    write(Path('own.yml'), 'base: base.yml\nname: mine\ntrain: {total_iter: 7}\n')
    file = options.read_options('own.yml', ['val:val_freq=3', 'path:pretrain_network_g=写真\u3000é👩\u200d🔬.pth'])
    text = options.show(file)
    assert 'pretrain_network_g: 写真\u3000é👩\u200d🔬.pth ' in text
    assert yaml.safe_load(text) == file.values
    origins = {line.split(':')[0].strip(): line.partition('# ')[2] for line in text.splitlines()}
    assert origins['total_iter'] == 'own.yml:3' and origins['val_freq'] == '--force_yml val:val_freq=3'
    assert origins['gt_size'].startswith('base.yml:') and origins['scale'] == 'default'


def test_keys_inside_an_override_are_the_overrides(demo):
    override = 'train:optim_g={type: Adam, lr: 5e-5, wd: 0}'
    Path('demo.yml').write_text(demo)
    file = options.read_options('demo.yml', [override])
    (lr,) = (line for line in options.show(file).splitlines() if line.strip().startswith('lr:'))
    assert lr.endswith(f'  # --force_yml {override}')
    with pytest.raises(InputError, match=f'^{re.escape(f"--force_yml {override}: train:optim_g:wd: Adam does not")}'):
        option_checks.check(file, 'train')
    scheduler = 'train:scheduler={type: CosineAnnealingRestartLR}'
    shown = options.show(options.read_options('demo.yml', [scheduler]))
    assert re.search(r' periods: .*  # default$', shown, re.MULTILINE)
    shortened = options.read_options('demo.yml', ['train:optim_g={type: Adam}'])
    with pytest.raises(InputError, match=r'^--force_yml train:optim_g={type: Adam}: train:optim_g:lr: is missing$'):
        option_checks.check(shortened, 'train')
