import errno
import multiprocessing
import os
import pickle
import resource
import signal
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from safetensors.torch import save as safetensors_bytes

from wrcan_arch import WRCAN, InputError, cli, load_network
from wrcan_arch.checkpoint import (
    convert,
    name_from_official,
    name_to_official,
    read_file,
    read_weights,
    write_atomically,
    write_weights,
)

SIZES = {'num_feat': 8, 'num_group': 2, 'num_block': 3}


def network_of(block='wrca', **sizes):
    torch.manual_seed(1)
    return WRCAN(block=block, **(sizes or SIZES))


def assert_same(network, other):
    assert network.config == other.config
    image = torch.rand(1, 3, 9, 10)
    with torch.no_grad():
        assert torch.equal(network(image), other(image))


@pytest.mark.parametrize('block', ['wrca', 'wr', 'rca', 'res'])
@pytest.mark.parametrize('sizes', [{**SIZES, 'num_out_ch': 2}, {'num_feat': 4, 'num_group': 11, 'num_block': 12}])
def test_network_is_rebuilt_from_the_file_alone(tmp_path, block, sizes):
    network = network_of(block, **sizes)
    write_atomically(tmp_path / 'a.pth', {'params': network.state_dict()})
    loaded = load_network(tmp_path / 'a.pth')
    assert_same(loaded, network)
    assert not loaded.training


def test_official_file_has_every_tensor_of_ours(official_weights):
    tensors, metadata = read_weights(official_weights)
    assert tensors.keys() == WRCAN(**SIZES).state_dict().keys() and metadata == {}


def test_safetensors_and_averaged_weights(tmp_path):
    network, averaged = network_of(), network_of('wrca', **SIZES, num_in_ch=3)
    torch.nn.init.zeros_(averaged.tail.bias)
    save_file(network.state_dict(), tmp_path / 'a.safetensors')
    assert_same(load_network(tmp_path / 'a.safetensors'), network)
    save_file(network.state_dict(), tmp_path / 'a.safetensors', {'format': 'pt', 'patch_size': '96'})
    assert load_network(tmp_path / 'a.safetensors').metadata == {'format': 'pt', 'patch_size': 96}
    assert torch.equal(read_weights(tmp_path / 'a.safetensors', 'params_ema')[0]['tail.bias'], network.tail.bias)
    for name in ('B.SAFETENSORS', 'B.PTH'):
        convert(tmp_path / 'a.safetensors', tmp_path / name)
        assert_same(load_network(tmp_path / name), network)
    assert load_file(tmp_path / 'B.SAFETENSORS')
    write_atomically(tmp_path / 'a.pth', {'params': network.state_dict(), 'params_ema': averaged.state_dict()})
    assert_same(load_network(tmp_path / 'a.pth'), averaged)
    assert torch.equal(read_weights(tmp_path / 'a.pth', 'params')[0]['tail.bias'], network.tail.bias)
    torch.save({'state_dict': averaged.state_dict(), 'params': network.state_dict()}, tmp_path / 'a.pth')
    assert_same(load_network(tmp_path / 'a.pth'), network)


def test_loaded_weights_stay_when_their_file_is_written_over(tmp_path):
    network, file = network_of(), tmp_path / 'a.safetensors'
    save_file(network.state_dict(), file)
    loaded = load_network(file)
    zeros = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    with file.open('r+b') as opened:  # as `cp` does
        opened.write(safetensors_bytes(zeros))
    assert_same(loaded, network)


def test_weights_of_another_program_may_be_double_and_say_anything_of_themselves(tmp_path):
    network = network_of()
    for patch_size, jpeg_quality in (('96', '25'), (0, [15, 'x']), (True, [15]), (9.5, [15, 25, 35])):
        other = {'patch_size': patch_size, 'jpeg_quality': jpeg_quality}
        torch.save({'params': network.state_dict(), 'metadata': {**other, 'iter': 5}}, tmp_path / 'a.pth')
        assert load_network(tmp_path / 'a.pth').metadata == {'iter': 5}
    torch.save({name: value.double() for name, value in network.state_dict().items()}, tmp_path / 'double.pth')
    assert_same(load_network(tmp_path / 'double.pth'), network)


