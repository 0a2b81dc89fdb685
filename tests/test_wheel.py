"""The wheel holds what the README shows, and works where there is no checkout.

The quick tests unpack the wheel and put it first on Python's path. The slow one installs it into an
empty environment.
"""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = """
import sys
from hatchling.build import build_sdist, build_wheel
print(build_wheel(sys.argv[1]), build_sdist(sys.argv[1]))
"""
pytestmark = pytest.mark.skipif(
    not (ROOT / "CITATION.cff").exists(), reason="not a whole checkout, as in a planted copy"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel; the source distribution lies beside it."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-c", BUILD, folder], cwd=ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder of a user, who has packages of their own with the names of ours."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("experiments", "benchmarks", "figures"):
        (folder / name).mkdir()
        for module in ("__init__", "escape", "bench"):
            (folder / name / f"{module}.py").write_text(
                f"EXPERIMENT = sdesam = None\nraise SystemExit('{name} of the user was run')"
            )
    return folder


def run(command, **options):
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_what_the_wheel_holds(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("experiments", "benchmarks"):
        wanted = {f"sdesam/_{name}/{file.name}" for file in (ROOT / name).glob("*.py")}
        assert wanted <= names
    package = {str(file.relative_to(ROOT)) for file in (ROOT / "sdesam").rglob("*.py")}
    assert package <= names
    assert "sdesam/py.typed" in names
    assert "sdesam/_figures/escape/escape.json" in names
    # nothing beside the package that could be taken for somebody else's, and no pictures
    assert {name.partition("/")[0] for name in names} == {"sdesam", "sdesam-0.1.0.dist-info"}
    assert not [name for name in names if name.endswith((".png", ".pdf", ".pyc"))]
    source = next(wheel.parent.glob("*.tar.gz"))
    assert source.stat().st_size < 20e6


def test_what_the_wheel_says_of_itself(wheel):
    text = zipfile.ZipFile(wheel).read("sdesam-0.1.0.dist-info/METADATA").decode()
    assert "\nAuthor: The sdesam authors\n" in text
    assert "\nRequires-Python: >=3.11\n" in text
    assert "\nProvides-Extra: bench\n" in text
    cited = dict(re.findall(r"^(\w+): (.*)$", (ROOT / "CITATION.cff").read_text(), re.M))
    assert f"\nVersion: {cited['version']}\n" in text
    assert f"\nLicense-Expression: {cited['license']}\n" in text


UNPACKED = """
import importlib, sys
from pathlib import Path
from click.testing import CliRunner
import sdesam
assert Path(sdesam.__file__).is_relative_to(sys.argv[1]), sdesam.__file__
from sdesam import claims, lab
from sdesam.cli import cli
from sdesam._util.bundled import bundled, import_folder
assert "escape" in lab.names()
module = sys.modules[lab.experiment("escape").runs.__module__]
assert module.__name__ == "sdesam_experiments.escape", module
assert Path(module.__file__).is_relative_to(sys.argv[1])
bench = importlib.import_module(import_folder(bundled("benchmarks")).__name__ + ".bench")
assert Path(bench.__file__).is_relative_to(sys.argv[1])
# a claim that reads stored results, and a picture from stored data
outcome = claims.claim("L-Gen").run("quick", 0)
assert outcome.measurements, outcome.remark
done = CliRunner().invoke(cli, ["figures", "weak_order", "--output", str(bundled("figures"))])
assert done.exit_code == 0, done.output
"""


def test_the_wheel_works_without_a_checkout(wheel, elsewhere, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{elsewhere}"}
    run([sys.executable, "-c", UNPACKED, tmp_path], cwd=elsewhere, env=environment)


@pytest.mark.slow
def test_the_first_hour_in_an_empty_environment(wheel, elsewhere, tmp_path):
    """Every command of the README, with small sizes, and its Python."""
    run([sys.executable, "-m", "venv", tmp_path / "env"])
    python = tmp_path / "env" / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", wheel])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "compiled")
    size = ("--paths", "4", "--horizon", "0.2")
    for arguments in (
        ("derive", "m-usam", "--no-replace", "--format", "latex"),
        ("identify", "m-usam", "--no-replace"),
        ("simulate", "m-usam", "--rho", "0.1", "--micro", "4", *size),
        ("train", "m-usam", "--rho", "0.1", "--micro", "4", "--runs", "4", "--steps", "2"),
        ("verify", "--list"),
        ("verify", "L-3.9", "--output", "report"),
        ("reproduce", "--list"),
        ("reproduce", "m_sharpness", "--option", "seeds=2", "--option", "steps=4"),
        ("figures", "m_sharpness"),
        ("bench", "--quick", "--workload", "W1"),
    ):
        run([python, "-m", "sdesam", *arguments], cwd=elsewhere, env=environment)
    assert (elsewhere / "figures" / "m_sharpness" / "m_sharpness.png").exists()
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S))
    run([python, "-c", code], cwd=elsewhere, env=environment)
