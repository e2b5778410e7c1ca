"""cluster.elastic: with how many workers a training goes on. On a cluster that loses a machine: tests/cluster_suite/test_elastic.py."""

import time

import pytest

from cluster import elastic
from cluster.elastic import most, settle
from ser.recipe import TrainConfig


@pytest.mark.parametrize("room,expected", [(9, 6), (6, 6), (5, 3), (4, 3), (3, 3), (2, 2), (1, 0), (0, 0)])
def test_as_many_as_find_room_and_divide_the_slots(room, expected):
    assert most(room, workers=6, least=2, slots=12 if room > 5 else 6) == expected


def test_all_are_waited_for_a_while_and_the_least_without_end(monkeypatch):
    monkeypatch.setattr(elastic, "LOOK", 0.0)
    config = TrainConfig(steps=1, slots=4, workers=4, workers_min=2)

    def rooms(*found: int):
        left = iter(found)
        return lambda: next(left)

    now, later = time.monotonic(), time.monotonic() + 600
    assert settle(rooms(2, 3, 4), config, later) == 4, "they came in time"
    assert settle(rooms(3), config, now) == 2, "three do not divide four slots"
    assert settle(rooms(1, 0, 1, 2), config, now) == 2
    began = time.monotonic()
    assert settle(lambda: 3, config, began + 0.2) == 2 and time.monotonic() - began >= 0.2


def test_what_found_no_room_among_other_work_is_followed_by_fewer(monkeypatch):
    config = TrainConfig(steps=1, slots=4, workers=4, workers_min=1)
    tried = [None]
    for _ in range(4):
        tried.append(settle(lambda: 4, config, 0.0, tried[-1]))
    assert tried[1:] == [4, 2, 1, 4]


def test_a_cluster_that_does_not_answer_is_asked_again_and_who_stops_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(elastic, "LOOK", 0.0)
    config = TrainConfig(steps=1, slots=4, workers=4, workers_min=2)
    answers = iter([ConnectionError("away"), TimeoutError("away"), 4])

    def room() -> int:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    assert settle(room, config, 0.0) == 4
    assert settle(lambda: 0, config, 0.0, stopping=lambda: True) == 2
