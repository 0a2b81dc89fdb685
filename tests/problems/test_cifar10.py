"""The reader of CIFAR-10, on thirty made-up images in each of its forms, whole and damaged."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import tarfile
import time
import tracemalloc
import zlib

import numpy as np
import pytest

from sdesam.problems import cifar10
from sdesam.problems.cifar10 import CLASSES, Images, load

RNG = np.random.default_rng(0)
COUNTS = {"train": 20, "test": 10}
PIXELS = RNG.integers(0, 256, (30, 32, 32, 3), np.uint8)
LABELS = np.tile(np.arange(10), 3)
NAMES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
PARTS = [*(slice(4 * k, 4 * k + 4) for k in range(5)), slice(20, 30)]


@pytest.fixture(autouse=True)
def _few_images(monkeypatch):
    monkeypatch.setattr(cifar10, "_IMAGES", COUNTS)


def rows(part):
    """As the batches have them: channel by channel."""
    return PIXELS[part].transpose(0, 3, 1, 2).reshape(-1, 3072)


def python_batches(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(NAMES, PARTS, strict=True):
        batch = {
            b"data": rows(part),
            b"labels": LABELS[part].tolist(),
            b"batch_label": b"a batch",
            **changes,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def binary_batches(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(NAMES, PARTS, strict=True):
        labelled = np.concatenate([LABELS[part].astype(np.uint8)[:, None], rows(part)], axis=1)
        (folder / f"{name}.bin").write_bytes(labelled.tobytes())
    return folder


def pictures(folder, suffix):
    """`train/<class>/NNNN.<suffix>`, of one class after the other, as people have them."""
    from PIL import Image

    for name, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
        for k, (pixels, label) in enumerate(zip(PIXELS[part], LABELS[part], strict=True)):
            place = folder / name / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{k // 10:04d}.{suffix}")
    return folder


def tarred(folder, target, mode):
    with tarfile.open(target, mode) as archive:
        archive.add(folder, arcname="./cifar")
    return target


def check(found):
    np.testing.assert_array_equal(found.train_images, PIXELS[:20])
    np.testing.assert_array_equal(found.test_images, PIXELS[20:])
    np.testing.assert_array_equal(found.train_labels, LABELS[:20])
    np.testing.assert_array_equal(found.test_labels, LABELS[20:])


def test_every_form(tmp_path):
    check(load(python_batches(tmp_path / "python" / "cifar-10-batches-py").parent))
    check(load(tarred(tmp_path / "python", tmp_path / "python.tar.gz", "w:gz")))
    check(load(binary_batches(tmp_path / "binary")))
    check(load(pictures(tmp_path / "pictures", "png")))


def test_jpeg_files_in_a_tar(tmp_path):
    from PIL import Image

    folder = pictures(tmp_path / "pictures", "jpg")
    found = load(tarred(folder, tmp_path / "pictures.tar.xz", "w:xz"))
    assert found.train_labels.tolist() == LABELS[:20].tolist(), "the first ones are of all classes"
    for images, labels, part in (
        (found.train_images, found.train_labels, "train"),
        (found.test_images, found.test_labels, "test"),
    ):
        for k, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            np.testing.assert_array_equal(
                pixels,
                np.asarray(Image.open(folder / part / CLASSES[label] / f"{k // 10:04d}.jpg")),
            )


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_runs_nothing(tmp_path):
    folder, mark = python_batches(tmp_path / "data"), tmp_path / "mark"
    evil = pickle.dumps({b"data": Evil(mark), b"labels": []}, protocol=2)
    (folder / "data_batch_3").write_bytes(evil)
    with pytest.raises(
        ValueError,
        match=(
            r"data_batch_3 cannot be read as a batch \(it asks for .*open, which no CIFAR-10 batch"
            r" needs: not opened\)"
        ),
    ):
        load(folder)
    assert not mark.exists()
    pickle.loads(evil)[b"data"].close()
    assert mark.exists(), "the control: it does run when it is opened as pickles are"


def cut(folder, name, share=0.5):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    return folder


def without(folder, name):
    (folder / name).unlink()
    return folder


def cifar_100(folder):
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(b"")
    return folder


def of_another_class(folder):
    (folder / "train" / "cat").rename(folder / "train" / "zebra")
    return folder


def a_small_picture(folder):
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (28, 28)).save(content, "png")
    (folder / "test" / "cat" / "0000.png").write_bytes(content.getvalue())
    return folder


def a_file(place, content):
    place.write_bytes(content)
    return place


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none", "no CIFAR-10 at '.*none': there is no such file or folder"),
        (
            lambda p: p,
            (
                "there are 0 files, but neither data_batch_1 nor train/<class>/.*; the first are:"
                " nothing"
            ),
        ),
        (
            lambda p: a_file(p / "notes.txt", b"hello"),
            "'.*notes.txt' is no tar file, or it is cut short",
        ),
        (lambda p: a_file(p / "a", b"x").parent, "there are 1 files, .* the first are: a"),
        (
            lambda p: (
                cut(tarred(python_batches(p / "x"), p / "x.tar.gz", "w:gz").parent, "x.tar.gz")
                / "x.tar.gz"
            ),
            "x.tar.gz' is no tar file, or it",
        ),
        (lambda p: without(python_batches(p / "x"), "data_batch_4"), "data_batch_4 is missing"),
        (
            lambda p: without(
                without(binary_batches(p / "x"), "test_batch.bin"), "data_batch_1.bin"
            ),
            "data_batch_1.bin, test_batch.bin are missing",
        ),
        (
            lambda p: cut(python_batches(p / "x"), "test_batch"),
            "test_batch cannot be read as a batch .* it may be cut short",
        ),
        (
            lambda p: cut(binary_batches(p / "x"), "test_batch.bin", 0.55),
            "test_batch.bin cannot be read as a batch .* no whole number of rows",
        ),
        (
            lambda p: cut(binary_batches(p / "x"), "test_batch.bin"),
            "test_batch hold 5 images and 5 labels: there should be 10",
        ),
        (
            lambda p: python_batches(p / "x", **{"labels": [99] * 4, "fine_labels": []}),
            "labels run from",
        ),
        (
            lambda p: python_batches(p / "x", **{"data": np.zeros((4, 784), np.uint8)}),
            r"data is no uint8 array of shape \(n, 3072\)",
        ),
        (lambda p: cifar_100(p / "x"), "this is CIFAR-100, another data set"),
        (
            lambda p: of_another_class(pictures(p / "x", "png")),
            "train/zebra is no class of CIFAR-10",
        ),
        (
            lambda p: without(pictures(p / "x", "png"), "train/dog/0000.png"),
            "train/dog holds 1 pictures: there should be 2",
        ),
        (
            lambda p: a_small_picture(pictures(p / "x", "png")),
            "test/cat/0000.png has 28x28 pixels: CIFAR-10 has 32x32",
        ),
        (
            lambda p: cut(pictures(p / "x", "png"), "test/cat/0000.png"),
            "test/cat/0000.png is no JPEG or PNG picture, or it is cut short",
        ),
    ],
)
def test_what_is_not_the_data_set(make, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as found:
        load(make(tmp_path))
    assert "get cifar-10-python.tar.gz from https://www.cs.toronto.edu" in str(found.value)
    assert "\n" not in str(found.value)


def named(name):
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def pickled(*steps):
    return b"\x80\x02" + b"".join(steps) + b"."


def number(value):
    return b"J" + value.to_bytes(4, "little", signed=True)


def text(value):
    return b"U" + bytes([len(value)]) + value


def array(
    dtype=b"u1",
    kind="numpy.ndarray",
    start=(0,),
    shape=(4, 3072),
    content=bytes(4 * 3072),
    state=None,
):
    """As numpy pickles one, with something else in one place."""
    begun = (
        named("numpy.core.multiarray._reconstruct")
        + named(kind)
        + b"("
        + b"".join(map(number, start))
        + b"t"
        + text(b"b")
        + b"\x87R"
    )
    made = (
        named("numpy.dtype")
        + text(dtype)
        + number(0)
        + number(1)
        + b"\x87R("
        + number(3)
        + text(b"|")
        + b"NNN"
        + number(-1) * 2
        + number(0)
        + b"tb"
    )
    filled = (
        b"("
        + number(1)
        + b"("
        + b"".join(map(number, shape))
        + b"t"
        + made
        + b"\x89"
        + (b"T" + len(content).to_bytes(4, "little") + content)
        + b"tb"
    )
    return begun + (filled if state is None else state)


def batch(data):
    return pickled(
        b"}(",
        text(b"data"),
        data,
        text(b"labels"),
        b"](",
        number(0),
        number(1),
        number(2),
        number(3),
        b"eu",
    )


HUGE = 2**31 - 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # an array that is a view of any place in memory: shape, dtype, buffer, offset
        (
            batch(named("numpy.ndarray") + b"(" + number(8) + b"t" + text(b"O") + b"\x86R"),
            "not callable",
        ),
        (batch(named("numpy.ndarray") + b")\x81"), "the instruction NEWOBJ"),
        (batch(array(dtype=b"O")), "it asks for the dtype b'O', where pixels are bytes"),
        (batch(array(dtype=b"O8")), "it asks for the dtype b'O8'"),
        (batch(array(dtype=b"f8")), "it asks for the dtype b'f8'"),
        (batch(array(dtype=b"V3")), "it asks for the dtype b'V3'"),
        (batch(array(dtype=b"i1")), "it asks for the dtype b'i1'"),
        (batch(array(kind="numpy.dtype")), "an array that does not begin empty"),
        (batch(array(start=(HUGE,))), "an array that does not begin empty"),
        (batch(array(start=())), "an array that does not begin empty"),
        (batch(array(shape=(HUGE, HUGE))), "an array that has not as many bytes as its shape says"),
        (batch(array(shape=(4, 3073))), "an array that has not as many bytes as its shape says"),
        (batch(array(shape=(-4, -3072))), "an array that has not as many bytes as its shape says"),
        (batch(array(shape=(3072, 4))), "data is no uint8 array of shape"),
        (batch(array(state=b"}b")), "not enough values|unpack"),
        (batch(array(state=b"(N}tb")), "unpack"),
        (batch(array(state=b"")), "data is no uint8 array of shape"),
        # attributes of what is handed out
        (batch(named("_codecs.encode") + b"}(" + text(b"__defaults__") + b"Nub"), "attribute"),
        (
            batch(named("numpy.core.multiarray._reconstruct") + b"N}(" + text(b"x") + b"Nu\x86b"),
            "attribute",
        ),
        (
            batch(named("_codecs.encode") + text(b"abc") + text(b"rot13") + b"\x86R"),
            "bytes that are not pickled as latin1",
        ),
        (
            batch(named("_codecs.encode") + b"X\x01\0\0\0a" + b"X\x05\0\0\0rot13" + b"\x86R"),
            "bytes that are not pickled as latin1",
        ),
        # other names
        *(
            (batch(named(name) + b")R"), f"it asks for {name}, which no CIFAR-10 batch needs")
            for name in (
                "os.system",
                "builtins.eval",
                "builtins.getattr",
                "numpy.frombuffer",
                "numpy.load",
                "numpy.memmap",
                "numpy.core.multiarray.scalar",
                "numpy.core.multiarray.fromfile",
                "numpy.lib.format.open_memmap",
                "numpy.ndarray.__new__",
                "copyreg._reconstructor",
                "_codecs.decode",
            )
        ),
        # instructions
        (pickled(b"(ios\nsystem\n"), "the instruction INST"),
        (pickled(b"\x82\x01"), "the instruction EXT1"),
        (pickled(b"U\x01aQ"), "the instruction BINPERSID"),
        (pickled(b"Pabc\n"), "the instruction PERSID"),
        (
            b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b".",
            "expected 8589934592 bytes|the instruction BYTEARRAY8",
        ),
        (b"\x80\x05\x97.", "the instruction NEXT_BUFFER"),
        # a place in the memo asks for all places before it
        (pickled(b"Nr" + HUGE.to_bytes(4, "little")), "the instruction LONG_BINPUT 2147483647"),
        (pickled(b"Np2147483647\n"), "the instruction PUT 2147483647"),
        (pickled(b"}" * 80_000), "more than 20000 instructions"),
        (pickled(b"(" * 8_000 + b"l" * 8_000), "it holds a list, not a dictionary"),
        (pickled(b"I" + b"9" * 5000 + b"\n"), "cannot be read as a batch"),
        (pickled(b"N"), "it holds a NoneType, not a dictionary"),
        (b"", "pickle exhausted"),
        (batch(text(b"pixels")), "data is no uint8 array of shape"),
        (
            pickled(
                b"}(",
                text(b"data"),
                array(),
                text(b"labels"),
                b"](",
                number(-1),
                number(1),
                number(2),
                number(3),
                b"eu",
            ),
            "labels is no list of whole",
        ),
        (
            pickled(
                b"}(",
                text(b"data"),
                array(),
                text(b"labels"),
                b"](",
                b"\x8a\x28" + b"\x7f" * 40,
                b"eu",
            ),
            "labels is no list of whole",
        ),
        (
            pickled(b"}(", text(b"data"), array(), text(b"labels"), named("numpy.dtype"), b"u"),
            "labels is no list of whole",
        ),
        (pickled(b"}(", text(b"\xff"), b"Nu"), "codec can't decode"),
    ],
)
def test_hostile_pickles(content, message, tmp_path, monkeypatch):
    """Nothing is called, nothing large is made, one sentence says why."""
    monkeypatch.setattr("sdesam.problems._pickled._MOST_OPCODES", 20_000)
    folder = python_batches(tmp_path / "data")
    (folder / "data_batch_2").write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    memory = tracemalloc_peak(lambda: refused(folder, message))
    assert memory < 60e6
    assert sorted(tmp_path.rglob("*")) == before


def refused(place, message):
    with pytest.raises(ValueError, match=message) as found:
        load(place)
    assert "\n" not in str(found.value)
    assert "get cifar-10-python.tar.gz from" in str(found.value)


def tracemalloc_peak(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_pickles_of_every_protocol(tmp_path):
    """Also as Python 2 wrote them, and in columns."""
    for protocol in (0, 1, 2, 3, 4):
        folder = python_batches(tmp_path / f"{protocol}")
        for name, part in zip(NAMES, PARTS, strict=True):
            pixels = np.asfortranarray(rows(part)) if protocol % 2 else rows(part)
            (folder / name).write_bytes(
                pickle.dumps(
                    {"data": pixels, "labels": LABELS[part].tolist(), "filenames": ["a.png"] * 4},
                    protocol=protocol,
                )
            )
        check(load(folder))
    assert batch(array()) != pickle.dumps({}), "the hostile ones are changes of"
    (tmp_path / "2" / "data_batch_2").write_bytes(batch(array()))
    found = load(tmp_path / "2")
    assert not found.train_images[4:8].any()
    assert found.train_labels[4:8].tolist() == [0, 1, 2, 3]


def member(name, content=b"", **changes):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def tar_of(target, *members, mode="w"):
    with tarfile.open(target, mode) as archive:
        for name in NAMES:
            archive.add(target.parent / "good" / name, arcname=name)
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return target


def sparse(name, size):
    """A few bytes that say that they are many: a GNU sparse file."""
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[257:265] = b"ustar  \0"
    block[483:495] = b"\x80" + size.to_bytes(11, "big")  # its real size
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def test_tars_that_hold_what_they_should_not(tmp_path):
    python_batches(tmp_path / "good")
    target = tmp_path / "x.tar"
    check(load(tar_of(target, member("cifar/readme", b"hello"))))
    for name in ("../../x", "/etc/x", "a/../../x", ".."):
        refused(tar_of(target, member(name, b"x")), "lies outside of it")
    for kind, word in (
        (tarfile.SYMTYPE, "link"),
        (tarfile.LNKTYPE, "link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.FIFOTYPE, "link or a device"),
    ):
        refused(
            tar_of(target, member("data_batch_9", type=kind, linkname="/etc/passwd")),
            f"'data_batch_9' is no file and no folder, but .*{word}",
        )
    assert sorted(place.name for place in tmp_path.iterdir()) == ["good", "x.tar"]


def test_archives_that_expand(tmp_path):
    """Sizes are known before contents are read: little memory and little time, whatever they
    say.
    """
    python_batches(tmp_path / "good")
    target, begun = tmp_path / "x.tar", time.monotonic()
    most = 4 * 30 * 3073 + 2**24

    def check_bounds(place, message):
        assert tracemalloc_peak(lambda: refused(place, message)) < 60e6

    # 512 bytes that stand for gigabytes, as a batch and as something else
    for name in ("data_batch_1", "other"):
        target.write_bytes(sparse(name, 3 * 10**9) + bytes(10240))
        check_bounds(
            target,
            f"'{name}' it has 1 files and 3000000512 bytes, and at most {most} bytes are expected",
        )
    # one that fits into the whole and is too long for a batch
    python_batches(tmp_path / "long")
    (tmp_path / "long" / "data_batch_4").write_bytes(bytes(10**6))
    check_bounds(
        tarred(tmp_path / "long", tmp_path / "long.tar", "w"),
        "data_batch_4 has 1000000 bytes, and at most 94208 are expected",
    )
    # megabytes that become gigabytes: a member, many members, a header, what comes after the end
    for opened, suffix in ((gzip.open, "gz"), (bz2.open, "bz2"), (lzma.open, "xz")):
        place = tmp_path / f"x.tar.{suffix}"
        with opened(place, "wb") as file:
            file.write(member("other", bytes(10**6), size=10**10)[0].tobuf())
            file.write(bytes(10**6))
        check_bounds(place, r"'other' it has 1 files and 1000000\d{4} bytes")
        with opened(place, "wb") as file:
            for _ in range(20):
                file.write(member("other", size=10**6)[0].tobuf() + bytes(10**6 // 512 * 512 + 512))
        check_bounds(place, "'other' it has 18 files")
        with opened(place, "wb") as file:
            file.write(
                member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=3 * 10**6)[0].tobuf()
                + bytes(3 * 10**6)
            )
        check_bounds(
            place,
            "is no tar file, or it is cut short .it has .* bytes where at most 1048576 are"
            " expected",
        )
        with opened(place, "wb") as file:
            file.write(member("other")[0].tobuf() + bytes(2 * most))
        check_bounds(place, f"it has .* bytes where at most {most} are expected")
    with tarfile.open(target, "w") as archive:
        for k in range(1200):
            archive.addfile(tarfile.TarInfo(f"{k}"))
    check_bounds(target, "'1120' it has 1121 files")
    assert time.monotonic() - begun < 30


def test_damage_in_a_compressed_tar_is_noticed(tmp_path):
    """Wherever a bit is flipped: in the checksum at its end at the latest."""
    python_batches(tmp_path / "good")
    content = tar_of(tmp_path / "x.tar.gz", mode="w:gz").read_bytes()
    for k in range(200, len(content) - 4, len(content) // 25):
        flipped = bytearray(content)
        flipped[k] ^= 16
        refused(
            a_file(tmp_path / "y.tar.gz", bytes(flipped)),
            "no tar file|missing|cut short|is not the whole",
        )
    for length in range(0, len(content), len(content) // 15):
        refused(
            a_file(tmp_path / "y.tar.gz", content[:length]),
            "no tar file|missing|cut short|is not the whole",
        )


def test_files_that_are_too_long_or_none(tmp_path):
    folder = binary_batches(tmp_path / "data")
    for name, size in (("data_batch_3.bin", 4 * 3073 + 1), ("data_batch_3.bin", 5 * 10**9)):
        with open(folder / name, "r+b") as file:
            file.truncate(size)  # sparse
        assert (
            tracemalloc_peak(
                lambda size=size: refused(
                    folder, f"data_batch_3.bin has {size} bytes, and at most 12292 are expected"
                )
            )
            < 20e6
        )
    (folder / "data_batch_3.bin").unlink()
    os.mkfifo(folder / "data_batch_3.bin")
    refused(folder, "data_batch_3.bin is missing")
    refused(folder / "data_batch_3.bin", "it is neither a file nor a folder")
    refused("/dev/zero", "it is neither a file nor a folder")
    many = tmp_path / "many"
    many.mkdir()
    for k in range(1121):
        (many / f"{k}").touch()
    refused(many, "it holds more than 1120 files")
    batches = python_batches(tmp_path / "python")
    with open(batches / "test_batch", "r+b") as file:
        file.truncate(5 * 10**9)
    refused(batches, "test_batch has 5000000000 bytes, and at most")


def picture(mode, size=(32, 32), form="png", **options):
    from PIL import Image

    content = io.BytesIO()
    Image.new(mode, size).save(content, form, **options)
    return content.getvalue()


def png(width, height, depth, kind, data):
    """A picture by hand, whatever it says of its sizes."""

    def chunk(name, content):
        return (
            len(content).to_bytes(4, "big")
            + name
            + content
            + zlib.crc32(name + content).to_bytes(4, "big")
        )

    sizes = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    head = chunk(b"IHDR", sizes + bytes([depth, kind, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


GREY, COLOUR = 0, 2


def flipped_png():
    content = bytearray(picture("RGB"))
    content[content.index(b"IDAT") + 12] ^= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: png(12_000, 12_000, 8, COLOUR, b""), "has 12000x12000 pixels: CIFAR-10 has 32x32"),
        (lambda: picture("RGB", (31, 33)), "has 31x33 pixels"),
        (lambda: png(30_000, 30_000, 8, GREY, b""), "has far more pixels than CIFAR-10's 32x32"),
        *(
            (
                lambda form=form: picture("RGB", form=form),
                "is no JPEG or PNG picture, or it is cut short",
            )
            for form in ("gif", "bmp", "tiff", "webp", "ppm")
        ),
        (
            lambda: png(32, 32, 16, GREY, bytes(32 * 65)),
            "has no 8 bits of red, green and blue, but pixels of the kind",
        ),
        (
            lambda: png(32, 32, 16, COLOUR, bytes(32 * 193)),
            "has no 8 bits of red, green and blue, but pixels of the kind",
        ),
        (
            lambda: picture("CMYK", form="jpeg"),
            "has no 8 bits of red, green and blue, but pixels of the kind CMYK",
        ),
        (lambda: picture("RGBA"), "is transparent, so that its pixels have no colour of their own"),
        (lambda: picture("LA"), "is transparent, so that its pixels have no colour of their own"),
        (flipped_png, "is no JPEG or PNG picture, or it is cut short"),
        (lambda: picture("RGB")[:-20], "is no JPEG or PNG picture, or it is cut short"),
        (
            lambda: picture("RGB", form="jpeg")[:400],
            "is no JPEG or PNG picture, or it is cut short",
        ),
        (lambda: b"", "is no JPEG or PNG picture, or it is cut short"),
        (lambda: b"<svg/>" * 30, "is no JPEG or PNG picture, or it is cut short"),
        (lambda: picture("RGB") + bytes(200_000), "has 2.* bytes, and at most 131072 are expected"),
    ],
)
def test_pictures_that_are_no_pictures_of_it(make, message, tmp_path):
    folder = pictures(tmp_path / "x", "png")
    (folder / "test" / "cat" / "0000.png").write_bytes(make())
    assert tracemalloc_peak(lambda: refused(folder, f"test/cat/0000.png {message}")) < 60e6


def test_pictures_of_other_kinds_that_say_the_same(tmp_path):
    """Grey, palette, opaque: the same pixels."""
    from PIL import Image

    folder = pictures(tmp_path / "x", "png")
    grey = Image.fromarray(PIXELS[0, :, :, 0])
    for name, changed in (
        ("L", grey),
        ("RGBA", grey.convert("RGBA")),
        ("LA", grey.convert("LA")),
        ("P", grey.convert("RGB").quantize(256)),
    ):
        changed.save(folder / "test" / "cat" / "0000.png")
        found = load(folder).test_images[3]
        np.testing.assert_array_equal(found, np.asarray(changed.convert("RGB")))
        if name != "P":
            np.testing.assert_array_equal(found, np.repeat(PIXELS[0, :, :, :1], 3, axis=2))


def test_arrays_of_another_kind():
    right = [PIXELS[:20], LABELS[:20], PIXELS[20:], LABELS[20:]]
    assert repr(Images(*right).subset(7)) == "Images(7 to train, 10 to test)"
    for place, wrong, message in (
        (0, PIXELS[:20] / 255, r"train_images is float64\[20, 32, 32, 3\]: it must be uint8"),
        (1, LABELS[:19], "a whole number for each of 20 images"),
        (2, PIXELS[20:, :16], r"test_images have shape \[16, 32, 3\], train_images \[32, 32, 3\]"),
        (3, LABELS[20:] + 1, "test_labels run from 1 to 10: they must be from 0 to 9"),
    ):
        with pytest.raises(ValueError, match=message):
            Images(*right[:place], wrong, *right[place + 1 :])
    with pytest.raises(ValueError, match="train=21: there are 20 images"):
        Images(*right).subset(21)
