"""Report what is installed, missing or repaired, or whether data is whole: `basicsr doctor`."""

import platform
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from importlib import import_module, metadata
from pathlib import Path

from packaging.requirements import Requirement

from . import __version__
from .errors import NO_TOOLBOX, InputError
from .system.terminal import counted

Row = tuple[str, str, str]  # name, value, note

# The module to import for a package, if it is not named like the package.
MODULES = {'opencv-python': 'cv2', 'pyyaml': 'yaml', 'scikit-image': 'skimage', 'pillow': 'PIL'}
HEIC = 'pip install "pi-heif>=1.0"'


def requirements() -> list[Requirement]:
    """The requirements of this package, without those of its extras; [] if it is not installed."""
    try:
        needed = map(Requirement, metadata.requires('wrcan-arch') or [])
    except metadata.PackageNotFoundError:  # run from its folder without being installed
        return []
    return [each for each in needed if each.marker is None or each.marker.evaluate({'extra': ''})]


def _installed() -> list[Row]:
    system = platform.system()
    rows = [
        ('system', f'{system} {platform.machine()}', '' if system == 'Linux' else 'UNFIT: Linux is needed'),
        ('Python', platform.python_version(), ''),
    ]
    rows += [_row_of(each) for each in [Requirement('wrcan-arch'), *requirements()]]
    optional = {'pi-heif': f'for HEIC: {HEIC}'}
    if sys.version_info >= (3, 13):
        optional['basicsr'] = NO_TOOLBOX
    for name, note in optional.items():
        row = _row_of(Requirement(name))
        rows.append((name, 'none', note) if row[1] == 'MISSING' else row)
    return rows


def _how_to_install(package: Requirement) -> str:
    if package.name == 'wrcan-arch':  # on no index
        return 'pip install --no-build-isolation -e .'
    # basicsr's set-up needs torch: an isolated build would fetch one, for CUDA.
    isolated = '--no-build-isolation ' * (package.name == 'basicsr')
    return f'pip install {isolated}"{str(package).partition(";")[0]}"'  # without the marker, which has quotes too


def _row_of(package: Requirement) -> Row:
    try:
        version = metadata.version(package.name)
    except metadata.PackageNotFoundError:
        return package.name, 'MISSING', _how_to_install(package)
    if package.name == 'wrcan-arch':
        version = __version__  # of the code that runs; an editable install keeps the version that it was made from
    if not package.specifier.contains(version, prereleases=True):
        return package.name, version, f'UNFIT: {package.specifier} is needed'
    try:
        import_module(MODULES.get(package.name, package.name.replace('-', '_')))
    except Exception as error:  # of any kind: a missing system library, a package that does not fit others
        return package.name, version, f'UNUSABLE: {" ".join(str(error).split())[:200]}'
    return package.name, version, ''


def _processors() -> list[Row]:
    import torch
    from torch.nn.functional import conv2d

    from .precision import has_bf16_units
    from .strips.convolution import packs_weights
    from .system.processes import problem_of_driver

    cpu = torch.device('cpu')
    rows = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            try:
                image = torch.zeros(1, 3, 8, 8, device=f'cuda:{number}')
                conv2d(image, image).sum().item()  # this PyTorch or its cuDNN may have no kernels for it
                note = 'usable'
            except RuntimeError as error:
                note = f'UNUSABLE: {str(error).splitlines()[0]}'
            rows.append((f'GPU {number}', torch.cuda.get_device_name(number), note))
    else:
        built = torch.version.cuda or torch.version.hip
        missing = 'no driver or device found' if built else 'this torch is built for CPUs only'
        rows.append(('GPU', 'none usable', problem_of_driver() or missing))
    units = 'has units for bf16' if has_bf16_units(cpu) else 'no units for bf16: precision auto is fp32'
    rows.append(('CPU', f'{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}', units))
    packs = packs_weights(cpu, torch.float32)
    value, note = ("oneDNN's packed weights", '') if packs else ("PyTorch's own", 'slower; no oneDNN here that fits')
    rows.append(('convolutions', value, note))
    return rows


