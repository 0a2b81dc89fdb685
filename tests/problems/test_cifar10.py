"""The reader of CIFAR-10, on thirty made-up images in each of its forms, whole and damaged."""

import io
import pickle
import tarfile

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
        batch = {b"data": rows(part), b"labels": LABELS[part].tolist(), b"batch_label": b"a batch", **changes}
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
    for images, labels, part in ((found.train_images, found.train_labels, "train"), (found.test_images, found.test_labels, "test")):
        for k, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            np.testing.assert_array_equal(pixels, np.asarray(Image.open(folder / part / CLASSES[label] / f"{k // 10:04d}.jpg")))


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_runs_nothing(tmp_path):
    folder, mark = python_batches(tmp_path / "data"), tmp_path / "mark"
    evil = pickle.dumps({b"data": Evil(mark), b"labels": []}, protocol=2)
    (folder / "data_batch_3").write_bytes(evil)
    with pytest.raises(ValueError, match=r"data_batch_3 cannot be read as a batch \(it asks for .*open, which no CIFAR-10 batch needs: not opened\)"):
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
        (lambda p: p, "there are 0 files, but neither data_batch_1 nor train/<class>/.*; the first are: nothing"),
        (lambda p: a_file(p / "notes.txt", b"hello"), "'.*notes.txt' is no tar file, or it is cut short"),
        (lambda p: a_file(p / "a", b"x").parent, "there are 1 files, .* the first are: a"),
        (lambda p: cut(tarred(python_batches(p / "x"), p / "x.tar.gz", "w:gz").parent, "x.tar.gz") / "x.tar.gz", "x.tar.gz' is no tar file, or it"),
        (lambda p: without(python_batches(p / "x"), "data_batch_4"), "data_batch_4 is missing"),
        (lambda p: without(without(binary_batches(p / "x"), "test_batch.bin"), "data_batch_1.bin"), "data_batch_1.bin, test_batch.bin are missing"),
        (lambda p: cut(python_batches(p / "x"), "test_batch"), "test_batch cannot be read as a batch .* it may be cut short"),
        (lambda p: cut(binary_batches(p / "x"), "test_batch.bin", 0.55), "test_batch.bin cannot be read as a batch .* no whole number of rows"),
        (lambda p: cut(binary_batches(p / "x"), "test_batch.bin"), "test_batch hold 5 images and 5 labels: there should be 10"),
        (lambda p: python_batches(p / "x", **{"labels": [99] * 4, "fine_labels": []}), "labels run from"),
        (lambda p: python_batches(p / "x", **{"data": np.zeros((4, 784), np.uint8)}), r"data is no uint8 array of shape \(n, 3072\)"),
        (lambda p: cifar_100(p / "x"), "this is CIFAR-100, another data set"),
        (lambda p: of_another_class(pictures(p / "x", "png")), "train/zebra is no class of CIFAR-10"),
        (lambda p: without(pictures(p / "x", "png"), "train/dog/0000.png"), "train/dog holds 1 pictures: there should be 2"),
        (lambda p: a_small_picture(pictures(p / "x", "png")), "test/cat/0000.png has 28x28 pixels: CIFAR-10 has 32x32"),
        (lambda p: cut(pictures(p / "x", "png"), "test/cat/0000.png"), "test/cat/0000.png is no JPEG or PNG picture, or it is cut short"),
    ],
)
def test_what_is_not_the_data_set(make, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as found:
        load(make(tmp_path))
    assert "get cifar-10-python.tar.gz from https://www.cs.toronto.edu" in str(found.value)
    assert "\n" not in str(found.value)


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
