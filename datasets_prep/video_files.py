"""Videos and folders of frames: which there are, and their frames in order."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

import pairs
from wrcan_arch.data.image_files import is_image, key_for
from wrcan_arch.errors import InputError, refuse
from wrcan_arch.system.files import is_utf8
from wrcan_arch.system.folders import walk

VIDEO_ENDINGS = ('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.mts', '.m2ts', '.wmv', '.3gp')

os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # the scripts report what is wrong with a video


def in_order(path: Path) -> list[str | int]:
    """Sort key that puts frame2 before frame10."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split('([0-9]+)', path.name))]


def frame_files(folder: Path) -> list[Path]:
    return sorted(filter(is_image, folder.iterdir()), key=in_order)


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith('.') and path.is_file()


def holds_frames(folder: Path) -> bool:
    """Whether the folder's images are the frames of a video; beside video files they are a camera's stills."""
    return bool(frame_files(folder)) and not any(map(is_video, folder.iterdir()))


def files_of(video: Path) -> list[Path]:
    return frame_files(video) if video.is_dir() else [video]


def check_frames(folder: Path) -> None:
    """Raise InputError if two frames have the same name, such as 7.jpg and 7.png: one picture would count twice."""
    found: dict[str, Path] = {}
    for path in frame_files(folder):
        if (other := found.setdefault(path.stem, path)) is not path:
            advice = 'remove one if they show the same frame, else rename it'
            raise InputError(f'{other} and {path} have the same name; {advice}')


def find_videos(inputs: list[Path]) -> dict[str, Path]:
    """Find video files and folders of frames, by the name that their keys begin with."""
    videos: dict[str, Path] = {}
    real: set[str] = set()
    for entry in inputs:
        if not entry.exists():
            raise InputError(f'{entry}: no such video or folder')
        if is_image(entry) and entry.is_file():
            raise InputError(f'{entry}: a single image; give the folder that holds the frames')
        found = [entry]
        if entry.is_dir():
            inside = list(walk(entry))
            found = sorted(path for folder, names in inside for path in map(folder.joinpath, names) if is_video(path))
            found += sorted(folder for folder, _ in inside if holds_frames(folder))
        for path in found:
            parts = (entry.resolve().name, *path.relative_to(entry).parts)
            name = key_for('_'.join(parts).removesuffix('' if path.is_dir() else path.suffix))
            if os.path.realpath(path) in real:
                raise InputError(f'{path}: given twice; give it once')
            real.add(os.path.realpath(path))
            if name in videos:
                advice = 'leave one out if it is the same video, else rename it'
                raise InputError(f'{videos[name]} and {path} have the same name; {advice}')
            if path.is_dir():
                check_frames(path)
            videos[name] = path
    if not videos:
        raise InputError(f'{", ".join(map(str, inputs))}: no videos ({" ".join(VIDEO_ENDINGS)}) and no frames found')
    return videos


def count_frames(video: Path) -> int:
    """Count a folder's frames, or read a video file's count from its header, which can be wrong."""
    if video.is_dir():
        return len(frame_files(video))
    if not is_utf8(video):  # would kill the process in OpenCV
        raise InputError(f'{video}: a name that is not UTF-8; rename it')
    capture = cv2.VideoCapture(str(video))
    if not capture.isOpened():
        raise InputError(f'{video}: not a readable video; leave it out or convert it')
    return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))


def read_frames(video: Path) -> Iterator[np.ndarray]:
    """Yield the frames in order, uint8 (H, W, 3) in BGR."""
    return _frames_of_folder(video) if video.is_dir() else _frames_of_file(video)


def _frames_of_file(video: Path) -> Iterator[np.ndarray]:
    capture = cv2.VideoCapture(str(video))
    while (frame := capture.read()[1]) is not None:
        yield frame


def _frames_of_folder(folder: Path) -> Iterator[np.ndarray]:
    shape, problems = None, []
    for path in frame_files(folder):
        try:
            frame = pairs.read_image(path)
        except InputError as error:
            problems.append(str(error))
            continue
        shape = shape or frame.shape
        if frame.shape != shape:
            problems.append(
                f'{path}: {frame.shape[1]} x {frame.shape[0]}, but the frames before it are {shape[1]} x {shape[0]}; '
                'put each video into a folder of its own'
            )
            break
        if not problems:  # else the rest is read only to tell all that is broken
            yield frame
    refuse(problems)
