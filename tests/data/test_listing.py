import os
from pathlib import Path

import pytest
from helpers.photographs import CLUTTER

from lightconv.data.listing import Entry, assign_splits, list_class_folders, read_table
from lightconv.errors import InputError, InputWarning

SHARES = {"test": 0.15, "validation": 0.15}


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def entries(count, label="a", start=0):
    return [Entry(f"{label}/{i}.jpg", Path(f"{label}/{i}.jpg"), label) for i in range(start, start + count)]


def named(files, splits):
    return {split: {files[position].name for position in positions} for split, positions in splits.items()}


def write_table(tmp_path, text):
    (tmp_path / "labels.csv").write_text(text)
    return tmp_path / "labels.csv"


def test_class_folders_without_clutter(tmp_path):
    touch(tmp_path, "b/1.jpg", "b/deep/er/2.jpg", "b/notes.txt", "a/1.jpg", "README.txt", ".git/config", "__MACOSX/b/1")
    touch(tmp_path, *(f"b/{name}" for name in CLUTTER), "b/.thumbnails/1.jpg")
    classes, files = list_class_folders(tmp_path)
    assert classes == ["a", "b"]
    assert [(entry.name, entry.label, entry.split) for entry in files] == [
        ("a/1.jpg", "a", "train"),
        ("b/1.jpg", "b", "train"),
        ("b/notes.txt", "b", "train"),
        ("b/deep/er/2.jpg", "b", "train"),
    ]


def test_links_in_a_circle(tmp_path):
    touch(tmp_path, "elsewhere/1.jpg", "set/b/2.jpg")
    (tmp_path / "set/a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/b/up").symlink_to(tmp_path / "set/b")
    assert [entry.name for entry in list_class_folders(tmp_path / "set")[1]] == ["a/1.jpg", "b/2.jpg"]


CLUTTERED = ["lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information", ".ipynb_checkpoints", "#recycle"]


@pytest.mark.parametrize("name", CLUTTERED)
def test_folders_of_systems_are_no_classes(tmp_path, name):
    touch(tmp_path, "a/1.jpg", "b/2.jpg", f"{name}/a/1.jpg", f"b/{name}/3.jpg")
    classes, files = list_class_folders(tmp_path)
    assert classes == ["a", "b"]
    assert [entry.name for entry in files] == ["a/1.jpg", "b/2.jpg"]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("TrainingSet", "TestSet"),
        ("trainset", "testset"),
        ("train-images", "test-images"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("asl_alphabet_train/asl_alphabet_train", "asl_alphabet_test/asl_alphabet_test"),
        ("train/train", "test/test"),
        ("train/images", "test/images"),
        ("archive/data/train", "archive/data/test"),
        ("photos/train", "photos/test"),
        ("train2017", "test2017"),
        ("Training Set", "Test Set"),
    ],
)
def test_published_layouts(tmp_path, train, test):
    touch(tmp_path, f"{train}/cat/1.jpg", f"{train}/dog/2.jpg", f"{test}/cat/3.jpg", "README.md", "__MACOSX/x/1")
    classes, files = list_class_folders(tmp_path)
    assert classes == ["cat", "dog"]
    assert [(entry.name, entry.label, entry.split) for entry in sorted(files, key=lambda entry: entry.path.name)] == [
        (f"{train}/cat/1.jpg", "cat", "train"),
        (f"{train}/dog/2.jpg", "dog", "train"),
        (f"{test}/cat/3.jpg", "cat", "test"),
    ]


def test_splits_within_classes(tmp_path):
    touch(tmp_path, "cat/train/1.jpg", "cat/test/2.jpg", "dog/Train/3.jpg", "dog/Val/4.jpg", "cow/5.jpg")
    classes, files = list_class_folders(tmp_path)
    assert classes == ["cat", "cow", "dog"]
    found = {entry.path.name[0]: (entry.label, entry.split) for entry in files}
    assert found == {
        "1": ("cat", "train"), "2": ("cat", "test"), "3": ("dog", "train"), "4": ("dog", "validation"),
        "5": ("cow", "train"),
    }  # fmt: skip


