"""A world of one that joins nothing."""

import torch

from ser.distributed import World

ALONE = World(0, 1, 0, torch.device("cpu"))
