"""shards.mirror and shards.owner: whatever moment the copying stops at, another machine can go on; one owner at a time."""

import json
import multiprocessing
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from shards import mirror as mirroring
from shards import owner as owning
from shards.errors import UserError
from shards.mirror import Mirror, mirrored
from shards.owner import Owner
from shards.store import Store


def finished(folder: Path, name: str = "x") -> None:
    """A finished training in a run's folder."""
    for part, text in (("job.json", name), ("model/w", name * 1000), ("events.jsonl", "e"), ("DONE", "done")):
        path = folder / "folds/f/m/seed-0" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def url(tmp_path):
    """A store of its own kind: fsspec's in memory, which knows conditional writes too."""
    made = f"memory://{tmp_path.name}/run"
    yield made
    store = Store(made)
    for name in store.list():
        store.delete(name)


def hold(url: str, folder: Path, lasts: float = 1.0):
    said: list[str] = []
    return mirrored(url, folder, said.append, said.append, lambda: None, lasts), said


def test_another_machine_goes_on_and_the_first_finds_its_work(url, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    with hold(url, one)[0] as mirror:
        finished(one)
        (one / "folds/f/m/seed-0/checkpoints/step-3").mkdir(parents=True)
        (one / "folds/f/m/seed-0/checkpoints/step-3/half").write_text("")
        (one / ".lock").write_text("")
        (one / "chosen.tmp").write_text("")
        mirror.push()
        held = mirror.store.list()
        assert "folds/f/m/seed-0/DONE" in held
        assert not [n for n in held if "step-3" in n or "lock" in n or n.endswith(".tmp")]
    with hold(url, two)[0]:
        assert (two / "folds/f/m/seed-0/model/w").read_text() == "x" * 1000
        (two / "report.json").write_text("{}")
    (one / "own").write_text("what was done here alone")
    with hold(url, one)[0]:
        assert (one / "report.json").is_file() and not (one / "own").exists(), (
            "another machine worked on since"
        )
        (one / "folds/f/m/seed-0/DONE").unlink()
    assert "folds/f/m/seed-0/DONE" not in Store(url).list()
    (one / "more").write_text("")
    with hold(url, one)[0]:
        assert (one / "more").exists(), "nobody did"


def test_only_what_changed_is_copied_again(url, tmp_path, monkeypatch):
    sent = []
    upload = Store.upload
    monkeypatch.setattr(
        Store, "upload", lambda self, path, name: (sent.append(name), upload(self, path, name))
    )
    with hold(url, tmp_path)[0] as mirror:
        finished(tmp_path)
        mirror.push()
        sent.clear()
        (tmp_path / "folds/f/m/seed-0/job.json").write_text("x")  # the same words again
        (tmp_path / "folds/f/m/seed-0/events.jsonl").write_text("ee")
        mirror.push()
    assert sent == ["folds/f/m/seed-0/events.jsonl"]


def test_what_is_committed_is_copied_without_being_told(url, tmp_path, monkeypatch):
    monkeypatch.setattr(mirroring, "EVERY", 0.02)
    with hold(url, tmp_path)[0] as mirror:
        finished(tmp_path)
        end = time.monotonic() + 60
        while "folds/f/m/seed-0/DONE" not in mirror.store.list():
            assert time.monotonic() < end
            time.sleep(0.02)


def test_a_file_that_changes_while_it_is_copied_vouches_for_nothing(url, tmp_path, monkeypatch):
    """The training is begun anew between the copying of its model and that of its mark."""
    upload, first = Store.upload, []

    def slow(self, path, name):
        upload(self, path, name)
        if name.endswith("model/w") and not first:
            first.append(name)
            shutil.rmtree(tmp_path / "folds")
            finished(tmp_path, "y")

    monkeypatch.setattr(Store, "upload", slow)
    with hold(url, tmp_path)[0] as mirror:
        finished(tmp_path)
        mirror.push()
        assert first and mirror.store.read("folds/f/m/seed-0/model/w") == b"y" * 1000
        assert mirror.store.read("folds/f/m/seed-0/job.json") == b"y"


def test_a_living_owner_is_named_and_a_dead_one_replaced(url, tmp_path):
    with hold(url, tmp_path / "a")[0], pytest.raises(UserError, match=f"owned by process {os.getpid()} on "):
        hold(url, tmp_path / "b")[0].__enter__()
    owner = Owner(Store(url))
    owner.take(print)
    owner.release()
    child = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
    child.start()
    child.join()
    about = json.loads(owner._about(0)) | {"pid": child.pid}
    Store(url).put(owning._name(owner.number), json.dumps(about).encode())
    began = time.monotonic()
    after = Owner(Store(url))
    after.take(print)
    assert after.number == owner.number + 1 and time.monotonic() - began < 10
    after.release()


def test_an_owner_elsewhere_is_watched_before_it_is_taken_for_dead(url):
    store, said = Store(url), []
    far = Owner(store)
    about = json.loads(far._about(0)) | {"place": {"host": "elsewhere", "boot": "x", "numbering": "y"}}
    store.put(owning._name(4), json.dumps(about).encode())
    alive = threading.Event()

    def beat():
        count = 0
        while not alive.wait(0.1):
            count += 1
            store.put(owning._name(4), json.dumps(about | {"beat": count}).encode())

    renewing = threading.Thread(target=beat)
    renewing.start()
    with pytest.raises(UserError, match="on elsewhere"):
        Owner(store, lasts=30).take(said.append)
    alive.set()
    renewing.join()
    assert "waiting up to 30 s" in said[0]
    after = Owner(store, lasts=0.5)
    after.take(said.append)
    assert after.number == 5
    after.release()


def test_one_of_many_takes_it(url):
    taken, refused = [], []

    def take():
        one = Owner(Store(url))
        try:
            one.take(print)
            taken.append(one)
        except UserError:
            refused.append(one)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and len(refused) == 7
    taken[0].release()


def test_an_owner_that_was_replaced_writes_no_more(url, tmp_path, monkeypatch):
    monkeypatch.setattr(owning, "RENEW", 0.02)
    monkeypatch.setattr(mirroring, "EVERY", 0.02)
    lost = threading.Event()
    context = mirrored(url, tmp_path, print, print, lost.set)
    mirror = context.__enter__()
    assert mirror.store.claim(owning._name(mirror.owner.number + 1), b"{}")
    assert lost.wait(60)
    finished(tmp_path)
    with pytest.raises(UserError, match="took this run over"):
        context.__exit__(None, None, None)
    assert [n for n in mirror.store.list() if not n.startswith(".owner")] == []


@pytest.fixture
def outage(monkeypatch):
    """`begin()` and `end()`: between them what an owner writes of itself waits, as a call that is tried again does."""
    monkeypatch.setattr(owning, "RENEW", 0.02)
    monkeypatch.setattr(owning, "FENCE", 0.2)
    over, put = threading.Event(), Store.put

    class Outage:
        waiting = threading.Event()
        begin, end = over.clear, over.set

    def slow(self, name, data):
        if not over.is_set():
            Outage.waiting.set()
            assert over.wait(60)
        put(self, name, data)

    over.set()
    monkeypatch.setattr(Store, "put", slow)
    yield Outage
    over.set()


def silent(owner: Owner, outage) -> None:
    """Let an owner try in vain to renew until it must write nothing more."""
    outage.begin()
    assert outage.waiting.wait(60)
    end = time.monotonic() + 60
    while time.monotonic() - owner.renewed <= owning.FENCE:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_owner_whom_nobody_replaced_goes_on_after_an_outage(url, tmp_path, outage, monkeypatch):
    assert owning.RENEW < owning.FENCE / 2
    lost = threading.Event()
    with mirrored(url, tmp_path, print, print, lost.set) as mirror:
        finished(tmp_path)
        silent(mirror.owner, outage)
        monkeypatch.setenv("SER_STORE_PATIENCE", "0")
        with pytest.raises(UserError, match="could not be told for too long"):
            mirror.owner.check()
        monkeypatch.setenv("SER_STORE_PATIENCE", "60")
        threading.Timer(0.1, outage.end).start()
        mirror.push()  # waits
        assert "folds/f/m/seed-0/DONE" in mirror.store.list()
        number = mirror.owner.number
        assert mirror.store.list(".owner")[-1] > owning._name(number), (
            "as a new owner would, and by the same way"
        )
    assert not lost.is_set()
    with mirrored(url, tmp_path, print, print, lost.set) as mirror:
        assert mirror.owner.before == number, "nobody else worked on it: the folder is used again"


def test_an_owner_who_was_replaced_in_an_outage_stops(url, outage):
    owner = Owner(Store(url))
    owner.take(print)
    silent(owner, outage)
    assert owner.store.claim(owning._name(owner.number + 1), b'{"token": "another"}')
    outage.end()
    assert owner.lost.wait(60)
    with pytest.raises(UserError, match="took this run over"):
        owner.check()
    owner.release()
    assert json.loads(owner.store.read(owning._name(owner.number + 1))) == {"token": "another"}


def test_an_owner_stops_before_others_may_take_it_for_dead():
    assert owning.RENEW < owning.FENCE / 2 and owning.FENCE < owning.LASTS


def test_half_a_taking_is_taken_again(url, tmp_path, monkeypatch):
    with hold(url, tmp_path / "one")[0]:
        finished(tmp_path / "one")
    two, get = Mirror(url, tmp_path / "two"), Store.get

    def fails(self, name, path):
        if name.endswith("DONE"):
            raise UserError("no network")
        get(self, name, path)

    monkeypatch.setattr(Store, "get", fails)
    with pytest.raises(UserError, match="no network"):
        two.settle(print)
    two.owner.release()
    assert not (tmp_path / "two").exists()
    monkeypatch.setattr(Store, "get", get)
    with hold(url, tmp_path / "two")[0]:
        assert (tmp_path / "two/folds/f/m/seed-0/DONE").is_file()
    assert not list(tmp_path.glob("*.taking"))
