"""Simulate what a camera records of a sharp picture while it shakes and things move: motion, light, noise.

The camera moves and rolls; near things move more than distant ones; an object in front moves in its own way. Light is
averaged before the camera's response, where light adds up. The sharp picture shows everything at its average position
over the exposure: the position half-way through cannot be inferred from the blurred picture. With steady motion, as
in REDS's short exposures, the two positions are the same.
"""

from dataclasses import dataclass

import cv2
import numpy as np

import pairs
from dead_leaves import filled, outline

PATH_POINTS = 128  # moments of the exposure
MOMENTS_PER_PIXEL = 1.0  # fewer would leave steps in the average; more take time
SHORT = 20.0  # pixels; a longer shake has MOMENTS_PER_PIXEL where it is fastest, not on average: else ghosts would show
MID_GREY = 0.214  # linear light of the encoded value 128


def shake_path(rng: np.random.Generator, length: float) -> np.ndarray:
    """Draw a smooth random path, `length` pixels long, whose mean is (0, 0).

    Returns:
        (PATH_POINTS, 2), x and y in pixels.
    """
    direction = rng.uniform(0, 2 * np.pi)
    turns = np.cumsum(rng.normal(0, 1, PATH_POINTS - 1)) * rng.uniform(0.02, 0.25)  # radians: from straight to curled
    speed = np.exp(np.cumsum(rng.normal(0, 0.08, PATH_POINTS - 1)))
    steps = speed[:, None] * np.stack([np.cos(direction + turns), np.sin(direction + turns)], axis=1)
    steps *= length / np.linalg.norm(steps, axis=1).sum()
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return path - path.mean(axis=0)


def steps_of(path: np.ndarray) -> np.ndarray:
    """Return the lengths of the steps from point to point."""
    return np.linalg.norm(np.diff(path, axis=0), axis=1)


