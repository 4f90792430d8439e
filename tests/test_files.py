import pytest

from lightconv.files import remove_leftovers, replacing, write_text


def test_text_is_replaced(tmp_path):
    target = tmp_path / "file"
    write_text(target, "old")
    write_text(target, "new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_readers_see_the_old_content_until_the_block_ends(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with replacing(target) as fresh:
        fresh.write_text("new")
        assert fresh.parent == tmp_path
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_error_leaves_the_target_unchanged(tmp_path, error):
    target = tmp_path / "file"
    target.write_text("old")

    def write_half():
        with replacing(target) as fresh:
            fresh.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_other_files_stay(tmp_path):
    names = [".[a].x.new", ".a.x.new", ".[a].b"]
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "[a]")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "written", "text")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_error_names_the_target(tmp_path):
    with pytest.raises(FileNotFoundError, match="/gone/file"):
        write_text(tmp_path / "gone/file", "text")
