"""Small videos for tests, as frames in memory, in a folder and in a file."""

import cv2
from conftest import picture

HEIGHT, WIDTH = 48, 64


def moving(count, seed=0, step=2):
    """Frames of one scene: a picture that moves `step` pixels to the left from frame to frame."""
    wide = picture(HEIGHT, WIDTH + step * count, seed)
    return [wide[:, step * index : step * index + WIDTH] for index in range(count)]


def write_folder(folder, frames, name='{:03d}.png'):
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        cv2.imwrite(str(folder / name.format(index)), frame)


def write_video(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 120, (WIDTH, HEIGHT))
    for frame in frames:
        writer.write(frame)
    writer.release()
