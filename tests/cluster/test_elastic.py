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

    assert settle(rooms(2, 3, 4), config, 600.0) == 4, "they came in time"
    assert settle(rooms(3), config, 0.0) == 2, "three do not divide four slots"
    assert settle(rooms(1, 0, 1, 2), config, 0.0) == 2
    began = time.monotonic()
    assert settle(lambda: 3, config, 0.2) == 2 and time.monotonic() - began >= 0.2
