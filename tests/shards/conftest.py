"""A packed dataset, which a file may replace by its own, and a copy of it for each test."""

import shutil
from pathlib import Path

import pytest

from shards.dataset import Dataset
from tests.shards.stored import make


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    assert len(make(folder).shards) >= 3
    return folder / "dataset"


@pytest.fixture
def dataset(packed, tmp_path) -> Dataset:
    shutil.copytree(packed, tmp_path / "dataset")
    return Dataset.open(str(tmp_path / "dataset"))
