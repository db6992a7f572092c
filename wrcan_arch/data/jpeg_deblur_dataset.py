"""Makes the patches that WRCAN trains on from stores or folders of blurred and sharp frames (sections 4.1 and 4.2)."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from unicodedata import normalize

import cv2
import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..jpeg_quality import estimate_quality, is_far
from ..system.terminal import printable
from .draws import Draw, draw_generator
from .image_files import decode_image, images_under, size_of_image
from .jpeg import jpeg_crop
from .lmdb_store import open_store

ROLES = ('lq', 'gt', 'gt_jpeg')
START_OF_JPEG = b'\xff\xd8'
NOISE_PAIRS = 1 << 16  # pairs of noise values: two random bytes choose one
BRIGHTEST = 255


@cache
def whole_noise(sigma: float) -> np.ndarray:
    """Return equally likely pairs of Gaussian noise values, truncated to whole grey levels: int16 (NOISE_PAIRS, 2).

    The authors' code truncates, so at the paper's sigma of 2 the noise has a standard deviation of 1.64 and two values
    in five are 0. The pairs are quantiles of the joint distribution of two independent values. A lookup takes a tenth
    of the time of drawing normals, and at that sigma no level's probability is off by more than 5e-5.
    """
    levels = torch.arange(-BRIGHTEST, BRIGHTEST, dtype=torch.float64, device='cpu')
    borders = levels + (levels >= 0)  # upper end of what truncates to each level: below 0 itself, else the next
    below = torch.special.ndtr(borders / sigma)
    likelihood = torch.cat([below, below.new_ones(1)]).diff(prepend=below.new_zeros(1))  # of each level
    joint = torch.outer(likelihood, likelihood).flatten().cumsum(0)
    quantiles = (torch.arange(NOISE_PAIRS, dtype=torch.float64, device='cpu') + 0.5) / NOISE_PAIRS
    pair_index = torch.searchsorted(joint, quantiles)
    first, second = pair_index // len(likelihood), pair_index % len(likelihood)
    return (torch.stack([first, second], dim=1) - BRIGHTEST).short().numpy()


def draw_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Draw Gaussian noise from the pairs of `whole_noise`: int16 of `shape`."""
    count = math.prod(shape)
    words = rng.bit_generator.random_raw(-(-count // 8))  # (N,) of 64 bits, each for four pairs
    drawn = words.view(np.uint16)  # (4N,), indices of pairs
    pairs = whole_noise(sigma).view(np.int32).ravel()  # (NOISE_PAIRS,), each pair as one int32
    noise = pairs.take(drawn, mode='wrap').view(np.int16)  # (8N,); no index is too large, and 'wrap' is the fastest
    return noise[:count].reshape(shape)


def planes(image: np.ndarray, order: Sequence[int] = (2, 1, 0)) -> np.ndarray:
    """Turn uint8 (H, W, 3) into (3, H, W); plane i is channel order[i], by default BGR to RGB. NumPy is slower."""
    out = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, [out[order.index(channel)] for channel in range(3)])
    return out


def augment(
    patches: dict[str, np.ndarray],
    rng: np.random.Generator,
    *,
    hflip_prob: float = 0.5,
    vflip_prob: float = 0.5,
    transpose_prob: float = 0.5,
    rgb_permute_prob: float = 0.5,
    noise_prob: float = 0.5,
    noise_sigma: float = 2.0,
) -> dict[str, np.ndarray]:
    """Apply the paper's augmentations (section 4.2): one draw for all patches, and noise on 'lq' alone.

    Args:
        patches: uint8 (H, W, 3), BGR, by role.
        rng: the draw's generator.
        hflip_prob, vflip_prob, transpose_prob, rgb_permute_prob: the probability of each.
        noise_prob: the probability that 'lq' gets Gaussian noise, truncated to whole levels and clipped to 8 bits.
        noise_sigma: its standard deviation before truncation, on the 0-255 scale.

    Returns:
        uint8 (3, H, W), by role; RGB unless permuted.
    """
    chances = (hflip_prob, vflip_prob, transpose_prob, rgb_permute_prob, noise_prob)
    happens = [number < chance for number, chance in zip(rng.random(5).tolist(), chances, strict=True)]
    hflip, vflip, transpose, permute, noise = happens
    order = rng.permutation(3).tolist() if permute else [2, 1, 0]
    if noise:  # first, while rows are contiguous; flips and transposes do not change its distribution
        noisy = draw_noise(patches['lq'].shape, noise_sigma, rng)
        noisy += patches['lq']
        patches = {**patches, 'lq': noisy.clip(0, BRIGHTEST, out=noisy).astype(np.uint8)}

    def turned(patch: np.ndarray) -> np.ndarray:  # OpenCV copies a flipped patch faster than NumPy reads a view
        if hflip or vflip:
            patch = cv2.flip(patch, -1 if hflip and vflip else int(hflip))
        if transpose:
            patch = cv2.transpose(patch)
        return planes(patch, order)

    return {role: turned(patch) for role, patch in patches.items()}


AUGMENTATIONS = [name for name in inspect.signature(augment).parameters if name.endswith(('_prob', '_sigma'))]


def error_in(opt: Mapping[str, Any], text: str) -> InputError:
    return InputError(f'data set {opt.get("name", "without a name")}: {text}')


def error_of_small(opt: Mapping[str, Any], frame: str, size: tuple[int, ...], others: str = '') -> InputError:
    """The error for a frame of `size`, (H, W), that holds no patch; `others`: how many more do not, as text."""
    text = f"'{frame}' is {size[1]} x {size[0]}, smaller than gt_size {opt['gt_size']}{others}"
    return error_in(opt, f'{text}; make gt_size smaller or leave the image out')


class FrameSource:
    """The store or folder of a role's frames. A frame is named by its key in the store or by its path."""

    def __init__(self, opt: Mapping[str, Any], role: str) -> None:
        backend = opt.get('io_backend')
        self.opt = opt
        self.root = str(opt[f'dataroot_{role}'])
        self.is_store = isinstance(backend, Mapping) and backend.get('type') == 'lmdb'

    def size(self, frame: str) -> tuple[int, ...]:
        """Return (H, W), from meta_info.txt or the file's header; InputError for a file that is no image."""
        if self.is_store:
            return open_store(self.root).shape(frame)[:2]
        return size_of_image(frame) or self.decode(frame).shape[:2]  # OpenCV may know other formats

    def content(self, frame: str) -> bytes:
        """Return the bytes of the image file, or of a raw store's rows."""
        return open_store(self.root).get(frame) if self.is_store else Path(frame).read_bytes()

    def decode(self, frame: str) -> np.ndarray:
        """Decode a frame of a folder or an encoded store: uint8 (H, W, 3) in BGR. InputError if that fails."""
        try:
            image = decode_image(self.content(frame))
        except OSError as error:
            raise error_in(self.opt, f"'{frame}' cannot be read ({error.strerror})") from error
        if image is None:
            raise error_in(self.opt, f"'{frame}' in {self.root} is not a readable image")
        return image

    @contextmanager
    def open(self, frame: str) -> Iterator[np.ndarray]:
        """Yield a frame, uint8 (H, W, 3) in BGR: decoded, or mapped from a raw store, so that only a crop is read."""
        if self.is_store and (store := open_store(self.root)).kind == 'raw':
            with store.view(frame) as image:
                yield image
        else:
            yield self.decode(frame)


def sources_of(opt: Mapping[str, Any]) -> dict[str, FrameSource]:
    """Return a data set's stores or folders, by role."""
    return {role: FrameSource(opt, role) for role in ROLES if opt.get(f'dataroot_{role}')}


@DATASET_REGISTRY.register()
class JPEGDeblurDataset(Dataset):
    """Pairs of a blurred JPEG frame and its sharp frame; for training, patches of them and, if set, of I_JPEG(HR).

    Options:
        dataroot_lq, dataroot_gt: blurred and sharp frames, `.lmdb` stores or folders, with the same names in both.
            A test can do without the sharp ones.
        names: take only names that match this pattern, such as `000_*` for one sequence. In names `/` becomes `_`.
        dataroot_gt_jpeg: a store or folder of I_JPEG(HR); without it I_JPEG(HR) is made from the sharp frame, at
            `jpeg_quality`.
        jpeg_quality: 1 to 100, the paper's is 25. Leave this and dataroot_gt_jpeg out if the auto-encoder loss is off.
        blurred_quality: JPEG quality of the blurred frames, one or `[lowest, highest]`, if it is not jpeg_quality; kept
            with the weights, so that `basicsr restore` can warn about photographs of another quality.
        io_backend: `{type: lmdb}` or `{type: disk}`.
        gt_size: side of the square patches.
        hflip_prob, vflip_prob, transpose_prob, rgb_permute_prob, noise_prob, noise_sigma: see `augment`; the paper's
            by default.
        as_bytes: leave patches uint8, a quarter of the bytes to copy and send; the trainer sets it for `WRCANModel`,
            which converts them to float on its device. False by default: the toolbox's own models take only floats.
        phase: 'train' for patches; anything else for whole frames.
        manual_seed: the seed of all draws; the trainer sets it.

    An item's patch and augmentation depend only on the seed and the number of its draw (see draws.py). If the index is
    a plain int, as from PyTorch's own samplers, the number comes from PyTorch's random state.

    Items: `lq`, `gt` and, for training, `gt_jpeg`: float (3, H, W), RGB in [0, 1], or with `as_bytes` uint8; `lq_path`,
    `gt_path`; `key`, the frame's name. Except in training `lq_path` is that name with the file's ending.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__()
        self.opt = opt
        self.training = opt['phase'] == 'train'
        self.augmentation = {name: opt[name] for name in AUGMENTATIONS if name in opt}
        self.jpeg_quality = opt.get('jpeg_quality')
        self.sources = sources_of(opt)
        self.guide = 'gt' if 'gt' in self.sources else 'lq'  # the other roles must have its names and sizes
        if 'lq' not in self.sources:
            raise error_in(opt, 'it needs dataroot_lq, the blurred frames')
        if self.training and self.guide == 'lq':
            raise error_in(opt, 'training needs dataroot_gt, the sharp frames')
        names = {role: self._names(source) for role, source in self.sources.items()}
        if opt.get('names') and names[self.guide]:
            names = {role: {key: own[key] for key in own if fnmatch(key, opt['names'])} for role, own in names.items()}
            if not names[self.guide]:
                raise error_in(opt, f"nothing in {self.sources[self.guide].root} is named '{opt['names']}'")
        self._check_pairing(names)
        self.frames = [{'key': key, **{role: names[role][key] for role in names}} for key in sorted(names[self.guide])]

    def _names(self, source: FrameSource) -> dict[str, str]:
        """Map each frame's name, by which roles are paired, to its key in the store or its path."""
        root = source.root
        if source.is_store:
            called = [(key, key) for key in open_store(root).keys()]
        elif Path(root).is_dir():
            called = [(str(path.relative_to(root).with_suffix('')), str(path)) for path in images_under(Path(root))]
        else:
            raise error_in(self.opt, f"no folder '{root}'")
        names: dict[str, str] = {}
        for name, frame in called:
            key = printable(name.replace('/', '_'))  # it names files in one folder, and rows of a table
            other = names.setdefault(key, frame)
            if other != frame:
                raise error_in(self.opt, f'{other} and {frame} are taken for the same frame; remove one of them')
        return names

    def _check_pairing(self, names: dict[str, dict[str, str]]) -> None:
        guide_root = self.sources[self.guide].root
        if not names[self.guide]:
            raise error_in(self.opt, f'there are no images in {guide_root}')
        for role in names:
            if unpaired := names[role].keys() ^ names[self.guide].keys():
                first = {each: min(alone) for each in (role, self.guide) if (alone := unpaired & names[each].keys())}
                where = ', '.join(f"'{name}' in {self.sources[each].root}" for each, name in first.items())
                look_alike = len({normalize('NFC', name) for name in first.values()}) < len(first)
                raise error_in(
                    self.opt,
                    f'{self.sources[role].root} and {guide_root} must hold the same names; '
                    f'{len(unpaired)} are in only one of them, the first is {where}'
                    + ('; the two differ in how accents are written' if look_alike else ''),
                )

    def likely_mistakes(self) -> Iterator[str]:
        """Yield likely mistakes, seen in the first pair: blurred and sharp swapped, quality unlike the options'."""
        first = self.frames[0]
        contents = {role: self.sources[role].content(first[role]) for role in ('lq', 'gt') if role in first}
        is_jpeg = {role: content.startswith(START_OF_JPEG) for role, content in contents.items()}
        if is_jpeg.get('gt') and not is_jpeg['lq']:
            yield str(error_in(self.opt, 'the sharp frames are JPEG, the blurred ones are not; are the two swapped?'))
        option = 'blurred_quality' if self.opt.get('blurred_quality') else 'jpeg_quality'
        given = self.opt.get(option)
        found = estimate_quality(BytesIO(contents['lq'])) if is_jpeg['lq'] else None
        if given and found and is_far(found, given):
            text = f"the blurred '{first['key']}' has JPEG quality {found}, but {option} says {given}"
            yield str(error_in(self.opt, text))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        frame = self.frames[index]
        with ExitStack() as stack:
            roles = [role for role in self.sources if self.training or role != 'gt_jpeg']
            images = {role: stack.enter_context(self.sources[role].open(frame[role])) for role in roles}
            self._check_sizes(images, frame)
            if self.training:
                number = index.number if isinstance(index, Draw) else int(torch.randint(2**62, (), device='cpu'))
                rng = draw_generator(self.opt.get('manual_seed', 0), number)
                pixels = augment(self._patches(images, frame['gt'], rng), rng, **self.augmentation)
            else:
                pixels = {role: planes(image) for role, image in images.items()}
        tensors = {role: torch.from_numpy(each) for role, each in pixels.items()}
        if not (self.training and self.opt.get('as_bytes')):
            tensors = {role: tensor.float().div_(255) for role, tensor in tensors.items()}
        paths = {f'{role}_path': frame[role] for role in ('lq', 'gt') if role in frame}
        if not self.training:  # the toolbox names pictures by its last part, without the ending
            paths['lq_path'] = frame['key'] + Path(frame['lq']).suffix
        return {**tensors, **paths, 'key': frame['key']}

    def _check_sizes(self, images: Mapping[str, np.ndarray], frame: Mapping[str, str]) -> None:
        sharp = images[self.guide]
        for role, image in images.items():
            if image.shape != sharp.shape:
                raise error_in(
                    self.opt,
                    f"'{frame[role]}' is {image.shape[1]} x {image.shape[0]} but the "
                    f"sharp '{frame[self.guide]}' is {sharp.shape[1]} x {sharp.shape[0]}",
                )

    def _patches(self, images: dict[str, np.ndarray], frame: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
        size = self.opt['gt_size']
        height, width = images['gt'].shape[:2]
        if size > min(height, width):
            raise error_of_small(self.opt, frame, (height, width))
        top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        patches = {role: image[top : top + size, left : left + size] for role, image in images.items()}
        if self.jpeg_quality is not None and 'gt_jpeg' not in patches:
            patches['gt_jpeg'] = jpeg_crop(images['gt'], top, left, size, size, self.jpeg_quality)
        return patches
