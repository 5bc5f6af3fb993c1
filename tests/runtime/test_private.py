"""Caches that others may write are not read; nothing that is read is unpickled."""

import ast
import os
import pathlib

import numpy as np
import pytest

from experiments import main, train
from fljax.data import cache
from fljax.runtime import private

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "new" / "cache"
    private.make(made)
    return made


def test_a_folder_is_made_for_its_user_alone(folder):
    assert folder.stat().st_mode & 0o777 == 0o700
    assert private.objection(folder, folder.iterdir()) == ""


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_may_write_is_not_read(folder, mode):
    folder.chmod(mode)
    assert f"others may write to {folder} (mode {mode:o}" in private.objection(folder)


def test_a_file_that_others_may_write_is_not_read(folder):
    file = folder / "a"
    file.touch()
    file.chmod(0o666)
    assert not private.objection(folder, [file])  # nobody else gets there
    folder.chmod(0o755)
    assert f"may write to {file}" in private.objection(folder, [file, folder / "gone"])


@pytest.fixture
def give(monkeypatch):
    """Gives a folder to another user, or where this one may not, us to them."""

    def away(path):
        owner = path.lstat().st_uid
        if os.geteuid() == 0:
            os.lchown(path, STRANGER, -1)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    return away


STRANGER = 12345


def test_what_belongs_to_another_user_is_not_read(folder, give):
    give(folder)
    assert "belongs to another user (number" in private.objection(folder)


def test_what_belongs_to_root_is_read(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert private.objection(pathlib.Path("/usr")) == ""


def test_nobody_else_may_put_another_folder_in_its_place(folder, monkeypatch):
    above = folder.parent
    above.chmod(0o777)
    assert f"others may write to {above} (mode 777" in private.objection(folder)
    above.chmod(0o1777)  # as /tmp: only who owns a folder there renames it
    assert private.objection(folder) == ""
    above.chmod(0o775)
    for alone, why in ((True, ""), (False, f"others may write to {above} (mode 775")):
        monkeypatch.setattr(private, "_of_one", lambda _, alone=alone: alone)
        assert private.objection(folder).startswith(why)
        assert bool(private.objection(folder)) == bool(why)


def test_a_link_is_as_good_as_its_owner_and_what_leads_to_its_target(
    folder, give, tmp_path
):
    link = tmp_path / "link"
    link.symlink_to(folder.parent)
    assert private.objection(link / folder.name) == ""
    folder.parent.chmod(0o777)
    assert f"may write to {folder.parent}" in private.objection(link / folder.name)
    folder.parent.chmod(0o700)
    give(link)
    assert "belongs to another user" in private.objection(link / folder.name)


def test_a_command_line_goes_on_without_such_a_cache(call, folder, monkeypatch):
    folder.chmod(0o777)
    used = []
    monkeypatch.setattr(train, "_main", lambda: used.append(main.data_cache()))
    done = call(train, f"--compilation_cache={folder}", f"--data_cache={folder}")
    assert (done.code or 0, used) == (0, [""])
    lines = done.err.splitlines()
    for flag, line in zip(("compilation_cache", "data_cache"), lines, strict=True):
        assert line.startswith(f"note: --{flag} is not used: others may write to")


def test_a_cache_that_cannot_be_made_is_refused_where_it_is_asked_for(call, tmp_path):
    (tmp_path / "file").touch()
    done = call(train, f"--compilation_cache={tmp_path}/file/below")
    assert done.code == 2
    assert done.err.startswith("error: --compilation_cache: expected a folder of this")
    assert done.err.count("\n") == 1


def test_data_that_others_may_have_written_is_refused(folder):
    def make():
        return {"x": np.arange(3)}

    cache.keep(folder, {}, make)
    cache.keep(folder, {}, make)
    folder.chmod(0o777)
    with pytest.raises(ValueError, match="user's own, but others may write"):
        cache.keep(folder, {}, make)


def test_nothing_is_unpickled():
    loads = 0
    for path in sorted([*ROOT.glob("fljax/**/*.py"), *ROOT.glob("experiments/*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names}
                names.add(getattr(node, "module", None))
                assert not names & {"pickle", "shelve", "marshal", "dill", "joblib"}
                assert "serialize_executable" not in names
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
                loads += 1
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given["allow_pickle"] == "False", path
    assert loads
