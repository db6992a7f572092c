"""What is there, what was put right, what is missing: the table of `basicsr doctor`."""

import platform
from importlib import metadata

from packaging.requirements import Requirement

Row = tuple[str, str, str]


def requirements() -> list[Requirement]:
    """What setup.py asks for, extras left out."""
    try:
        needed = map(Requirement, metadata.requires('wrcan-arch') or [])
    except metadata.PackageNotFoundError:  # run from its folder, and not installed
        return []
    return [each for each in needed if each.marker is None or each.marker.evaluate({'extra': ''})]


def _installed() -> list[Row]:
    rows = [('Python', platform.python_version(), '')]
    for each in [Requirement('wrcan-arch'), *requirements()]:
        try:
            version = metadata.version(each.name)
        except metadata.PackageNotFoundError:
            rows.append((each.name, 'MISSING', f'pip install "{each}"'))
        else:
            fits = each.specifier.contains(version, prereleases=True)
            rows.append((each.name, version, '' if fits else f'UNFIT: {each.specifier} is needed'))
    return rows


def _processors() -> list[Row]:
    import torch

    from .convolution import packs_weights
    from .precision import has_bf16_units

    cpu = torch.device('cpu')
    rows = []
    if torch.cuda.is_available():
        rows += [(f'GPU {n}', torch.cuda.get_device_name(n), 'usable') for n in range(torch.cuda.device_count())]
    else:
        built = torch.version.cuda or torch.version.hip
        rows.append(
            ('GPU', 'none usable', 'no driver or device found' if built else 'this torch is built for CPUs only')
        )
    units = 'has units for bf16' if has_bf16_units(cpu) else 'no units for bf16: precision auto is fp32'
    rows.append(('CPU', f'{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}', units))
    packs = packs_weights(cpu, torch.float32)
    value, note = ("oneDNN's packed weights", '') if packs else ("PyTorch's own", 'slower; no oneDNN here that fits')
    rows.append(('convolutions', value, note))
    return rows


def _repairs() -> list[Row]:
    from .train.pipelines import REPLACEMENTS
    from .train.toolbox import REPAIRS, applied

    rows = [
        (repair.target, 'applied' if repair in applied else 'not needed', f'{repair.why}; until {repair.until}')
        for repair in REPAIRS
    ]
    rows += [
        (each.target, 'replaced while training and testing', f'{each.why}; until {each.until}') for each in REPLACEMENTS
    ]
    return rows


def report() -> tuple[str, bool]:
    """The table, and whether everything that is needed is there."""
    installed = _installed()
    sections = {'Versions': installed}
    for title, rows_of in {'Processors': _processors, 'Repairs of the toolbox': _repairs}.items():
        try:
            sections[title] = rows_of()
        except ImportError as error:  # of a package that is missing, which is what someone asks about
            sections[title] = [('not known', str(error), '')]
    lines = []
    for title, rows in sections.items():
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines += ['', title]
        lines += [f'  {name:{widths[0]}}  {value:{widths[1]}}  {note}'.rstrip() for name, value, note in rows]
    wrong = [name for name, value, note in installed if value == 'MISSING' or note.startswith('UNFIT')]
    lines += ['', f'Missing or unfit: {", ".join(wrong)}' if wrong else 'Nothing is missing.']
    return '\n'.join(lines[1:]), not wrong
