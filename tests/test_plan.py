import codecs
import io
import os
import shutil
import sys
from pathlib import Path

import pytest

from wrcan_arch import InputError
from wrcan_arch.photos.comparison import pictures_of, write_page
from wrcan_arch.photos.find_photos import read_list
from wrcan_arch.photos.plan import Job, plan
from wrcan_arch.photos.read_photo import read_photo


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        'a.jpg',
        'in/b.PNG',
        'in/deep/c.heic',
        'in/deep/d.tiff',
        'in/.hidden.jpg',
        'in/.git/e.jpg',
        'in/f.txt',
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def test_files_go_into_the_folder_and_folders_keep_theirs():
    assert plan(['a.jpg', 'in'], out=Path('out')) == [
        Job('a.jpg', 'out/a.jpg'),
        Job('in/b.PNG', 'out/b.PNG'),
        Job('in/deep/c.heic', 'out/deep/c.png'),
        Job('in/deep/d.tiff', 'out/deep/d.tiff'),
    ]


def test_results_lie_beside_without_a_folder():
    assert plan(['a.jpg', Path('in')]) == [
        Job('a.jpg', 'a_restored.jpg'),
        Job('in/b.PNG', 'in/b_restored.PNG'),
        Job('in/deep/c.heic', 'in/deep/c_restored.png'),
        Job('in/deep/d.tiff', 'in/deep/d_restored.tiff'),
    ]
    Path('a_restored.jpg').touch()
    assert [job.source for job in plan(['.'])] == ['a.jpg', 'in/b.PNG', 'in/deep/c.heic', 'in/deep/d.tiff']
    assert plan(['a_restored.jpg']) == [Job('a_restored.jpg', 'a_restored_restored.jpg')]


def test_format_is_the_users_and_a_fitting_ending_stays():
    assert [job.target for job in plan(['in'], out=Path('out'), format='tiff')] == [
        'out/b.tif', 'out/deep/c.tif', 'out/deep/d.tiff'
    ]  # fmt: skip
    for called, ending in (('jpg', '.jpg'), ('TIF', '.tif'), ('jpeg', '.jpg')):
        assert plan(['in/b.PNG'], out=Path('out'), format=called) == [Job('in/b.PNG', f'out/b{ending}')]
    with pytest.raises(InputError, match="format 'gif' is not one of jpeg, png, tiff, webp, avif"):
        plan(['in'], format='gif')


def test_patterns_are_expanded_unless_a_file_is_called_so():
    assert [job.source for job in plan(['in/**/*.[ht]*'], out=Path('out'))] == [
        'in/deep/c.heic', 'in/deep/d.tiff'
    ]  # fmt: skip
    assert plan(['in/*/*.tiff', 'i*/deep', 'in/deep/d.tiff'], out=Path('out')) == [
        Job('in/deep/d.tiff', 'out/deep/d.tiff'), Job('in/deep/c.heic', 'out/in/deep/c.png')
    ]  # fmt: skip
    assert plan(['a.jpg', 'in/../a.jpg', Path('a.jpg').absolute()], out=Path('out')) == [Job('a.jpg', 'out/a.jpg')]
    assert plan(['in', 'in/../in'], out=Path('out')) == plan(['in'], out=Path('out'))
    assert plan(['in/deep/*.tiff'], out=Path('in')) == [Job('in/deep/d.tiff', 'in/d.tiff')], 'a folder above is no bar'
    with pytest.raises(InputError, match='an empty name was given'):
        plan([''], out=Path('out'))
    Path('[a].jpg').touch()
    assert [job.source for job in plan(['[a].jpg'], out=Path('out'))] == ['[a].jpg']


def test_patterns_below_a_folder_with_brackets():
    Path('Trip [2019]/d[e]ep').mkdir(parents=True)
    for name in ('Trip [2019]/1.jpg', 'Trip [2019]/d[e]ep/2.jpg'):
        Path(name).touch()
    assert plan(['Trip [2019]/*.jpg'], out=Path('out')) == [Job('Trip [2019]/1.jpg', 'out/1.jpg')]
    assert plan([Path('Trip [2019]/**/*.jpg').absolute()], out=Path('out'))[1].target == 'out/d[e]ep/2.jpg'
    assert plan(['T* [[]2019]/d*/*'], out=Path('out'))[0].target == 'out/Trip [2019]/d[e]ep/2.jpg'


