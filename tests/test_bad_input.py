"""Each kind of bad input gives one line that says what and where, the right exit code, and leaves no files."""

import pickle
import re
import shutil
import zipfile
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from conftest import picture
from damage import STORE, add, bomb, change, folders, png, swap, value, write

from wrcan_arch import WRCAN
from wrcan_arch.checkpoint import write_atomically, write_weights
from wrcan_arch.cli import main
from wrcan_arch.data.store_writer import StoreWriter
from wrcan_arch.train.options import read_options

TRAIN = ['train', '-opt', 'train.yml']
TEST = ['test', '-opt', 'test.yml']
SIZES = {'num_feat': 4, 'num_group': 1, 'num_block': 1}


@pytest.fixture
def place(workplace):
    """A working folder with small data, valid option files, weights.pth and photo.png."""
    write_weights('weights.pth', {'params': weights()}, {})
    text = Path('test.yml').read_text()
    Path('test.yml').write_text(text.replace('experiments/small/models/net_g_best.pth', 'weights.pth'))
    cv2.imwrite('photo.png', picture(16, 16))
    return workplace


def weights(**sizes):
    torch.manual_seed(0)
    return WRCAN(**{**SIZES, **sizes}).state_dict()


def save(content, name='bad.pth'):
    return lambda: write_atomically(name, content() if callable(content) else content)


def other_store(name, *, keys=6, size=(80, 96)):
    def prepare():
        shutil.rmtree(name)
        with StoreWriter(name) as store:
            for number in range(keys):
                store.put(f'photo{number}_000', '.png', png(np.zeros((*size, 3), np.uint8)), (*size, 3))

    return prepare


def both(*steps):
    return lambda: [step() for step in steps]


class Exploit:
    def __reduce__(self):
        return open, ('written', 'w')


OPTIONS = {
    'unknown key': (swap('amp: off', 'ampp: off'), 'train.yml:26: train:ampp: there is no such option here; did you mean amp?'),
    'out of range': (swap('jpeg_quality: 25', 'jpeg_quality: 0'), 'jpeg_quality: input should be greater than or equal to 1'),
    'grey network': (swap('num_feat: 4', 'num_feat: 4, num_in_ch: 1'), 'network_g:num_in_ch: the data sets give frames of 3'),
    'network that gives grey': (swap('num_feat: 4', 'num_feat: 4, num_out_ch: 1'), 'network_g:num_out_ch: the data sets give'),
    'no loss': (swap('  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}\n', ''), 'train: needs pixel_opt or'),
    'periods that end early': (
        swap('{type: MultiStepLR, milestones: [5], gamma: 0.5}', '{type: CosineAnnealingRestartLR, periods: [5, 5]}'),
        'train.yml:29: train:scheduler:restart_weights: 1 given for 2 periods; give one for each'),
    'periods too short': (
        swap('{type: MultiStepLR, milestones: [5], gamma: 0.5}', '{type: CosineAnnealingRestartLR, periods: [10]}'),
        'train:scheduler:periods: the periods end at iteration 10, the run at 12'),
    'restarts without weights': (swap('gamma: 0.5', 'restarts: [0, 6]'), 'restart_weights: 1 given for 2 restarts; give one for each'),
    'loss without its input': (swap('    jpeg_quality: 25\n', ''), 'train:autoencoder_opt: needs the sharp frames compressed as JPEG'),
    'no patch': (swap('    gt_size: 32\n', ''), 'datasets:train:gt_size: is missing'),
    'no sharp frames': (swap('    dataroot_gt: data_sharp.lmdb\n', ''), 'datasets:train:dataroot_gt: is missing'),
    'no training': (lambda: Path('train.yml').write_text('name: x\n'), 'train.yml: model_type: is missing'),
    'keep none': (swap('print_freq: 1', 'print_freq: 1, keep_last: 0'), 'logger:keep_last: input should be greater than'),
    'wandb alone': (swap('print_freq: 1', 'print_freq: 1, wandb: {project: x}'), 'logger:wandb: needs use_tb_logger: true'),
    'name that leads elsewhere': (swap('name: small\n', 'name: ../../small\n'), 'name: input should be a name, without /'),
    'name that clears a terminal': (swap('name: small\n', 'name: "\\e[2J"\n'), 'name: input should be a name, without /'),
    'name that is the folder': (swap('name: small\n', 'name: ..\n'), 'name: input should be a name, without /'),
    'patch larger than the frames': (swap('gt_size: 32', 'gt_size: 81'), 'is 96 x 80, smaller than gt_size 81'),
    'no frame of that name': (swap('gt_size: 32', 'gt_size: 32\n    names: zzz*'), "is named 'zzz*'"),
    'not YAML': (write('train.yml', b'a: [1, 2\nb: 3\n'), 'train.yml:2: '),
    'empty': (write('train.yml', b''), 'train.yml: model_type: is missing'),
    'code in YAML': (add('a: !!python/object/apply:os.system ["touch written"]\n'), 'could not determine a constructor for the tag'),
}  # fmt: skip

