"""What all pages share: frame and style, embedded pictures, and numbers rounded as in the paper."""

import base64
import html
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222 }
h1, h3, p { overflow-wrap: anywhere } img, svg { max-width: 100%; height: auto }
table { border-collapse: collapse } td { vertical-align: top }
.numbers td, .numbers th { padding: 4px 10px; text-align: right } .numbers tr { border-bottom: 1px solid #ddd }
@media screen { .numbers, .figure { display: block; overflow-x: auto } }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(220px, 100%), 1fr)); gap: 8px }
.columns { align-items: end } .columns, figure { break-inside: avoid } h3 { break-after: avoid }
.columns p { display: flex; flex-wrap: wrap; gap: 4px; margin: 4px 0 } .columns p img { image-rendering: pixelated }
.plots { display: flex; flex-wrap: wrap; gap: 1em; align-items: end }
.plots figure { width: 500px; max-width: 100%; margin: 0; text-align: center; overflow-wrap: anywhere }
"""


def check_page_name(out: Path) -> None:
    """Raise InputError if `out` is no page's name: a page replaces the file of its name, such as a README.md."""
    if out.is_dir():
        raise InputError(f'{out}: a folder; name the page, as in {out / "page.html"}')
    if out.suffix.lower() not in ('.html', '.htm'):
        raise InputError(f'{out}: a page ends in .html; name it, as in {out.with_suffix(".html")}')


def page(title: str, body: str, style: str = '') -> str:
    """A whole page around `body`; `style` is CSS beyond STYLE."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<title>{html.escape(title)}</title><style>{STYLE}{style}</style><h1>{html.escape(title)}</h1>{body}</html>\n'
    )


def picture(image: np.ndarray, ending: str, *, alt: str, zoom: int = 1) -> str:
    """An <img> with the image (BGR) embedded as 'jpg' or 'png', shown at `zoom` times its size."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, 92] if ending == 'jpg' else []
    encoded = base64.b64encode(cv2.imencode(f'.{ending}', image, parameters)[1].tobytes()).decode()
    kind = {'jpg': 'jpeg', 'png': 'png'}[ending]
    width = image.shape[1] * zoom
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{html.escape(alt)}" width="{width}">'


def rounded(metric: str, value: float, sign: str = '') -> str:
    """`value` with as many digits as in the paper's tables; a `sign` of '+' always writes the sign."""
    digits = 2 if metric == 'psnr' else 4
    return f'{round(value, digits) + 0:{sign}.{digits}f}'  # + 0 turns -0.0 into 0.0
