"""Files written whole or not at all, under names of our own; npz files read within bounds;
provenance.
"""

import errno
import io
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from sdesam._util import files as _files
from sdesam._util import store

ROOT = Path(store.__file__).parent.parent
FOREIGN = (
    ".a.json.swp",
    ".a.json.ab12cd",
    ".a.json~",
    ".a.json.sdesam-partial~",
    "..a.json.sdesam-partial",
    ".b.json.sdesam-partial",
)


def write(path, content=b"new"):
    store.write_atomically(path, lambda file: file.write(content))


def names(folder):
    return sorted(place.name for place in folder.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    store.write_json(target, {"x": np.float32(1.5), "nan": float("nan"), "list": np.arange(3)})
    assert json.loads(target.read_text()) == {"x": 1.5, "nan": None, "list": [0, 1, 2]}

    def fail(file):
        file.write(b"half")
        raise OSError("no space left on device")

    with pytest.raises(
        OSError,
        match=r"a.json' cannot be written: no space left on device; the one before it is intact",
    ):
        store.write_atomically(target, fail)
    assert json.loads(target.read_text())["x"] == 1.5
    with pytest.raises(OSError, match=r"b.json' cannot be written: no space left on device$"):
        store.write_atomically(tmp_path / "b.json", fail)
    with pytest.raises(KeyboardInterrupt):
        store.write_atomically(target, lambda file: (_ for _ in ()).throw(KeyboardInterrupt))
    assert names(tmp_path) == ["a.json"]


def test_foreign_files_stay(tmp_path):
    """Swap files, another run's half-written files, a folder: whatever their names, and whatever
    pattern the target's name makes.
    """
    for name in FOREIGN:
        (tmp_path / name).write_text("not yours")
    (tmp_path / ".folder.sdesam-partial").mkdir()
    (tmp_path / ".link.sdesam-partial").symlink_to(FOREIGN[0])
    before = names(tmp_path)
    for name in ("a.json", "[ab].json", "*", "folder", "link"):
        store.check_target(tmp_path / name)
        assert names(tmp_path) == before
    for name in ("a.json", "[ab].json", "*", "folder", "link"):
        write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"new"
    assert names(tmp_path) == sorted([*before, "a.json", "[ab].json", "*", "folder", "link"])
    assert all((tmp_path / name).read_text() == "not yours" for name in FOREIGN)


_KILLED = """
import os, signal, sys
from sdesam._util import store
def write(file):
    file.write(b"half")
    file._file.flush()
    print("writing", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
store.write_atomically(sys.argv[1], write)
"""


def test_what_a_killed_write_left_goes(tmp_path):
    """At the next check of the same file, or the next write of it; not while its writer lives."""
    target = tmp_path / "a.npz"

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(target), how],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "writing\n"
        return process

    for clean in (store.check_target, write):
        killed = start("die")
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        assert names(tmp_path) == [".a.npz.sdesam-partial"]
        store.check_target(tmp_path / "b.npz")
        assert names(tmp_path) == [".a.npz.sdesam-partial"], "another file's"
        clean(target)
        assert names(tmp_path) == ([] if clean is store.check_target else ["a.npz"])
    living = start("live")
    store.check_target(target)
    write(target, b"other")
    assert names(tmp_path) == [".a.npz.sdesam-partial", "a.npz"]
    assert (tmp_path / ".a.npz.sdesam-partial").read_bytes() == b"half"
    assert target.read_bytes() == b"other"
    living.communicate()
    assert living.returncode == 0
    assert target.read_bytes() == b"half", "the last one wins"
    assert names(tmp_path) == ["a.npz"]


