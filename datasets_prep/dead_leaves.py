"""Draw synthetic sharp images: shapes that hide one another, as dead leaves on the ground do.

Achddou, Gousseau and Ladjal, "Synthetic images as a regularity prior for image restoration neural networks", SSVM 2021,
showed that networks trained on such images come close to ones trained on photographs. The shapes' sizes follow a power
law, as those of objects in photographs do; their colours and textures have the statistics of natural ones. Edges, text
and fine repetitive patterns are included because blur and JPEG hurt those most.

Image n of seed s depends on (s, n) and the size alone. No photograph is read.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

import script
from wrcan_arch.data.image_files import size_of_image, write_png
from wrcan_arch.errors import InputError
from wrcan_arch.system.files import check_writable
from wrcan_arch.system.progress_bar import progress_bar

MIN_RADIUS = 2.5  # pixels, of the smallest leaf in the busiest image
COVER = 3.0  # leaves' area over the image's: about e^-3 of the ground stays visible
PATTERN_RADIUS = 10.0  # pixels: below it, a leaf has no pattern and no texture
SUBPIXEL_BITS = 4  # for OpenCV's drawing: corners on a grid of 1/16 pixel
LETTERS = np.array(list('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;!?&%()+-/'))
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX)

Pattern = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def draw_palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw the colours of one scene, (count, 3), BGR, on a scale of 0 to 1 that some exceed.

    Luminance spreads widely and evenly; chroma is heavy-tailed around grey, mostly from blue to yellow, the axis of
    daylight (Ruderman, Cronin and Chiao, 1998), with few hues in a scene.
    """
    luminance = rng.beta(1.1, 1.3, count)
    hues = rng.laplace((0.04, 0), (0.06, 0.04), (rng.integers(2, 7), 2))  # cool to warm, and green to red
    chroma = hues[rng.integers(len(hues), size=count)] * rng.gamma(2.0, 0.6, (count, 1))
    chroma += rng.normal(0, (0.03, 0.0), (1, 2))  # the light's own colour
    chroma *= rng.uniform(0.2, 1)
    warm, red = (chroma * (0.35 + luminance[:, None])).T
    return np.stack([luminance - 1.3 * warm, luminance + 0.3 * warm - 0.5 * red, luminance + 0.6 * warm + red], axis=1)


def noise_texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a periodic random field, (size, size), standard deviation 1, spectrum falling as f^-b, perhaps stretched."""
    exponent, stretch = rng.uniform(0.3, 1.8), 1.0 if rng.random() < 0.6 else rng.uniform(2, 12)
    angle = rng.uniform(0, np.pi)
    y, x = np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing='ij')
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    frequency = np.hypot(stretch * along, across) + 1 / size
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / frequency**exponent
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (size, size))
    return (field / field.std()).astype(np.float32)


def text_texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw lines of letters, (size, size): 0 on the ground, 1 on ink."""
    sheet = np.zeros((size, size), np.uint8)
    font, bottom = FONTS[rng.integers(len(FONTS))], 0.0
    while bottom < size:
        scale = float(rng.choice([0.3, 0.4, 0.5, 0.7, 1.0, 1.6]))
        for _ in range(rng.integers(1, 6)):
            bottom += 34 * scale
            line = ''.join(np.where(rng.random(90) < 0.16, ' ', rng.choice(LETTERS, 90)))
            thickness = 1 + int(scale > 0.6) * int(rng.integers(1, 3))
            cv2.putText(sheet, line, (-5, int(bottom)), font, scale, 255, thickness, cv2.LINE_AA)
    return sheet.astype(np.float32) / 255


def _wave(x: np.ndarray, period: float) -> np.ndarray:
    """A square wave from -1 to 1 whose edges are one pixel wide."""
    return np.clip(np.sin(2 * np.pi * x / period) * period / np.pi, -1, 1)


