"""A query as the three servers take it: encoding, sharing, request id, and opening of the answer.

docs/protocols.md, section "Input", is the specification. Nothing here knows of the network.
"""

import hashlib
import secrets
import struct

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def encode(task, rows):
    """The fixed-point values of rows [rows, features], as int64 row by row."""
    features = int(np.prod(task.input_shape))
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] != features:
        raise ValueError(f"the rows have the shape {rows.shape}; the task takes [rows, {features}]")
    low, high = (np.broadcast_to(bound, features) for bound in (task.input_minimum, task.input_maximum))
    magnitude = np.maximum(np.abs(low), np.abs(high))
    slack = np.finfo(np.float32).eps * magnitude  # ranges are written in decimal, data kept in float32
    wrong = ~((rows >= low - slack) & (rows <= high + slack))  # also catches NaN
    if wrong.any():
        row, feature = np.argwhere(wrong)[0]
        raise ValueError(
            f"row {row}: feature {feature} is {rows[row, feature]}; "
            f"the task allows {low[feature]} to {high[feature]}"
        )
    # The smallest exponent e with magnitude <= 2^e; frexp gives magnitude = m 2^e with 0.5 <= m < 1.
    mantissa, exponent = np.frexp(magnitude)
    exponent = np.where(magnitude == 0, 0, np.clip(exponent - (mantissa == 0.5), -30, 40))
    scaled = np.ldexp(np.clip(rows, low, high), task.fractional_bits - exponent)
    whole = np.trunc(scaled)  # halves go away from zero, while numpy.round takes the even neighbour
    return (whole + np.copysign(np.abs(scaled - whole) >= 0.5, scaled)).astype(np.int64).ravel()


def request_secrets(task, caller, count, values, key=None):
    """Request id and two seeds: random, or derived from a key so that a repeat makes the same again."""
    if key is None:
        material = secrets.token_bytes(80)
    else:
        text = b"".join(struct.pack("<Q", len(part)) + part for part in (caller.encode(), task.name.encode()))
        numbers = struct.pack("<Q", task.epoch) + task.policy_digest + struct.pack("<I", count)
        digest = hashlib.sha256(values.astype("<i8").tobytes()).digest()
        information = b"concilium v1 repeatable request" + text + numbers + digest
        material = HKDF(algorithm=SHA256(), length=80, salt=None, info=information).derive(key)
    return material[:16], material[16:48], material[48:]


def share(values, first_seed, second_seed, ring_bits):
    """The components x0, x1 (seeds) and x2 (data) of server 0, 1, 2: component i and i + 1 of each."""
    if ring_bits not in (32, 64):
        raise ValueError(f"the task has a ring of {ring_bits} bits; this client knows 64 and 32")
    element = np.dtype("<u8" if ring_bits == 64 else "<u4")
    rest = values.astype(element)
    for seed in (first_seed, second_seed):
        stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        rest = rest - np.frombuffer(stream.update(bytes(element.itemsize * len(values))), element)
    components = ({"seed": first_seed}, {"seed": second_seed}, {"data": rest.tobytes()})
    return [(components[server], components[(server + 1) % 3]) for server in range(3)]


# Stands for a row without consensus in the place of a label.
NO_CONSENSUS = 0xFFFF


def open_result(components, rows, classes, labels):
    """Labels [rows] or noisy counts [rows, classes] from (own, next) of servers 0, 1, 2.

    A label of -1 is a row without consensus.
    """
    own = [parts[0] for parts in components]
    for server in range(3):
        before = (server - 1) % 3
        if own[server] != components[before][1]:
            raise ValueError(f"servers {before} and {server} sent different copies of a component")
        if len(own[server]) != (2 * rows if labels else 8 * rows * classes):
            raise ValueError(f"server {server} sent a component of {len(own[server])} bytes")
    first, second, third = (np.frombuffer(part, "<u2" if labels else "<u8") for part in own)
    if not labels:
        return (first + second + third).astype(np.int64).reshape(rows, classes)
    words = first ^ second ^ third
    opened = np.where(words == NO_CONSENSUS, -1, words.astype(int))
    if (opened >= classes).any():
        raise ValueError("a label is no class of the task")
    return opened