def test_files_beside_the_splits_of_a_class(tmp_path):
    touch(tmp_path, "cat/train/1.jpg", "cat/test/2.jpg", "cat/3.jpg", "dog/4.jpg")
    with pytest.warns(InputWarning, match="cat has 1 files beside its splits, such as 3.jpg: they are not used"):
        assert len(list_class_folders(tmp_path)[1]) == 3


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("seg_pred/seg_pred/1.jpg", "seg_pred lies beside the splits seg_test, seg_train: its images are not used"),
        ("notes/1.txt", "notes lies beside"),
    ],
)
def test_folder_without_labels_beside_splits(tmp_path, other, words):
    touch(tmp_path, "seg_train/cat/1.jpg", "seg_test/cat/2.jpg", other)
    with pytest.warns(InputWarning, match=words):
        assert list_class_folders(tmp_path)[0] == ["cat"]


def test_test_folder_without_labels(tmp_path):
    touch(tmp_path, "train/cat/1.jpg", "test/2.jpg")
    with pytest.warns(InputWarning, match="test has no sub-folders with the names of classes: its images are not used"):
        assert [entry.split for entry in list_class_folders(tmp_path)[1]] == ["train"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/cat/1.jpg", "test/cat/2.jpg", "bus/deep/3.jpg"], "bus, which is none"),
        (["cat/1.jpg", "dog/2.jpg", "Test/cat/3.jpg"], r"Test looks like a split: .* \(cat\)"),
        (["train/cat/1.jpg", "holdout/cat/2.jpg"], r"train looks like a split: .* \(cat\)"),
        (["a_train/cat/1.jpg", "b_test/cat/2.jpg"], r"a_train looks like a split: .* \(cat\)"),
        (["cat/train/good/1.jpg", "cat/test/good/2.jpg", "cat/ground_truth/bad/3.jpg"], "ground_truth, which is none"),
    ],
)
def test_folders_that_could_be_splits_or_classes(tmp_path, files, words):
    touch(tmp_path, *files)
    with pytest.raises(InputError, match=words):
        list_class_folders(tmp_path)


@pytest.mark.parametrize("files", [["pets/cat/1.jpg", "pets/dog/1.jpg"], ["train/cat/1.jpg", "train/dog/1.jpg", "x/1"]])
def test_class_that_looks_like_a_set(tmp_path, files):
    touch(tmp_path, *files)
    with pytest.warns(InputWarning, match="counts as one class; if its folders cat, dog are the classes"):
        list_class_folders(tmp_path)


@pytest.mark.parametrize(
    "names", [["valid", "invalid"], ["train", "bus"], ["eval", "cat"], ["0", "1"], ["test tube", "train station"]]
)
def test_classes_named_like_splits(tmp_path, names):
    touch(tmp_path, *(f"{name}/1.jpg" for name in names))
    assert list_class_folders(tmp_path)[0] == sorted(names)


def test_links_to_a_folder_around(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/images").symlink_to(tmp_path)
    assert list_class_folders(tmp_path)[0] == ["images"]


def test_folder_that_cannot_be_read(tmp_path, monkeypatch):
    touch(tmp_path, "cat/1.jpg", "dog/deep/1.jpg")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"dog/deep cannot be read \(Permission denied\)"):
        list_class_folders(tmp_path)


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev", "VALIDATION", "val_set"])
def test_split_folders(tmp_path, validation):
    touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", f"{validation}/a/3.jpg", "test/b/4.jpg")
    classes, files = list_class_folders(tmp_path)
    assert classes == ["a", "b"]
    assert {(e.label, e.split) for e in files} == {("a", "train"), ("b", "train"), ("a", "validation"), ("b", "test")}


def test_class_named_like_a_split(tmp_path):
    touch(tmp_path, "train/1.jpg", "bus/2.jpg")
    assert list_class_folders(tmp_path)[0] == ["bus", "train"]


@pytest.mark.parametrize(
    ("files", "words"), [([], "is no folder"), (["1.jpg"], "no sub-folders"), (["train/1.jpg"], "in")]
)
def test_folder_without_classes(tmp_path, files, words):
    touch(tmp_path / "set", *files) if files else None
    with pytest.raises(InputError, match=words):
        list_class_folders(tmp_path / "set")