def test_a_pattern_walks_nothing_but_folders():
    """A file or a broken link may match what stands before `**`."""
    Path('in/broken.jpg').symlink_to('nowhere')
    assert plan(['in/*/**/*.tiff'], out=Path('out')) == [Job('in/deep/d.tiff', 'out/deep/d.tiff')]
    with pytest.raises(InputError, match='no such photograph or folder'):
        plan(['a.jpg/**'])


def test_a_pattern_does_not_follow_links_round():
    Path('in/here').symlink_to('.')
    Path('in/above').symlink_to('..')
    for number in range(30):
        Path(f'in/deep/l{number}').symlink_to('.')
    assert [job.source for job in plan(['in/**/*.[jhPt]*', '**/**/b.PNG'])] == [
        'in/b.PNG', 'in/deep/c.heic', 'in/deep/d.tiff'
    ]  # fmt: skip
    assert [job.source for job in plan(['in/deep/**', 'in/.h*'])] == [
        'in/deep/c.heic', 'in/deep/d.tiff', 'in/.hidden.jpg'
    ]  # fmt: skip


def test_pictures_of_an_earlier_comparison_are_no_photographs():
    """A photograph with such a name, as converters give it, stays a photograph."""
    odd, long = 'in/Zoë & "海".JPG', f'in/{"x" * 250}.jpg'
    shown = [pictures_of(Path('look'), 'in/b.PNG')[0], pictures_of(Path('look'), long)[0]]
    shown.append(pictures_of(Path('in/look'), odd)[1])
    earlier = pictures_of(Path('look'), 'in/gone.png')[0]
    for name in (*map(str, shown), str(earlier), 'look/IMG_1.HEIC.jpg', 'in/e.jpg.jpg'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert len(plan(['.'], out=Path('out'))) == 10
    write_page(Path('look'), ['in/gone.png', long])
    write_page(Path('look'), ['in/b.PNG', 'in/gone.jpg'])
    write_page(Path('look'), ['in/b.PNG'])
    write_page(Path('in/look'), [odd])
    write_page(Path('in'), [])
    expected = ['a.jpg', 'in/b.PNG', 'in/e.jpg.jpg', 'in/deep/c.heic', 'in/deep/d.tiff', 'look/IMG_1.HEIC.jpg']
    assert [job.source for job in plan(['.'], out=Path('out'))] == expected
    assert [job.source for job in plan(['**/*.j*'], out=Path('out'))] == ['a.jpg', 'in/e.jpg.jpg', expected[-1]]


def test_a_pattern_can_be_restored_again():
    for name in ('a_restored.jpg', 'out/a.jpg'):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert plan(['*.jpg']) == [Job('a.jpg', 'a_restored.jpg')]
    assert plan(['**/*.jpg'], out=Path('out')) == [
        Job('a.jpg', 'out/a.jpg'), Job('a_restored.jpg', 'out/a_restored.jpg')
    ]  # fmt: skip
    Path('look').mkdir()
    Path('look/a.jpg.jpg').touch()
    for pattern in ('*', '**'):
        found = {source for source, _ in plan([pattern], out=Path('out'), compare=Path('look'))}
        assert 'a.jpg' in found and not any(source.startswith(('out', 'look')) for source in found)
    with pytest.raises(InputError, match=r'\*_restored\.jpg: no such photograph'):
        plan(['*_restored.jpg'])


def test_results_and_comparisons_in_a_folder_are_no_photographs():
    for name in ('in/out/old.png', 'in/look/b.PNG.jpg'):
        Path(name).parent.mkdir()
        Path(name).touch()
    jobs = plan(['in'], out=Path('in/out'), compare=Path('in/look'))
    assert [job.source for job in jobs] == ['in/b.PNG', 'in/deep/c.heic', 'in/deep/d.tiff']


def test_folders_of_results_are_known_in_other_letters(case_is_ignored):
    for name in ('in/out/old.png', 'in/look/b.PNG.jpg'):
        Path(name).parent.mkdir()
        Path(name).touch()
    for photos in (['in'], ['in/*'], ['in/**'], ['in/**/*'], ['in/b.PNG', 'in/deep', 'in/out', 'in/look']):
        for out, compare in (('IN/OUT', 'IN/Look'), ('in/Out', 'in/LOOK')):
            jobs = plan(photos, out=Path(out), compare=Path(compare), skip_existing=True)
            assert {job.source for job in jobs} == {'in/b.PNG', 'in/deep/c.heic', 'in/deep/d.tiff'}


def test_listed_photographs_keep_their_whole_path_and_are_not_looked_at(tmp_path):
    jobs = plan(listed=['x/1.jpg', '/data/y/1.jpg', '../z/1.jpg', './x/2.jpg'], out=Path('out'))
    above = str(tmp_path.parent / 'z').lstrip('/')
    assert [job.target for job in jobs] == [
        'out/x/1.jpg', 'out/data/y/1.jpg', f'out/{above}/1.jpg', 'out/x/2.jpg'
    ]  # fmt: skip


def test_lists_are_of_any_encoding(monkeypatch):
    content = 'Zoë 海.jpg\r\n\n  two words.png \n'.encode() + b'latin\xe9.jpg'
    expected = ['Zoë 海.jpg', '  two words.png ', os.fsdecode(b'latin\xe9.jpg')]
    Path('list').write_bytes(content)
    assert list(read_list('list')) == expected
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(content)))
    assert list(read_list('-')) == expected
    Path('list').write_bytes(codecs.BOM_UTF8 + content)
    assert list(read_list('list')) == expected
    with pytest.raises(InputError, match='several processes cannot share one standard input'):
        list(read_list('-', alone=False))
    Path('list').write_bytes(b'a.jpg\0b.jpg\0')
    with pytest.raises(InputError, match='list: the list has a zero byte in it'):
        list(read_list('list'))
    with pytest.raises(InputError, match='nowhere: the list cannot be read'):
        list(read_list('nowhere'))


