import sys
from unittest import mock

import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric
from conftest import picture
from torchvision.models import alexnet as untrained_alexnet  # after basicsr, whose import repairs it

from wrcan_arch import InputError
from wrcan_arch.train import lpips_metric, pipelines
from wrcan_arch.train.lpips_metric import BACKBONE, calculate_lpips, lpips_network

METRIC = {'type': 'calculate_lpips', 'crop_border': 0, 'better': 'lower'}


@pytest.fixture
def lpips():
    return pytest.importorskip('lpips', reason='the lpips package is not installed; pip install lpips')


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """The folder in which the weights of torchvision's networks are looked for, empty."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    (tmp_path / 'checkpoints').mkdir()
    return tmp_path / 'checkpoints'


@pytest.fixture(scope='module')
def alexnet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return untrained_alexnet().features


@pytest.fixture
def backbone(alexnet, checkpoints):
    torch.save({f'features.{name}': tensor for name, tensor in alexnet.state_dict().items()}, checkpoints / BACKBONE)
    return checkpoints / BACKBONE


def reference(lpips, alexnet, first, second):
    """LPIPS by the package itself, with AlexNet's layers loaded one by one."""
    network = lpips.LPIPS(net='alex', version='0.1', pnet_rand=True, verbose=False)
    for part in (network.net.slice1, network.net.slice2, network.net.slice3, network.net.slice4, network.net.slice5):
        for name, layer in part.named_children():
            if layer.state_dict():
                layer.load_state_dict(alexnet[int(name)].state_dict())
    with torch.no_grad():
        return network(*(lpips.im2tensor(image[:, :, ::-1]) for image in (first, second))).item()


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_metric_is_the_packages(lpips, alexnet, backbone):
    first, second = picture(96, 120, 1), picture(96, 120, 2)
    value = calculate_metric({'img': first, 'img2': second}, METRIC)
    assert value == pytest.approx(reference(lpips, alexnet, first, second), abs=1e-6) and value > 0
    assert value != pytest.approx(reference(lpips, alexnet, first[:, :, ::-1], second[:, :, ::-1]), rel=1e-3)
    assert calculate_lpips(first, first) == 0
    assert calculate_lpips(first, second, 9) == calculate_lpips(first[9:-9, 9:-9], second[9:-9, 9:-9]) != value


def test_score_is_not_rounded_as_a_gpu_would(lpips, backbone):
    seen = []

    def score(*_):
        seen.append((exact().__enter__.called, exact().__exit__.called))
        return 0

    with (
        mock.patch('wrcan_arch.train.lpips_metric.exact_convolutions') as exact,
        mock.patch('wrcan_arch.train.lpips_metric.lpips_network', return_value=score),
    ):
        calculate_lpips(picture(70, 70, 1), picture(70, 70, 2))
    assert seen == [(True, False)], 'inside of it'


@pytest.mark.parametrize(('num_gpu', 'expected'), [(0, 'cpu'), (1, 'cuda:0')])
def test_it_takes_a_gpu_only_where_the_run_may(tmp_path, monkeypatch, num_gpu, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lpips_metric, '_may_use_gpu', num_gpu == 0)
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.current_device', lambda: 0)
    with mock.patch('basicsr.test.test_pipeline', side_effect=KeyError), pytest.raises(KeyError):
        pipelines.run_pipeline('test', {'name': 'a', 'model_type': 'SRModel', 'num_gpu': num_gpu}, 'a.yml')
    with (
        mock.patch('wrcan_arch.train.lpips_metric.find_backbone'),
        mock.patch('wrcan_arch.train.lpips_metric.lpips_network', side_effect=InterruptedError) as network,
        pytest.raises(InterruptedError),
    ):
        calculate_lpips(picture(70, 70, 1), picture(70, 70, 2))
    assert str(network.call_args.args[1]) == expected


def test_network_is_made_once_and_takes_nothing_from_the_random_state(lpips, backbone):
    state = torch.get_rng_state()
    network = lpips_network(backbone, torch.device('cpu'))
    assert torch.equal(torch.get_rng_state(), state)
    calculate_lpips(picture(70, 70, 1), picture(70, 70, 2))
    assert lpips_network(backbone, torch.device('cpu')) is network


def test_missing_weights_say_where_they_belong(lpips, checkpoints):
    image = np.zeros((70, 70, 3), np.uint8)
    with pytest.raises(InputError) as raised:
        calculate_lpips(image, image)
    assert f'https://download.pytorch.org/models/{BACKBONE} at {checkpoints / BACKBONE}' in str(raised.value)


@pytest.mark.parametrize('content', [{'features.0.weight': torch.zeros(3)}, [1, 2], None])
def test_other_weights_are_refused(lpips, checkpoints, content):
    if content is None:
        (checkpoints / BACKBONE).write_bytes(b'cut')
    else:
        torch.save(content, checkpoints / BACKBONE)
    image = np.zeros((70, 70, 3), np.uint8)
    with pytest.raises(InputError, match=BACKBONE):
        calculate_lpips(image, image)


def test_missing_package_says_how_to_get_it(checkpoints, monkeypatch):
    monkeypatch.setitem(sys.modules, 'lpips', None)
    image = np.zeros((70, 70, 3), np.uint8)
    with pytest.raises(InputError, match=r'pip install "lpips>=0.1.4"'):
        calculate_lpips(image, image)
