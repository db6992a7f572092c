"""Show what a restoration did: blurred and restored side by side in one picture each, and a page with sliders."""

import html
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import numpy as np
from PIL import Image

from ..errors import InputError
from ..system.files import (
    disk_errors_as_input_errors,
    name_that_fits,
    without_root,
    written_whole,
)
from ..system.terminal import printable
from ..system.threads import without_pillow_size_limit
from .photo import Photo
from .write_photo import MAX_SIDE, write_photo

PAGE = 'index.html'

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Blurred and restored</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.5rem; margin: 0; }
  p { margin: .25rem 0 2rem; opacity: .75; }
  figure { margin: 0 0 2.5rem; }
  figcaption { margin-bottom: .5rem; overflow-wrap: anywhere; }
  .pair { --at: 50%; position: relative; overflow: hidden; border-radius: 8px; background: #8883;
    print-color-adjust: exact; }
  .pair img { display: block; width: 200%; }
  .restored { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at)); }
  .restored img { margin-left: -100%; }
  /* A slider's thumb, here invisible, stays 8px inside its ends: longer by these, its line is at the pointer. */
  .pair input { position: absolute; inset: 0 -8px; width: calc(100% + 16px); height: 100%; margin: 0; opacity: 0;
    cursor: ew-resize; }
  .pair::after { content: ""; position: absolute; inset: 0 auto 0 calc(var(--at) - 1px); width: 2px; background: #fff;
    box-shadow: 0 0 4px #000; pointer-events: none; }
  .pair:focus-within { outline: 3px solid #3b82f6; outline-offset: 2px; }
  figure:has(:checked) .box { overflow: auto; max-height: 90vh; }
  figure:has(:checked) .box:focus-within { outline: 3px solid #3b82f6; outline-offset: 2px; }
  figure:has(:checked) .pair { width: var(--own) !important; max-width: none !important; }
  .label { position: absolute; bottom: .5rem; padding: .1rem .6rem; border-radius: 1rem; background: #000a; color: #fff;
    font-size: .8rem; pointer-events: none; }
</style>
<h1>Blurred and restored</h1>
<p>Left of the line a picture is blurred. Drag over it, or choose it with Tab and use the arrow keys. 1:1 shows it pixel
by pixel, to be scrolled. Each picture's file holds both halves.</p>
"""
# Shown at 2:1, or smaller where there is no room, and no higher than the window. The size is given before a picture is
# there: else the browser would fetch all pictures at once, and the page would move under the reader.
FIGURE = """<figure>
  <figcaption><a href="{link}">{name}</a> <label><input type="checkbox" autocomplete="off">1:1</label></figcaption>
  <div class="box"><div class="pair" style="--own: {width}px; aspect-ratio: {width} / {height};
    width: {wide}px; max-width: min(100%, 90vh * {width} / {height})">
    <img src="{link}" alt="blurred" loading="lazy">
    <span class="label" style="left: .5rem">blurred</span>
    <div class="restored">
      <img src="{link}" alt="restored" loading="lazy"><span class="label" style="right: .5rem">restored</span>
    </div>
    <input type="range" min="0" max="100" step="any" value="50" autocomplete="off"
      aria-label="how much of {name} is shown blurred">
  </div></div>
</figure>
"""
TAIL = """<script>
  for (const box of document.querySelectorAll('.box')) {
    const pair = box.firstElementChild, slider = pair.querySelector('input');
    const line = () => pair.offsetWidth * slider.value / 100;
    slider.oninput = () => {
      pair.style.setProperty('--at', slider.value + '%');
      box.scrollLeft = Math.min(line(), Math.max(box.scrollLeft, line() - box.clientWidth));  // the line stays in sight
    };
    box.parentElement.querySelector('[type=checkbox]').onchange = (event) => {
      box.tabIndex = event.target.checked ? 0 : -1;  // the arrow keys then scroll it
      box.scrollTo(line() - box.clientWidth / 2, (pair.offsetHeight - box.clientHeight) / 2);
    };
  }
</script>
"""


def pictures_of(folder: Path, source: str) -> tuple[Path, Path]:
    """The two possible paths of a photograph's comparison: SOURCE.jpg, and SOURCE.png if it is too large for JPEG."""
    path = folder / without_root(Path(source))
    name = name_that_fits(path.name, '.jpg')
    return path.with_name(f'{name}.jpg'), path.with_name(f'{name}.png')


def has_page(folder: Path) -> bool:
    """Whether the folder has a page that `write_page` wrote."""
    begins = HEAD[: HEAD.index('<style>')].encode()
    try:
        with (folder / PAGE).open('rb') as file:
            return file.read(len(begins)) == begins
    except OSError:
        return False


def pictures_on_page(folder: Path) -> set[Path]:
    """The pictures that the folder's page shows or has hidden links to; none without a page that `write_page` wrote."""
    if not has_page(folder):
        return set()
    links = re.findall(rb'<a (?:hidden )?href="([^"]+)">', (folder / PAGE).read_bytes())
    return {folder / os.fsdecode(unquote_to_bytes(link)) for link in links}


def check_page(folder: Path) -> None:
    """Raise InputError if `folder` is none, or has a page that `write_page` did not write."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f'{folder}: is not a folder; choose another --compare')
    if (folder / PAGE).is_file() and not has_page(folder):
        raise InputError(f'{folder / PAGE}: is another page; choose another --compare')


def write_side_by_side(folder: Path, source: str, photo: Photo, restored: np.ndarray) -> None:
    """Write one picture of `photo`, whose file is `source`, and its `restored` pixels side by side."""
    alpha = None if photo.alpha is None else _in_8_bits(photo.alpha)
    halves = [_over_white(_in_8_bits(pixels), alpha) for pixels in (photo.pixels, restored)]
    pair = np.concatenate(halves, axis=1)  # (H, 2W, 3)
    picture = Photo(pixels=pair, permissions=photo.permissions, group=photo.group)
    if photo.mode != 'cmyk':  # else as sRGB: browsers differ in how they show CMYK
        profile = {key: value for key, value in photo.metadata.items() if key == 'icc-profile-data'}
        picture = replace(picture, mode=photo.mode, metadata=profile)
    fits = max(pair.shape) <= MAX_SIDE['jpeg']
    write_photo(pictures_of(folder, source)[0 if fits else 1], picture)


def _over_white(pixels: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """`pixels` (H, W, 3) as a viewer shows them with the transparency `alpha` (H, W), all uint8."""
    if alpha is None:
        return pixels
    opacity = alpha[:, :, None].astype(np.uint16)
    return ((pixels * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def _in_8_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def write_page(folder: Path, sources: Iterable[str]) -> None:
    """Write the page of the pictures that `write_side_by_side` made of these photographs.

    Pictures of an earlier page keep a hidden link, so that a later run does not take them for photographs.
    """
    page, earlier = folder / PAGE, pictures_on_page(folder)
    with disk_errors_as_input_errors(page), written_whole(page) as file:
        file.write(HEAD.encode())
        for source in sources:
            for picture in filter(Path.exists, pictures_of(folder, source)):
                earlier.discard(picture)
                width, height = _size_of_half(picture)
                name = html.escape(printable(str(without_root(Path(source)))))
                figure = FIGURE.format(
                    link=_link(folder, picture), name=name, wide=2 * width, width=width, height=height
                )
                file.write(figure.encode())
        for picture in sorted(filter(Path.exists, earlier)):
            file.write(f'<a hidden href="{_link(folder, picture)}"></a>\n'.encode())
        file.write(TAIL.encode())


def _link(folder: Path, picture: Path) -> str:
    return quote(os.fsencode(picture.relative_to(folder)))


def _size_of_half(picture: Path) -> tuple[int, int]:
    """Width and height of one of a picture's halves; (1, 1) if it cannot be read."""
    try:
        with without_pillow_size_limit(), Image.open(picture, formats=['JPEG', 'PNG']) as opened:
            return opened.width // 2, opened.height
    except (OSError, SyntaxError, ValueError):
        return 1, 1
