"""Imported once by the server that test processes are forked from: what is slow to import and starts no thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import BertModel, HubertModel

import ser.train
from ser.distributed import prepare_environment

prepare_environment()

import deepspeed  # noqa: E402

__all__ = ["BertModel", "HubertModel", "deepspeed", "ser", "torch"]
