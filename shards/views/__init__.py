"""Views: view v of an utterance is a pure function of (audio, key, v, policy); view 0 is clean.

Guarantees: all parameters are integers drawn by integer arithmetic from (policy seed, key hash, view), bit-equal on
every machine; the duration of a view is known without its audio; samples are bit-equal for any worker, order, batch
and thread count on one CPU kind and lock (scipy and soxr on one thread, no BLAS), elsewhere within one int16 step on
all but 0.1 % of them. Gives up: speed of a GPU, and strengths that depend on the signal.

Order of operations, fixed: crop, speed, room, noise, band, gain, mask; then clip to [-1, 1) and round to the int16
grid, so that "one step of int16" means something and a view could be stored as 16-bit audio without change. View 0 is
the crop of the stored audio, untouched. Masks come last: what they cover is exactly zero.
"""

from shards.views.assets import Asset
from shards.views.draw import ViewParams, params, view_samples
from shards.views.ops import apply
from shards.views.policy import OPS, Crop, ViewPolicy

__all__ = ["OPS", "Asset", "Crop", "ViewParams", "ViewPolicy", "apply", "params", "view_samples"]
