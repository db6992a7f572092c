"""Make pairs of a blurred JPEG and its sharp frame from high-frame-rate video, in LMDB stores to train and test on.

Consecutive frames are averaged in linear light, where light adds up, as REDS and GoPro were made; the middle one is the
sharp frame. Use video of 120 frames a second or more: below that, a moving edge leaves steps in the average.

Each video is read twice, so that memory holds only one window of frames: first to find cuts and still shots on small
pictures, then to average. --val keeps whole videos, since shots of one may look alike; of a single one, whole scenes.
"""

import argparse
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import pair_script
import pairs
from cuts import STILL_CHANGE, change_between, find_cuts, find_gaps, small_picture
from pair_writer import PairWriter, pair_stores
from video_files import count_frames, files_of, find_videos, read_frames
from wrcan_arch.errors import InputError, refuse
from wrcan_arch.system.progress_bar import progress_bar
from wrcan_arch.system.terminal import counted, say


class Window(NamedTuple):
    """The frames of a video that make one pair, numbered from 0; `last` is included."""

    first: int
    last: int


def place_windows(arguments: argparse.Namespace, number: int) -> Iterator[Window]:
    """Yield windows for video `number`, endlessly."""
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
    """Measure the changes in a video on small pictures.

    Returns:
        each frame's change against the one before; the change from the first to the last frame of each window; how
        many windows the end of the video cuts short.
    """
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
    name: str, cuts: list[int], gaps: list[int], over_window: dict[Window, float], left_out: Counter[str]
) -> dict[Window, str]:
    """Return the windows to average, with the names of their scenes; count the others in `left_out`.

    A gap begins no scene: what is before and after it looks alike, and --val may not separate it.
    """
    kept = {}
    for window, change in over_window.items():
        scene = bisect_right(cuts, window.first)
        if scene != bisect_right(cuts, window.last):
            left_out['over a cut'] += 1
        elif bisect_right(gaps, window.first) != bisect_right(gaps, window.last):
            left_out['over a gap'] += 1
        elif change < STILL_CHANGE:
            left_out['standing still'] += 1
        else:
            kept[window] = f'{name}_{scene:03d}'
    return kept