def _repairs() -> list[Row]:
    from .train.replacements import REPLACEMENTS
    from .train.toolbox import REPAIRS, applied

    rows = [
        (repair.target, 'applied' if repair in applied else 'not needed', f'{repair.why}; until {repair.until}')
        for repair in REPAIRS
    ]
    rows += [(each.target, 'replaced in train and test', f'{each.why}; until {each.until}') for each in REPLACEMENTS]
    return rows


def _lines(rows: list[Row]) -> list[str]:
    """Rows as aligned lines; in a terminal that is too narrow, the note gets lines of its own."""
    name_width, value_width = (max(len(row[column]) for row in rows) for column in range(2))
    lines = []
    for name, value, note in rows:
        start = f'  {name:{name_width}}  {value:{value_width}}'
        whole = f'{start}  {note}'.rstrip()
        if sys.stdout and sys.stdout.isatty() and len(whole) > (width := shutil.get_terminal_size().columns):
            wrapped = textwrap.fill(note, max(1, width - 6), break_long_words=False, break_on_hyphens=False)
            lines += [start.rstrip(), textwrap.indent(wrapped, ' ' * 6)]
        else:
            lines.append(whole)
    return lines


def report() -> tuple[str, bool]:
    """Return the table, and whether all requirements are met."""
    installed = _installed()
    sections = {'Versions': installed}
    for title, rows_of in {'Processors': _processors, 'Repairs of the toolbox': _repairs}.items():
        try:
            sections[title] = rows_of()
        except ImportError as error:  # the missing package may be what the user asks about
            sections[title] = [('not known', str(error), '')]
    lines = []
    for title, rows in sections.items():
        lines += ['', title, *_lines(rows)]
    wrong = [name for name, value, note in installed if value == 'MISSING' or note.startswith(('UNFIT', 'UNUSABLE'))]
    lines += ['', f'Missing, unfit or unusable: {", ".join(wrong)}' if wrong else 'Nothing is missing.']
    return '\n'.join(lines[1:]), not wrong


def examine_data(sources: Iterable[str], found: Callable[[str], None]) -> list[str]:
    """Decode all data of stores, folders and option files, and compare the sizes of pairs.

    Args:
        sources: paths. If a folder holds stores, as datasets/REDS does, each of them is examined.
        found: called with one line about each store or folder once it has been read.

    Returns:
        What is wrong, each problem once.
    """
    # Imported here, since `basicsr doctor` has to report what cannot be imported.
    from .data import audit, image_files, jpeg_deblur_dataset, lmdb_store
    from .train import option_schema, options

    roots: dict[str, None] = {}  # each once, in their order
    problems: dict[str, None] = {}
    for source in sources:
        if Path(source).is_dir():
            stores = lmdb_store.stores_in(Path(source))
            roots |= dict.fromkeys(map(str, stores))
            if not stores or image_files.images_under(Path(source)):
                roots[source] = None
        elif not Path(source).exists():
            raise InputError(f'{source}: there is no such store, folder or option file')
        else:
            file = options.read_options(source)
            if wrong := [*file.problems, *option_schema.wrong_keys(file)]:
                problems |= dict.fromkeys(wrong)
                continue
            for phase, dataset in file.values['datasets'].items():
                roots |= {each.root: None for each in jpeg_deblur_dataset.sources_of(dataset).values()}
                kind = options.kind_of_phase(phase)
                problems |= dict.fromkeys(audit.quick_problems(dataset, kind, scale=file.values['scale']))
    for root in roots:
        wrong = audit.all_problems(root)
        problems |= dict.fromkeys(wrong)
        found(f'{root}: {counted(len(wrong), "problem") if wrong else "sound"}')
    return list(problems)
