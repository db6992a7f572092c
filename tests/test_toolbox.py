"""Shows that each repair of toolbox.py is needed: without it, the toolbox does the wrong thing."""

import importlib.util

import basicsr  # noqa: F401  (the repairs are made, and noted in toolbox.applied, when it is imported)
from fresh import run_python

from wrcan_arch.train import toolbox


def repair_named(target: str) -> toolbox.Repair:
    return next(repair for repair in toolbox.REPAIRS if target in repair.target)


def test_torchvision_repair_is_needed_and_suffices():
    result = run_python('import torchvision')
    if result.returncode == 0:  # torch and torchvision match: nothing may be replaced
        assert repair_named('nms') not in toolbox.applied
        return
    assert 'operator torchvision::nms does not exist' in result.stderr
    assert repair_named('nms') in toolbox.applied
    result = run_python(
        'import wrcan_arch, basicsr, torch; from torchvision.models import vgg19; from torchvision import transforms\n'
        'with torch.device("meta"): vgg19()'
    )
    assert result.returncode == 0, result.stderr


def test_another_failure_of_torchvision_is_not_hidden(tmp_path):
    (tmp_path / 'torchvision').mkdir()
    (tmp_path / 'torchvision' / '__init__.py').write_text('raise RuntimeError("something else")')
    result = run_python(f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import wrcan_arch, basicsr')
    assert result.returncode != 0 and 'something else' in result.stderr


def test_what_our_classes_need_and_do_not_find_is_said_each_time():
    """In a notebook a second import hid the reason: it failed on a class that was already registered."""
    result = run_python(
        'import sys, wrcan_arch\nneeded = "wrcan_arch.data.draws"; sys.modules[needed] = None  # cannot be imported\n'
        'for _ in range(2):\n    try:\n        import basicsr\n    except ModuleNotFoundError as error:\n'
        '        print(error.name)\n'
        'del sys.modules[needed]\nimport basicsr; from basicsr.utils import registry\n'
        'assert registry.ARCH_REGISTRY.get("WRCAN") is wrcan_arch.WRCAN and "WRCANModel" in registry.MODEL_REGISTRY\n'
        'assert "JPEGDeblurDataset" in registry.DATASET_REGISTRY and "calculate_lpips" in registry.METRIC_REGISTRY\n'
        'assert {"JPEGAutoEncoderLoss", "PSNRLoss"} <= registry.LOSS_REGISTRY.keys()\n'
        'del sys.modules["wrcan_arch"]; import wrcan_arch  # as some notebooks reload a package'
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == 'wrcan_arch.data.draws\n' * 2


def test_a_name_that_is_taken_in_the_toolbox_is_said_and_left_to_its_owner():
    result = run_python(
        'import sys, warnings, wrcan_arch.train.toolbox as t; t.make_importable(); sys.meta_path.pop(0)\n'
        'from basicsr.utils import registry\n'
        'theirs = type("PSNRLoss", (), {"__module__": "theirs.losses"}); registry.LOSS_REGISTRY.register(theirs)\n'
        'del sys.modules["wrcan_arch"]\n'
        'with warnings.catch_warnings(record=True) as caught:\n    import wrcan_arch; from wrcan_arch import restore\n'
        'print(*(each.message for each in caught if "PSNRLoss" in str(each.message)))\n'
        'assert registry.LOSS_REGISTRY.get("PSNRLoss") is theirs and "JPEGAutoEncoderLoss" in registry.LOSS_REGISTRY\n'
        'assert registry.MODEL_REGISTRY.get("WRCANModel") is wrcan_arch.WRCANModel\n'
        'assert registry.ARCH_REGISTRY.get("WRCAN") is wrcan_arch.WRCAN'
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        "BasicSR's PSNRLoss is that of theirs.losses, which registered it first; to use that of "
        'wrcan_arch.train.psnr_loss, rename the other\n'
    )


def test_functional_tensor_repair_is_needed():
    repair = repair_named('functional_tensor')
    if repair not in toolbox.applied:  # this torchvision still has the module
        assert importlib.util.find_spec('torchvision.transforms.functional_tensor').origin
        return
    code = 'import wrcan_arch, basicsr, sys; del sys.modules["torchvision.transforms.functional_tensor"]\n'
    result = run_python(code + 'import importlib, basicsr.data.degradations as d; importlib.reload(d)')
    assert "No module named 'torchvision.transforms.functional_tensor'" in result.stderr


def test_lmdb_repair_is_needed(prepared):
    """Two clients open one store, as when training and validation use the same data."""
    code = (
        f'import wrcan_arch; from basicsr.utils.file_client import {{}}\nroot = {str(prepared / "data_blur.lmdb")!r}\n'
    )

    def two(client: str) -> str:
        return f'for key, client in dict(photo0_000={client}, photo1_000={client}).items(): client.get(key, "default")'

    stock = run_python(code.format('LmdbBackend') + two('LmdbBackend(root)'))
    assert 'is already open in this process' in stock.stderr
    ours = run_python(code.format('FileClient') + two('FileClient("lmdb", db_paths=root)'))
    assert ours.returncode == 0, ours.stderr
