"""The `basicsr` command: arguments in, exit code out. Other modules do the work; they are imported when needed.

Exit codes:
    0: done.
    1: some inputs failed and were named at the end, or a run had to end.
    2: the request is wrong; the message says what is wrong and what to do.
    129, 130, 143: stopped by SIGHUP (its terminal was closed), Ctrl+C or SIGTERM.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from . import __version__
from .ending import (
    ctrl_c_ends,
    end_in_nccl_group,
    exit_code_of_several,
    is_one_of_several,
    message_for_user,
    signals_exit,
)
from .errors import InputError
from .system.terminal import counted, discard_unread, escape_on_stdout, print_error, printable, say

FAILURES_REPORTED = 'told failures'  # note that a restore leaves for the processes that torchrun may start after it


def run_train_or_test(arguments: argparse.Namespace) -> int:
    from .train import options

    file = options.read_options(arguments.opt, arguments.force_yml or ())  # a wrong name is reported at once

    with ctrl_c_ends():
        from .system.processes import launcher_of_environment
        from .train import option_checks, pipelines

        option_checks.check(file, arguments.command, auto_resume=arguments.auto_resume)
    # One of several processes may wait for the others in a call that Python cannot interrupt: a signal just ends it.
    clearing_away = nullcontext() if is_one_of_several() else signals_exit()
    # Standard error is where the log goes: the toolbox prints too, and `| head` must not end the run.
    with redirect_stdout(sys.stderr), clearing_away:
        pipelines.run_pipeline(
            arguments.command,
            file.values,
            Path(arguments.opt).name,
            launcher=arguments.launcher or launcher_of_environment(),
            auto_resume=arguments.auto_resume,
        )
    return 0


def run_restore(arguments: argparse.Namespace) -> int:
    from .photos.find_photos import read_list
    from .photos.plan import plan

    if _failures_were_reported():
        return 1
    unreadable: list[str] = []
    jobs = plan(  # before torch is loaded: a wrong name is reported at once
        arguments.photos,
        listed=read_list(arguments.list, alone=not is_one_of_several()) if arguments.list else (),
        out=arguments.out,
        compare=arguments.compare,
        format=arguments.format,
        skip_existing=arguments.skip_existing,
        unreadable=unreadable,
    )

    with ctrl_c_ends():
        import torch

        from .checkpoint import load_network
        from .inference import Request
        from .photos.bulk_restore import Options, restore_photos
        from .photos.comparison import PAGE
        from .strips.convolution import set_channels_last
        from .system.processes import Team, take_own_gpu
        from .weights import BUNDLED

    chosen = {name: value for name, value in vars(arguments).items() if value is not None}

    def given(kind: type[Request | Options]) -> dict[str, Any]:
        return {name: chosen[name] for name in kind.__dataclass_fields__ if name in chosen}

    options = Options(request=Request(**given(Request)), **given(Options))
    team = Team.from_environment()
    with ctrl_c_ends():
        network = load_network(arguments.weights or BUNDLED['small'])
    set_channels_last(network)
    if torch.cuda.is_available():
        take_own_gpu()
        network = network.cuda()

    with signals_exit():  # so that unfinished files are removed
        summary = restore_photos(network, jobs, options=options, team=team)
    if summary is None:  # only the first process reports it
        return 0
    summary.failures += unreadable
    for failure in summary.failures:
        print_error(printable(failure))  # here a newline is part of a name
    if summary.failures:
        team.note_for_restarts(FAILURES_REPORTED)
    lines = summary.lines()
    if summary.restored:
        lines.append(f'results: {arguments.out or "beside the photographs, as NAME_restored"}')
    if arguments.compare and (arguments.compare / PAGE).is_file():
        lines.append(f'page: {arguments.compare / PAGE}')
    for line in lines:
        say(printable(line))
    return 1 if summary.failures else 0


def _failures_were_reported() -> bool:
    """Whether a restore reported its failures before this restart: torchrun also restarts one that exited with 1."""
    if not int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)):  # the rest loads torch
        return False
    from .system.processes import Team

    return Team.from_environment().noted_before_restart(FAILURES_REPORTED)


def _bytes(text: str) -> int:
    """The number of bytes in '4G', '500M', '64K' or a plain number."""
    units = {'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30}
    try:
        return int(float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text))
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 4G or 500M") from error


def run_convert(arguments: argparse.Namespace) -> int:
    from .checkpoint import convert

    network = convert(
        arguments.weights, arguments.out, official=arguments.to == 'official', key=arguments.key, dtype=arguments.dtype
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    say(f'wrote {arguments.out}: {network.config}, {parameters:,} parameters')
    return 0


def run_tables(arguments: argparse.Namespace) -> int:
    from .look.page import check_page_name
    from .look.tables import as_csv, as_html, as_text, compare
    from .system.files import write_text

    if arguments.html is not None:
        check_page_name(arguments.html)
    if arguments.results and not arguments.results.is_dir():
        raise InputError(f'{arguments.results}: there is no such folder; basicsr test writes results/NAME')
    compared = compare(arguments.results or Path('results'))
    say(as_text(compared))
    for path, render in ((arguments.html, as_html), (arguments.csv, as_csv)):
        if path is not None:
            write_text(path, render(compared))
            say(f'wrote {path}')
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    from .look.figure import make_figure
    from .look.finished import options_of_test
    from .look.report import write_report
    from .train import options

    if arguments.crops and not arguments.figure:
        raise InputError('--crops is for --figure')
    if arguments.figure and (arguments.experiment or arguments.force_yml):
        raise InputError('--experiment and --force_yml are for -opt')
    if arguments.figure:
        picture = make_figure(arguments.figure, arguments.crops or [], arguments.out)
        say(f'wrote {arguments.out} and {picture}')
        return 0

    name = options.read_options(arguments.opt, arguments.force_yml or ()).values.get('name')
    untested = f'no such test yet; run basicsr test -opt {arguments.opt} first'
    tested = options_of_test(Path('results', str(name)), untested)
    means_of = write_report(tested, arguments.experiment, arguments.out)
    for dataset, means in means_of.items():
        for metric, blurred, restored, difference in means.rows():
            scores = f'blurred {blurred}, restored {restored} ({difference})'
            say(f'{dataset}: {metric} of {counted(means.images, "image")}: {scores}')
    say(f'wrote {arguments.out}')
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    from .train import option_schema, options

    file = options.read_options(arguments.opt, arguments.force_yml or ())
    say(options.show(file))
    if problems := [*file.problems, *option_schema.wrong_keys(file)]:
        raise InputError('\n'.join(problems))
    return 0


def run_doctor(arguments: argparse.Namespace) -> int:
    from .doctor import examine_data, report

    if arguments.data:
        problems = examine_data(arguments.data, found=say)
        for problem in problems:
            print_error(problem)
        return 1 if problems else 0

    text, complete = report()
    say(text)
    return 0 if complete else 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='basicsr', description='WRCAN in the BasicSR toolbox: train, test, restore.')
    parser.add_argument('--version', action='version', version=f'wrcan-arch {__version__}')
    parser.add_argument('--local-rank', help=argparse.SUPPRESS)  # python -m torch.distributed.launch passes it here
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(run=run)
        command.add_argument('--debug', action='store_true', help='show the traceback of an error')
        return command

    def takes_overrides(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            '--force_yml', nargs='+', action='extend', metavar='KEYS=VALUE', help='set options: train:total_iter=20'
        )

    for name, about in (
        ('train', 'train as an option file says; writes experiments/ and tb_logger/ in the current folder'),
        ('test', 'score a network as an option file says; writes results/ in the current folder'),
    ):
        command = add(name, run_train_or_test, about)
        command.add_argument('-opt', required=True, help='the option file')
        if name == 'train':
            command.add_argument('--auto_resume', action='store_true', help='go on from the newest training state')
        command.set_defaults(auto_resume=False)
        command.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], help='default: detected')
        command.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
        takes_overrides(command)

    command = add(
        'show', run_show, 'print the whole of an option file, with the file and line that each value comes from'
    )
    command.add_argument('-opt', required=True, help='the option file')
    takes_overrides(command)

    command = add('restore', run_restore, 'restore photographs with a trained network')
    command.add_argument(
        'photos', nargs='*', metavar='PHOTO', help='a file, a folder (with all folders in it), or a pattern'
    )
    command.add_argument('--list', metavar='FILE', help='a file with a photograph on each line; - is standard input')
    command.add_argument('-w', '--weights', type=Path, help='weight file (default: the bundled small network)')
    command.add_argument('-o', '--out', type=Path, help='folder for the results (default: beside, as NAME_restored)')
    command.add_argument('--format', help="jpeg, png, tiff, webp or avif (default: the photograph's own, else png)")
    command.add_argument('--quality', type=int, help='quality of jpeg, avif and lossy webp, 1 to 100 (default 95)')
    command.add_argument('--skip-existing', action='store_true', help='skip photographs that already have a result')
    command.add_argument('--strength', type=float, help='share of the change to apply, from 0 to 1 (default 1)')
    command.add_argument(
        '--compare', type=Path, metavar='FOLDER', help='write pictures of before | after and a page with sliders'
    )
    command.add_argument(
        '--mode', help="exact (default); local: attention as in training; chop: the authors' way; input: no network"
    )
    command.add_argument('--ensemble', action='store_true', help='mean of 8 flips and transposes, 8 x the work')
    command.add_argument('--precision', help='auto (default), fp32, bf16, fp16')
    command.add_argument(
        '--patch-size', type=int, help="window of mode local, in pixels (default: the training patch's)"
    )
    command.add_argument(
        '--max-memory', type=_bytes, metavar='4G', help='memory to use (default: most of what is free)'
    )
    command.add_argument(
        '--largest',
        type=int,
        metavar='PIXELS',
        help='first scale larger photographs down to this longer side (default: do not)',
    )
    command.add_argument('--max-pixels', type=int, help='refuse larger photographs (default 200000000)')

    command = add('convert', run_convert, "turn a weight file into another form, the authors' included")
    command.add_argument('weights', type=Path, help='.safetensors, .pth, or the .pt of the authors')
    command.add_argument('-o', '--out', required=True, type=Path, help='.safetensors or .pth; .pt with --to official')
    command.add_argument('--to', choices=['official'], help="write the authors' names")
    command.add_argument(
        '--key', choices=['params', 'params_ema'], help='which weights to take from a file that holds both'
    )
    command.add_argument('--dtype', choices=['fp16', 'bf16'], help='store 16 bits a weight, rounded')

    command = add('report', run_report, 'write a page of blurred, restored and sharp pictures with scores and curves')
    content = command.add_mutually_exclusive_group(required=True)
    content.add_argument('-opt', help='the option file of a finished test with save_img: true')
    content.add_argument(
        '--figure', nargs='+', type=Path, metavar='RESULT', help="folders of finished tests, for the paper's Fig. 4"
    )
    command.add_argument(
        '--crops', nargs='+', metavar='FRAME', help='crops of the figure: 003/00000060 or 003/00000060:TOP,LEFT'
    )
    takes_overrides(command)
    command.add_argument('--experiment', type=Path, help='folder of the training run, for its curves')
    command.add_argument(
        '-o',
        '--out',
        type=Path,
        default=Path('report.html'),
        help='page to write, .html (default report.html); a figure is also written as a PNG beside it',
    )

    command = add('tables', run_tables, "print the paper's tables, paper beside measured")
    command.add_argument('--results', type=Path, help='folder of the results (default results)')
    command.add_argument('--html', type=Path, help='write a page too, .html')
    command.add_argument('--csv', type=Path, help='write a CSV file too')

    command = add(
        'doctor',
        run_doctor,
        'report which versions are installed, what was repaired in the toolbox, and what is missing',
    )
    command.add_argument(
        '--data',
        nargs='+',
        metavar='DATA',
        help='instead decode every frame of these stores, folders or option files, and report what is wrong',
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    arguments, others = parser.parse_known_args(argv)
    if arguments.command == 'restore' and not any(each.startswith('-') for each in others):
        arguments.photos += others  # argparse takes no photographs behind an option, as in `restore a -o out b`
    elif others:
        parser.error(f'unrecognized arguments: {" ".join(others)}')
    escape_on_stdout()
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # else waiting threads hold up other work, and so ours
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        advice = '; go on with --skip-existing' if arguments.command == 'restore' else ''
        print_error(f'basicsr: stopped{advice}')
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            discard_unread()  # exits if nobody reads stderr
        if is_one_of_several():
            code = exit_code_of_several(error, arguments.command, debug=arguments.debug)
            end_in_nccl_group(code)
            return code
        message = message_for_user(error)
        if message is None:
            raise
        if arguments.debug:
            print_error(traceback.format_exc().rstrip())
        else:
            print_error(f'basicsr {arguments.command}: {message}')
        return getattr(error, 'exit_code', 2)
