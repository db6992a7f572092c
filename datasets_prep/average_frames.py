"""High-frame-rate video to pairs of a blurred JPEG and its sharp frame, in LMDB stores that train and test.

Consecutive frames are averaged in linear light, where light adds up, as REDS and GoPro were made; the middle one is the
sharp frame. Take video of 120 frames a second or more: at less, a moving edge leaves steps in the average.

Each video is read twice, so that no more than a window of frames is ever held: first to find the cuts and the still
shots on small pictures, and with them which scenes there are to split; then to average.
"""

import argparse
import os
import re
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

import pairs
from pair_writer import PairWriter, pair_stores
from wrcan_arch.data.image_files import is_image, key_for
from wrcan_arch.errors import InputError
from wrcan_arch.folders import walk

VIDEO_ENDINGS = ('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.mts', '.m2ts', '.wmv', '.3gp')

# A change is the mean absolute difference, in grey levels, of two frames scaled down to SMALL_SIDE pixels. At 1280 x
# 720, noise of sigma 10 makes 0.4; moving the picture by one pixel makes 0.2 (a night sky) to 1.4 (machinery).
SMALL_SIDE = 64
STILL_CHANGE = 0.4  # a window whose last frame differs less from its first is still

# A cut is a change that stands out from those around it. A limit that follows the video serves calm and hasty video
# alike; the difference of pictures, unlike one of histograms, also sees a cut between shots of the same colours. The
# upper quartile of the changes around, not their median: frames that a converter doubled would make the median zero.
CUT_CHANGE = 6.0  # at least; shots of unlike things differ by 20 to 120
CUT_RATIO = 3.0  # times the upper quartile of the changes around
CUT_NEIGHBOURS = 15  # on each side
UNLIKE = 30.0  # a cut whatever is around it: a folder may hold photographs that are no video at all

os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # what is wrong with a video is said by this script


class Window(NamedTuple):
    """Frames of a video that make a pair, by their numbers."""

    first: int
    last: int


def in_order(path: Path) -> list[str | int]:
    """A key that sorts frame2 before frame10."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split('([0-9]+)', path.name))]


def frame_files(folder: Path) -> list[Path]:
    return sorted(filter(is_image, folder.iterdir()), key=in_order)


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith('.') and path.is_file()


def holds_frames(folder: Path) -> bool:
    """Whether its images are a video's frames, not what a camera has put beside its videos."""
    return bool(frame_files(folder)) and not any(map(is_video, folder.iterdir()))


def files_of(video: Path) -> list[Path]:
    return frame_files(video) if video.is_dir() else [video]


def find_videos(inputs: list[Path]) -> dict[str, Path]:
    """Video files and folders of frames, by the name that their keys begin with."""
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
                raise InputError(f'{path}: given twice; leave it out once')
            real.add(os.path.realpath(path))
            if name in videos:
                raise InputError(f'{videos[name]} and {path} have the same name; rename one of them')
            videos[name] = path
    if not videos:
        raise InputError(f'{", ".join(map(str, inputs))}: no videos ({" ".join(VIDEO_ENDINGS)}) and no frames found')
    return videos


def count_frames(video: Path) -> int:
    """How many frames there are: of a video file, what its header says, which can be wrong."""
    if video.is_dir():
        return len(frame_files(video))
    try:
        str(video).encode()
    except UnicodeEncodeError as error:  # it would end the process
        raise InputError(f'{ascii(str(video))}: a name that is not UTF-8; rename it') from error
    capture = cv2.VideoCapture(str(video))
    if not capture.isOpened():
        raise InputError(f'{video}: not a readable video; leave it out or convert it')
    return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))


def read_frames(video: Path) -> Iterator[np.ndarray]:
    """The frames in their order, uint8 (H, W, 3) in BGR."""
    return _frames_of_folder(video) if video.is_dir() else _frames_of_file(video)


def _frames_of_file(video: Path) -> Iterator[np.ndarray]:
    capture = cv2.VideoCapture(str(video))
    while (frame := capture.read()[1]) is not None:
        yield frame


def _frames_of_folder(folder: Path) -> Iterator[np.ndarray]:
    shape = None
    for path in frame_files(folder):
        frame = pairs.read_image(path)
        shape = shape or frame.shape
        if frame.shape != shape:
            raise InputError(
                f'{path}: {frame.shape[1]} x {frame.shape[0]}, but the frames before it are {shape[1]} x {shape[0]}; '
                'put each video into a folder of its own'
            )
        yield frame


