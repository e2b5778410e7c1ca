"""The cluster suite: a real Slurm, and hosts in network namespaces. Skipped where packages or rights are missing;
SER_REQUIRE_SLURM=1 and SER_REQUIRE_HOSTS=1 make that an error.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests import tiny
from tests.cluster_suite import chain, hosts
from tests.cluster_suite.slurm import PACKAGES, Slurm, missing

HERE = Path(__file__).parent

# A file is one process's; those that take longest begin first, so that no process ends long after the others.
LONGEST = ["slurm", "sweep", "hosts", "trials", "ray_train", "groups", "torture", "submit_ray", "joining"]
LONGEST += ["sweep_stop", "sweep_hosts", "stop", "two_runs"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of this folder in the order of LONGEST, then its others; those of other folders stay before them."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST, 1)}

    def place(item: pytest.Item) -> int:
        return places.get(item.path.name, 1 + len(LONGEST)) if item.path.parent == HERE else 0

    items.sort(key=place)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A tiny corpus with its manifest."""
    folder = tmp_path_factory.mktemp("corpus")
    tiny.write_corpus(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(corpus, tmp_path_factory) -> Path:
    """Folder of a whole chain that nothing has happened to."""
    return chain.undisturbed(tmp_path_factory.mktemp("undisturbed") / "here", corpus)


@pytest.fixture(scope="session")
def slurm():
    """A cluster of two machines with one CPU each; its clients' environment is this process's."""
    absent = missing()
    if absent:
        words = f"no {', '.join(absent)}: apt-get install {PACKAGES}"
        if os.environ.get("SER_REQUIRE_SLURM") == "1":
            pytest.fail(words)
        pytest.skip(words)
    if os.getuid() != 0:
        if os.environ.get("SER_REQUIRE_SLURM") == "1":
            pytest.fail("slurmd starts other users' jobs: it must be root")
        pytest.skip("slurmd starts other users' jobs: it must be root")
    # Not pytest's own folder: munge's socket must be reached by everybody.
    folder = Path(tempfile.mkdtemp(prefix="ser-slurm-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch, Slurm(folder) as found:
        for name, value in found.env.items():
            patch.setenv(name, value)
        yield found
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def need_hosts():
    """Skips where there can be no hosts."""
    if absent := hosts.missing():
        if os.environ.get("SER_REQUIRE_HOSTS") == "1":
            pytest.fail(absent)
        pytest.skip(absent)
