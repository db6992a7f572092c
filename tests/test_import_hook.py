"""Importing the package is fast; the toolbox is repaired and has our classes, whenever it is imported."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import HIDING, run_python

import wrcan_arch

OPTIONS = Path(__file__).parent.parent / 'options'


def run_from_nothing(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)


CHECK = (
    'from basicsr.utils import registry as r\n'
    'ours = [r.ARCH_REGISTRY.get("WRCAN"), r.MODEL_REGISTRY.get("WRCANModel"),\n'
    '    r.DATASET_REGISTRY.get("JPEGDeblurDataset"), r.LOSS_REGISTRY.get("JPEGAutoEncoderLoss"),\n'
    '    r.METRIC_REGISTRY.get("calculate_lpips")]\n'
    'assert ours[0] is wrcan_arch.WRCAN and ours[1] is wrcan_arch.WRCANModel, ours\n'
)


@pytest.mark.parametrize(
    'first',
    [
        'import wrcan_arch, basicsr',
        'import wrcan_arch; wrcan_arch.WRCANModel',
        'import wrcan_arch; from wrcan_arch.data import jpeg_deblur_dataset',
        'import wrcan_arch.train.toolbox as t; t.make_importable(); sys.meta_path.pop(0); import basicsr; '
        'del sys.modules["wrcan_arch"]; import wrcan_arch',
        'import wrcan_arch, basicsr; del sys.modules["wrcan_arch"]; import wrcan_arch',
        'import wrcan_arch, basicsr, importlib; importlib.reload(basicsr)',
    ],
)
def test_classes_are_registered_once_in_any_order(first):
    result = run_python(f'import sys\n{first}\n{CHECK}')
    assert result.returncode == 0, result.stderr


def test_restoring_loads_neither_the_toolbox_nor_plots():
    result = run_from_nothing(
        'import sys, wrcan_arch\nassert "torch" not in sys.modules\n'
        'from wrcan_arch import WRCAN, load_network, restore\nfrom wrcan_arch.photos import bulk_restore, read_photo\n'
        'heavy = {"basicsr", "torchvision", "scipy", "skimage", "matplotlib", "cv2", "lmdb", "pydantic"}\n'
        'assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()'
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ('arguments', 'code'),
    [
        (['tables'], 0),
        (['show', '-opt', str(OPTIONS / 'train_wrcan_320.yml')], 0),
        (['train', '-opt', 'absent.yml'], 2),
        (['restore', 'absent.jpg'], 2),
    ],
)
def test_what_computes_nothing_loads_nothing_that_does(arguments, code):
    result = run_from_nothing(
        f'import sys\nfrom wrcan_arch.cli import main\nassert main({arguments!r}) == {code}\n'
        'heavy = {"torch", "basicsr", "torchvision", "scipy", "skimage", "matplotlib", "lmdb"}\n'
        'assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()'
    )
    assert result.returncode == 0, result.stderr


def test_what_needs_the_toolbox_is_said_where_there_is_none():
    """Restoring needs none: help() and `import *` work."""
    result = run_python(
        f'import sys\n{HIDING.format(hidden="basicsr")}\n'
        'from wrcan_arch import *\nimport pydoc, wrcan_arch\n'
        'assert "load_network" in pydoc.render_doc(wrcan_arch) and WRCAN and restore\n'
        'print("these work")\nfrom wrcan_arch import JPEGAutoEncoderLoss'
    )
    assert result.stdout == 'these work\n', result.stderr
    said = 'JPEGAutoEncoderLoss needs BasicSR, which is not installed; basicsr doctor says how to install it'
    assert result.stderr.splitlines()[-1] == f'ModuleNotFoundError: {said}'


def test_a_failed_import_can_be_tried_again(tmp_path):
    (tmp_path / 'fragile.py').write_text('import os\nif not os.environ.pop("READY", ""): raise OSError("not yet")')
    result = run_from_nothing(
        f'import os, sys; sys.path.insert(0, {str(tmp_path)!r})\n'
        'from wrcan_arch.import_hook import when_imported\nseen = []\n'
        'when_imported("fragile", before=lambda: seen.append("before"), after=lambda: seen.append("after"))\n'
        'try:\n    import fragile\nexcept OSError:\n    pass\n'
        'os.environ["READY"] = "1"\nimport fragile\nassert seen == ["before", "before", "after"], seen'
    )
    assert result.returncode == 0, result.stderr


def test_after_is_called_until_it_succeeds_and_then_no_more(tmp_path):
    (tmp_path / 'plain.py').touch()
    result = run_from_nothing(f"""
import importlib, pkgutil, sys
sys.path.insert(0, {str(tmp_path)!r})
from wrcan_arch.import_hook import when_imported
reasons, seen, finders = ['second', 'first'], [], [*sys.meta_path]
def after():
    if reasons:
        raise OSError(reasons.pop())
    seen.append('after')
when_imported('plain', before=lambda: seen.append('before'), after=after)
for expected in ('first', 'second'):
    try:
        import plain
    except OSError as error:
        assert str(error) == expected
import plain
importlib.reload(plain)
assert seen == ['before', 'before', 'before', 'after'], seen
assert sys.meta_path == finders, sys.meta_path
""")
    assert result.returncode == 0, result.stderr


def test_public_names_are_listed_before_they_are_loaded():
    result = run_python('import wrcan_arch; assert {"WRCAN", "restore", "load_network"} <= {*dir(wrcan_arch)}')
    assert result.returncode == 0, result.stderr


def test_type_checkers_find_a_misspelt_public_name(tmp_path):
    (tmp_path / 'copied').mkdir()
    shutil.copy(wrcan_arch.__file__, tmp_path / 'copied')
    (tmp_path / 'use.py').write_text('import copied\ncopied.restore\ncopied.restroe\n')
    command = [sys.executable, '-m', 'mypy', '--cache-dir', os.devnull, 'use.py']
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    found = [line for line in said.splitlines() if line.startswith('use.py')]
    assert found == ['use.py:3: error: Module has no attribute "restroe"; maybe "restore"?  [attr-defined]'], said


def test_the_package_keeps_its_own_loader():
    result = run_python(
        'import pkgutil, wrcan_arch, basicsr\n'
        'assert b"1.4.2" in pkgutil.get_data("basicsr", "version.py")\n'
        'assert basicsr.__loader__ is basicsr.__spec__.loader'
    )
    assert result.returncode == 0, result.stderr
