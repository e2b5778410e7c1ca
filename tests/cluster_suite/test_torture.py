"""Rounds of tests.torture, whole: the driver of a training dies while it saves, Ray on a machine while targets are committed."""

import pytest

from tests.torture.once import a_round

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(
    "job,victim,phase", [("train", "driver", "checkpoint"), ("targets", "raylet", "commit")]
)
def test_a_round(job, victim, phase, tmp_path):
    a_round(job, victim, phase, tmp_path)
