"""The commands in README, its pages and the scripts exist, and the pages' option files are valid."""

import re
import runpy
import shlex
from pathlib import Path
from textwrap import dedent

import cv2
import pytest
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import picture

from wrcan_arch.cli import build_parser, main
from wrcan_arch.train import option_checks, options
from wrcan_arch.weights import BUNDLED

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    each for folder in ('', 'docs', 'benchmarks', 'wrcan_arch/weights') for each in (ROOT / folder).glob('*.md')
)


def commands():
    """Yield the documented command lines of basicsr, python and torchrun, as words."""
    scripts = [ROOT / name for name in ('demo.sh', 'small.sh', 'datasets_prep/small_data.sh')]
    for path in (*PAGES, *scripts):
        text = path.read_text(encoding='utf-8').replace('\\\n', ' ')
        text = text.replace('$project/', '').replace('$prep/', 'datasets_prep/')
        for line in re.findall(r'^ *(?:srun (?:--\S+ +)*)?((?:basicsr|python|torchrun) .+)$', text, re.MULTILINE):
            words = shlex.split(line, comments=True)
            if words[0] != 'basicsr' and 'wrcan_arch' in words:
                words = words[words.index('wrcan_arch') :]
            yield pytest.param(words, id=f'{path.name}: {line[:60]}')


@pytest.mark.parametrize('words', [*commands()])
def test_every_command_is_one(words, monkeypatch, capsys):
    program, *arguments = words
    if program in ('basicsr', 'wrcan_arch'):
        build_parser().parse_args([each for each in arguments if each != '...'])
    elif program == 'python':
        script, *arguments = arguments
        monkeypatch.setattr('sys.argv', [script, '--help'])
        with pytest.raises(SystemExit, match='^0$'):
            runpy.run_path(str(ROOT / script), run_name='__main__')
        known = re.findall(r'(?<!\S)--?[a-z-]+', capsys.readouterr().out.replace('[', ''))
        assert {each for each in arguments if each.startswith('-')} <= {*known}
    for named in words:
        if named.startswith(('options/', 'datasets_prep/', 'benchmarks/')) and '$' not in named:
            assert (ROOT / named).exists()


def test_there_are_commands_of_each_kind():
    found = {words[0] for each in commands() for words in each.values}
    assert {'basicsr', 'wrcan_arch', 'python'} <= found


def test_the_demo_trains_as_fine_tuning_advises():
    """Weights that see no sharp photographs take decibels off them."""
    lines = (ROOT / 'demo.sh').read_text(encoding='utf-8').replace('\\\n', ' ').splitlines()
    made = [line for line in lines if '-o datasets/demo_train' in line or '-o datasets/demo_val' in line]
    assert len(made) == 2
    assert all('--quality 15-95 --still 0.25' in line for line in made)
    ours, advised = (
        options.read_options(ROOT / 'options' / f'train_{name}.yml').values for name in ('wrcan_demo', 'finetune_small')
    )
    assert ours['datasets']['train']['blurred_quality'] == advised['datasets']['train']['blurred_quality'] == [15, 95]
    assert ours['train']['optim_g']['lr'] <= advised['train']['optim_g']['lr']


def anchors_of(page):
    titles = re.findall('^#+ (.*)$', page.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', [each.relative_to(ROOT) for each in PAGES], ids=str)
def test_links_lead_somewhere(page):
    text = re.sub(r'\s+', ' ', (ROOT / page).read_text(encoding='utf-8'))
    for target in re.findall(r'\]\((?!http)([^) ]+)\)', text):
        name, _, anchor = target.partition('#')
        leads_to = (ROOT / page).parent / name if name else ROOT / page
        assert leads_to.exists(), target
        assert not anchor or anchor in anchors_of(leads_to), target


@pytest.mark.parametrize('page', [each.relative_to(ROOT) for each in PAGES], ids=str)
def test_tables_keep_a_line_for_each_row(page):
    for line in (ROOT / page).read_text(encoding='utf-8').splitlines():
        assert '|---' not in line or re.fullmatch(r' *\|(---\|)+', line), 'wrapped like a paragraph'


def test_option_files_of_the_pages_are_sound(tmp_path, monkeypatch):
    texts = re.findall('```yaml\n(.*?)```', (ROOT / 'docs' / 'fine-tuning.md').read_text(encoding='utf-8'), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path('options').symlink_to(ROOT / 'options')
    for name, text in zip(('mine.yml', 'test_mine.yml'), texts, strict=True):
        Path(name).write_text(text)
    for part in ('train', 'val', 'test'):
        for role, ending in (('blurred', 'jpg'), ('sharp', 'png')):
            Path(part, role).mkdir(parents=True)
            for number in range(2):
                cv2.imwrite(f'{part}/{role}/{number}.{ending}', picture(200, 210, number))
    file = options.read_options('mine.yml')
    option_checks.check(file, 'train')
    assert file.values['name'] == 'mine' and file.values['datasets']['train']['blurred_quality'] == [40, 90]
    Path('experiments/mine/models').mkdir(parents=True)
    assert main(['convert', str(BUNDLED['small']), '-o', 'experiments/mine/models/net_g_best.pth']) == 0
    option_checks.check(options.read_options('test_mine.yml'), 'test')


def test_a_class_of_ones_own_is_known_to_the_pages_script(quick, monkeypatch):
    script = re.search('^    # own.py\n((?:    .*\n|\n)+)', (ROOT / 'docs/options.md').read_text(), re.MULTILINE)
    Path('own.py').write_text(dedent(script[1]))
    Path('mynet.py').write_text(
        'import torch\nfrom basicsr.utils.registry import ARCH_REGISTRY\n'
        '@ARCH_REGISTRY.register()\nclass MyNet(torch.nn.Conv2d): ...\n'
    )
    monkeypatch.syspath_prepend('.')
    monkeypatch.setattr('basicsr.utils.registry.ARCH_REGISTRY._obj_map', dict(ARCH_REGISTRY._obj_map))
    network = 'network_g={type: MyNet, in_channels: 3, out_channels: 3, kernel_size: 1}'
    overrides = ['--force_yml', network, 'train:autoencoder_opt=~', 'train:total_iter=1']
    assert main(['train', '-opt', 'train.yml', *overrides]) == 2
    monkeypatch.setattr('sys.argv', ['own.py', 'train', '-opt', 'train.yml', *overrides])
    with pytest.raises(SystemExit, match='^0$'):
        runpy.run_path('own.py', run_name='__main__')


def test_page_of_options_names_those_that_there_are():
    page = (ROOT / 'docs' / 'options.md').read_text(encoding='utf-8')
    known = (ROOT / 'wrcan_arch' / 'train' / 'option_schema.py').read_text(encoding='utf-8')
    cells = re.findall(r'^\| (`.*?) \|', page, re.MULTILINE)
    options_of = [
        re.sub(': [a-z0-9]+$|type: .*$', '', name) for cell in cells for name in re.findall('`([^`]*)`', cell)
    ]
    named = {part for name in options_of for part in name.split(':') if part.islower()} - {'type', 'fused'}
    assert len(named) > 30
    assert not {name for name in named if not re.search(rf'^    {name}:', known, re.MULTILINE)}
