import signal
import subprocess
import sys

import pytest

from lightconv.keyed_cache import CacheEntry

CONTENT = b"first line\nsecond" + bytes(1000)


@pytest.fixture
def entry(tmp_path):
    return CacheEntry(tmp_path / "cache" / "entry", key="the key")


@pytest.fixture
def stored(entry):
    with entry.lock():
        entry.write([CONTENT[:7], CONTENT[7:]], {"shape": [3, 4]})
    return entry


def start(code, path):
    """Start another Python process with ``path`` as its argument and a cache entry under the key "k"."""
    setup = "import os, sys, time; from lightconv.keyed_cache import CacheEntry\nentry = CacheEntry(sys.argv[1], 'k')\n"
    command = [sys.executable, "-c", setup + code, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", CONTENT])
def test_content_and_notes_survive(entry, content):
    with entry.lock():
        entry.write([content], {"shape": [3, 4], "text": "a\nb"})
    stored = entry.read()
    assert bytes(stored.content) == content
    assert stored.notes == {"shape": [3, 4], "text": "a\nb"}
    assert sorted(path.name for path in entry.path.parent.iterdir()) == ["entry", "entry.lock"]


def test_generator_fills_in_notes(entry):
    notes = {}

    def blocks():
        yield CONTENT
        notes["size"] = len(CONTENT)

    with entry.lock():
        entry.write(blocks(), notes)
    assert entry.read().notes == {"size": len(CONTENT)}


def test_missing_file(entry):
    assert entry.read() is None


def test_directory_in_place_of_the_file(entry):
    entry.path.mkdir(parents=True)
    assert entry.read() is None


def test_other_key(stored):
    other = CacheEntry(stored.path, key="another key")
    assert other.read() is None
    with other.lock():
        other.write([b"other"])
    assert bytes(other.read().content) == b"other"
    assert stored.read() is None


def test_every_truncation_is_detected(stored):
    whole = stored.path.read_bytes()
    for length in [*range(20), len(CONTENT), *range(len(whole) - 140, len(whole))]:
        stored.path.write_bytes(whole[:length])
        assert stored.read() is None, length


def test_every_flipped_bit_is_detected(stored):
    whole = stored.path.read_bytes()
    for position in [*range(30), *range(len(CONTENT) - 5, len(whole))]:
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            stored.path.write_bytes(damaged)
            assert stored.read() is None, (position, bit)


@pytest.mark.parametrize("content", [b"some text", b"x" * 64 + b"\n", b"\n" * 200])
def test_foreign_file(stored, content):
    stored.path.write_bytes(content)
    assert stored.read() is None


def test_appended_bytes_are_detected(stored):
    with stored.path.open("ab") as file:
        file.write(b"more")
    assert stored.read() is None


def test_writes_to_the_map_stay_private(stored):
    mapped = stored.read().content
    mapped[0] = 0
    assert bytes(stored.read().content) == CONTENT


def test_readers_keep_a_replaced_file(stored):
    mapped = stored.read().content
    with stored.lock():
        stored.write([b"new"])
    assert bytes(mapped) == CONTENT
    assert bytes(stored.read().content) == b"new"


def test_error_while_writing_keeps_the_old_file(stored):
    def blocks():
        yield b"half"
        raise OSError(28, "No space left on device")

    with stored.lock(), pytest.raises(OSError, match="No space left"):
        stored.write(blocks())
    assert bytes(stored.read().content) == CONTENT
    assert sorted(path.name for path in stored.path.parent.iterdir()) == ["entry", "entry.lock"]


def test_killed_writer_leaves_nothing_behind(entry):
    code = (
        "def blocks():\n"
        "    yield bytes(100)\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
        "with entry.lock(): entry.write(blocks())"
    )
    with start(code, entry.path) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert entry.read() is None
    assert len(list(entry.path.parent.glob(".entry.*.new"))) == 1
    bystander = entry.path.with_name(".entry2.abc.new")
    bystander.touch()
    with entry.lock():
        entry.write([CONTENT])
    assert bytes(entry.read().content) == CONTENT
    assert list(entry.path.parent.glob(".*.new")) == [bystander]


def test_second_process_waits_and_reads(entry):
    code = (
        "with entry.lock('waiting for the first process'):\n"
        "    print(bytes(CacheEntry(sys.argv[1], 'the key').read().content).decode(), flush=True)"
    )
    with entry.lock():
        process = start(code, entry.path)
        assert "waiting for the first process" in process.stderr.readline()
        assert process.poll() is None
        entry.write([b"computed once"])
    with process:
        assert process.stdout.read() == "computed once\n", process.stderr.read()
    assert process.returncode == 0


def test_lock_dies_with_its_process(entry):
    with start("entry.lock().__enter__(); os._exit(1)", entry.path) as process:
        assert process.wait(60) == 1
    with entry.lock():
        pass