def test_many_writers_of_one_file(tmp_path):
    """Each writes in pieces; whatever the order, the file is one of theirs, whole, and nothing is
    left.
    """
    contents = [bytes([65 + k]) * 1000 for k in range(8)]

    def work(content):
        for _ in range(30):
            store.write_atomically(
                tmp_path / "a",
                lambda file: [file.write(content[j : j + 100]) for j in range(0, 1000, 100)],
            )
            assert (tmp_path / "a").read_bytes() in contents

    failed = []
    threads = [
        threading.Thread(target=lambda c=c: failed.append(1) if work(c) else None) for c in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() in contents


def refused(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    "call",
    [
        "os.chmod",
        "os.fchmod",
        "os.umask",
        "os.fsync",
        "os.replace",
        "os.rename",
        "filelock.lock_descriptor",
    ],
)
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_what_a_file_system_does_not_do_loses_no_result(call, number, tmp_path, monkeypatch):
    """CIFS, buckets: no permissions, no sync, no rename, no locks."""
    import filelock

    module, name = call.split(".")
    write(tmp_path / "old", b"before")
    monkeypatch.setattr({"os": os, "filelock": filelock}[module], name, refused(number))
    for target in ("new", "old", "old"):
        store.check_target(tmp_path / target)
        write(tmp_path / target)
    monkeypatch.undo()
    assert (tmp_path / "new").read_bytes() == (tmp_path / "old").read_bytes() == b"new"
    assert names(tmp_path) == ["new", "old"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_is_heard(call, number, tmp_path, monkeypatch):
    write(tmp_path / "old", b"before")
    monkeypatch.setattr(os, call, refused(number))
    with pytest.raises(OSError, match=r"old' cannot be written: .*; the one before it is intact"):
        write(tmp_path / "old")
    monkeypatch.undo()
    assert (tmp_path / "old").read_bytes() == b"before"
    assert names(tmp_path) == ["old"]


def test_permissions_are_those_of_any_file(tmp_path):
    for umask in (0o022, 0o077, 0o002):
        before = os.umask(umask)
        try:
            write(tmp_path / f"{umask}")
            (tmp_path / ".again.sdesam-partial").touch(mode=0o600)
            write(tmp_path / "again")
        finally:
            os.umask(before)
        for name in (f"{umask}", "again"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_the_umask_is_never_changed(tmp_path, monkeypatch):
    """It is of the whole process: other threads' files would come out with it."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("it was called"))
    write(tmp_path / "a")
    store.check_target(tmp_path / "a")


def test_links_are_followed(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a").write_bytes(b"old")
    (tmp_path / "link").symlink_to("far/a")
    (tmp_path / "again").symlink_to(tmp_path / "link")
    (tmp_path / "new").symlink_to("far/not there/b")
    for name, there in (("link", "far/a"), ("again", "far/a"), ("new", "far/not there/b")):
        store.check_target(tmp_path / name)
        write(tmp_path / name, name.encode())
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / there).read_bytes() == name.encode()
        assert not (tmp_path / there).is_symlink()
    assert names(tmp_path / "far") == ["a", "not there"]
    (tmp_path / "loop").symlink_to("loop")
    for use in (store.check_target, write):
        with pytest.raises(
            OSError, match="loop' cannot be written: Too many levels of symbolic links"
        ):
            use(tmp_path / "loop")


def test_pipes_and_devices_are_written_into(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    store.check_target(pipe)  # waits for no reader
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
        reader.start()
        store.write_arrays(tmp_path / name, {"a": np.arange(5.0)}, {"b": 1})
        reader.join(30)
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        with np.load(io.BytesIO(found[-1])) as archive:
            np.testing.assert_array_equal(archive["a"], np.arange(5.0))
    (tmp_path / "device").symlink_to("/dev/null")
    before = os.stat("/dev/null")
    for target in ("/dev/null", tmp_path / "device"):
        store.check_target(target)
        store.write_json(target, {})
    assert os.stat("/dev/null").st_ino == before.st_ino
    with pytest.raises(OSError, match="/dev/full' cannot be written: No space left on device"):
        write("/dev/full")
    assert names(tmp_path) == ["device", "link", "pipe"]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="socket' cannot be written: it takes no data"):
            store.check_target(tmp_path / "socket")


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_by_its_name(path, tmp_path):
    """Into a pipe or a file, what was written before and after stays."""
    code = (
        "import sys; from sdesam._util import store; print('before', flush=True);"
        " store.check_target(sys.argv[1])\n"
    )
    code += "store.write_json(sys.argv[1], 7); print('after')"
    for use in (subprocess.PIPE, open(tmp_path / "out", "wb")):  # noqa: SIM115
        out = subprocess.run(
            [sys.executable, "-c", code, path], cwd=ROOT, stdout=use, check=True
        ).stdout
        assert (out or (tmp_path / "out").read_bytes()) == b"before\n7\nafter\n"
        if use != subprocess.PIPE:
            use.close()


def test_a_pipe_without_a_reader_is_told_as_such(tmp_path):
    read, out = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        write(f"/dev/fd/{out}")
    os.close(out)


@pytest.mark.parametrize("length", [1, 100, 101, 245, 246, 254, 255])
def test_names_of_any_length(length, tmp_path):
    name = "\N{GREEK SMALL LETTER ALPHA}" * (length // 2) + "n" * (length % 2)
    assert len(os.fsencode(name)) == length
    store.check_target(tmp_path / name)
    assert names(tmp_path) == []
    write(tmp_path / name)
    write(tmp_path / name, b"again")
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"again"
    with store.lock(tmp_path / name, "busy") as held:
        assert held
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the file has an empty name"),
        ("n" * 256, "cannot be written: File name too long"),
        ("a\0b", r"a\\x00b' has a character that no name of a file can have"),
        ("a\ud800", "has a character that no name of a file can have"),
        (".", "cannot be written: it is a folder"),
        ("..", "cannot be written: it is a folder"),
        ("folder", "folder' cannot be written: it is a folder"),
        ("no folder/", "no folder/' is the name of a folder: name a file in it"),
        ("file/a", "file/a' cannot be written: Not a directory"),
        ("file/a/b", "file/a/b' cannot be written: Not a directory"),
        ("/proc/a", "/proc/a' cannot be written: No such file or directory"),
        ("/proc/self/a", "/proc/self/a' cannot be written: it takes no data"),
        ("/sys/kernel/a", "/sys/kernel/a' cannot be written: "),
    ],
)
def test_bad_targets_are_known_before(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises((ValueError, OSError), match=message) as found:
        store.check_target(name)
    assert "\n" not in str(found.value)
    assert "[Errno" not in str(found.value)
    with pytest.raises((ValueError, OSError)):
        write(name)
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_target_is_checked_without_a_trace(tmp_path, monkeypatch):
    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "new", "a/b/c", "old"):
        store.check_target(tmp_path / name)
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"
    with pytest.raises(
        OSError, match=r"new' cannot be written: .* MB are free on its disk, 1e\+24 MB are needed"
    ):
        store.check_target(tmp_path / "new", 10**30)
    monkeypatch.setattr(os, "open", refused(errno.EACCES))
    with pytest.raises(OSError, match="new' cannot be written: Permission denied"):
        store.check_target(tmp_path / "new")


def test_a_full_disk(tmp_path):
    """By a limit on the size of files: a part of each file is written, then no more."""
    target, before = tmp_path / "a.npz", resource.getrlimit(resource.RLIMIT_FSIZE)
    store.write_arrays(target, {"a": np.ones(10)}, {})
    for most, use in (
        (2000, lambda: store.check_target(tmp_path / "b.npz")),
        (50_000, lambda: store.write_arrays(target, {"a": np.ones(10**5)}, {})),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            with pytest.raises(OSError, match="cannot be written: File too large"):
                use()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["a.npz"]
    np.testing.assert_array_equal(store.read_arrays(target)[0]["a"], np.ones(10))


def test_check_folder_creates_nothing(tmp_path):
    store.check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        store.check_folder(tmp_path / "file" / "b")
    with pytest.raises(ValueError, match="has a character that no name of a folder can have"):
        store.check_folder("a\0b")


def test_a_lock_is_held_by_one(tmp_path):
    with store.lock(tmp_path / "new" / "a", "busy") as held:
        assert held
        (tmp_path / "link").symlink_to("new/a")
        for path in (tmp_path / "new" / "a", tmp_path / "link"):
            with pytest.raises(ValueError, match=r"^busy$"), store.lock(path, "busy"):
                pass
        with store.lock(tmp_path / "b", "busy"):
            pass
    assert names(tmp_path) == ["link"], "an empty folder that was made for it goes too"
    (tmp_path / ".a.sdesam-lock").write_text("left by a killed process")
    with store.lock(tmp_path / "a", "busy") as held:
        assert held
    (tmp_path / ".a.sdesam-lock").mkdir()
    with store.lock(tmp_path / "a", "busy") as held:
        assert not held, "a folder in the way"
    assert names(tmp_path) == [".a.sdesam-lock", "link"]


DTYPES = [
    "?",
    "i1",
    "u2",
    "<i4",
    "i8",
    "f2",
    "f4",
    "f8",
    "c8",
    ">f4",
    "U3",
    "S2",
    *(name for name in store._MORE_DTYPES if "complex" not in name),
]


def test_every_dtype_comes_back(tmp_path):
    """Bit for bit, shapes without elements or without axes included; and numpy alone reads the
    file.
    """
    rng = np.random.default_rng(0)
    arrays = {}
    for k, name in enumerate(DTYPES):
        dtype = store._MORE_DTYPES.get(name) or np.dtype(name)
        for shape in ((), (0, 2), (3, 2)):
            arrays[f"{k}/{shape}"] = rng.integers(0, 2, shape).astype(dtype)
    arrays["fortran"] = np.asfortranarray(rng.normal(size=(3, 4)))
    arrays["strided"] = rng.normal(size=(6, 4))[::2, ::-1]
    arrays["file"], arrays["../../x"] = np.ones(2), np.ones(1)
    assert "bfloat16" in DTYPES
    store.write_arrays(tmp_path / "a.npz", arrays, {"b": [1, None, float("nan")]})
    back, meta = store.read_arrays(tmp_path / "a.npz")
    assert meta == {"b": [1, None, None]}
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["fortran"], arrays["fortran"])
        name = f"{DTYPES.index('bfloat16')}/(3, 2)"
        np.testing.assert_array_equal(archive[name].view(ml_dtypes.bfloat16), arrays[name])
    for bad in (np.array([{}]), np.zeros(2, [("a", "f4")])):
        with pytest.raises(
            TypeError,
            match=r"array 'bad' has dtype .*: numbers and text are stored, and no objects",
        ):
            store.write_arrays(tmp_path / "b.npz", {"bad": bad}, {})


def saved(tmp_path):
    store.write_arrays(
        tmp_path / "a.npz", {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(3)}, {"c": 1}
    )
    return tmp_path / "a.npz"


def test_every_flipped_bit_is_noticed_or_does_not_matter(tmp_path):
    good = saved(tmp_path)
    content, (arrays, meta) = good.read_bytes(), store.read_arrays(good)
    noticed = 0
    for k in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[k // 8] ^= 1 << (k % 8)
        try:
            archive = store.Archive(io.BytesIO(bytes(flipped)), "flipped")
            found = archive.read()
        except ValueError:
            noticed += 1
            continue
        assert archive.meta == meta
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
    assert noticed > 0.6 * len(content), "times, flags and the like do not matter"


def test_every_cut_is_noticed(tmp_path):
    content = saved(tmp_path).read_bytes()
    for length in range(0, len(content), 3):
        with pytest.raises(ValueError, match="is no sdesam result, or it is cut short or damaged"):
            store.Archive(io.BytesIO(content[:length]), "cut").read()


def tampered(place, change, compress=zipfile.ZIP_STORED):
    """The members of an archive, changed."""
    with zipfile.ZipFile(place) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(place, "w", compress) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def header(shape, dtype="<f8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def declare(members, name, dtype, shape):
    text = members["__meta__.npy"]
    start = text.index(b"{", 10 + text[8] + 256 * text[9])
    known = json.loads(text[start:])
    known["arrays"][name] = [dtype, shape]
    new = np.frombuffer(json.dumps(known).encode(), np.uint8)
    members["__meta__.npy"] = header(new.shape, "|u1") + new.tobytes()


def declared_and_huge(members):
    members["a.npy"] = header((10**9,)) + bytes(80)
    declare(members, "a", "<f8", [10**9])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("b.npy"), "its members are not those of its description"),
        (lambda m: m.update({"d.npy": m["b.npy"]}), "its members are not those of its description"),
        (lambda m: m.update({"a.npy": m["b.npy"]}), "array 'a' is not as its description says"),
        (lambda m: m.pop("__meta__.npy"), "it has no description"),
        (
            lambda m: m.update({"a.npy": header((10**9,)) + bytes(80)}),
            "array 'a' is no array of numbers, or has another size than it says",
        ),
        (declared_and_huge, "array 'a' is no array of numbers, or has another size than it says"),
        (
            lambda m: m.update({"a.npy": header((2, 3), "|O") + bytes(48)}),
            "array 'a' is no array of numbers",
        ),
        (
            lambda m: m.update({"a.npy": header((2, 3), [("x", "<f8")]) + bytes(48)}),
            "array 'a' is no array of numbers",
        ),
        (
            lambda m: m.update({"a.npy": header((-2, -3)) + bytes(48)}),
            "array 'a' is not as its description says",
        ),
        (lambda m: m.update({"a.npy": b"junk" * 30}), "magic"),
        (
            lambda m: m.update({"__meta__.npy": header((), "<U3") + bytes(12)}),
            "it has no description, or one of another version",
        ),
        (lambda m: m.update({"__meta__.npy": header((2,), "|u1") + b"[["}), "Expecting value"),
        (lambda m: m.update({"__meta__.npy": header((60000,), "|u1") + b"[" * 60000}), "recursion"),
        (lambda m: m.update({"__meta__.npy": header((4,), "|u1") + b"null"}), "not subscriptable"),
    ],
)
def test_archives_that_are_not_what_they_say(change, message, tmp_path):
    place = saved(tmp_path)
    tampered(place, change)
    with pytest.raises(
        ValueError, match="is no sdesam result, or it is cut short or damaged: "
    ) as found:
        store.read_arrays(place)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_nothing_expands(tmp_path):
    """A compressed array of zeros takes a thousandth on the disk: none is read, whatever the
    description says.
    """
    place = saved(tmp_path)

    def huge(members):
        members["a.npy"] = header((10**7,)) + bytes(8 * 10**7)
        declare(members, "a", "<f8", [10**7])

    tampered(place, huge, zipfile.ZIP_DEFLATED)
    assert place.stat().st_size < 10**5
    with pytest.raises(
        ValueError,
        match="its members are compressed, as another version of sdesam may have written them",
    ):
        store.read_arrays(place)
    np.savez(place, a=np.ones(3))
    with pytest.raises(ValueError, match="it has no description"):
        store.read_arrays(place)
    tampered(saved(tmp_path), lambda m: None)
    with zipfile.ZipFile(place, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a.npy", archive.read("a.npy"))
    with pytest.raises(ValueError, match="its members overlap"):
        store.read_arrays(place)


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link", ".", "/dev/zero"):
        for read in (store.read_arrays, store.read_json):
            with pytest.raises(ValueError, match="is no ordinary file"):
                read(tmp_path / name)
    for read in (store.read_arrays, store.read_json):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")


def test_json_is_read_within_bounds(tmp_path):
    store.write_json(tmp_path / "a", {"b": [1.5]})
    assert store.read_json(tmp_path / "a") == {"b": [1.5]}
    for content, message in (
        (b"{", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[" * 10**5, "is no JSON"),
        (b"", "is no JSON"),
    ):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            store.read_json(tmp_path / "a")
    with open(tmp_path / "a", "wb") as file:
        file.truncate(10**10)  # sparse
    with pytest.raises(ValueError, match="has more than 67108864 bytes"):
        store.read_json(tmp_path / "a")


def test_hidden_names_say_whose_they_are():
    assert _files._beside(Path("x/a.npz"), "lock") == Path("x/.a.npz.sdesam-lock")


def test_provenance_is_plain_data():
    found = store.provenance()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["jax"]
