"""A damaged or lost checkpoint costs only the iterations since the one before; what is read runs no code."""

import json
import shutil
from pathlib import Path

import torch
from conftest import train
from runs import FOLDER, assert_equal, outcome

from wrcan_arch.checkpoint import read_file
from wrcan_arch.train import run_folder


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == 'cut':
        content = content[: len(content) // 2]
    elif how == 'flipped':
        middle = len(content) // 2
        content[middle : middle + 400] = bytes(
            byte ^ 0x10 for byte in content[middle : middle + 400]
        )  # more than padding
    path.write_bytes(content)


DAMAGES = {
    'state cut': ('training_states/8.state', 'cut', '8.state: not a readable weight file, it may be cut or damaged'),
    'state flipped': ('training_states/8.state', 'flipped', '8.state: '),
    'state empty': ('training_states/8.state', 'empty', '8.state: not a readable weight file'),
    'weights cut': ('models/net_g_8.pth', 'cut', 'net_g_8.pth: not a readable weight file'),
    'weights flipped': ('models/net_g_8.pth', 'flipped', 'net_g_8.pth: '),
    'weights gone': ('models/net_g_8.pth', 'gone', 'net_g_8.pth: cannot be opened (No such file or directory)'),
    'of another moment': ('models/net_g_8.pth', 'swapped', 'net_g_8.pth: not the weights that 8.state was saved with'),
}


def test_resume_takes_the_newest_whole_pair_and_says_what_it_passed_over(quick):
    """Each kind of damage is done to the newest of two pairs. The resumed run ends like an undisturbed one."""
    assert train('train:total_iter=8') == 0
    expected = outcome(iteration=8)
    whole = {path: path.read_bytes() for part in ('models', 'training_states') for path in (FOLDER / part).iterdir()}
    for name, how, message in DAMAGES.values():
        for path, content in whole.items():
            path.write_bytes(content)
        path = FOLDER / name
        if how == 'gone':
            path.unlink()
        elif how == 'swapped':
            path.write_bytes(whole[FOLDER / 'models/net_g_4.pth'])
        elif how == 'empty':
            path.write_bytes(b'')
        else:
            damage(path, how)
        state, passed_over = run_folder.newest_pair(FOLDER, ['g'])
        assert state['iter'] == 4 and len(passed_over) == 1 and message in passed_over[0]
    assert train('train:total_iter=8', resume=True) == 0
    log = max(FOLDER.glob('train_*.log')).read_text()
    assert 'Passed over: ' in log and 'net_g_8.pth: not the weights that' in log and 'iter: 4.' in log
    assert not [*FOLDER.rglob('*.after_*')], 'a damaged pair is overwritten'
    assert_equal(outcome(iteration=8), expected)


def test_every_flipped_bit_is_found_or_harmless(quick):
    """A state with a flipped bit is refused, unless the same values are read from it."""
    assert train('train:total_iter=4') == 0
    path = FOLDER / 'training_states/4.state'
    content, state = path.read_bytes(), read_file(path)
    found = 0
    for place in torch.randint(len(content), (60,), generator=torch.Generator().manual_seed(0)).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            again = run_folder.read_state(path)
        except ValueError:
            found += 1
        else:
            assert_equal(again, state)
    assert found > 30


def test_run_without_a_whole_checkpoint_does_not_start_over_by_itself(quick, capsys):
    assert train('train:total_iter=4') == 0
    damage(FOLDER / 'training_states/4.state', 'cut')
    before = sorted(Path('experiments').iterdir())
    assert train(resume=True) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'none of its 1 checkpoints is whole' in said and said.endswith('run it without --auto_resume')
    assert sorted(Path('experiments').iterdir()) == before


def test_rest_of_a_killed_save_is_removed(quick):
    assert train('train:total_iter=4') == 0
    rests = [FOLDER / 'training_states/.5.state.partial', FOLDER / 'models/.net_g_5.pth.partial']
    for rest in rests:  # of an iteration that is not saved again, which would take the same name
        rest.write_bytes(b'x' * 1000)
    assert train(resume=True) == 0
    assert not any(map(Path.exists, rests))


def test_state_that_is_named_has_to_have_its_own_weights(quick, capsys):
    assert train('train:total_iter=8') == 0
    state = f'path:resume_state={FOLDER}/training_states/4.state'
    shutil.copy(FOLDER / 'models/net_g_8.pth', FOLDER / 'models/net_g_4.pth')
    assert train(state) == 2
    assert 'net_g_4.pth: not the weights that 4.state was saved with' in capsys.readouterr().err
    (FOLDER / 'models/net_g_4.pth').unlink()
    assert train(state) == 2
    assert 'net_g_4.pth: cannot be opened (No such file or directory)' in capsys.readouterr().err


def test_weights_that_a_new_run_would_put_aside_are_not_its_beginning(quick, capsys):
    assert train('train:total_iter=4') == 0
    capsys.readouterr()
    assert train(f'path:pretrain_network_g={FOLDER}/models/net_g_4.pth') == 2
    assert "net_g_4.pth is in this run's own folder, which a new run puts aside" in capsys.readouterr().err
    assert run_folder.iterations(FOLDER) == [4]


def test_code_in_a_state_is_not_run(quick, capsys):
    class Exploit:
        def __reduce__(self):
            return open, ('written', 'w')

    assert train('train:total_iter=4') == 0
    torch.save({'iter': Exploit()}, FOLDER / 'training_states/9.state')
    assert train('train:total_iter=5', resume=True) == 0, 'the newest whole one is taken'
    assert '9.state: holds objects that could run code' in max(FOLDER.glob('train_*.log')).read_text()
    assert train(f'path:resume_state={FOLDER}/training_states/9.state') == 2
    assert 'could run code' in capsys.readouterr().err
    assert not Path('written').exists()


def test_state_is_plain_data(quick):
    """weights_only can read it; besides optimizers and schedulers it holds only what JSON can."""
    assert train('train:total_iter=4') == 0
    state = read_file(FOLDER / 'training_states/4.state')
    assert json.dumps({key: value for key, value in state.items() if key not in ('optimizers', 'schedulers')})
