"""How the scripts here end: one line for an error, and an exit code."""

import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from wrcan_arch.errors import InputError
from wrcan_arch.system.files import ADVICE
from wrcan_arch.system.terminal import escape_on_stdout, print_error

GO_ON = 'stopped; run it again to go on'


@contextmanager
def errors_in_one_line(*, stopped: str = 'stopped') -> Iterator[None]:
    """Exit with one line: code 2 on InputError, OSError or a killed worker, 130 with the text `stopped` on Ctrl+C."""
    escape_on_stdout()
    try:
        yield
        return
    except (InputError, OSError) as error:
        message, code = str(error), 2
        if isinstance(error, OSError) and error.filename:
            advice = ADVICE.get(error.errno, 'choose another path')
            message = f'{error.filename}: cannot be read or written ({error.strerror}); {advice}'
    except BrokenProcessPool:
        message, code = 'a worker was killed, perhaps because memory ran out; run it again, with fewer --workers', 2
    except KeyboardInterrupt:
        message, code = stopped, 130
    print_error(f'{Path(sys.argv[0]).stem}: {message}')
    sys.exit(code)
