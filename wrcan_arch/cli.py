"""The `basicsr` command: arguments in, exit code out. The work is done elsewhere, and imported only when asked for.

Exit codes: 0 done; 1 some inputs failed, named at the end; 2 the request is wrong: one line says what and what to do.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def train_or_test(arguments: argparse.Namespace) -> int:
    from .train import options, pipelines

    file = options.read_options(arguments.opt, arguments.force_yml or ())
    options.check(file, arguments.command)
    pipelines.run(
        arguments.command,
        file.values,
        Path(arguments.opt).name,
        launcher=arguments.launcher or pipelines.launcher_of_environment(),
        auto_resume=arguments.auto_resume,
        debug=arguments.debug,
    )
    return 0


def restore(arguments: argparse.Namespace) -> int:
    import torch

    from .checkpoint import load_network
    from .photos.bulk_restore import plan, restore_photos

    pairs = plan(arguments.photos, arguments.out)
    network = load_network(arguments.weights)
    if torch.cuda.is_available():
        network = network.cuda()
    failures = restore_photos(
        network, pairs, mode=arguments.mode, ensemble=arguments.ensemble, precision=arguments.precision
    )
    print(f'{len(pairs) - len(failures)} of {len(pairs)} restored into {arguments.out}')
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def convert(arguments: argparse.Namespace) -> int:
    from .checkpoint import convert

    network = convert(arguments.weights, arguments.out, official=arguments.to == 'official', key=arguments.key)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f'wrote {arguments.out}: {network.config}, {parameters:,} parameters')
    return 0


def tables(arguments: argparse.Namespace) -> int:
    from .look.tables import as_csv, as_html, as_text, compare

    compared = compare(arguments.results)
    print(as_text(compared))
    for path, render in ((arguments.html, as_html), (arguments.csv, as_csv)):
        if path is not None:
            path.write_text(render(compared), encoding='utf-8')
            print(f'wrote {path}')
    return 0


def report(arguments: argparse.Namespace) -> int:
    from .look.figure import make_figure
    from .look.report import mean_scores, rounded, write_report
    from .train import options

    if arguments.figure:
        picture = make_figure(arguments.figure, arguments.crops or [], arguments.out)
        print(f'wrote {arguments.out} and {picture}')
        return 0

    file = options.read_options(arguments.opt)
    options.check(file, 'test')
    results = write_report(file.values, arguments.experiment, arguments.out)
    for metric, (blurred, restored) in mean_scores(results).items():
        scores = f'blurred {rounded(metric, blurred)}, restored {rounded(metric, restored)}'
        print(f'{metric.upper()} of {len(results)} images: {scores} ({rounded(metric, restored - blurred, sign="+")})')
    print(f'wrote {arguments.out}')
    return 0


def show(arguments: argparse.Namespace) -> int:
    from .train import options

    file = options.read_options(arguments.opt, arguments.force_yml or ())
    print(options.show(file))
    for problem in file.problems:
        print(problem, file=sys.stderr)
    return 2 if file.problems else 0


def doctor(arguments: argparse.Namespace) -> int:
    from .doctor import report

    text, complete = report()
    print(text)
    return 0 if complete else 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='basicsr', description='WRCAN in the BasicSR toolbox: train, test, restore.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(run=run)
        command.add_argument('--debug', action='store_true', help='show the traceback of an error')
        return command

    for name, about in (
        ('train', 'train as an option file says; experiments/ goes under this folder'),
        ('test', 'score a network as an option file says; results/ goes under this folder'),
    ):
        command = add(name, train_or_test, about)
        command.add_argument('-opt', required=True, help='the option file')
        command.add_argument('--auto_resume', action='store_true', help='go on from the newest training state')
        command.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], help='found out under torchrun')
        command.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
        command.add_argument('--force_yml', nargs='+', metavar='KEYS=VALUE', help='set options: train:total_iter=20')

    command = add('show', show, 'print the whole of an option file, with the file and line that each value comes from')
    command.add_argument('-opt', required=True, help='the option file')
    command.add_argument('--force_yml', nargs='+', metavar='KEYS=VALUE', help='set options: train:total_iter=20')

    command = add('restore', restore, 'restore photographs with a trained network')
    command.add_argument('photos', nargs='+', type=Path, metavar='PHOTO_OR_FOLDER')
    command.add_argument('-o', '--out', required=True, type=Path, help='folder for the restored photographs (PNG)')
    command.add_argument('-w', '--weights', required=True, type=Path, help='weight file; it says which network it is')
    command.add_argument('--mode', default='exact', help="exact (default), or chop: the authors' quadrants")
    command.add_argument('--ensemble', action='store_true', help='mean of 8 flips and transposes, 8 x the work')
    command.add_argument('--precision', default='auto', help='auto (default), fp32, bf16, fp16')

    command = add('convert', convert, "turn a weight file into another form, the authors' included")
    command.add_argument('weights', type=Path, help='.safetensors, .pth, or the .pt of the authors')
    command.add_argument('-o', '--out', required=True, type=Path, help='.safetensors or .pth; .pt with --to official')
    command.add_argument('--to', choices=['official'], help="write the authors' names")
    command.add_argument('--key', choices=['params', 'params_ema'], help='which weights, of a file that holds both')

    command = add('report', report, 'write a page of blurred, restored and sharp pictures with scores and curves')
    content = command.add_mutually_exclusive_group(required=True)
    content.add_argument('-opt', help='the option file of a finished test with save_img: true')
    content.add_argument(
        '--figure', nargs='+', type=Path, metavar='RESULT', help="folders of finished tests, for the paper's Fig. 4"
    )
    command.add_argument(
        '--crops', nargs='+', metavar='FRAME', help='of the figure: 003/00000060 or 003/00000060:TOP,LEFT'
    )
    command.add_argument('--experiment', type=Path, help='folder of the training run, for its curves')
    command.add_argument('-o', '--out', type=Path, default=Path('report.html'), help='default report.html')

    command = add('tables', tables, "print the paper's tables, paper beside measured")
    command.add_argument('--results', type=Path, default=Path('results'), help='default results')
    command.add_argument('--html', type=Path, help='write a page too')
    command.add_argument('--csv', type=Path, help='write a CSV file too')

    add('doctor', doctor, 'say which versions are there, what was repaired, what is missing')
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except BrokenPipeError:  # of `basicsr show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print('basicsr: stopped', file=sys.stderr)
        return 130
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        message = _message_for_user(error)
        if message is None:
            raise
        if not arguments.debug:
            print(f'basicsr {arguments.command}: {message}', file=sys.stderr)
        return 2


def _message_for_user(error: Exception) -> str | None:
    """What to say of an error that the request caused; None for a defect, whose traceback shows."""
    from .errors import InputError

    if isinstance(error, InputError):
        # A loader's worker hands its traceback on as the message; its last line is the one that was raised.
        return str(error).strip().rpartition('wrcan_arch.errors.InputError: ')[2]
    if isinstance(error, OSError):
        return f'{error.filename}: {error.strerror}' if error.filename else str(error)
    return None


if __name__ == '__main__':
    sys.exit(main())
