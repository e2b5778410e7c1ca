"""ser.events: the log reads as if the run had never been killed, and any JSON reader can parse it."""

import json

import numpy as np
import torch

from ser.events import Events, read


def written(tmp_path, steps, **options):
    events = Events(tmp_path, tensorboard=False, **options)
    for step in steps:
        events.write("train", step, loss=0.5 * step)
    events.close()
    return tmp_path / "events.jsonl"


def test_a_torn_last_line_is_left_out_wherever_it_is_cut(tmp_path):
    path = written(tmp_path, [1, 2, 3])
    whole = path.read_text()
    third = whole.rindex('{"kind"')
    for end in (third + 1, third + 10, len(whole) - 2):
        path.write_text(whole[:end])
        assert [event["step"] for event in read(path)] == [1, 2]
    path.write_text(whole)
    assert [event["loss"] for event in read(path)] == [0.5, 1.0, 1.5]
    assert read(tmp_path / "none.jsonl") == []


def test_resuming_drops_what_lies_after_the_checkpoint_and_goes_on_in_whole_lines(tmp_path):
    path = written(tmp_path, [1, 2, 3, 4])
    path.write_text(path.read_text()[:-7])
    events = Events(tmp_path, resume_step=2, tensorboard=False)
    assert [event["step"] for event in read(path)] == [1, 2], "before anything new is written"
    events.write("train", 3, loss=9.0)
    events.close()
    assert [(event["step"], event["loss"]) for event in read(path)] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert len(path.read_text().splitlines()) == 3 and not list(tmp_path.glob("*.tmp"))
    Events(tmp_path, tensorboard=False).close()
    assert read(path) == [], "a fresh start keeps nothing"


def test_an_event_is_in_the_file_once_write_returns(tmp_path):
    events = Events(tmp_path, tensorboard=False)
    events.write("dev", 7, ua=0.25)
    assert read(tmp_path / "events.jsonl")[0]["ua"] == 0.25
    events.close()


def test_numbers_that_json_does_not_have_become_null_at_any_depth(tmp_path):
    events = Events(tmp_path, tensorboard=False)
    events.write(
        "train", 1, loss=float("nan"), scale=np.float32("inf"), grad=torch.tensor(-float("inf")),
        terms={"kl": {"a": float("nan"), "b": 1.5}}, count=np.int64(3), mean=torch.tensor([0.25]), keys=["k", float("nan")],
    )  # fmt: skip
    events.close()

    def refuse(word):
        raise AssertionError(word)

    text = (tmp_path / "events.jsonl").read_text()
    found = json.loads(text, parse_constant=refuse)
    assert (found["loss"], found["scale"], found["grad"]) == (None, None, None)
    assert found["terms"] == {"kl": {"a": None, "b": 1.5}}
    assert (found["count"], found["mean"], found["keys"]) == (3, 0.25, ["k", None])