def test_table_of_files_labels_and_splits(tmp_path):
    file = write_table(tmp_path, f'\ufeffpath,label,split\n1.jpg,b,train\n{tmp_path}/2.jpg, a,val\n"x,y.jpg",a,test\n')
    classes, files = read_table(file, None)
    assert classes == ["a", "b"]
    assert [(e.path, e.label, e.split) for e in files] == [
        (tmp_path / "1.jpg", "b", "train"),
        (tmp_path / "2.jpg", "a", "validation"),
        (tmp_path / "x,y.jpg", "a", "test"),
    ]
    assert read_table(file, tmp_path / "photographs")[1][0].path == tmp_path / "photographs/1.jpg"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns none"),
        ("file,label\n1.jpg,a\n", "columns 'file', 'label': it needs path, label"),
        ("path,label,spilt\n1.jpg,a,test\n", "'spilt'"),
        ("path;label\n1.jpg;a\n", "'path;label'"),
        ("path,label\n", "lists no files"),
        ("path,label\n1.jpg,\n", "line 2: fill exactly 2 cells"),
        ("path,label\n1.jpg,a\n2.jpg,a,b\n", "line 3: fill exactly 2 cells"),
        ("path,label\n1.jpg\n", "line 2: fill exactly 2 cells"),
        ("path,label\n1.jpg,a\nx/../1.jpg,b\n", "line 3: x/../1.jpg is in line 2 already"),
        ("path,label,split\n1.jpg,a,tset\n", "line 2: unknown split 'tset': choose train, val or test"),
        ('path,label\n"1.jpg,a\n', "cannot be read as a CSV"),
    ],
)
def test_mistakes_in_a_table(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        read_table(write_table(tmp_path, text), None)


def test_unreadable_table(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path / "missing.csv", None)
    (tmp_path / "labels.csv").write_bytes("path,label\nö.jpg,a\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        read_table(tmp_path / "labels.csv", None)


def test_table_that_is_no_text_or_no_file(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\n" + "x" * 10**6)
    with pytest.raises(InputError, match="16,384 characters or more"):
        read_table(tmp_path / "labels.csv", None)
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("pipe.csv", "."):
        with pytest.raises(InputError, match="is not a regular file"):
            read_table(tmp_path / name, None)


def test_splits_are_stratified_and_disjoint():
    files = entries(100) + entries(40, "b") + entries(3, "c")
    splits = assign_splits(files, SHARES, 0)
    assert sorted(position for positions in splits.values() for position in positions) == list(range(143))
    counts = {
        split: [[files[p].label for p in positions].count(c) for c in "abc"] for split, positions in splits.items()
    }
    assert counts == {"train": [70, 28, 1], "validation": [15, 6, 1], "test": [15, 6, 1]}


def test_splits_depend_on_names_and_seed():
    files = entries(100)
    expected = named(files, assign_splits(files, SHARES, 0))
    assert named(files[::-1], assign_splits(files[::-1], SHARES, 0)) == expected
    assert named(files, assign_splits(files, SHARES, 1)) != expected


@pytest.mark.parametrize("gone", [0, 17, 50, 99])
def test_removed_file_moves_one_file_per_border(gone):
    files = entries(100)
    fewer = files[:gone] + files[gone + 1 :]
    with_it, without = named(files, assign_splits(files, SHARES, 0)), named(fewer, assign_splits(fewer, SHARES, 0))
    for split, names in without.items():
        assert len(names - with_it[split]) <= 1
    assert not without["test"] & with_it["train"]
    assert not without["train"] & with_it["test"]


def test_existing_splits_stay():
    files = [*entries(20), Entry("t.jpg", Path("t.jpg"), "a", "test")]
    splits = assign_splits(files, {"validation": 0.2}, 0)
    assert splits["test"] == [20]
    assert len(splits["validation"]) == 4
    assert len(splits["train"]) == 16


def test_name_that_is_no_text(tmp_path):
    (tmp_path / "a").mkdir()
    with open(os.fsencode(tmp_path) + b"/a/\xff.jpg", "wb"):
        pass
    (entry,) = list_class_folders(tmp_path)[1]
    assert sum(map(len, assign_splits([entry], SHARES, 0).values())) == 1