@dataclass(frozen=True)
class Motion:
    """How a picture moves during the exposure.

    Args:
        path: of the camera, (PATH_POINTS, 2), in pixels.
        roll: of the camera around the picture's middle, (PATH_POINTS,), in radians.
        nearness: (H, W), float32; how far each pixel moves, as a multiple of `path`.
        object_mask: (H, W), float32 in [0, 1], of an object in front; all zero if there is none.
        object_path: of the object, added to the camera's, (PATH_POINTS, 2), in pixels.
    """

    path: np.ndarray
    roll: np.ndarray
    nearness: np.ndarray
    object_mask: np.ndarray
    object_path: np.ndarray

    def moments(self) -> np.ndarray:
        """Return the moments to average, (N, 5): x and y of the camera, its roll, x and y of the object's path.

        For a short path they are some of its points, as in the bundled weights' data (paths of at most 18 pixels).
        """
        paths = np.column_stack([self.path, self.roll, self.object_path])
        reach = np.hypot(*self.nearness.shape) / 2
        roll = self.roll[:, None] * reach
        travels = (self.path * self.nearness.max(), roll, self.path + self.object_path)
        longest = max(steps_of(travel).sum() for travel in travels)
        if longest == 0:
            return paths[[PATH_POINTS // 2]]
        if max(steps_of(self.path).sum(), steps_of(roll).sum()) <= SHORT:
            stride = 2 ** int(np.clip(np.log2(PATH_POINTS / (MOMENTS_PER_PIXEL * longest)), 0, 4))
            return paths[stride // 2 :: stride]
        widest = max(steps_of(travel).max() for travel in travels)  # up to five times the mean
        points = np.arange(PATH_POINTS)
        times = np.linspace(0, points[-1], 1 + int(np.ceil(MOMENTS_PER_PIXEL * widest * points[-1])))
        dense = np.column_stack([np.interp(times, points, path) for path in paths.T])
        return dense - dense.mean(axis=0)


def draw_nearness(rng: np.random.Generator, height: int, width: int, depth: float) -> np.ndarray:
    """Draw the nearness of a slanted and bumpy scene: (height, width), float32, within 1 - depth and 1 + depth."""
    plane = np.add.outer(np.linspace(-1, 1, height) * rng.normal(), np.linspace(-1, 1, width) * rng.normal())
    bumps = cv2.resize(rng.normal(0, 0.7, (4, 4)), (width, height), interpolation=cv2.INTER_CUBIC)
    return (1 + depth * np.tanh(plane + bumps)).astype(np.float32)


def draw_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw the mask of an object in front: (height, width), float32 in [0, 1]."""
    radius = rng.uniform(0.1, 0.3) * min(height, width)
    points = outline(rng, radius) + rng.uniform((0, 0), (width, height))
    return filled(points, height, width).astype(np.float32) / 255


def draw_motion(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    length: float,
    rotation: float = 0,
    depth: float = 0,
    objects: float = 0,
) -> Motion:
    """Draw a random motion.

    Args:
        rng: source of all randomness.
        height, width: of the picture.
        length: of the camera's path in pixels; at 0, a tripod, nothing else moves either.
        rotation: the largest angle that the camera rolls through, in degrees.
        depth: 0 for a flat scene; at 0.5 near things move at most three times as far as distant ones.
        objects: probability of an object in front that moves by itself.
    """
    nothing = np.zeros((height, width), np.float32)
    has_object = rng.random() < objects and length > 0
    turn = np.deg2rad(rng.uniform(0, rotation)) if length > 0 else 0
    return Motion(
        path=shake_path(rng, length),
        roll=shake_path(rng, turn)[:, 0],
        nearness=draw_nearness(rng, height, width, depth * rng.random()),
        object_mask=draw_mask(rng, height, width) if has_object else nothing,
        object_path=shake_path(rng, length * rng.uniform(0.3, 2) if has_object else 0),
    )


def behind(light: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return `light` with each pixel that the object hides replaced by the nearest one that it does not hide.

    So the ground that the moving object uncovers is like that beside it. Another colour there would be a line along the
    object's outline, which the sharp picture does not have.
    """
    hidden = mask == 1  # (H, W); the object's soft edge lets the ground through
    if hidden.all():
        return light
    _, nearest = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    return light[~hidden][nearest - 1]  # pixels that are not hidden are numbered from 1, row by row


def _sampled(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def average_light(light: np.ndarray, motion: Motion) -> np.ndarray:
    """Return the mean of `light` over the motion, float32 (H, W, 3). The border is mirrored."""
    moments = motion.moments()
    if len(moments) == 1:
        return light
    height, width = light.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    from_middle_x, from_middle_y = x - (width - 1) / 2, y - (height - 1) / 2
    mask = motion.object_mask
    has_object = bool(mask.any())
    ground = behind(light, mask) if has_object else light
    in_front = np.dstack([light * mask[:, :, None], mask])  # (H, W, 4)
    total = np.zeros_like(light)
    for right, down, roll, own_right, own_down in moments.astype(np.float32):
        from_x, from_y = x + roll * from_middle_y, y - roll * from_middle_x
        seen = _sampled(ground, from_x - right * motion.nearness, from_y - down * motion.nearness)
        if has_object:
            front = _sampled(in_front, from_x - right - own_right, from_y - down - own_down)
            seen = front[:, :, :3] + (1 - front[:, :, 3:]) * seen
        total += seen
    return total / len(moments)


def add_noise(rng: np.random.Generator, light: np.ndarray, sigma: float) -> np.ndarray:
    """Return `light` with a sensor's photon noise and read noise added.

    Args:
        rng: source of all randomness.
        light: in [0, 1].
        sigma: standard deviation at middle grey, on the 0-255 scale of encoded values.
    """
    at_grey = sigma / 255 / 1.08  # the response's slope at MID_GREY is 1.08
    photons, reading = 0.9 * light.clip(0) / MID_GREY, 0.1
    noise = rng.standard_normal(light.shape, np.float32)
    return light + at_grey * np.sqrt(photons + reading) * noise


def expose(
    rng: np.random.Generator, sharp: np.ndarray, motion: Motion, *, noise: float = 0, glare: float = 0
) -> np.ndarray:
    """Return the photograph, uint8 (H, W, 3), that a camera takes of `sharp`, before compression.

    Args:
        rng: source of the noise.
        sharp: uint8 (H, W, 3), encoded as sRGB.
        motion: of camera and object.
        noise: of the sensor, see `add_noise`.
        glare: how much brighter than white the clipped values (255) were: 1 for twice as bright.
    """
    light = pairs.to_linear(sharp)
    light = light * (1 + glare * np.float32(sharp == 255))
    light = average_light(light, motion)
    if noise:
        light = add_noise(rng, light, noise)
    return pairs.from_linear(light)


def expose_at_random(
    rng: np.random.Generator,
    sharp: np.ndarray,
    *,
    length: tuple[float, float] = (2, 16),
    rotation: float = 0.5,
    depth: float = 0.5,
    objects: float = 0.3,
    noise: float = 2,
    glare: float = 1,
) -> np.ndarray:
    """Return `sharp` in a random exposure, with noise and glare up to those given; the rest as in `draw_motion`."""
    motion = draw_motion(
        rng, *sharp.shape[:2], length=rng.uniform(*length), rotation=rotation, depth=depth, objects=objects
    )
    return expose(rng, sharp, motion, noise=rng.uniform(0, noise), glare=rng.uniform(0, glare))