def test_results_that_a_shell_names_are_passed_over_where_nothing_is_overwritten():
    Path('a_restored.jpg').touch()
    assert plan(['a.jpg', 'a_restored.jpg'], skip_existing=True) == [Job('a.jpg', 'a_restored.jpg')]
    assert len(plan(['a.jpg', 'a_restored.jpg'], out=Path('out'), skip_existing=True)) == 2
    Path('out').mkdir()
    Path('out/a.jpg').touch()
    with pytest.raises(InputError, match='would overwrite the photograph out/a.jpg; .* choose another -o'):
        plan(['a.jpg', 'out/a.jpg'], out=Path('out'), skip_existing=True)


def test_pictures_of_before_and_after_overwrite_nothing_that_lies_among_the_photographs():
    Path('in/b.PNG.jpg').touch()
    taken = r'in/b\.PNG: its picture of before and after would overwrite b\.PNG\.jpg, which may be a photograph'
    os.chdir('in')
    with pytest.raises(InputError, match=taken.replace('in/', '') + '; choose another --compare'):
        plan(['b.PNG'], out=Path('../out'), compare=Path())
    with pytest.raises(InputError, match=taken.replace('in/', '')):
        plan(['b.PNG'], out=Path('../out'), compare=Path(), skip_existing=True)
    Path('../out').mkdir()
    Path('../out/b.PNG').touch()
    assert plan(['b.PNG'], out=Path('../out'), compare=Path(), skip_existing=True), 'which nothing is made of'
    write_page(Path(), [])
    with pytest.raises(InputError, match=taken.replace('in/', '')):
        plan(['b.PNG'], out=Path('../other'), compare=Path())
    write_page(Path(), ['b.PNG'])
    assert plan(['b.PNG'], out=Path('../other'), compare=Path()), 'an earlier run made the picture'


def test_folder_that_cannot_be_entered_is_told_of_its_photographs_alone(monkeypatch):
    """Mocked, because tests may run as root, who can enter every folder."""

    def is_dir(path, is_dir=Path.is_dir):
        if 'deep' in path.parts:
            raise PermissionError(13, 'Permission denied', str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, 'is_dir', is_dir)
    assert [job.source for job in plan(['in/deep/c.heic', 'a.jpg'], out=Path('out'))] == ['in/deep/c.heic', 'a.jpg']


def test_closed_standard_input_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, 'stdin', None)
    with pytest.raises(InputError, match='standard input is closed; give --list a file'):
        list(read_list('-'))


