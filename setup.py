"""Packages WRCAN and lists its requirements: ranges that can work; constraints.txt has the versions that are tested."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (HERE / 'wrcan_arch/__init__.py').read_text(encoding='utf-8')).group(1)

setup(
    name='wrcan-arch',
    version=VERSION,
    description='WRCAN for JPEG-compressed image deblurring, as a plugin for BasicSR',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The contributors to WRCAN for BasicSR',
    license_expression='Apache-2.0',
    classifiers=[
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Image Processing',
    ],
    packages=find_packages(include=['wrcan_arch', 'wrcan_arch.*']),
    package_data={'wrcan_arch': ['py.typed', 'weights/*']},
    python_requires='>=3.11',
    install_requires=[
        # toolbox.py adapts this release, its last. Its setup.py fails on 3.13, where a function's locals() is a copy;
        # restoring photographs does without.
        'basicsr==1.4.2; python_version < "3.13"',
        'scipy<2; python_version < "3.13"',  # which removes scipy.ndimage.filters; the toolbox's NIQE imports it
        'torch>=2.6',  # earlier ones let weight files run code (CVE-2025-32434)
        'torchvision>=0.21; python_version < "3.13"',  # the toolbox imports it; must match torch's release
        'numpy>=2',  # as OpenCV 5; the bounds of scikit-image and matplotlib follow from it
        'opencv-python>=5',  # OpenCV 4 fills the missing part of a truncated JPEG from uninitialized memory
        'lmdb>=1.4',
        'pyyaml>=6.0',
        'pydantic>=2.7',
        'packaging>=24.2',  # doctor; from 24.2 on setuptools reads license_expression with it
        'scikit-image>=0.23.2',  # the demo's photographs; reference for the metrics
        'safetensors>=0.4',
        'pillow>=10.1',
        'pyvips[binary]>=3.0',  # photographs in and out; the wheel brings libvips
        'matplotlib>=3.8.4',  # the report's plots
        'tqdm>=4.60',
    ],
    extras_require={
        'lpips': ['lpips>=0.1.4'],  # the metric calculate_lpips
        'heic': ['pi-heif>=1.0'],  # libvips's wheel has no HEVC decoder
        'dev': [
            'lpips>=0.1.4',
            'pi-heif>=1.0',
            'pillow>=11.3',  # whose wheel has AVIF: the tests' reference
            'lmdb>=2',  # which raises where two clients of the toolbox open one store
            'pytest>=8',
            'pytest-timeout>=2.3',
            'pytest-xdist>=3.6',
            'hypothesis>=6.100',
            'ruff>=0.6',
            'mypy>=1.11',
        ],
    },
    entry_points={'console_scripts': ['basicsr = wrcan_arch.cli:main']},
)
