"""Results, snapshots, stores of runs, pictures' data and CIFAR-10 archives that are damaged,
swapped, hostile, on a full disk, or used by two.

A violation is: an error that is no clear sentence naming the file; other numbers than were written,
read without a word; a file that is lost, half-written, left behind, or written outside; anything
executed; memory of the process that grows by more than 200 MB; a hang.

    python -m tests.campaigns.stores --count 400 --seed 0
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import sdesam
from sdesam import lab
from sdesam._util import store
from sdesam.ensemble import Divergence, Result
from sdesam.lab.runs import Numbers, RunStore, key
from sdesam.problems import cifar10
from tests.campaigns import _damage
from tests.campaigns._tries import Outcome, arguments, fault_of, report, seeds, tell, tries, wrong

MOST_MEMORY = 200 << 20
OWN = {"inner", "inner/own", "inner/other.npz"}
"""What a try makes itself outside of its folder."""
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "MPLBACKEND": "Agg",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}
COUNTS = {"train": 20, "test": 10}
NAMES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
RNG = np.random.default_rng(0)
ROWS, LABELS = RNG.integers(0, 256, (30, 3072), np.uint8), np.tile(np.arange(10), 3)
TWO = """
import sys, numpy as np
from sdesam._util import store
from sdesam.lab.runs import Numbers, RunStore
for k in range(15):
    RunStore(sys.argv[1] + "/runs").save(
        {"seed": k}, Numbers({"k": k}, {"a": np.full(2000, k)}), 1.0, {}
    )
    store.write_arrays(sys.argv[1] + "/a.npz", {"a": np.full(20000, k)}, {"k": k})
    store.write_json(sys.argv[1] + "/a.json", list(range(3000)))
"""
FULL = """
import sys, numpy as np
from pathlib import Path
from sdesam._util import store
from sdesam.lab.runs import Numbers, RunStore
place = Path(sys.argv[1])
store.write_arrays(place / "old.npz", {"a": np.ones(100)}, {})
for write in (
    lambda: RunStore(place / "runs").save({"seed": 0}, Numbers({}, {"a": np.ones(10**6)}), 1.0, {}),
    lambda: store.write_arrays(place / "old.npz", {"a": np.ones(10**6)}, {}),
    lambda: store.write_json(place / "new.json", list(range(10**6))),
    lambda: store.check_target(place / "new.npz", 4 * 10**6),
):
    try:
        write()
        print("no error")
    except OSError as error:
        print(error)
