"""Runs Python code as `python -c` does, in forks of a process that has already loaded the heavy libraries.

The toolbox and this package are imported afresh in each; torch and scipy take eight of the nine seconds.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_FORKING = """
import json, os, sys
import cv2, lmdb, pydantic, requests, scipy.stats, skimage.metrics, torch, torch._dynamo
assert not {'basicsr', 'torchvision', 'wrcan_arch'} & sys.modules.keys()
for line in sys.stdin:
    code, folder, variables, out, err = json.loads(line)
    process = os.fork()
    if process:
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
        continue
    os.chdir(folder)
    os.environ.update(variables)
    for place, path in enumerate((os.devnull, out, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), place)
    sys.stdin = open(os.devnull)
    status = 0
    try:
        exec(compile(code, '<string>', 'exec'), {'__name__': '__main__'})
    except Exception:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to clear away all that is loaded takes two seconds
"""


HIDING = """
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split('.')[0] == '{hidden}' else find_spec(name, *rest)
"""  # a package, as if it were not installed


@functools.cache
def _server() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, '-c', _FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess:
    """Do as `subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)`, with `variables` set."""
    server = _server()
    assert server.stdin and server.stdout
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder, name) for name in ('out', 'err'))
        request = [code, str(Path.cwd()), {**os.environ, **variables}, str(out), str(err)]
        print(json.dumps(request), file=server.stdin, flush=True)
        returned = int(server.stdout.readline())
        return subprocess.CompletedProcess(code, returned, out.read_text(), err.read_text())
