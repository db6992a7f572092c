"""Trainings to stop and to compare."""

import os
import signal
from pathlib import Path
from unittest import mock

import torch

from wrcan_arch.checkpoint import read_file
from wrcan_arch.look.report import read_curves
from wrcan_arch.train.step_guard import StepGuard

FOLDER = Path('experiments/small')


def stop_at(iteration, number=signal.SIGTERM):
    """Send a signal to this process in the middle of the step `iteration`."""
    check = StepGuard.check

    def check_and_signal(self, current, *rest):
        if current == iteration:
            os.kill(os.getpid(), number)
        return check(self, current, *rest)

    return mock.patch.object(StepGuard, 'check', check_and_signal)


def assert_equal(first, second, place='state'):
    """Compare two training states bit by bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), place
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), place
        for key in first:
            assert_equal(first[key], second[key], f'{place}/{key}')
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), place
        for number, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f'{place}/{number}')
    else:
        assert first == second, place


def outcome(folder=FOLDER, iteration=10):
    """The state with its weights' checksum; the weights of `iteration`, the best, the latest; what was logged."""
    weights = {
        label: {
            key: value
            for key, value in read_file(folder / f'models/net_g_{label}.pth').items() if key.startswith('params')
        }
        for label in (iteration, 'best', 'latest')
    }  # fmt: skip
    curves = read_curves(folder)
    return read_file(folder / f'training_states/{iteration}.state'), weights, curves.losses, curves.metrics