@pytest.mark.parametrize(('out', 'compare'), [('out', '.'), ('look', 'look')])
def test_pictures_of_before_and_after_overwrite_no_photograph_and_no_result(out, compare):
    Path('a.jpg.jpg').touch()
    assert len(plan(['a.jpg', 'a.jpg.jpg'], out=Path('out'), compare=Path('look'))) == 2
    with pytest.raises(
        InputError, match=r'a\.jpg: its picture of before and after would overwrite .*/a\.jpg\.jpg; choose'
    ):
        plan(['a.jpg', 'a.jpg.jpg'], out=Path(out), compare=Path(compare))
    with pytest.raises(InputError, match=r'a\.jpg\.jpg: is not a folder; choose another --compare'):
        plan(['a.jpg'], out=Path('out'), compare=Path('a.jpg.jpg'))
    Path('index.html').write_text('mine')
    with pytest.raises(InputError, match='index.html'):
        plan(['a.jpg'], out=Path('out'), compare=Path())


def test_inputs_and_results_are_never_overwritten():
    with pytest.raises(InputError, match='its result would overwrite the photograph in/b.PNG; leave that one out'):
        plan(['in/b.PNG'], out=Path('in'))
    Path('link').symlink_to('in')
    with pytest.raises(InputError, match='would overwrite the photograph'):
        plan(['in'], out=Path('link'))
    Path('copies').mkdir()
    Path('copies/b.PNG').hardlink_to('in/b.PNG')
    assert plan(['in/b.PNG'], out=Path('copies')), 'a result takes the name, the other name keeps the photograph'
    Path('a_restored.jpg').touch()
    with pytest.raises(InputError, match='would overwrite the photograph a_restored.jpg'):
        plan(['a.jpg', 'a_restored.jpg'])
    with pytest.raises(InputError, match='; leave that one out, or add --skip-existing$'):
        plan(['a.jpg', 'a_restored.jpg'])
    Path('a.png').touch()
    with pytest.raises(InputError, match=r'a\.png and a\.jpg: both results would be out/a\.png; rename one, or give'):
        plan(['a.jpg', 'a.png'], out=Path('out'), format='png')


def test_a_folder_is_known_under_another_name_that_is_no_link(monkeypatch):
    """Such as a bind mount's, or one in other letters where the file system takes them for the same."""
    shutil.copytree('in', 'mounted')
    Path('b.PNG').touch()
    stat = os.stat
    monkeypatch.setattr(os, 'stat', lambda path, **options: stat(str(path).replace('mounted', 'in'), **options))
    for photos in (['in/b.PNG'], ['in'], ['b.PNG', 'in']):
        with pytest.raises(InputError, match='its result would overwrite the photograph mounted/b.PNG'):
            plan(photos, out=Path('mounted'))
    for taken in ('in/b.jpg', 'mounted/b.jpg'):
        Path(taken).touch()
    with pytest.raises(InputError, match='its result would overwrite mounted/b.jpg, which may be a photograph'):
        plan(['in/b.PNG'], out=Path('mounted'), format='jpeg')


def test_a_name_in_other_letters_is_one_where_the_disk_takes_it_for_the_same(case_is_ignored):
    for name in ('IMG_1.jpg', 'IMG_1_Restored.JPG', 'day/img_1.JPG', 'b.jpg', 'b.jpg.jpg'):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path('empty').mkdir()
    for photos in (['IMG_1.jpg', 'IMG_1_Restored.JPG'], ['.']):
        with pytest.raises(InputError, match=r'IMG_1\.jpg: its result would overwrite .* IMG_1_restored\.jpg; leave'):
            plan(photos)
    assert plan(['IMG_1.jpg', 'IMG_1_Restored.JPG'], skip_existing=True) == [('IMG_1.jpg', 'IMG_1_restored.jpg')]
    for out in ('out', 'out/new', 'empty'):
        with pytest.raises(InputError, match=rf'img_1\.JPG and IMG_1\.jpg: both results would be {out}/img_1\.JPG'):
            plan(['IMG_1.jpg', 'day/img_1.JPG'], out=Path(out))
    with pytest.raises(InputError, match=r'both results would be out/DAY/img_1\.jpg'):
        plan(listed=['day/IMG_1.jpg', 'DAY/img_1.jpg'], out=Path('out'))
    with pytest.raises(InputError, match=r'B\.jpg: its picture of before and after would overwrite .*/B\.jpg\.jpg; ch'):
        plan(['B.jpg', 'b.jpg.jpg'], out=Path('out'), compare=Path())
    assert not Path('out').exists() and not [*Path('empty').iterdir()]