def test_names_of_other_networks_stay_as_they_are(tmp_path):
    tensors = {'body.0.weight': torch.zeros(2), 'head.0.bias': torch.zeros(1)}  # as in the toolbox's own networks
    write_atomically(tmp_path / 'a.pth', {'params': tensors})
    assert read_weights(tmp_path / 'a.pth')[0].keys() == tensors.keys()


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    write_atomically(tmp_path / 'a.pth', {'params': {'x': torch.zeros(2)}})
    with pytest.raises(Exception, match='pickle'):
        write_atomically(tmp_path / 'a.pth', {'params': {'x': lambda: None}})
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']
    assert read_weights(tmp_path / 'a.pth')[0]['x'].tolist() == [0, 0]


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('save', [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_opening_a_file_runs_no_code_from_it(tmp_path, save):
    save({'params': Exploit(tmp_path / 'written')}, tmp_path / 'evil.pth')
    with pytest.raises(InputError, match=r'evil\.pth: '):
        read_weights(tmp_path / 'evil.pth')
    assert not (tmp_path / 'written').exists()


def damaged_files(tmp_path):
    write_atomically(tmp_path / 'whole.pth', {'params': network_of().state_dict()})
    save_file(network_of().state_dict(), tmp_path / 'whole.safetensors')
    for ending in ('.pth', '.safetensors'):
        content = (tmp_path / f'whole{ending}').read_bytes()
        for name, damaged in {'empty': b'', 'cut': content[: len(content) // 2], 'text': b'hello ' * 50}.items():
            path = tmp_path / f'{name}{ending}'
            path.write_bytes(damaged)
            yield path


def test_damaged_files_are_named(tmp_path):
    for path in damaged_files(tmp_path):
        with pytest.raises(InputError, match=rf'{path.name}: not a readable weight file'):
            read_file(path)


def test_whole_file_is_not_called_damaged_for_its_name(tmp_path):
    save_file(network_of().state_dict(), tmp_path / 'whole.safetensors')
    whole = (tmp_path / 'whole.safetensors').rename(tmp_path / 'whole\udcff.safetensors')
    with pytest.raises(InputError, match=r'whole\udcff.safetensors: a name that is not UTF-8; rename it'):
        read_file(whole)


def test_weights_are_found_where_other_programs_keep_them(tmp_path):
    tensors = network_of().state_dict()
    wrapped = {f'module.{name}': value for name, value in tensors.items()}
    write_atomically(tmp_path / 'a.pth', {'epoch': 3, 'state_dict': wrapped, 'optimizer': {}})
    for key in (None, 'params', 'params_ema', 'state_dict'):
        assert read_weights(tmp_path / 'a.pth', key)[0].keys() == tensors.keys()
    write_atomically(tmp_path / 'b.pth', {'net': tensors, 'epoch': 3})
    assert read_weights(tmp_path / 'b.pth', 'net')[0].keys() == tensors.keys()
    with pytest.raises(InputError, match="b.pth: holds no weights under 'nett'; found net, epoch"):
        read_weights(tmp_path / 'b.pth', 'nett')
    write_weights(tmp_path / 'c.pth', {'params': tensors}, {})
    assert read_weights(tmp_path / 'c.pth', 'net')[0].keys() == tensors.keys(), 'a run goes on from its own file'


def test_files_of_something_else_are_named(tmp_path):
    with pytest.raises(InputError, match=r'nowhere.pth: cannot be opened \(No such file'):
        load_network(tmp_path / 'nowhere.pth')
    tensors = network_of().state_dict()
    contents = {
        'list.pth': ([1, 2], 'holds a list, not weights'),
        'state.pth': ({'iter': 3, 'epoch': 1}, "holds no weights under 'params'; found iter, epoch"),
        'other.pth': ({'params': {'conv.weight': torch.zeros(1)}}, 'not the weights of a WRCAN'),
        'nested.pth': ({'params': [1, 2]}, "holds no weights under 'params'; found params"),
        'numbered.pth': ({'params': {**tensors, 1: torch.zeros(1)}}, "holds no weights under 'params'; found params"),
        'flat.pth': ({'params': {**tensors, 'head.weight': torch.zeros(3)}}, 'not the weights of a WRCAN'),
        'odd.pth': ({'params': {**tensors, 'head.weight': torch.zeros(6, 3, 3, 3)}}, 'not the weights of a WRCAN'),
    }
    for name, (content, message) in contents.items():
        write_atomically(tmp_path / name, content)
        with pytest.raises(InputError, match=f'{name}: {message}'):
            load_network(tmp_path / name)


def test_incomplete_and_misshapen_networks_are_named(tmp_path):
    tensors = network_of().state_dict()
    missing = {name: tensor for name, tensor in tensors.items() if name != 'body_conv.bias'}
    contents = [
        (missing, 'body_conv.bias is missing'),
        ({**tensors, 'spare.bias': torch.zeros(3)}, 'spare.bias is left over'),
        ({**tensors, 'body_conv.bias': torch.zeros(3)}, r'body_conv.bias is \(3,\) and not \(32,\)'),
        ({**tensors, 'body_conv.bias': torch.zeros(32, dtype=torch.int8)}, 'body_conv.bias is of torch.int8'),
    ]
    for content, message in contents:
        write_atomically(tmp_path / 'a.pth', {'params': content})
        for action in (load_network, lambda path: convert(path, tmp_path / 'b.safetensors')):
            with pytest.raises(InputError, match=rf'a\.pth: not a whole WRCAN: {message}'):
                action(tmp_path / 'a.pth')
        assert not (tmp_path / 'b.safetensors').exists()


@pytest.mark.parametrize('metadata', [{}, {'checksum': {'params': 'abc'}}])
@pytest.mark.parametrize(
    'tensor',
    [
        torch.zeros(1, dtype=torch.half).expand(4 * 10**10),  # 80 GB, in a file of 1.5 kB
        torch.empty(32, device='meta'),
        torch.zeros(32).to_sparse(),
    ],
    ids=['expanded', 'meta', 'sparse'],
)
def test_tensors_without_a_value_for_each_element_are_named(tmp_path, tensor, metadata):
    tensors = {**network_of().state_dict(), 'body_conv.bias': tensor}
    write_atomically(tmp_path / 'a.pth', {'params': tensors, 'metadata': metadata})
    for action in (load_network, lambda path: convert(path, tmp_path / 'b.safetensors')):
        with pytest.raises(InputError, match=r'a\.pth: body_conv\.bias is not a dense tensor with all of its values'):
            action(tmp_path / 'a.pth')


@pytest.mark.parametrize('block', ['wrca', 'wr'])
def test_names_go_to_the_official_ones_and_back(block):
    network = network_of(block, num_feat=4, num_group=3, num_block=12)
    names = network.state_dict().keys()
    official = {name_to_official(name, network.config) for name in names}
    assert len(official) == len(names) and {name_from_official(name) for name in official} == set(names)
    assert 'body.2.body.12.weight' in official and 'body.3.bias' in official


def test_official_file_to_ours_and_back_is_the_same_file(tmp_path, official_weights):
    convert(official_weights, tmp_path / 'a.safetensors')
    convert(tmp_path / 'a.safetensors', tmp_path / 'b.pth')
    convert(tmp_path / 'b.pth', tmp_path / 'c.pt', official=True)
    original, back = read_file(official_weights), read_file(tmp_path / 'c.pt')
    assert original.keys() == back.keys() and all(torch.equal(original[name], back[name]) for name in original)
    about = read_weights(tmp_path / 'b.pth')[1]
    assert about['network_g'] == {'type': 'WRCAN', 'num_in_ch': 3, 'num_out_ch': 3, **SIZES, 'block': 'wrca'}


def test_weights_in_channels_last_order_can_be_converted(tmp_path):
    tensors = network_of().to(memory_format=torch.channels_last).state_dict()
    write_atomically(tmp_path / 'a.pth', {'params': tensors})
    convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors')
    assert all(torch.equal(tensors[name], value) for name, value in load_file(tmp_path / 'b.safetensors').items())


def test_a_conversion_always_gives_the_same_file(tmp_path):
    """Scores name weights by their file's SHA-256."""
    write_weights(tmp_path / 'a.pth', {'params': network_of().state_dict()}, {f'key {each}': each for each in range(9)})
    for number in range(3):
        convert(tmp_path / 'a.pth', tmp_path / f'{number}.safetensors')
    first, *others = (path.read_bytes() for path in sorted(tmp_path.glob('*.safetensors')))
    assert others == [first, first]
    for length in range(8):
        write_weights(tmp_path / 'a.safetensors', {'params': network_of().state_dict()}, {'commit': length * 'a'})
        assert int.from_bytes((tmp_path / 'a.safetensors').read_bytes()[:8], 'little') % 8 == 0, 'tensors are aligned'


def test_metadata_goes_along_and_damage_is_found(tmp_path):
    tensors = network_of().state_dict()
    write_weights(tmp_path / 'a.pth', {'params': tensors}, {'iter': 7, 'commit': None, 'value': 28.5})
    convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors')
    for name in ('a.pth', 'b.safetensors'):
        about = read_weights(tmp_path / name)[1]
        assert (about['iter'], about['commit'], about['value']) == (7, None, 28.5)
    for name in ('a.pth', 'b.safetensors'):
        content = bytearray((tmp_path / name).read_bytes())
        place = content.find(tensors['body_conv.weight'].numpy().tobytes()) + 11
        content[place] ^= 0x40
        (tmp_path / f'flipped_{name}').write_bytes(content)
        with pytest.raises(InputError, match=f'flipped_{name}: its checksum is wrong'):
            read_weights(tmp_path / f'flipped_{name}')


@pytest.mark.parametrize('metadata', ['x', None, {'checksum': 'abc'}, {'checksum': None}])
def test_metadata_of_another_program_is_no_checksum(tmp_path, metadata):
    tensors = network_of().state_dict()
    write_atomically(tmp_path / 'a.pth', {'params': tensors, 'metadata': metadata})
    texts = {key: str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else None
    save_file(tensors, tmp_path / 'a.safetensors', texts)
    for ending in ('pth', 'safetensors'):
        assert load_network(tmp_path / f'a.{ending}').config == network_of().config


def test_averaged_weights_that_are_not_there_are_not_replaced(tmp_path):
    write_atomically(tmp_path / 'a.pth', {'params': network_of().state_dict()})
    with pytest.raises(InputError, match=r'a\.pth: holds no averaged weights \(params_ema\); leave --key out'):
        convert(tmp_path / 'a.pth', tmp_path / 'b.pth', key='params_ema')
    assert not (tmp_path / 'b.pth').exists()


def test_two_sets_of_weights_ask_which(tmp_path):
    first, second = network_of().state_dict(), network_of('wrca', **SIZES, num_in_ch=3).state_dict()
    second = {name: tensor + 1 for name, tensor in second.items()}
    write_weights(tmp_path / 'a.pth', {'params': first, 'params_ema': second}, {})
    with pytest.raises(InputError, match='holds two sets of weights; choose with --key params'):
        convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors')
    convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', key='params')
    assert torch.equal(read_weights(tmp_path / 'b.safetensors')[0]['tail.bias'], first['tail.bias'])


def test_convert_does_what_its_flags_say(tmp_path, official_weights, capsys):
    ours, theirs, half, averaged = (
        str(tmp_path / name) for name in ('a.pth', 'b.pt', 'c.safetensors', 'd.safetensors')
    )
    assert cli.main(['convert', str(official_weights), '-o', ours]) == 0
    assert cli.main(['convert', ours, '-o', theirs, '--to', 'official']) == 0
    before = torch.load(official_weights, weights_only=True)
    after = torch.load(theirs, weights_only=True)
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    tensors = read_weights(ours)[0]
    assert cli.main(['convert', ours, '-o', half, '--dtype', 'fp16']) == 0
    assert {value.dtype for value in load_file(half).values()} == {torch.float16}
    write_weights(ours, {'params': tensors, 'params_ema': {name: 2 * value for name, value in tensors.items()}}, {})
    assert cli.main(['convert', ours, '-o', averaged, '--key', 'params_ema']) == 0
    assert torch.equal(read_weights(averaged)[0]['tail.bias'], 2 * tensors['tail.bias'])
    assert capsys.readouterr().out.count('wrote ') == 4


def write_beyond_a_limit(path, said):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        write_atomically(path, {'params': {'x': torch.zeros(9999)}})
    except OSError as error:
        said.send(str(error))


def test_errors_that_are_not_the_disks_are_raised_as_they_are(tmp_path):
    with mock.patch('torch.save', side_effect=RuntimeError('CUDA error')), pytest.raises(RuntimeError, match='CUDA'):
        write_atomically(tmp_path / 'a.pth', {})
    assert not [*tmp_path.iterdir()]


def test_full_disk_is_said_of_the_file_and_leaves_nothing(tmp_path):
    """A limit on file sizes in a subprocess stands for a full disk."""
    context = multiprocessing.get_context('fork')
    heard, said = context.Pipe(duplex=False)
    process = context.Process(target=write_beyond_a_limit, args=(tmp_path / 'a.pth', said))
    process.start()
    process.join()
    assert process.exitcode == 0 and heard.poll() and 'a.pth' in heard.recv() and list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_flushed_is_said_of_the_file(tmp_path):
    with mock.patch('os.fsync', side_effect=[None, OSError(5, 'Input/output error')]), pytest.raises(OSError) as caught:
        write_atomically(tmp_path / 'a.pth', b'weights')
    assert caught.value.filename == str(tmp_path / 'a.pth')


@pytest.mark.parametrize('number', [errno.EINVAL, errno.ENOTSUP])
def test_file_system_that_flushes_no_folders_is_no_error(tmp_path, number):
    with mock.patch('os.fsync', side_effect=[None, OSError(number, os.strerror(number))]) as fsync:
        write_atomically(tmp_path / 'a.pth', b'weights')
    assert fsync.call_count == 2 and (tmp_path / 'a.pth').read_bytes() == b'weights'


def test_blocks_that_the_authors_did_not_have_and_wrong_endings_are_errors(tmp_path, official_weights):
    write_weights(tmp_path / 'a.pth', {'params': network_of('res').state_dict()}, {})
    with pytest.raises(InputError, match="the authors' code has no place for groups.0.blocks.0.branch.conv1.weight"):
        convert(tmp_path / 'a.pth', tmp_path / 'b.pt', official=True)
    for out, official in (('b.pt', False), ('b.pth', True), ('b.onnx', False)):
        with pytest.raises(InputError, match='weights are written as'):
            convert(official_weights, tmp_path / out, official=official)
    for same in (tmp_path / 'a.pth', tmp_path / '..' / tmp_path.name / 'a.pth'):
        with pytest.raises(InputError, match='would overwrite the file that is read'):
            convert(tmp_path / 'a.pth', same)
    with pytest.raises(InputError, match='not UTF-8, under which it could not be read; choose another'):
        convert(tmp_path / 'a.pth', tmp_path / os.fsdecode(b'\xff.safetensors'))
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


@pytest.mark.parametrize(('dtype', 'stored'), [('fp16', torch.float16), ('bf16', torch.bfloat16)])
@pytest.mark.parametrize('ending', ['.safetensors', '.pth'])
def test_weights_of_16_bits_are_half_the_size_and_read_as_fp32(tmp_path, ending, dtype, stored):
    network = network_of()
    write_weights(tmp_path / 'a.pth', {'params': network.state_dict()}, {'iter': 3})
    convert(tmp_path / 'a.pth', tmp_path / f'b{ending}', dtype=dtype)
    convert(tmp_path / 'a.pth', tmp_path / f'c{ending}')
    assert (tmp_path / f'b{ending}').stat().st_size < 0.7 * (tmp_path / f'c{ending}').stat().st_size
    read = load_network(tmp_path / f'b{ending}')
    assert read.metadata['iter'] == 3
    for name, value in network.state_dict().items():
        assert torch.equal(read.state_dict()[name], value.to(stored).float())

    content = bytearray((tmp_path / f'b{ending}').read_bytes())
    place = content.find(network.body_conv.weight.detach().to(stored).view(torch.uint8).numpy().tobytes()) + 7
    content[place] ^= 1
    (tmp_path / f'b{ending}').write_bytes(content)
    with pytest.raises(InputError, match='its checksum is wrong'):
        load_network(tmp_path / f'b{ending}')


def test_weights_that_fp16_does_not_hold_are_an_error(tmp_path):
    tensors = network_of().state_dict()
    tensors['tail.bias'] = torch.full_like(tensors['tail.bias'], 1e6)
    write_weights(tmp_path / 'a.pth', {'params': tensors}, {})
    with pytest.raises(InputError, match='tail.bias has weights beyond the range of fp16; store it as bf16'):
        convert(tmp_path / 'a.pth', tmp_path / 'b.pth', dtype='fp16')
    convert(tmp_path / 'a.pth', tmp_path / 'b.pth', dtype='bf16')
    tensors['tail.bias'][0] = torch.nan
    write_weights(tmp_path / 'a.pth', {'params': tensors}, {})
    with pytest.raises(InputError, match='tail.bias has weights that are not finite'):
        convert(tmp_path / 'a.pth', tmp_path / 'c.pth', dtype='fp16')


def test_the_name_of_one_tensor_does_not_make_a_large_network(tmp_path):
    """It would be built before anything is compared, which takes hours and all of the memory."""
    tensors = {**network_of().state_dict(), 'groups.99999.blocks.0.x': torch.zeros(1)}
    write_atomically(tmp_path / 'a.pth', {'params': tensors})
    with (
        mock.patch('wrcan_arch.checkpoint.WRCAN', side_effect=AssertionError('built')),
        pytest.raises(InputError, match='not the weights of a WRCAN .it has 7 blocks, not 100000 groups of 3'),
    ):
        load_network(tmp_path / 'a.pth')


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.'])
def test_names_of_compiled_and_distributed_networks_are_ours(tmp_path, prefix):
    network = network_of()
    write_atomically(tmp_path / 'a.pth', {prefix + name: each for name, each in network.state_dict().items()})
    assert_same(load_network(tmp_path / 'a.pth'), network)


def test_metadata_that_is_no_json_is_not_converted(tmp_path):
    metadata = {'best': torch.ones(1), 3: 1, 'patch_size': 96}
    write_atomically(tmp_path / 'a.pth', {'params': network_of().state_dict(), 'metadata': metadata})
    convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors')
    about = read_weights(tmp_path / 'b.safetensors')[1]
    assert about.keys() == {'patch_size', 'network_g', 'checksum'} and about['patch_size'] == 96
