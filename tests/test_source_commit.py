import subprocess

from wrcan_arch import source_commit


def test_commit_of_a_changed_checkout_is_marked(tmp_path, monkeypatch):
    def git(*arguments):
        command = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    module, deeper = tmp_path / 'package/a.py', tmp_path / 'venv/package/a.py'
    result = tmp_path / 'benchmarks/results/a.json'
    for each in (module, deeper, result):
        each.parent.mkdir(parents=True)
        each.touch()
    monkeypatch.setattr(source_commit, '__file__', str(module))
    git('init')
    git('commit', '--allow-empty', '-m', 'first')
    assert source_commit.source_commit.__wrapped__() is None, 'it is not of that checkout'
    git('add', '.')
    git('commit', '-m', 'second')
    git('tag', '-a', 'v1', '-m', 'a tag')
    (tmp_path / 'new.py').touch()
    result.write_text('measured')
    commit = git('rev-parse', 'HEAD')
    assert source_commit.source_commit.__wrapped__() == commit
    module.write_text('changed')
    assert source_commit.source_commit.__wrapped__() == f'{commit}-dirty'
    monkeypatch.setenv('GIT_TEST_ASSUME_DIFFERENT_OWNER', '1')  # as if the checkout were another user's
    assert source_commit.source_commit.__wrapped__() == f'{commit}-dirty'
    monkeypatch.setattr(source_commit, '__file__', str(deeper))
    assert source_commit.source_commit.__wrapped__() is None, "its filters may run a stranger's programs"
