"""shards.store and shards.remote before a real S3 server whose answers fail: 500s, throttling, cut connections, a killed server."""

import errno
import random
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import s3fs

from shards import remote
from shards.cache import Cache
from shards.dataset import Dataset
from shards.errors import UserError
from shards.pack import pack
from shards.store import Store, opened
from shards.verify import verify
from tests.object_store import KEYS, KINDS, cloud, killed_at
from tests.shards.corpus import corpus, tree

pytestmark = pytest.mark.slow
DATA = np.random.default_rng(0).bytes(300_000)
SECONDS = 0.5


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    with cloud(tmp_path_factory.mktemp("cloud")) as found:
        yield found


@pytest.fixture(autouse=True)
def calm(request):
    """Each test begins and ends without faults."""
    yield
    if "there" in request.fixturenames:
        request.getfixturevalue("there").proxy.plan = iter(())
        s3fs.S3FileSystem.clear_instance_cache()


def refusal(call) -> str:
    """The text of the UserError that `call` raises; it holds no credential."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "next:" in text and not any(value in text for name, value in KEYS.items() if "KEY" in name)
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_outlives_every_fault(there, tmp_path, kind):
    """Each call meets the fault twice in a row, then does what it does without."""
    store = Store(f"{there.bucket}/calls {kind}", Cache(tmp_path))
    (tmp_path / "up").write_bytes(DATA[:1000])

    def created():
        with store.create("made") as file:
            file.write(DATA)

    def copied():
        with store.copy("f") as path, open(path, "rb") as file:
            return file.read()

    calls = [
        (lambda: store.put("f", DATA), None),
        (created, None),
        (lambda: store.upload(tmp_path / "up", "g"), None),
        (lambda: store.read("f"), DATA),
        (lambda: store.size("f"), len(DATA)),
        (lambda: store.exists("f"), True),
        (lambda: store.exists("no"), False),
        (lambda: store.list(), ["f", "g", "made"]),
        (lambda: store.read_ranges("f", [(7, 5), (299_990, 100)]), [DATA[7:12], DATA[299_990:]]),
        (lambda: store.read_range("f", 9, 4, version="1"), DATA[9:13]),
        (lambda: Path(str(store.local("f"))).read_bytes(), DATA),
        (copied, DATA),
        (lambda: store.claim("mark", b"mine"), True),
        (lambda: store.claim("mark", b"yours"), False),
        (lambda: store.delete("g"), None),
    ]
    for number, (call, wanted) in enumerate(calls):
        there.proxy.plan = iter([kind, kind])
        assert call() == wanted, number
        # half of no body is no fault
        assert kind == "cut" or next(there.proxy.plan, "met") == "met", number
    there.proxy.plan = iter(())
    assert (
        store.list() == ["f", "made", "mark"] and store.read("made") == DATA and store.read("mark") == b"mine"
    )


def test_many_ranges_outlive_many_faults(there, tmp_path):
    """Only the ranges that failed are asked for again."""
    store = Store(f"{there.bucket}/ranges", Cache(tmp_path))
    store.put("f", DATA)
    there.proxy.disturb(seed=1, share=0.5)
    there.proxy.asked.clear()
    spans = [(offset, offset + 100) for offset in range(0, 300_000, 10_000)]
    assert store._fetch("f", spans) == [DATA[a:b] for a, b in spans]
    assert len(there.proxy.asked) < 5 * len(spans)


def test_a_pack_among_faults_and_kills_equals_an_undisturbed_one(there, tmp_path):
    """SIGKILL of the packer at 6 drawn requests, a fault in every fourth, a killed server: the bytes of a local pack."""
    given = corpus(tmp_path / "src", "toy", 24)
    local = pack(given, tmp_path / "out", shard_seconds=SECONDS)
    wanted = {n: (tmp_path / "out" / n).read_bytes() for n in tree(tmp_path / "out") if n != "plan.arrow"}
    url = f"{there.bucket}/packed"
    dice, killed = random.Random(4), 0
    for seed in range(6):
        there.proxy.disturb(seed)
        killed += killed_at(
            there.proxy, dice.randrange(2, 25), partial(pack, given, url, shard_seconds=SECONDS)
        )
        there.proxy.plan = iter(())
        store = Store(url)
        if not store.exists("dataset.json"):
            with pytest.raises(UserError, match="no dataset"):
                Dataset.open(url)
        for name in store.list():
            assert name in wanted and store.read(name) == wanted[name], "what is there is whole"
    assert killed >= 4
    there.outage(0.5)
    there.proxy.disturb(seed=9)
    made = pack(given, url, shard_seconds=SECONDS)
    assert {name: made.store.read(name) for name in made.store.list()} == wanted
    assert verify(url) == []
    rows = [5, 0, 23, 5]
    assert all(np.array_equal(a, b) for a, b in zip(made.audio(rows), local.audio(rows)))
    assert set(there.proxy.seen) >= {*KINDS}


def test_remote_sources_are_not_quarantined_by_faults(there, tmp_path):
    """A fault of the network is not a broken recording."""
    given, far = corpus(tmp_path / "src", "toy", 6), []
    store = Store(f"{there.bucket}/sources")
    for utterance in given:
        name = utterance.audio.rsplit("/", 1)[-1]
        store.upload(utterance.audio, name)
        fields = {field: getattr(utterance, field) for field in type(utterance).__dataclass_fields__}
        far.append(type(utterance)(**{**fields, "audio": f"{store.url}/{name}"}))
    there.proxy.disturb(seed=2, share=0.4)
    made = pack(far, tmp_path / "far", shard_seconds=SECONDS)
    there.proxy.plan = iter(())
    assert made.content_hash == pack(given, tmp_path / "near", shard_seconds=SECONDS).content_hash
    assert made.quarantined() == []
    with pytest.raises(FileNotFoundError):
        opened(f"{store.url}/none.wav")


def test_a_server_that_is_killed_and_comes_back_is_waited_for(there, tmp_path):
    store = Store(f"{there.bucket}/outage", Cache(tmp_path))
    store.put("f", DATA)
    outage = threading.Thread(target=there.outage, args=(0.5,))
    outage.start()
    try:
        for _ in range(40):
            assert store.read("f") == DATA
            store.put("g", DATA)
    finally:
        outage.join()
    assert store.list() == ["f", "g"]


def test_patience_is_bounded_and_the_message_says_what_to_do(there, monkeypatch):
    monkeypatch.setenv("SER_STORE_PATIENCE", "1.5")
    store = Store(f"{there.bucket}/bounded")
    for kind, words in (
        ("slow down", "reduce your request rate"),
        ("500", "internal error"),
        ("refused", ""),
    ):
        there.proxy.plan = iter([kind] * 1000)
        began = time.monotonic()
        text = refusal(lambda: store.put("f", b"x"))
        assert time.monotonic() - began > 0.5 and words in text
        assert "the object store failed" in text and there.proxy.url in text and "goes on" in text
    there.proxy.plan = iter(())
    monkeypatch.setenv("SER_STORE_PATIENCE", "soon")
    assert "SER_STORE_PATIENCE" in refusal(lambda: store.read("f"))


def test_nobody_there(monkeypatch, there):
    from tests.processes import free_port

    monkeypatch.setenv("SER_STORE_PATIENCE", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "Could not connect" in refusal(lambda: Dataset.open(f"{there.bucket}/set"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "nonsense" in refusal(lambda: Dataset.open(f"{there.bucket}/set"))


def test_what_no_patience_mends_is_refused_at_once(there, tmp_path, monkeypatch):
    monkeypatch.setenv("SER_STORE_PATIENCE", "600")
    where = f"{there.bucket}/set"
    asked = len(there.proxy.asked)
    assert "no bucket 'nowhere-at-all'" in refusal(lambda: Dataset.open("s3://nowhere-at-all/set"))
    given = corpus(tmp_path / "src", "toy", 3)
    assert "no bucket 'nowhere-at-all'" in refusal(lambda: pack(given, "s3://nowhere-at-all/set"))
    assert "does not accept this address" in refusal(lambda: Dataset.open("s3://no bucket/set"))
    # A question with a body is told the reason; reading asks one without first.
    for fault, words in (("expired", "have expired"), ("skewed", "clock"), ("wrong", "(InvalidAccessKeyId)")):
        there.proxy.plan = iter([fault] * 20)
        assert words in refusal(lambda: Store(where).put("f", b"x"))
    there.proxy.plan = iter(["expired"] * 20)
    assert "expired credentials look like this" in refusal(lambda: Dataset.open(where))
    there.proxy.plan = iter(())
    assert len(there.proxy.asked) - asked < 40
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "no credentials" in refusal(lambda: Store(where).put("f", b"x"))


def test_a_password_in_an_address_is_refused_and_not_repeated():
    for url in ("s3://AKIAX:very-secret@bucket/set", "http://me:very-secret@host/x"):
        text = refusal(lambda url=url: Store(url))
        assert "credentials do not belong" in text
    assert remote.said(ValueError("http://u:pw@h/x?X-Amz-Signature=abc&b=1 token=t")) == (
        "http://***@h/x?X-Amz-Signature=***&b=1 token=***"
    )


def test_wrong_credentials_are_refused_at_once(there, monkeypatch):
    """The server itself looks at them from here on."""
    where = f"{there.bucket}/set"
    there.server.ask("POST", "/moto-api/reset-auth", b"0", {})
    try:
        s3fs.S3FileSystem.clear_instance_cache()
        text = refusal(lambda: Dataset.open(where))
        assert "these credentials" in text and "AWS_PROFILE" in text
    finally:
        there.server.ask("POST", "/moto-api/reset-auth", b"1000000", {})


def test_only_passing_faults_pass():
    assert remote.passing(TimeoutError()) and remote.passing(ConnectionResetError())
    assert remote.passing(OSError(errno.EBUSY, "busy"))
    for error in (FileNotFoundError(), PermissionError(), ValueError(), OSError(errno.ENOSPC, "full")):
        assert not remote.passing(error)
    calls = []

    def once():
        calls.append(1)
        raise ValueError("a mistake of ours")

    with pytest.raises(ValueError, match="a mistake of ours"):
        remote.persist(once, "s3://x")
    assert len(calls) == 1
