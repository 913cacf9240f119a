"""From a record's key to its partition, as Kafka's Java clients do it."""

from __future__ import annotations

_MASK = 0xFFFFFFFF
_SEED = 0x9747B28C
_M = 0x5BD1E995


def murmur2(data: bytes) -> int:
    """Return the 32-bit murmur2 hash of `data`, as in Kafka's `Utils.murmur2` (unsigned).

    Source: A. Appleby's MurmurHash2; the seed and the signed-byte details are those of Apache Kafka.
    """
    length = len(data)
    h = (_SEED ^ length) & _MASK
    for at in range(0, length - length % 4, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    rest = data[length - length % 4 :]
    if rest:
        h = ((h ^ int.from_bytes(rest, "little")) * _M) & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(key: str, partitions: int) -> int:
    """Return the partition of a key: murmur2 without its sign bit, modulo the number of partitions."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions
