"""Coordinate the processes of one run: torchrun or srun starts them, and they share a key-value store.

Processes that restore one collection share nothing else. Each takes the next photograph when it is free, so the work is
balanced whatever the photographs' sizes and the processors' speed. If a process dies, the next run with --skip-existing
does what it left undone.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from ..errors import InputError, RunError

Task = TypeVar('Task', bound=tuple[str, ...])  # its strings together are unique

STALL_LIMIT = 6 * 3600  # seconds without progress of any process, after which a missing one is given up
START_TIMEOUT = 300  # seconds within which all processes must start
ERROR_WAIT = 5  # seconds to find out whether other processes failed too, and to keep the store up for their questions
STARTED_BY_TORCHRUN = 'TORCHELASTIC_RUN_ID'
LOST = re.compile(r'/gloo/|Connection (closed|reset|refused)|Socket Timeout|Broken pipe')
SHARED_MEMORY = re.compile('/dev/shm|shared memory|fallocate')  # in NCCL's messages


def launcher_of_environment() -> str:
    """'pytorch' in a process that torchrun started, 'slurm' in one of several that srun started, else 'none'.

    A single process in a batch script has SLURM's job variables too, so the variable of a job step decides.
    """
    if STARTED_BY_TORCHRUN in os.environ:
        return 'pytorch'
    return 'slurm' if int(os.environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1 else 'none'


def take_slurms_environment(port: int | None = None) -> None:
    """Set torchrun's environment variables in a process that srun started; InputError in any other process.

    MASTER_ADDR and MASTER_PORT are kept if set; `port` replaces MASTER_PORT.
    """
    try:
        hosts = os.environ.get('SLURM_STEP_NODELIST') or os.environ['SLURM_NODELIST']
        job, step = (int(os.environ.get(name, 0)) for name in ('SLURM_JOB_ID', 'SLURM_STEP_ID'))
        slurms = {
            'RANK': os.environ['SLURM_PROCID'],
            'WORLD_SIZE': os.environ.get('SLURM_STEP_NUM_TASKS') or os.environ['SLURM_NTASKS'],
            'LOCAL_RANK': os.environ['SLURM_LOCALID'],
        }
    except KeyError as error:
        raise InputError(
            f'--launcher slurm: there is no {error.args[0]} here; start the processes with srun'
        ) from error
    os.environ |= slurms
    os.environ.setdefault('MASTER_ADDR', first_host(hosts))
    if port is not None:
        os.environ['MASTER_PORT'] = str(port)
    own_port = 20000 + (job + 997 * step) % 10000  # another one for each job on a machine, and for each of its steps
    os.environ.setdefault('MASTER_PORT', str(own_port))


def first_host(hosts: str) -> str:
    """The first host of a SLURM node list: 'gpu03' of 'gpu[03-07,12],other'."""
    return re.sub(r'\[(\w+)[^]]*\]', r'\1', re.split(r',(?![^[]*\])', hosts)[0])


def take_own_gpu() -> None:
    """Select GPU number LOCAL_RANK; no-op without GPUs, InputError if there are too few."""
    own, there = int(os.environ.get('LOCAL_RANK', 0)), torch.cuda.device_count()
    if there and own >= there:
        raise InputError(
            f'no GPU is left for process {own} of this machine, which has {there}; start one process for each GPU'
        )
    if there:
        torch.cuda.set_device(own)


def problem_of_driver() -> str | None:
    """Why PyTorch cannot use the GPUs of this machine; None if it can, or if there are none."""
    if torch.cuda.is_available() or not torch.cuda.device_count():
        return None
    return f'the driver is too old for PyTorch {torch.__version__}, or does not work'


def in_nccl_group() -> bool:
    """Whether a process that leaves its group waits for the others of its machine, which may never leave theirs."""
    return dist.is_initialized() and dist.get_backend() == 'nccl'


def contact_lost(error: BaseException) -> RunError | None:
    """The RunError to raise if `error` says that another process is lost, or that NCCL failed; None for others."""
    text = ' '.join(str(error).split())
    if not isinstance(error, dist.DistError) and not (isinstance(error, RuntimeError) and LOST.search(text)):
        return None
    nccl = re.search('NCCL error.*Last error: (.+)', text)
    reason = (nccl[1] if nccl else re.sub(r'^\[[^]]*\] *', '', text))[:200]
    if nccl and 'ncclRemoteError' not in text:
        if SHARED_MEMORY.search(reason):
            reason += '; /dev/shm may be full: enlarge it (docker run --shm-size=1g)'
        return RunError(f'NCCL: {reason}')
    return RunError(
        f'another process is gone or does not answer ({reason}); what was saved is whole: go on with --auto_resume '
        'or --skip-existing'
    )


class Team:
    """The processes of one run; by default a single one.

    Args:
        store: the key-value store that all of them share; by default one within this process.
        rank: number of this process.
        size: number of processes.
    """

    def __init__(self, *, store: dist.Store | None = None, rank: int = 0, size: int = 1):
        self.store = store or dist.HashStore()
        self.rank = rank
        self.size = size
        self._agreements = 0
        self._collection = self.store  # for the counts and messages of one list of jobs

    @classmethod
    def from_environment(cls, *, timeout: float = START_TIMEOUT) -> 'Team':
        """The team that torchrun or srun started; a single process if neither did.

        Args:
            timeout: seconds to wait for the first process, and later for any value in the store.
        """
        if launcher_of_environment() == 'slurm':
            take_slurms_environment()
        rank, size = (int(os.environ.get(name, alone)) for name, alone in (('RANK', 0), ('WORLD_SIZE', 1)))
        if size == 1 and STARTED_BY_TORCHRUN not in os.environ:
            return cls()
        address = os.environ.get('MASTER_ADDR'), os.environ.get('MASTER_PORT')
        if address not in _teams:
            _teams[address] = cls(store=_connect(rank, timeout), rank=rank, size=size)
        return _teams[address]

    def agree(self, seen: Mapping[str, str], *, timeout: float = START_TIMEOUT) -> None:
        """Wait for all processes; raise InputError in each unless they report the same values.

        Args:
            seen: the values that this process reports, as short texts by name.
            timeout: seconds to wait for the last process, whatever it does before.
        """
        keys = [f'agree {self._agreements} {rank}' for rank in range(self.size)]
        self._agreements += 1
        self.store.set(keys[self.rank], json.dumps(dict(seen)))
        until = time.monotonic() + timeout
        while not self.store.check(keys):
            if time.monotonic() > until:
                missing = [str(rank) for rank, key in enumerate(keys) if not self.store.check([key])]
                raise InputError(
                    f'{len(missing)} of {self.size} processes did not reach this point within {timeout:.0f} s: '
                    f'number {", ".join(missing[:8])}; look at their output and at their machines'
                )
            time.sleep(0.05)
        first, *others = map(json.loads, self.store.multi_get(keys))
        for rank, other in enumerate(others, 1):
            for name in first | other:
                theirs, ours = (seen_there.get(name, 'nothing') for seen_there in (other, first))
                if theirs != ours:
                    raise InputError(
                        f'process {rank} sees {name} {theirs}, process 0 {ours}; give all processes the same'
                    )

    def note_for_restarts(self, what: str) -> None:
        """Leave the note `what` for the processes that torchrun starts if one of these dies."""
        if isinstance(self.store, dist.PrefixStore):
            self.store.underlying_store.set(f'basicsr {what}', '')

    def noted_before_restart(self, what: str) -> bool:
        """Whether torchrun restarted this job and earlier processes of it left the note `what`."""
        restarted = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0
        return (
            restarted
            and isinstance(self.store, dist.PrefixStore)
            and self.store.underlying_store.check([f'basicsr {what}'])
        )

    def is_first_error(self) -> bool:
        """Whether this process is the first with an error: only that one prints it."""
        first = self.store.add('errors', 1) == 1
        self._stay_until_all('errors', self.store)
        return first

    def _stay_until_all(self, counted: str, store: dist.Store) -> None:
        """Keep the first process alive until all are done with the store, for ERROR_WAIT seconds at most.

        The store ends with that process, unless torchrun hosts it.

        Args:
            counted: key in `store` to which each process adds 1 when it no longer needs the store.
        """
        if self.rank == 0 and os.environ.get('TORCHELASTIC_USE_AGENT_STORE') != 'True':
            until = time.monotonic() + ERROR_WAIT
            while store.add(counted, 0) < self.size and time.monotonic() < until:
                time.sleep(0.05)

    def agree_on(self, jobs: Sequence[Task]) -> None:
        """`agree` on the list of jobs: it is shared out by number, and no process may write while another builds it.

        Later counts are of this list only, so that one team can do several lists.
        """
        self._collection = dist.PrefixStore(f'collection {self._agreements}', self.store)
        digest = hashlib.sha256()
        for job in jobs:
            digest.update(os.fsencode('\0'.join(job)) + b'\n')
        self.agree({'photographs': f'{len(jobs):,} with SHA-256 {digest.hexdigest()[:12]}'})

    def share_of(self, jobs: Sequence[Task]) -> Iterator[Task]:
        """Yield the jobs that this process takes: each job goes to one process, the next to the first that is free."""
        while (number := self._collection.add('taken', 1) - 1) < len(jobs):
            yield jobs[number]

    def add_done(self, amount: int) -> int:
        """Count `amount` as done; return the total over all processes."""
        return self._collection.add('done', amount)

    def done(self) -> int:
        """The total that all processes have done."""
        return self._collection.add('done', 0)

    def gather(self, message: str, waiting: Callable[[], None]) -> list[str]:
        """Return all processes' messages in the first process, [] in the others, once the first has them all.

        `waiting` is called several times a second. InputError if no process gets anything done for STALL_LIMIT seconds.
        """
        store = self._collection
        store.set(f'message {self.rank}', message)
        if self.rank != 0:
            self._wait_for('all gathered', waiting)
            store.add('told', 1)
            return []
        keys = [f'message {rank}' for rank in range(self.size)]
        for key in keys:
            self._wait_for(key, waiting)
        waiting()  # for what was done since the last call
        store.set('all gathered', '')
        store.add('told', 1)
        self._stay_until_all('told', store)
        return [store.get(key).decode() for key in keys]

    def _wait_for(self, key: str, waiting: Callable[[], None]) -> None:
        done, since = self.done(), time.monotonic()
        while not self._collection.check([key]):
            waiting()
            if done != (done := self.done()):
                since = time.monotonic()
            elif time.monotonic() - since > STALL_LIMIT:
                raise InputError(f'a process does not answer (no {key}); run again with --skip-existing')
            time.sleep(0.2)


_teams: dict[tuple[str | None, str | None], Team] = {}  # by address: a process joins once


def _connect(rank: int, timeout: float) -> dist.Store:
    """Connect to the store that all processes share: torchrun's, or one that the first process hosts."""
    attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    of_torchrun = os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
    try:
        host, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
        first = rank == 0 and not of_torchrun
        store = dist.TCPStore(host, port, is_master=first, timeout=timedelta(seconds=timeout), wait_for_workers=False)
    except KeyError as error:
        raise InputError(
            f'the processes cannot reach each other ({error.args[0]} is not set); start them with torchrun'
        ) from error
    except (RuntimeError, ValueError) as error:
        if 'EADDRINUSE' in str(error):
            raise InputError(f'port {port} of {host} is taken; set MASTER_PORT to another one') from error
        reason = str(error).splitlines()[0]
        raise InputError(f'the processes cannot reach each other ({reason}); start them with torchrun') from error
    names = ('SLURM_JOB_ID', 'SLURM_STEP_ID') if launcher_of_environment() == 'slurm' else ()
    step = ''.join(f' {os.environ.get(name)}' for name in names)  # else we might join the job that took our port
    return dist.PrefixStore(f'basicsr {attempt}{step}', store)