def test_names_in_other_letters_differ_where_the_disk_keeps_them_apart():
    Path('empty').mkdir()
    for name in ('img_1.jpg', 'IMG_1.jpg', 'IMG_1_Restored.JPG'):
        Path(name).touch()
    for out in (None, Path('new'), Path('empty')):
        assert len(plan(['img_1.jpg', 'IMG_1.jpg', 'IMG_1_Restored.JPG'], out=out)) == 3


def test_all_clashes_are_told_at_once():
    Path('cards').mkdir()
    for number in range(23):
        for ending in ('jpg', 'png'):
            Path(f'cards/{number:02}.{ending}').touch()
    with pytest.raises(InputError) as caught:
        plan(['cards'], out=Path('out'), format='png')
    lines = str(caught.value).splitlines()
    clash = 'cards/{0}.png and cards/{0}.jpg: both results would be out/{0}.png; rename one, or give each another -o'
    assert lines == [*(clash.format(f'{number:02}') for number in range(20)), 'and 3 more']
    with pytest.raises(InputError) as caught:
        plan(['cards/00.png', 'cards/01.png'], out=Path('cards'), format='jpg')
    assert len(str(caught.value).splitlines()) == 2


def test_what_nobody_named_may_be_a_photograph_too():
    for name in ('in/IMG_1.tif', 'in/IMG_1.jpg', 'in/sub/IMG_1.jpg'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    with pytest.raises(
        InputError, match=r'in/IMG_1.tif: its result would overwrite in/IMG_1.jpg, which may be a photo'
    ):
        plan(['in/IMG_1.tif'], out=Path('in'), format='jpeg')
    with pytest.raises(InputError, match=r'in/sub/IMG_1.jpg: its result would overwrite in/IMG_1.jpg'):
        plan(['in/sub'], out=Path('in'))
    assert plan(['in/sub'], out=Path('in'), skip_existing=True) == [('in/sub/IMG_1.jpg', 'in/IMG_1.jpg')]
    (Path('in/out')).mkdir()
    (Path('in/out/IMG_1.tif')).touch()
    assert len(plan(['in/IMG_1.tif'], out=Path('in/out'))) == 1, 'an earlier result, in a folder for results'


def test_links_that_lead_nowhere_are_told_when_they_are_read():
    Path('gone.jpg').symlink_to('nowhere')
    Path('loop.jpg').symlink_to('loop.jpg')
    for name in ('gone.jpg', 'loop.jpg'):
        assert plan([name])[0].source == name
        with pytest.raises(InputError, match=f'^{name}: '):
            read_photo(name)
    assert {'gone.jpg', 'loop.jpg'} <= {job.source for job in plan(['*.jpg'])}


@pytest.fixture
def unreadable(monkeypatch):
    for name in ('in/shut.1/b.jpg', 'in/shut.2/b.jpg', 'in/z/c.jpg'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name.startswith('shut'):
            raise PermissionError(13, 'Permission denied', path)
        return scandir(path)

    monkeypatch.setattr('os.scandir', refuse)


def test_folders_that_cannot_be_read_are_told_and_the_others_planned(unreadable):
    for entries in (['in'], ['in/*'], ['in', 'in/*'], ['in/shut.1', 'in/shut.1', 'in/shut.2', 'in/z']):
        told = []
        assert plan(entries, out=Path('out'), unreadable=told)[-1].source == 'in/z/c.jpg'
        assert told == [f'in/shut.{number}: cannot be read (Permission denied)' for number in (1, 2)]


def test_folder_that_cannot_be_read_is_no_empty_one(unreadable):
    for entries, options in ((['in'], {}), (['in/shut.1'], {'unreadable': []}), (['in/shut*'], {'unreadable': []})):
        with pytest.raises(InputError, match=r'in/shut.1: cannot be read \(Permission denied\)'):
            plan(entries, **options)


def test_what_holds_no_photographs_is_told_and_the_others_planned():
    Path('empty').mkdir()
    told = []
    assert len(plan(['a.jpg', 'empty', 'nowhere*', 'in', 'empty/'], out=Path('out'), unreadable=told)) == 4
    assert [line.partition(' (')[0] for line in told] == [
        'empty: no photographs in it', 'nowhere*: no such photograph or folder'
    ]  # fmt: skip
    with pytest.raises(InputError, match='^empty: no photographs in it .*\nnowhere: no such photograph or folder$'):
        plan(['empty', 'nowhere'], unreadable=[])


def test_nothing_to_restore_is_an_error():
    Path('empty').mkdir()
    with pytest.raises(InputError, match=r'nowhere\*: no such photograph or folder'):
        plan(['nowhere*'])
    with pytest.raises(InputError, match='empty: no photographs in it'):
        plan(['empty'])
    with pytest.raises(InputError, match='no photographs were given; name some'):
        plan()
    with pytest.raises(InputError, match='no photographs were given'):
        plan(listed=[])


def test_two_photographs_have_no_picture_in_common(tmp_path):
    """An absolute path without its root may equal another photograph's relative path."""
    inner = tmp_path.relative_to('/')
    (Path.cwd() / inner).mkdir(parents=True)
    for photo in (inner / 'x.jpg', tmp_path / 'x.jpg'):
        photo.touch()
    both = [inner / 'x.jpg', tmp_path / 'x.jpg']
    assert len(plan(both)) == 2
    with pytest.raises(
        InputError, match='its picture of before and after would overwrite .*; choose another --compare'
    ):
        plan(both, compare=Path('look'))


def test_neighbours_of_a_photograph_that_is_a_link_are_not_overwritten():
    Path('real/f').mkdir(parents=True)
    Path('real/f/b.png').touch()
    Path('links').mkdir()
    Path('links/a.png').symlink_to('../real/f/b.png')
    Path('links/f').symlink_to('../real/f')
    for name in ('a.jpg', 'b.jpg'):
        Path('links', name).touch()
    for photo in ('links/a.png', 'links/f'):
        with pytest.raises(InputError, match='its result would overwrite links/., which may be'.replace('.,', '.*,')):
            plan([photo], out=Path('links'), format='jpeg')
    Path('real/f/a.jpg').touch()
    with pytest.raises(InputError, match='its result would overwrite real/f/a.jpg, which may be a photograph'):
        plan(['links/a.png'], out=Path('real/f'), format='jpeg')


def test_results_that_a_shells_star_has_found_are_no_photographs():
    Path('in/out').mkdir()
    Path('in/out/b.PNG').touch()
    jobs = plan(['in/b.PNG', 'in/out'], out=Path('in/out'), skip_existing=True)
    assert jobs == [Job('in/b.PNG', 'in/out/b.PNG')]
    with pytest.raises(InputError, match='may be a photograph|would overwrite'):
        plan(['in/out'], out=Path('in/out'))
    Path('in/out/b.PNG').unlink()
    assert plan(['in/b.PNG', 'in/out'], out=Path('in/out')) == [Job('in/b.PNG', 'in/out/b.PNG')], 'an empty one'
    Path('in/look').mkdir()
    Path('in/look/a.jpg.jpg').touch()
    assert [job.source for job in plan(['in/b.PNG', 'in/look'], compare=Path('in/look'))] == ['in/b.PNG']
    assert plan(['in/look'], out=Path('new'), compare=Path('in/look')) == [Job('in/look/a.jpg.jpg', 'new/a.jpg.jpg')]


@pytest.mark.parametrize('line', ['.', '/'])
def test_list_may_name_what_is_no_photograph(line):
    """The output of `find .` begins with such a line. Only this line fails, when it is read."""
    assert [job.source for job in plan(listed=[line, 'a.jpg'])] == [line, 'a.jpg']


def test_folder_that_is_named_and_takes_the_results_is_not_overwritten():
    for folder in ('first', 'second'):
        Path(folder).mkdir()
        Path(folder, 'x.jpg').touch()
    with pytest.raises(InputError, match='would overwrite'):
        plan(['first', 'second'], out=Path('second'))
    os.chdir('second')
    assert plan(['../first/x.jpg'], out=Path()) == [Job('../first/x.jpg', 'x.jpg')], 'no neighbour of the photograph'


@pytest.mark.parametrize('option', ['out', 'compare'])
def test_a_photographs_name_is_no_folder_for_results(tmp_path, option):
    (tmp_path / 'a.jpg').touch()
    with pytest.raises(InputError, match=r'f\.JPG: takes the name of a folder, such as restored'):
        plan([tmp_path / 'a.jpg'], **{option: tmp_path / 'f.JPG'})
    (tmp_path / 'f.JPG').mkdir()
    assert plan([tmp_path / 'a.jpg'], **{option: tmp_path / 'f.JPG'})