print(
    [str(path.relative_to(place)) for path in sorted(place.rglob("*"))],
    store.read_arrays(place / "old.npz")[0]["a"].sum(),
)
"""


class Wrong(Exception):
    """What was found wrong, in words."""


def same(found: Any, *wanted: Any) -> None:
    """Whether what was read is what was written, or what was put in its place."""
    read = [(np.asarray(leaf).dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(found)]
    if not any(
        read
        == [(np.asarray(leaf).dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(one)]
        for one in wanted
    ):
        raise Wrong("reads other numbers than were written")


def parts(out: Result) -> Any:
    return (
        out.time,
        out.mean,
        out.stderr,
        out.final,
        out.diverged.paths,
        out.values,
        out.config,
        out.nonfinite,
    )


def a_result(rng: np.random.Generator) -> Result:
    state = {"a": rng.normal(size=(6, 3)).astype(ml_dtypes.bfloat16), "b": rng.normal(size=6)}
    mean = {"x": rng.normal(size=5)}
    config = {"seed": int(rng.integers(100))}
    return Result(
        np.arange(5.0),
        mean,
        mean,
        state,
        Divergence(np.array([2]), np.array([0.5]), 6),
        config,
        {},
        nonfinite={"x": np.arange(5)},
    )


def results(rng: np.random.Generator, folder: Path) -> str:
    out, other = a_result(rng), a_result(rng)
    out.save(folder / "out.npz")
    other.save(folder.parent / "other.npz")
    way = _damage.damage(folder / "out.npz", rng, (folder.parent / "other.npz").read_bytes())
    yield_to(
        way,
        lambda: same(parts(Result.load(folder / "out.npz")), parts(out), parts(other)),
        "out.npz",
    )
    return way


def yield_to(way: str, work: Callable[[], Any], *names: str) -> None:
    """Do it, or be refused with a sentence that has one of the names."""
    try:
        work()
    except Wrong:
        raise
    except Exception as error:
        if fault := fault_of(error, names):
            raise Wrong(f"{fault} ({way}: {tell(error)})") from error


def sde(seed: int = 1, path: Path | None = None, horizon: float = 2.0) -> Result:
    made = sdesam.SDE(drift, noise, (), 1.0)
    times = np.arange(0, 17) * horizon / 16
    options: dict[str, Any] = {
        "snapshot": path,
        "snapshot_every": 0.0,
        "chunk": 2,
        "keep": "values",
        "progress": False,
    }
    return sdesam.simulate(
        made,
        jax.random.key(seed),
        6,
        horizon,
        horizon / 16,
        times=times,
        observe={"x": observed},
        **options,
    )


def drift(x):
    return -x


def noise(x, xi):
    return 0.1 * xi


def observed(x):
    return jnp.sin(x)


@cache
def snapshots(seed: int) -> tuple[Result, list[bytes]]:
    """A run, and every snapshot that it wrote."""
    written = []
    replace = os.replace
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.replace = lambda a, b: (written.append(Path(a).read_bytes()), replace(a, b))
            return sde(seed, Path(folder) / "snapshot"), written
        finally:
            os.replace = replace


def resumed(rng: np.random.Generator, folder: Path) -> str:
    (wanted, own), (_, others) = snapshots(1), snapshots(2)
    place = folder / "snapshot"
    place.write_bytes(own[int(rng.integers(len(own)))])
    way = (
        "whole"
        if rng.random() < 0.1
        else _damage.damage(place, rng, others[int(rng.integers(len(others)))])
    )
    yield_to(way, lambda: same(parts(sde(1, place)), parts(wanted)), "snapshot")
    return way


def stored(rng: np.random.Generator, folder: Path) -> str:
    configs = [{"seed": k, "lr": 0.1} for k in range(3)]
    written = [Numbers({"accuracy": float(k)}, {"a": rng.normal(size=50)}) for k in range(3)]
    for config, one in zip(configs, written, strict=True):
        RunStore(folder).save(config, one, 1.0, {})
    places = [
        folder / key(config) / name for config in configs for name in ("run.json", "arrays.npz")
    ]
    place = [*places, folder / "store.json"][int(rng.integers(7))]
    ways = {
        "null": lambda: place.write_text("null"),
        "list": lambda: place.write_text("[]"),
        "deep": lambda: place.write_text("[" * 100_000),
        "nan": lambda: place.write_text('{"schema": NaN}'),
        "bytes": lambda: place.write_bytes(b"\xff\xfe\x00"),
        "another": lambda: place.write_text('{"schema": "sdesam.runs/9", "config": {}}'),
        "whole run": lambda: (
            shutil.rmtree(places[0].parent),
            shutil.copytree(places[2].parent, places[0].parent),
        ),
        "numbers": (
            lambda: (
                place.suffix == ".json"
                and place.write_text(place.read_text().replace("1.0", "7.0").replace("2.0", "3.0"))
            )
        ),
    }
    way = str(rng.choice([*ways, *["damage"] * 8]))
    way = (
        str(ways[way]() and way)
        if way in ways
        else _damage.damage(place, rng, places[int(rng.integers(6))].read_bytes())
    )
    for config, one in zip(configs, written, strict=True):
        yield_to(
            f"{place.name} {way}",
            partial(load_again, folder, config, one),
            folder.name,
            key(config),
        )
    return f"{place.name}: {way}"


def load_again(folder: Path, config: Any, wanted: Numbers) -> None:
    if config in (runs := RunStore(folder)):
        found = runs.load(config)
        same(
            (found.numbers.values, found.numbers.arrays, found.config),
            (wanted.values, wanted.arrays, config),
        )


def drawn(rng: np.random.Generator, folder: Path) -> str:
    source = Path(sdesam.__file__).parents[1] / "figures" / "fisher_hessian" / "fisher_hessian.json"
    place = folder / "fisher_hessian" / "fisher_hessian.json"
    place.parent.mkdir()
    data = json.loads(source.read_text())
    removed = str(rng.choice(["results", "config", "provenance", "none", "none", "none"]))
    data.pop(removed, None)
    place.write_text(json.dumps(data))
    way = _damage.damage(place, rng) if removed == "none" else f"no {removed}"
    yield_to(
        way,
        lambda: lab.draw(lab.experiment("fisher_hessian"), folder),
        "fisher_hessian",
    )
    return way


def full(rng: np.random.Generator, folder: Path) -> str:
    """No room: a limit on the size of files, or a disk of one megabyte where this process may have
    one.
    """
    if rng.random() < 0.5 and shutil.which("unshare"):
        disk = (
            f"mount -t tmpfs -o size=1m none {folder} && exec {sys.executable} -c '{FULL}' {folder}"
        )
        done = subprocess.run(["unshare", "-rm", "sh", "-c", disk], capture_output=True, text=True)
        if not done.stderr.startswith(("unshare", "mount")):
            lines = done.stdout.splitlines()
            if (
                done.returncode
                or len(lines) != 5
                or "no error" in lines
                or not lines[4].endswith("['old.npz', 'runs', 'runs/store.json'] 100.0")
            ):
                raise Wrong(f"a full disk: {done.stdout} {done.stderr[-500:]}")
            return "disk of 1 MB"
    most, hard = int(rng.integers(0, 3000)), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    out, place = a_result(rng), folder / "out.npz"
    out.save(place)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        yield_to("no room", lambda: a_result(rng).save(place), "out.npz")
        yield_to(
            "no room",
            lambda: RunStore(folder / "runs").save(
                {"seed": 1}, Numbers({}, {"a": np.ones(3000)}), 1.0, {}
            ),
            "runs",
            "json",
            "npz",
        )
        yield_to("no room", lambda: sde(1, folder / "snapshot"), "snapshot")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    left = {str(path.relative_to(folder)) for path in folder.rglob("*")} - {
        "out.npz",
        "runs",
        "runs/store.json",
    }
    if left:
        raise Wrong(f"a full disk leaves {sorted(left)}")
    same(parts(Result.load(place)), parts(out))
    return "limit on files"


def two(rng: np.random.Generator, folder: Path) -> str:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(folder)], stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in both]
    if any(process.returncode for process in both):
        raise Wrong(f"two processes disturb each other: {errors}")
    for k in range(15):
        same(RunStore(folder / "runs").load({"seed": k}).numbers.arrays["a"], np.full(2000, k))
    same(store.read_arrays(folder / "a.npz")[0]["a"], np.full(20000, 14))
    left = {path.name for path in folder.iterdir()} - {"runs", "a.npz", "a.json"}
    inside = (
        {path.name for path in (folder / "runs").iterdir()}
        - {key({"seed": k}) for k in range(15)}
        - {"store.json"}
    )
    if left | inside:
        raise Wrong(f"two processes leave {sorted(left | inside)}")
    return "one store"


def batches(binary: bool) -> dict[str, bytes]:
    """The six files of thirty images."""
    ends = [0, 4, 8, 12, 16, 20, 30]
    found = {}
    for name, first, last in zip(NAMES, ends, ends[1:], strict=False):
        rows, labels = ROWS[first:last], LABELS[first:last]
        labelled = np.concatenate([labels.astype(np.uint8)[:, None], rows], axis=1).tobytes()
        found[name + binary * ".bin"] = (
            labelled if binary else _damage.pickles(Path(), rows, labels.tolist())["good"]
        )
    return found


def archives(rng: np.random.Generator, folder: Path) -> str:
    """CIFAR-10 of thirty images, in every form."""
    cifar10._IMAGES = COUNTS
    form, suffix = (
        str(rng.choice(["python", "binary", "pictures"])),
        str(rng.choice(list(_damage.OPENERS))),
    )
    target, members, way = (
        folder / f"cifar.tar{suffix}",
        batches(form == "binary"),
        str(rng.choice(["member", "content", "file"])),
    )
    if form == "pictures":
        names = [
            f"{part}/{cifar10.CLASSES[k % 10]}/{k // 10}.png"
            for part in COUNTS
            for k in range(COUNTS[part])
        ]
        members = dict.fromkeys(names, _damage.pictures(rng)["good"])
    if way == "content":
        kinds = {
            "python": _damage.pickles(folder / "executed", ROWS[:4], LABELS[:4].tolist()),
            "pictures": _damage.pictures(rng),
        }
        contents = kinds.get(form) or {
            "cut": b"abc",
            "labels": bytes([99]) * 3073,
            "empty": b"",
            "long": bytes(10**6),
        }
        what = str(rng.choice([name for name in contents if name != "good"]))
        members[next(iter(members))] = contents[what]
        way += f": {what}"
    with (
        _damage.OPENERS[suffix](target, "wb") as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        if way == "member":
            way = f"member: {rng.choice(_damage.HOSTILE)}"
            _damage.add_hostile(archive, way.removeprefix("member: "), folder.parent)
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    if way == "file":
        way = f"file: {_damage.damage(target, rng)}"
    yield_to(
        way,
        lambda: check_images(cifar10.load(target), suffix and form != "pictures"),
        "cifar",
        "data_batch_1",
    )
    return f"{form}{suffix}, {way}"


def check_images(images: cifar10.Images, known: Any) -> None:
    """Of a compressed file, whose checksum tells every change, those that were written; of another
    at least images.
    """
    if images.train_images.shape != (20, 32, 32, 3) or images.test_images.dtype != np.uint8:
        raise Wrong("reads no images")
    if known:
        same(images.train_images, ROWS[:20].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


KINDS = [results] * 5 + [resumed] * 6 + [stored] * 6 + [drawn] * 2 + [full] + [archives] * 10


def work(seed: int) -> Outcome:
    """One try, in a folder of its own inside another, which must stay as it is."""
    rng = np.random.default_rng(seed)
    kind = two if rng.random() < 0.02 else KINDS[int(rng.integers(len(KINDS)))]
    outer = Path(tempfile.mkdtemp())
    folder = outer / "inner" / "own"
    folder.mkdir(parents=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        way = kind(rng, folder)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        outside = {
            str(path.relative_to(outer)) for path in outer.rglob("*") if folder not in path.parents
        } - {
            "inner",
            "inner/own",
            "inner/other.npz",
        }
        if outside:
            return wrong(kind.__name__, "writes outside", f"{way}: {sorted(outside)}")
        if any(path.name == "executed" for path in folder.rglob("*")):
            return wrong(kind.__name__, "executes what a file says", way)
        if any(
            "sdesam-" in path.name or path.name.startswith(".unfinished")
            for path in folder.rglob("*")
        ):
            return wrong(
                kind.__name__,
                "leaves files behind",
                f"{way}: {sorted(path.name for path in folder.rglob('*'))}",
            )
        if grown > MOST_MEMORY:
            return wrong(kind.__name__, f"takes {grown >> 20} MB", way)
        return Outcome(kind.__name__, "right", way)
    except Wrong as found:
        return wrong(kind.__name__, str(found).partition(" (")[0][:100], str(found))
    finally:
        shutil.rmtree(outer)


if __name__ == "__main__":
    given = arguments(__doc__, 400)
    sys.exit(report("stores", tries(work, seeds(given), environment=ENVIRONMENT)))