# Fine repetitive patterns: values from 0 to 1, given coordinates and a period in pixels.
PATTERNS: dict[str, Pattern] = {
    'grating': lambda x, y, period: (1 + _wave(x, period)) / 2,
    'sinusoid': lambda x, y, period: (1 + np.sin(2 * np.pi * x / period)) / 2,
    'checker': lambda x, y, period: (1 + _wave(x, period) * _wave(y, period)) / 2,
    'fence': lambda x, y, period: np.maximum(_wave(x + y, period) * _wave(x + y, period / 2), _wave(x - y, period)) > 0,
    'bricks': lambda x, y, period: np.minimum(
        np.clip(np.abs((y / period) % 1 - 0.5) * period, 0, 1),
        np.clip(np.abs((x / (2 * period) + 0.5 * np.floor(y / period + 0.5)) % 1 - 0.5) * 2 * period, 0, 1),
    ),
    'dots': lambda x, y, period: np.clip(
        (np.sin(2 * np.pi * x / period) + np.sin(2 * np.pi * y / period) - 0.4) * period / 6, 0, 1
    ),
    'rings': lambda x, y, period: (1 + _wave(np.hypot(x, y), period)) / 2,
}


def outline(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Draw the corners of a random shape around (0, 0), (N, 2) in pixels, of about that radius."""
    kind, turn = rng.random(), rng.uniform(0, 2 * np.pi)
    if kind < 0.55:  # roundish, or lobed as leaves and stones are
        angles = np.linspace(0, 2 * np.pi, max(12, int(3 * radius**0.6)), endpoint=False)
        lobes = rng.normal(0, 1, 5) / np.arange(1, 6) * rng.choice([0.0, 0.15, 0.35])
        phases = rng.uniform(0, 2 * np.pi, 5)
        waves = np.cos(angles[:, None] * np.arange(1, 6) + phases) @ lobes
        points = (np.maximum(0.2, 1 + waves) * [np.cos(angles), np.sin(angles)]).T
        points[:, 1] *= rng.uniform(0.35, 1)
    elif kind < 0.8:  # a box, often a slat, a branch or a wire
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (1, max(0.7 / radius, rng.uniform(0.02, 1) ** 1.5))
        turn = turn if rng.random() < 0.6 else rng.normal(0, 0.02) + rng.integers(4) * np.pi / 2  # mostly upright
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        points = (rng.uniform(0.5, 1.2, len(angles)) * [np.cos(angles), np.sin(angles)]).T
    cosine, sine = np.cos(turn), np.sin(turn)
    return radius * points @ np.array([[cosine, sine], [-sine, cosine]])


def filled(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fill a shape: uint8 (height, width), 255 inside the corners `points`, (N, 2), and less along its edge."""
    mask = np.zeros((height, width), np.uint8)
    corners = np.rint(points * 2**SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    return mask


class Scene:
    """What the leaves of one image share (colours, textures, light), and the image painted so far."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng = rng
        self.image = np.zeros((size, size, 3), np.float32)
        self.palette = draw_palette(rng, 24).astype(np.float32)
        # Tiled 2 x 2, so that every window of the periodic texture is a view.
        self.textures = [np.tile(noise_texture(rng, size), (2, 2)) for _ in range(4)]
        self.sheet = np.tile(text_texture(rng, size), (2, 2))
        self.light = rng.normal(0, 0.25, 2)  # its direction: leaves are brighter on one side
        self.texture_strength = rng.uniform(0.3, 1.5)

    def colour(self) -> np.ndarray:
        """Draw a colour of the palette, BGR, and vary it a little."""
        own = self.palette[self.rng.integers(len(self.palette))] * self.rng.uniform(0.85, 1.15)
        return (own + self.rng.normal(0, 0.015, 3)).astype(np.float32)

    def surface(self, top: int, left: int, height: int, width: int, radius: float) -> np.ndarray:
        """Draw what a leaf of that radius shows in a window of the image, (height, width, 3)."""
        rng = self.rng
        colour = self.colour()
        if radius < PATTERN_RADIUS:
            return np.broadcast_to(colour, (height, width, 3))
        y = (np.arange(height, dtype=np.float32) - height / 2)[:, None]
        x = (np.arange(width, dtype=np.float32) - width / 2)[None]
        shading = 1 + (self.light[0] * x + self.light[1] * y) / max(height, width) * rng.uniform(0, 2)
        kind, surface = rng.random(), colour * shading[:, :, None]
        if kind < 0.22:
            name = list(PATTERNS)[rng.integers(len(PATTERNS))]
            angle = rng.uniform(0, np.pi) if rng.random() < 0.6 else rng.integers(2) * np.pi / 2
            period = min(2.5 * np.exp(rng.exponential(0.9)), radius)
            along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            ink = PATTERNS[name](along, across, period).astype(np.float32)[:, :, None]
            surface = surface + ink * (self.colour() - colour) * rng.uniform(0.2, 1)
        elif kind < 0.30:
            ink = self._window(self.sheet, top, left, height, width)[:, :, None]
            surface = surface + ink * (self.colour() - colour)
        if rng.random() < 0.85:
            grain = self._window(self.textures[rng.integers(len(self.textures))], top, left, height, width)
            strength = self.texture_strength * rng.exponential(0.12)
            surface = surface * np.exp(np.clip(strength * grain, -1.5, 1.0))[:, :, None]
        return surface

    def _window(self, texture: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return a window of a periodic texture, shifted at random for each leaf."""
        size = len(self.image)
        down, right = self.rng.integers(size, size=2)
        top, left = (top - down) % size, (left - right) % size
        return texture[top : top + height, left : left + width]

    def put_leaf(self, radius: float) -> None:
        """Paint one leaf over what is there."""
        size = len(self.image)
        centre = self.rng.uniform(-0.5 * radius, size + 0.5 * radius, 2)
        points = outline(self.rng, radius) + centre
        left, top = np.maximum(np.floor(points.min(0)).astype(int) - 1, 0)
        right, bottom = np.minimum(np.ceil(points.max(0)).astype(int) + 2, size)
        if left >= right or top >= bottom:
            return
        mask = filled(points - (left, top), bottom - top, right - left)
        if radius > PATTERN_RADIUS and self.rng.random() < 0.15:  # out of focus
            mask = cv2.GaussianBlur(mask, (0, 0), self.rng.uniform(0.7, 3))
        clarity = 1 if radius > PATTERN_RADIUS else self.rng.uniform(0.15, 1)  # small things mostly stand out less
        cover = mask[:, :, None] * np.float32(clarity / 255)
        window = self.image[top:bottom, left:right]
        window += cover * (self.surface(top, left, bottom - top, right - left, radius) - window)


def draw_radii(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw leaves' radii in pixels, in order of painting; their discs have about COVER times the image's area."""
    low, high = MIN_RADIUS * np.exp(rng.uniform(0, 2.4)), size * rng.uniform(0.2, 0.7)
    # The radii have density r^-3: objects look alike at every distance.
    mean_area = 2 * np.pi * np.log(high / low) / (low**-2 - high**-2)
    count = int(COVER * size**2 / mean_area) + 1
    share = rng.random(count)
    return (low**-2 - share * (low**-2 - high**-2)) ** -0.5


def dead_leaves(seed: int, index: int, size: int) -> np.ndarray:
    """Draw image `index` of `seed`, uint8 (size, size, 3), BGR."""
    rng = np.random.default_rng((seed, index))
    scene = Scene(rng, size)
    scene.image[:] = scene.surface(0, 0, size, size, size)
    for radius in draw_radii(rng, size):
        scene.put_leaf(radius)
    softness = rng.choice([0.0, 0.4, 0.6, 0.9])  # of the lens
    if softness:
        cv2.GaussianBlur(scene.image, (0, 0), softness, dst=scene.image)
    return np.rint(scene.image.clip(0, 1) * 255).astype(np.uint8)


def write_images(arguments: argparse.Namespace) -> None:
    for name, least in (('count', 1), ('size', 32), ('seed', 0)):
        if getattr(arguments, name) < least:
            raise InputError(f'--{name} {getattr(arguments, name)}: at least {least}')
    check_writable(arguments.out)
    for index in progress_bar(range(arguments.count), unit='image', desc=str(arguments.out)):
        path = arguments.out / f'leaves_{arguments.seed}_{index:06d}.png'
        if path.exists():
            if size_of_image(path) != (arguments.size, arguments.size):
                raise InputError(f'{path}: exists already with another size; choose another folder')
        else:
            write_png(path, dead_leaves(arguments.seed, index, arguments.size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder for the PNG files; existing ones are kept')
    parser.add_argument('--count', type=int, default=200, help='how many pictures (default 200)')
    parser.add_argument('--size', type=int, default=512, help='side in pixels (default 512)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all that is drawn at random (default 0)')
    arguments = parser.parse_args()
    with script.errors_in_one_line():
        write_images(arguments)


if __name__ == '__main__':
    main()
