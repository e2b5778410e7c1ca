"""Which rows an epoch draws, how often, and in which view: the law, in integers only.

Guarantees: pure functions of (seed, key hash, epoch), the same on every machine, in every order and at every world
size; any epoch is computed without the ones before it; over e epochs the count of a row differs from e times its
weight by less than 1. Gives up: independence between epochs (a row with weight 0.5 comes in every second epoch, it
is not tossed for), which is what makes the counts exact.

Numbers are 64-bit words; weights and offsets are fixed-point in units of 2^-32.
"""

from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import numpy as np

from shards.errors import UserError

ONE = 1 << 32
_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_SALT = 0xD1B54A32D192ED03


def mix64(words: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64-bit words.

    Args:
        words: (...) uint64.

    Returns:
        (...) uint64, a new array.
    """
    z = np.array(words, dtype=np.uint64)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def hash64(seed: int | np.ndarray, words: np.ndarray) -> np.ndarray:
    """Seeded hash of 64-bit words: mix64(mix64(seed + gamma) ^ mix64(word ^ salt)), modulo 2^64.

    For one seed it is a bijection, so distinct keys never collide; the two mixes differ, so seed and word may be
    small counters and may be chained (`hash64(j, hash64(i, key))`).

    Args:
        seed: One integer of any size (taken modulo 2^64), or an integer array that broadcasts with `words`.
        words: (...) integers, taken modulo 2^64.

    Returns:
        uint64 of the broadcast shape.
    """
    inner = mix64(_words(words) ^ np.uint64(_SALT))
    outer = mix64(_words(seed) + np.array(_GAMMA, dtype=np.uint64).reshape(1))
    return mix64(outer.reshape(np.shape(seed)) ^ inner)


def _words(values: int | np.ndarray) -> np.ndarray:
    """At least one-dimensional uint64, modulo 2^64 (numpy warns about overflow of scalars only, which are avoided)."""
    if isinstance(values, int):
        return np.array([values & _MASK], dtype=np.uint64)
    array = np.asarray(values)
    return array.astype(np.uint64, copy=False)


def subseed(seed: int, *path: int) -> int:
    """A seed for one purpose, e.g. `subseed(seed, epoch, 3)`: hash64 chained over the path.

    Args:
        seed: The parent seed.
        path: Small integers that name the purpose.

    Returns:
        An integer below 2^64.
    """
    for step in path:
        seed = int(hash64(seed, np.array([step], dtype=np.int64))[0])
    return seed & _MASK


def below(words: np.ndarray, bounds: int | np.ndarray) -> np.ndarray:
    """Uniform integers in [0, bounds): the upper 32 bits of each word times the bound, shifted down.

    Args:
        words: (...) uint64 hashes.
        bounds: Positive integers below 2^31, one or an array that broadcasts.

    Returns:
        int64 of the broadcast shape. The bias is at most bounds * 2^-32.
    """
    return (((words >> np.uint64(32)) * _words(bounds).reshape(np.shape(bounds))) >> np.uint64(32)).astype(
        np.int64
    )


def uniform(count: int) -> np.ndarray:
    """Weights of the uniform law: (count,) uint64, all 2^32 (every row once an epoch)."""
    return np.full(count, ONE, dtype=np.uint64)


def combine(*codes: np.ndarray) -> np.ndarray:
    """One group code from several columns, e.g. (corpus, language, class).

    Args:
        codes: Integer columns of shape (n,); negative codes (missing) are a group of their own.

    Returns:
        (n,) int64 codes 0..groups-1, in lexicographic order of the columns.
    """
    group = np.zeros(len(codes[0]), dtype=np.int64)
    for column in codes:
        _, code = np.unique(np.asarray(column), return_inverse=True)
        code = code.reshape(-1).astype(np.int64)
        _, group = np.unique(group * (code.max(initial=0) + 1) + code, return_inverse=True)
        group = group.reshape(-1).astype(np.int64)
    return group


def temperature(groups: np.ndarray, alpha: float) -> np.ndarray:
    """Weights of the temperature law: group g is drawn with p_g proportional to n_g^alpha, rows of a group alike.

    alpha = 1 is the data's own balance (all weights exactly 1), alpha = 0 makes groups equal. The mean weight is 1,
    so an epoch stays as long as the rows are many; each weight is rounded to 2^-32, which moves the mean by at most
    2^-33. The power is taken in 60-digit decimal arithmetic, since floating-point `pow` differs between machines.

    Args:
        groups: (n,) integer codes, one a row (see `combine`).
        alpha: Exponent in [0, 1].

    Returns:
        (n,) uint64 weights in units of 2^-32.

    Raises:
        UserError: alpha outside [0, 1].

    Source: the multilingual sampling of mBERT and XLM-R (Conneau et al., ACL 2020, eq. 1) over groups.
    """
    if not 0 <= alpha <= 1:
        raise UserError(
            f"temperature alpha {alpha} is outside [0, 1]", hint="0 = equal groups, 1 = as the data is"
        )
    _, inverse, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    sizes, multiplicity = np.unique(counts, return_counts=True)
    with localcontext() as context:
        context.prec = 60
        exponent = Decimal(repr(float(alpha)))
        power = {int(n): Decimal(int(n)) ** exponent for n in sizes}
        total = sum(power[int(n)] * int(m) for n, m in zip(sizes, multiplicity))
        weight = {
            n: int((ONE * len(inverse) * p / total / n).to_integral_value(rounding=ROUND_HALF_EVEN))
            for n, p in power.items()
        }
    return np.array([weight[int(n)] for n in counts], dtype=np.uint64)[inverse.reshape(-1)]


def draws(
    key_hash: np.ndarray, weights: np.ndarray | None, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The draws of one epoch: row i occurs floor((e+1) w_i + u_i) - floor(e w_i + u_i) times.

    u_i is the upper half of hash64(seed, key_hash_i), in units of 2^-32. The draw number of a copy is
    n = floor(e w_i + u_i) + copy, so that over the epochs each row counts 0 (or 1), 1, 2, ... without gaps.

    Args:
        key_hash: (n,) uint64.
        weights: (n,) uint64 in units of 2^-32, or None for the uniform law (same result as weights of 1, faster).
        seed: The plan's seed.
        epoch: Epoch number e >= 0, below 2^31.

    Returns:
        index: (draws,) int64 positions in `key_hash`, ascending, copies of a row side by side.
        number: (draws,) int64 draw numbers n.
    """
    assert 0 <= epoch < 1 << 31
    if weights is None:
        return np.arange(len(key_hash)), np.full(len(key_hash), epoch, dtype=np.int64)
    offset = hash64(seed, key_hash) >> np.uint64(32)
    first = _floor(weights, offset, epoch)
    count = _floor(weights, offset, epoch + 1) - first
    index = np.repeat(np.arange(len(count)), count)
    start = np.cumsum(count) - count
    return index, first[index] + np.arange(len(index)) - start[index]


def _floor(weights: np.ndarray, offset: np.ndarray, epoch: int) -> np.ndarray:
    """floor(epoch * weight + offset) as int64; whole and fractional parts apart, so that nothing overflows."""
    weights, times = np.asarray(weights, dtype=np.uint64), np.uint64(epoch)
    whole, part = weights >> np.uint64(32), weights & np.uint64(ONE - 1)
    return (whole * times + ((part * times + offset) >> np.uint64(32))).astype(np.int64)


def view_of(key_hash: np.ndarray, number: np.ndarray, seed: int, views: int) -> np.ndarray:
    """The view of a draw: 1 + (h(seed, key) + n) mod V, so V successive draws of a row take V different views.

    Args:
        key_hash: (n,) uint64 key hash of each draw.
        number: (n,) int64 draw numbers.
        seed: The plan's seed.
        views: V; 0 means that only the clean view exists.

    Returns:
        (n,) int64 views in 1..V, or zeros when V is 0.
    """
    if views == 0:
        return np.zeros(len(key_hash), dtype=np.int64)
    start = (hash64(seed, key_hash) % np.uint64(views)).astype(np.int64)
    return 1 + (start + number) % views
