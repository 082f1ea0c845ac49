"""What a run records about the code that it ran."""

import subprocess

import pytest

from lfvit.runs import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    def git(*arguments):
        author = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "model.py").write_text("one = 1\ntwo = 2\n")
    (tmp_path / ".gitignore").write_text("outputs/\n")
    git("add", "-A")
    git("commit", "-m", "first")
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    provenance.commit.cache_clear()
    yield tmp_path
    provenance.commit.cache_clear()


def test_a_clean_checkout_has_no_changes(checkout):
    (checkout / "outputs").mkdir()
    (checkout / "outputs" / "x").write_text("ignored")
    assert provenance.uncommitted_changes() == b""
    clean = provenance.commit()
    assert not clean.endswith("+")
    (checkout / "model.py").write_text("one = 2\n")  # during a run
    assert provenance.commit() == clean


def test_the_recorded_changes_restore_the_code(checkout):
    changed = {"model.py": b"one = 1\ntwo = 3 # \xe9\n", "new selector.py": b"three = 3\n"}
    for name, content in changed.items():
        (checkout / name).write_bytes(content)
    assert provenance.commit().endswith("+")
    patch = provenance.uncommitted_changes()
    for command in (["checkout", "."], ["clean", "-fd"]):
        subprocess.run(["git", *command], cwd=checkout, check=True, capture_output=True)
    subprocess.run(["git", "apply"], input=patch, cwd=checkout, check=True)
    for name, content in changed.items():
        assert (checkout / name).read_bytes() == content
