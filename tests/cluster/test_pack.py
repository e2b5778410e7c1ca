"""cluster.pack and cluster.session: Ray tasks give the bytes of one process; errors and bounds of `map`."""

import os
import stat
import time
from functools import partial

import pytest

from cluster import pack as cluster_pack
from cluster.session import Session
from shards import pack as packing
from shards.errors import UserError
from shards.withdraw import erase, withdraw
from tests.shards.corpus import corpus, flip, tree

SECONDS = 0.4
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def session():
    with Session(cpus=2) as session:
        yield session


def times(factor, item):
    if item == 7:
        raise UserError("seven", where="here", hint="use eight")
    if item == 8:
        raise KeyError("eight")
    return factor * item


def test_same_bytes_as_one_process(session, tmp_path):
    utterances = corpus(tmp_path / "src", "toy") + corpus(tmp_path / "src", "other", 5)
    packing.pack(utterances, tmp_path / "one", shard_seconds=SECONDS)
    cluster_pack.pack(session, utterances, tmp_path / "two", shard_seconds=SECONDS)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert cluster_pack.verify(session, tmp_path / "two") == []
    for name in ("one", "two"):
        withdraw(tmp_path / name, "toy/s1")
    erase(tmp_path / "one")
    cluster_pack.erase(session, tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    name = sorted(os.listdir(tmp_path / "two" / "shards"))[0]
    flip(tmp_path / "two" / "shards" / name, 600)
    assert {p.file for p in cluster_pack.verify(session, tmp_path / "two")} == {f"shards/{name}"}


def test_user_errors_of_tasks_come_undamaged(session, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no")
    utterances = [
        type(u)(**{n: getattr(u, n) for n in u.__dataclass_fields__} | {"audio": str(bad)})
        for u in corpus(tmp_path)
    ]
    with pytest.raises(UserError, match="have broken audio"):
        cluster_pack.pack(session, utterances, tmp_path / "out", shard_seconds=SECONDS)
    with pytest.raises(UserError) as error:
        list(session.map(partial(times, 2), [7]))
    assert (error.value.what, error.value.where, error.value.hint) == ("seven", "here", "use eight")
    with pytest.raises(KeyError):
        list(session.map(partial(times, 2), [8]))


def test_map_is_bounded_and_lazy(session):
    drawn = []

    def items():
        for i in range(6):
            drawn.append(i)
            yield i

    results = session.map(partial(times, 3), items(), max_in_flight=2)
    first = next(results)
    assert len(drawn) == 2
    assert sorted([first, *results]) == [(i, 3 * i) for i in range(6)]


def naps(seconds):
    for _ in range(int(seconds * 20)):
        time.sleep(0.05)  # a cancelled task stops between two Python instructions, not inside one long call


def test_leaving_map_early_cancels(session):
    results = session.map(naps, [0, 300, 300], max_in_flight=3)
    assert next(results) == (0, None)
    begin = time.monotonic()
    results.close()
    assert sorted(session.map(partial(times, 1), range(4))) == [(i, i) for i in range(4)]
    assert time.monotonic() - begin < 250  # they did not wait for the naps, 300 s each


def test_session_is_private_and_leaves_nothing(session):
    path = os.environ["RAY_AUTH_TOKEN_PATH"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600 and os.environ["RAY_AUTH_MODE"] == "token"
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    with pytest.raises(UserError, match="open in this process already"), Session(cpus=1):
        pass
    assert list(session.map(partial(times, 1), [1])) == [(0, 1)]  # the refused one did not close ours