def average(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Average frames, uint8 (H, W, 3), to one exposure that lasts as long as all of them."""
    light = np.zeros(frames[0].shape, np.float32)
    for frame in frames:
        light += pairs.to_linear(frame)
    return pairs.from_linear(light / len(frames))


def average_windows(
    frames: Iterable[np.ndarray], windows: Collection[Window]
) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
    """Yield each window with its average and its middle frame, in the order in which the windows end."""
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


Plan = list[tuple[str, Path, dict[Window, str]]]  # a video's name, path, and windows with their scenes' names


def plan_windows(videos: dict[str, Path], arguments: argparse.Namespace) -> tuple[Plan, Counter[str], list[str]]:
    """Return what to average, how many windows are left out by reason, and notes on short or incomplete videos.

    Raises one InputError for all videos that cannot be read and those too short that were named themselves, not found
    in a folder.
    """
    counts: Counter[str] = Counter()
    left_out = Counter({'over a cut': 0, 'standing still': 0, 'too short': 0})
    planned, notes, problems = [], [], []
    for name, video in videos.items():
        try:
            counts[name] = count_frames(video)
        except InputError as error:
            problems.append(str(error))
    refuse(problems)
    with progress_bar(total=sum(counts.values()), unit='frame', desc='find cuts') as progress:
        for number, (name, video) in enumerate(videos.items()):
            try:
                changes, over_window, cut_short = survey(read_frames(video), place_windows(arguments, number), progress)
            except InputError as error:  # told with the others': reading all again takes long
                problems.append(str(error))
                continue
            found, shortest = len(changes), arguments.frames[0]
            if found < shortest:
                message = f'{video}: {counted(found, "frame")}, too few to average {shortest}'
                if video in arguments.videos:
                    problems.append(f'{message}; leave it out or set --frames')
                notes.append(message)
            elif found < 0.9 * counts[name]:
                notes.append(f'{video}: only {found} of {counted(counts[name], "frame")} could be read')
            files = files_of(video)
            if gaps := find_gaps(files):
                first = files[gaps[0]].name
                notes.append(f"{video}: {counted(len(gaps), 'gap')} in the frames' numbers, the first before {first}")
            left_out['too short'] += cut_short
            planned.append((name, video, sort_windows(name, find_cuts(changes), gaps, over_window, left_out)))
    refuse(problems)
    return planned, left_out, notes


def groups_of_scenes(planned: Plan) -> tuple[dict[str, str], str]:
    """Map each scene to what --val keeps whole, its video or, of a single one, itself; also return which, as a noun."""
    video_of = {scene: name for name, _, windows in planned for scene in windows.values()}
    if len({*video_of.values()}) > 1:
        return video_of, 'video'
    return {scene: scene for scene in video_of}, 'scene'


def check(arguments: argparse.Namespace) -> None:
    given = arguments.frames
    if len(given) > 2 or given != sorted(given) or any(size < 3 or size % 2 == 0 for size in given):
        raise InputError(f'--frames {" ".join(map(str, given))}: give one odd number from 3 up, or the least and most')
    if arguments.stride is not None and arguments.stride < 1:
        raise InputError(f'--stride {arguments.stride}: at least 1')


class Missing(NamedTuple):
    """A pair that no earlier run made."""

    group: str
    key: str
    source: str
    quality: int


def missing_pairs(
    video: Path,
    number: int,
    windows: dict[Window, str],
    group_of: dict[str, str],
    arguments: argparse.Namespace,
    writer: PairWriter,
) -> dict[Window, Missing]:
    """Keep the pairs of a video that an earlier run made; return the others."""
    rng = np.random.default_rng((arguments.seed, number, 1))  # the 1 makes it another stream than the windows'
    fingerprint = pairs.source_checksum(pairs.fingerprint_of(files_of(video)))  # once: of a folder it is long
    missing = {}
    for window, scene in windows.items():
        quality = pairs.draw_quality(rng, arguments.quality)
        key, source = f'{scene}_{window.first:08d}', pairs.source_checksum(fingerprint, window, quality)
        if not writer.keep(group_of[scene], key, source):
            missing[window] = Missing(group_of[scene], key, source, quality)
    return missing


def write_video(video: Path, missing: dict[Window, Missing], writer: PairWriter, progress: tqdm) -> int:
    """Write the missing pairs of a video; return how many of them could not be made."""
    made = 0
    for window, blurred, sharp in average_windows(read_frames(video), missing):
        group, key, source, quality = missing[window]
        pair = {role: pairs.encode(image, role, quality) for role, image in (('blur', blurred), ('sharp', sharp))}
        writer.put(group, key, pair, sharp.shape, source)
        progress.update()
        made += 1
    return len(missing) - made


def write_pairs(arguments: argparse.Namespace) -> None:
    check(arguments)
    pair_script.check_files_lie_apart(arguments, arguments.videos)
    videos = find_videos(arguments.videos)
    pair_script.check_names_fit(arguments, videos, '_000_00000000')
    taken = [file for video in videos.values() for file in files_of(video)]
    advice = 'convert those that are videos to MP4, and put frames into a folder without videos'
    pairs.say_what_is_left_out(arguments.videos, taken, advice)
    planned, left_out, notes = plan_windows(pairs.without_copies(videos, 'video', files_of), arguments)
    group_of, noun = groups_of_scenes(planned)
    pair_counts = Counter(group_of[scene] for _, _, windows in planned for scene in windows.values())
    left_out_text = ', '.join(f'{count} {reason}' for reason, count in left_out.items())
    if not pair_counts:
        why = '; '.join([f'windows left out: {left_out_text}', *notes])
        raise InputError(f'no pair left, {why}; give other videos or fewer --frames')
    with pair_stores(arguments, pair_counts, noun) as writer:
        missing = {
            video: missing_pairs(video, number, windows, group_of, arguments, writer)
            for number, (_, video, windows) in enumerate(planned)
        }
        kept = writer.kept.total()
        with progress_bar(total=pair_counts.total(), initial=kept, unit='pair', desc=arguments.out.name) as progress:
            for video, own in missing.items():
                if lost := write_video(video, own, writer, progress):
                    less = counted(lost, 'pair')
                    notes.append(f'{video}: {less} less than planned, since fewer frames could be read the second time')
    say(f'windows left out: {left_out_text}')
    for note in notes:
        say(note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'videos', type=Path, nargs='+', metavar='VIDEO_OR_FOLDER',
        help='video files, folders of video files, or folders of frames as images',
    )  # fmt: skip
    parser.add_argument(
        '--frames', type=int, nargs='+', default=[7, 13], metavar='N',
        help='odd number of frames to average, or two between which it is drawn for each pair (default 7 13)',
    )  # fmt: skip
    parser.add_argument(
        '--stride', type=int, help="frames from one pair's first frame to the next's (default: no overlap)"
    )
    pair_script.run(parser, write_pairs)


if __name__ == '__main__':
    main()