STORES = {
    'no store': (lambda: shutil.rmtree(STORE), "datasets:train:dataroot_lq: there is no 'data_blur.lmdb'; prepare it"),
    'empty folder': (lambda: [path.unlink() for path in STORE.iterdir()], 'not an LMDB data set, there is no data.mdb'),
    'no meta_info': (lambda: (STORE / 'meta_info.txt').unlink(), 'not an LMDB data set, there is no meta_info.txt'),
    'cut in half': (change(STORE / 'data.mdb', lambda of: of[: len(of) // 2]), 'it was cut; copy or prepare it again'),
    'cut by a byte': (change(STORE / 'data.mdb', lambda of: of[:-1]), 'it was cut; copy or prepare it again'),
    'cut to a page': (change(STORE / 'data.mdb', lambda of: of[:4096]), 'data_blur.lmdb: not a readable LMDB'),
    'of nothing': (write(STORE / 'data.mdb', b''), 'data_blur.lmdb: not a readable LMDB'),
    'of rubbish': (write(STORE / 'data.mdb', b'rubbish' * 9000), 'data_blur.lmdb: not a readable LMDB'),
    'a value too many': (value(b'more', b'more'), 'data.mdb holds 7 values, meta_info.txt lists 6'),
    'binary meta_info': (write(STORE / 'meta_info.txt', b'\xff\xfe'), 'meta_info.txt is not a text, it was damaged'),
    'empty meta_info': (write(STORE / 'meta_info.txt', b''), 'data.mdb holds 6 values, meta_info.txt lists 0'),
    'another meta_info': (
        change(STORE / 'meta_info.txt', lambda of: of.replace(b'80,96', b'90,96')), 'meta_info.txt disagrees with manifest.json'),
    'meta_info without sizes': (
        both(lambda: (STORE / 'manifest.json').unlink(), change(STORE / 'meta_info.txt', lambda of: of.replace(b'(', b'['))),
        'meta_info.txt has no (height,width,channels) of'),
    'manifest that is cut': (change(STORE / 'manifest.json', lambda of: of[:300]), 'manifest.json: not a readable manifest'),
    'manifest of the future': (
        change(STORE / 'manifest.json', lambda of: of.replace(b'"format": 1', b'"format": 9')), 'has format 9, this program'),
    'frames without partners': (other_store(STORE, keys=5), "must hold the same names; 1 are in only one of them, the first is 'photo5"),
    'frames of another size': (other_store(STORE, size=(80, 90)), "'photo0_000' is 90 x 80 in data_blur.lmdb but 96 x 80 in"),
    'value that is no image': (value(b'rubbish'), "data set small_train: 'photo3_000' in data_blur.lmdb is not a readable"),
    'value that is empty': (value(b''), "data set small_train: 'photo3_000' in data_blur.lmdb is not a readable"),
    'value of another size': (
        value(lambda: png(picture(70, 96))), "data set small_train: 'photo3_000' is 96 x 70 but the sharp 'photo3_000' is 96 x 80"),
    'value that is a bomb': (value(bomb()), "'photo3_000' in data_blur.lmdb is not a readable image"),
    'no folder': (both(folders, lambda: shutil.rmtree('data_blur')), "there is no 'data_blur'; prepare it"),
    'folder without images': (
        both(folders, lambda: [path.unlink() for path in Path('data_blur').iterdir()]), 'must hold the same names'),
    'files of another size': (
        both(folders, write('data_blur/photo3_000.jpg', png(picture(78, 96)))),
        "'photo3_000' is 96 x 78 in data_blur but 96 x 80 in data_sharp; prepare both from the same frame"),
    'patch larger than the files': (both(folders, swap('gt_size: 32', 'gt_size: 81')), 'is 96 x 80, smaller than gt_size 81'),
    'files for a store': (
        swap('data_blur.lmdb', 'data_blur'), 'data_blur: a folder of images, not a store; io_backend: {type: disk} reads it'),
    'store for files': (
        swap('type: lmdb', 'type: disk'), 'data_blur.lmdb: a store, not a folder of images; io_backend: {type: lmdb} reads it'),
    'file that is no image': (both(folders, write('data_blur/photo3_000.jpg', b'rubbish')), "photo3_000.jpg' in data_blur is not"),
}  # fmt: skip

WEIGHTS = {
    'no file': (lambda: None, 'bad.pth: cannot be opened (No such file or directory)'),
    'two sets': (save(lambda: {'params': weights(), 'params_ema': weights()}), 'holds two sets of weights; '),
    'a folder': (lambda: Path('bad.pth').mkdir(), 'bad.pth: cannot be opened (Is a directory)'),
    'empty': (write('bad.pth', b''), 'bad.pth: not a readable weight file, it may be cut or damaged'),
    'text': (write('bad.pth', b'hello ' * 99), 'bad.pth: not a readable weight file'),
    'cut': (both(save({'params': weights()}), change('bad.pth', lambda of: of[:-999])), 'bad.pth: not a readable weight file'),
    'a list': (save([1, 2]), 'bad.pth: holds a list, not weights'),
    'no weights': (save({'iter': 1, 'epoch': 0}), "bad.pth: holds no weights under 'params'; found iter, epoch"),
    'a training state': (save({'iter': 1, 'optimizers': []}), 'bad.pth: a training state, not weights; give the models/net_g_'),
    'another network': (save({'params': {'conv.weight': torch.zeros(1)}}), 'bad.pth: not the weights of a WRCAN'),
    'one tensor less': (
        save(lambda: {'params': {name: each for name, each in weights().items() if name != 'tail.bias'}}),
        'bad.pth: not a whole WRCAN: tail.bias is missing'),
    'one tensor more': (save(lambda: {'params': {**weights(), 'more': torch.zeros(1)}}), 'not a whole WRCAN: more is left over'),
    'a tensor of another shape': (
        save(lambda: {'params': {**weights(), 'tail.bias': torch.zeros(5)}}), 'tail.bias is (5,) and not (3,)'),
    'a wrong checksum': (
        save(lambda: {'params': weights(), 'metadata': {'checksum': {'params': '0' * 64}}}), 'bad.pth: its checksum is wrong'),
    'flipped bits': (
        both(save({'params': weights()}), change('bad.pth', lambda of: of.replace(
            weights()['tail.weight'].numpy().tobytes(), weights()['tail.weight'].neg().numpy().tobytes()))),
        'bad.pth: its checksum is wrong at '),
    'code': (lambda: torch.save({'params': Exploit()}, 'bad.pth'), 'bad.pth: holds objects that could run code when opened'),
    'code in a bare pickle': (write('bad.pth', pickle.dumps(Exploit())), 'bad.pth: '),
    'of other sizes': (save(lambda: {'params': weights(num_feat=8)}), "option file; set network_g:num_feat=8"),
}  # fmt: skip

PHOTOS = {
    'no photo': (lambda: None, 2, 'bad.png: '),
    'folder without photos': (lambda: Path('bad.png').mkdir(), 2, 'bad.png: '),
    'text': (write('bad.png', b'hello'), 1, 'bad.png: '),
    'empty': (write('bad.png', b''), 1, 'bad.png: '),
    'cut': (write('bad.png', png(picture(40, 40))[:-500]), 1, 'bad.png: '),
    'bomb': (write('bad.png', bomb()), 1, 'bad.png: '),
}

OTHERS = {
    'override of nothing': ([*TRAIN, '--force_yml', 'train:iters=3'], 2, '--force_yml train:iters=3: train:iters: there is no such option here'),
    'override without a value': ([*TRAIN, '--force_yml', 'train'], 2, 'write SECTION:OPTION=VALUE'),
    'override that is no YAML': ([*TRAIN, '--force_yml', 'name=[1'], 2, '--force_yml name=[1:'),
    'override that YAML reads in its own way': ([*TRAIN, '--force_yml', 'name=*'], 2, 'needs quotes of its own, "*"'),
    'override with code': ([*TRAIN, '--force_yml', 'name=!!python/object/apply:os.system ["touch written"]'], 2, 'constructor'),
    'option file that is a folder': (['train', '-opt', 'data_sharp'], 2, 'data_sharp: a folder, not an option file'),
    'test of a training': (
        ['test', '-opt', 'train.yml'], 2, 'train: this is the option file of a training: it would test the weights that'),
    'test of random patches': (
        ['test', '-opt', 'train.yml', '--force_yml', 'train=null', 'path:pretrain_network_g=weights.pth'], 2,
        'datasets:train: gives random patches, for training; to score it, rename it to test'),
    'submission of pairs': (
        ['test', '-opt', 'test.yml', '--force_yml', 'datasets:test:type=PairedImageDataset',
         'val:submission={every: 1, extra_data: false, description: x}'], 2,
        'val:submission takes a JPEGDeblurDataset, not a PairedImageDataset'),
    'unknown option shown': (
        ['show', '-opt', 'train.yml', '--force_yml', 'train:total_itr=3'], 2, 'no such option here; did you mean total_iter?'),
    'no state': ([*TRAIN, '--force_yml', 'path={resume_state: no.state}'], 2, "path:resume_state: there is no file 'no.state'"),
    'state that is none': (
        [*TRAIN, '--force_yml', 'path={resume_state: weights.pth}'], 2, 'weights.pth: not a training state; give a .state file'),
    'form that is unknown': (['convert', 'weights.pth', '-o', 'x.onnx'], 2, 'x.onnx: weights are written as .safetensors or .pth'),
    'result over its source': (['convert', 'weights.pth', '-o', 'weights.pth'], 2, 'would overwrite the file that is read'),
    'result in no folder': (['convert', 'weights.pth', '-o', 'no/x.pth'], 2, 'no/x.pth'),
    'doctor of nothing': (['doctor', '--data', 'nowhere'], 2, 'nowhere: there is no such store, folder or option file'),
    'report without a test': (['report', '-opt', 'test.yml'], 2, 'results/small_test'),
    'photo without weights': (['restore', 'photo.png', '-o', 'out', '-w', 'no.pth'], 2, 'no.pth: cannot be opened'),
}  # fmt: skip
# ruff: noqa: E501  (one kind a line)

CASES = {
    **{f'option: {kind}': (prepare, TRAIN, 2, message) for kind, (prepare, message) in OPTIONS.items()},
    **{f'store: {kind}': (prepare, TRAIN, 2, message) for kind, (prepare, message) in STORES.items()},
    **{
        f'weights: {kind}': (both(prepare, swap('weights.pth', 'bad.pth', 'test.yml')), TEST, 2, message)
        for kind, (prepare, message) in WEIGHTS.items() if kind not in ('no file', 'a folder')
    },
    **{
        f'weights to convert: {kind}': (prepare, ['convert', 'bad.pth', '-o', 'x.safetensors'], 2, message)
        for kind, (prepare, message) in WEIGHTS.items() if kind != 'of other sizes'
    },
    **{
        f'photo: {kind}': (prepare, ['restore', 'bad.png', '-o', 'out', '-w', 'weights.pth'], code, message)
        for kind, (prepare, code, message) in PHOTOS.items()
    },
    **{f'other: {kind}': (lambda: None, arguments, code, message) for kind, (arguments, code, message) in OTHERS.items()},
}  # fmt: skip


@pytest.mark.parametrize(('prepare', 'arguments', 'code', 'message'), CASES.values(), ids=CASES.keys())
def test_bad_input_is_one_line_and_an_exit_code(place, capfd, prepare, arguments, code, message):
    prepare()
    late = 'photo3_000' in message  # a value is checked only when it is read
    before = set(Path().rglob('*'))
    assert main([*arguments, *(['--force_yml', 'datasets:train:num_worker_per_gpu=0'] if late else [])]) == code
    said = [line for line in capfd.readouterr().err.splitlines() if line.strip() and not re.search(r'%\||INFO: ', line)]
    assert any(message in line for line in said), said[-3:]
    assert 'Traceback' not in ' '.join(said)
    if code == 2:
        assert said[-1].startswith((f'basicsr {arguments[0]}: ', 'train.yml:')), 'or one more of several mistakes'
        assert late or set(Path().rglob('*')) - before <= {Path('experiments'), Path('experiments/.small.lock')}
    assert not Path('written').exists(), 'code was run'


@pytest.mark.parametrize('missing', ['tensorboard', 'wandb'])
def test_logger_that_is_not_installed_is_said_before_the_run(place, capfd, missing):
    import importlib.util

    find = importlib.util.find_spec
    swap('use_tb_logger: false', 'use_tb_logger: true, wandb: {project: x}')()
    with mock.patch('importlib.util.find_spec', lambda name: None if name == missing else find(name)):
        assert main(TRAIN) == 2
    said = capfd.readouterr().err
    assert f'needs {missing}; pip install {missing}' in said and not Path('experiments').exists()


def test_every_cut_of_a_store_is_an_error_and_not_a_dead_process(place):
    """Cut at, before and behind each page, all in one subprocess."""
    import subprocess
    import sys

    whole = (STORE / 'data.mdb').read_bytes()
    sizes = sorted({max(0, page + off) for page in range(0, len(whole), 4096) for off in (-1, 0, 1)} - {len(whole)})
    Path('whole.mdb').write_bytes(whole)
    code = (
        'import shutil, sys; from pathlib import Path; from wrcan_arch import InputError\n'
        'from wrcan_arch.data.lmdb_store import Store\n'
        f'whole, data = Path("whole.mdb").read_bytes(), Path("{STORE}/data.mdb")\n'
        f'for size in {sizes}:\n'
        '    data.unlink(); data.write_bytes(whole[:size])\n'
        '    try:\n'
        f'        store = Store("{STORE}"); [store.get(key) for key in store.keys()]\n'
        '        print("read all of", size)\n'
        '    except InputError: pass\n'
        'print("alive")'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, 'alive\n'), result.stderr[-500:]


def test_archive_cannot_write_outside_its_folder(place, run_script, tmp_path_factory):
    """prepare_reds reads an archive's members without unpacking them, and takes none whose name leads elsewhere."""
    import prepare_reds

    frame, elsewhere = png(picture(40, 40)), tmp_path_factory.mktemp('elsewhere') / 'written.png'
    with zipfile.ZipFile('train_sharp.zip', 'w') as archive:
        for name in ('../../written.png', str(elsewhere), 'train_sharp/000/../../../00000001.png'):
            archive.writestr(name, frame)
        archive.writestr('train/train_sharp/000/00000000.png', frame)
    before = set(Path().rglob('*')) | set(Path('..').iterdir())
    run_script(prepare_reds, 'train_sharp.zip', '-o', 'out', '--any-size', '--splits', 'train')
    after = set(Path().rglob('*')) | set(Path('..').iterdir())
    assert {path for path in after - before if path.parts[0] != 'out'} == set()
    assert not elsewhere.exists()


def test_text_that_looks_like_code_stays_text(place):
    """The toolbox reads the options with a YAML loader that can run code."""
    text = '!!python/object/apply:os.system ["touch written"]'
    add(f"dist_params: {{backend: '{text}'}}\n")()
    assert main([*TRAIN, '--force_yml', 'train:total_iter=1', 'val:val_freq=9']) == 0
    kept = read_options('experiments/small/train.yml').values
    assert kept['dist_params'] == {'backend': text} and not Path('written').exists()