def small_picture(frame: np.ndarray) -> np.ndarray:
    """The frame's luminance, uint8, its longer side SMALL_SIDE at most."""
    scale = min(1, SMALL_SIDE / max(frame.shape))
    height, width = (max(1, round(scale * side)) for side in frame.shape[:2])
    return cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (width, height), interpolation=cv2.INTER_AREA)


def change_between(one: np.ndarray, other: np.ndarray) -> float:
    return float(cv2.absdiff(one, other).mean())


def find_cuts(changes: Sequence[float]) -> list[int]:
    """The numbers of frames that begin a scene; `changes` tells of each frame how much it differs from the one before.

    A sudden change of light is taken for a cut; a slow change from one shot to another is not found.
    """
    cuts = []
    for index, change in enumerate(changes):
        around = changes[max(0, index - CUT_NEIGHBOURS) : index + CUT_NEIGHBOURS + 1]
        limit = min(UNLIKE, CUT_RATIO * np.quantile(around, 0.75))
        if change >= max(CUT_CHANGE, limit):
            cuts.append(index)
    return cuts


def place_windows(arguments: argparse.Namespace, number: int) -> Iterator[Window]:
    """The windows of the video with that number, without end."""
    rng = np.random.default_rng((arguments.seed, number))
    shortest, longest = arguments.frames[0], arguments.frames[-1]
    first = 0
    while True:
        size = shortest + 2 * int(rng.integers((longest - shortest) // 2 + 1))
        yield Window(first, first + size - 1)
        first += arguments.stride or size


def survey(
    frames: Iterable[np.ndarray], windows: Iterator[Window], progress: tqdm
) -> tuple[list[float], dict[Window, float], int]:
    """The change at each frame, the change over each window, how many windows the end of the video cuts short."""
    changes: list[float] = []
    over_window: dict[Window, float] = {}
    begun: dict[Window, np.ndarray] = {}
    upcoming = next(windows)
    before = None
    for index, small in enumerate(map(small_picture, frames)):
        changes.append(0.0 if before is None else change_between(before, small))
        before = small
        if index == upcoming.first:
            begun[upcoming] = small
            upcoming = next(windows)
        for window in [window for window in begun if window.last == index]:
            over_window[window] = change_between(begun.pop(window), small)
        progress.update()
    return changes, over_window, len(begun)


def sort_windows(
    name: str, changes: Sequence[float], over_window: dict[Window, float], left_out: Counter[str]
) -> dict[Window, str]:
    """The windows to average with the names of their scenes; the others are counted in `left_out`."""
    cuts = find_cuts(changes)
    kept = {}
    for window, change in over_window.items():
        scene = bisect_right(cuts, window.first)
        if scene != bisect_right(cuts, window.last):
            left_out['over a cut'] += 1
        elif change < STILL_CHANGE:
            left_out['standing still'] += 1
        else:
            kept[window] = f'{name}_{scene:03d}'
    return kept


def average(frames: Sequence[np.ndarray]) -> np.ndarray:
    """The frames, uint8 (H, W, 3), as one exposure that lasts as long as all of them."""
    light = np.zeros(frames[0].shape, np.float32)
    for frame in frames:
        light += pairs.to_linear(frame)
    return pairs.from_linear(light / len(frames))


def average_windows(
    frames: Iterable[np.ndarray], windows: Collection[Window]
) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
    """Each window's average and its middle frame."""
    ending: dict[int, list[Window]] = defaultdict(list)
    for window in windows:
        ending[window.last].append(window)
    held: deque[np.ndarray] = deque(maxlen=max((last - first + 1 for first, last in windows), default=0))
    for index, frame in enumerate(frames):
        held.append(frame)
        for window in ending.pop(index, ()):
            size = window.last - window.first + 1
            yield window, average(list(held)[-size:]), held[-1 - size // 2]
        if not ending:
            return


Plan = list[tuple[Path, dict[Window, str]]]  # videos, and their windows with the names of the scenes


def plan_windows(videos: dict[str, Path], arguments: argparse.Namespace) -> tuple[Plan, Counter[str], list[str]]:
    """What there is to average, how many windows are left out and why, and notes on videos that are short.

    InputError for one that is too short and was named itself, not found in a folder.
    """
    counts = {name: count_frames(video) for name, video in videos.items()}
    left_out = Counter({'over a cut': 0, 'standing still': 0, 'too short': 0})
    planned, notes = [], []
    with tqdm(total=sum(counts.values()), unit='frame', desc='find cuts') as progress:
        for number, (name, video) in enumerate(videos.items()):
            changes, over_window, cut_short = survey(read_frames(video), place_windows(arguments, number), progress)
            found, longest = len(changes), arguments.frames[-1]
            if found < longest:
                message = f'{video}: {pairs.counted(found, "frame")}, too few to average {longest}'
                if video in arguments.videos:
                    raise InputError(f'{message}; leave it out or set --frames')
                notes.append(message)
            elif found < 0.9 * counts[name]:
                notes.append(f'{video}: only {found} of {pairs.counted(counts[name], "frame")} could be read')
            left_out['too short'] += cut_short
            planned.append((video, sort_windows(name, changes, over_window, left_out)))
    return planned, left_out, notes


def check(arguments: argparse.Namespace) -> None:
    given = arguments.frames
    if len(given) > 2 or given != sorted(given) or any(size < 3 or size % 2 == 0 for size in given):
        raise InputError(f'--frames {" ".join(map(str, given))}: give one odd number from 3 up, or the least and most')
    if arguments.stride is not None and arguments.stride < 1:
        raise InputError(f'--stride {arguments.stride}: at least 1')


def write_video(
    video: Path,
    number: int,
    windows: dict[Window, str],
    arguments: argparse.Namespace,
    writer: PairWriter,
    progress: tqdm,
) -> int:
    """Writes the pairs of a video's windows that no earlier run has made. Returns how many could not be."""
    rng = np.random.default_rng((arguments.seed, number, 1))  # the 1: not the stream of the windows
    state = pairs.state_of(files_of(video))
    left = {}
    for window, scene in windows.items():
        quality = pairs.draw_quality(rng, arguments.quality)
        key, source = f'{scene}_{window.first:08d}', pairs.source_of(state, window, quality)
        if writer.keep(scene, key, source):
            progress.update()
        else:
            left[window] = key, source, quality
    for window, blurred, sharp in average_windows(read_frames(video), list(left)):
        key, source, quality = left.pop(window)
        pair = {role: pairs.encode(image, role, quality) for role, image in (('blur', blurred), ('sharp', sharp))}
        writer.put(windows[window], key, pair, sharp.shape, source)
        progress.update()
    return len(left)


def write_pairs(arguments: argparse.Namespace) -> None:
    check(arguments)
    pairs.check_files_lie_apart(arguments, arguments.videos)
    videos = find_videos(arguments.videos)
    taken = [file for video in videos.values() for file in files_of(video)]
    advice = 'convert those that are videos to MP4, and put frames into a folder without videos'
    pairs.say_what_is_left_out(arguments.videos, taken, advice)
    planned, left_out, notes = plan_windows(pairs.without_copies(videos, 'video', files_of), arguments)
    sizes = Counter(scene for _, windows in planned for scene in windows.values())
    left_out_text = ', '.join(f'{count} {reason}' for reason, count in left_out.items())
    if not sizes:
        why = '; '.join([f'windows left out: {left_out_text}', *notes])
        raise InputError(f'no pair left, {why}; give other video or fewer --frames')
    with (
        pair_stores(arguments, sizes, 'scene') as writer,
        tqdm(total=sizes.total(), unit='pair', desc=arguments.out.name) as progress,
    ):
        for number, (video, windows) in enumerate(planned):
            if lost := write_video(video, number, windows, arguments, writer, progress):
                missing = pairs.counted(lost, 'pair')
                notes.append(f'{video}: {missing} less than planned, since fewer frames could be read the second time')
    print(f'windows left out: {left_out_text}')
    for note in notes:
        print(note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'videos', type=Path, nargs='+', metavar='VIDEO_OR_FOLDER',
        help='video files, folders of them, folders of frames as images',
    )  # fmt: skip
    parser.add_argument(
        '--frames', type=int, nargs='+', default=[7, 13], metavar='N',
        help='frames to average, odd; or the least and the most of them, drawn for each pair (default 7 13)',
    )  # fmt: skip
    parser.add_argument('--stride', type=int, help="frames from one pair's first to the next's (default: no overlap)")
    pairs.run(parser, write_pairs)


if __name__ == '__main__':
    main()
