"""What schemathesis must know of stepd: MessagePack, and the refusals of calls that no schema can forbid."""

import base64
import re

import msgpack
import schemathesis

MSGPACK = "application/vnd.msgpack"


def mapped(value, change):
    """A value with each of its leaves changed."""
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    return change(value)


def packable(value):
    """Integers of JSON have no bounds, those of MessagePack have 64 bits."""
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**64 else value


@schemathesis.serializer(MSGPACK)
def pack(_, value):
    return msgpack.packb(mapped(value, packable))


@schemathesis.deserializer(MSGPACK)
def unpack(_, response):
    """A reply as its schema says it: a blob is bin here and base64 there."""
    return mapped(msgpack.unpackb(response.content), lambda leaf: base64.b64encode(leaf).decode() if isinstance(leaf, bytes) else leaf)


# Of INVALID_PARAMS, what depends on another field, on the server's files, or on names that it alone knows. More than these is
# a schema that allows what the service refuses.
RELATIONS = re.compile(
    r"""
    \d+\ milestones,\ one\ fewer\ than\ schedules       # a sequence's milestones
    | (at\ least|more\ than)\ \d+,\ the\ milestone\ before\ it
    | more\ than\ the\ \d+\ steps\ taken                # a schedule that is over
    | at\ most\ \d+\ steps\ from\ there
    | learning\ rates\ that\ float32\ can\ hold
    | a\ known\ field.*                                # hyperparameters of a group, which has the optimizer of the call
    | (false|true)(,\ because|\ where)\ .*              # hyperparameters and options that exclude each other
    | (no\ )?value\ where\ .*\ format\ is\ \w+          # conventions of states
    | another\ name\ at\ each\ index
    | one\ of\ adadelta,\ .*                            # names of optimizers
    | (.*\ )?at\ most\ 2\^53\ -\ 1.*                  # sums over tensors, products of their sizes
    | a\ regular\ file\ in\ the\ shared\ folder\ .*     # no file has been made
    """,
    re.VERBOSE | re.DOTALL,
)

# Errors that tell of the content of blobs and tensors, or of the server's cache.
CONTENT = {"BLOB_MISSING", "STATE_CORRUPT", "STATE_MISMATCH", "TENSORS_CORRUPT", "TENSOR_MISMATCH", "NON_FINITE_GRADIENT", "UNSUPPORTED_DTYPE", "PAYLOAD_TOO_LARGE"}


@schemathesis.check
def refusal_is_of_content(_, response, case):
    """In the place of positive_data_acceptance, which takes every refusal of what passes the schemas for a fault."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code < 400:
        return
    problem = msgpack.unpackb(response.content) if response.headers["content-type"] == [MSGPACK] else response.json()
    if problem["name"] in CONTENT or (problem["name"] in ("INVALID_PARAMS", "NOT_FOUND") and RELATIONS.fullmatch(problem.get("expected", ""))):
        return
    raise AssertionError(f"the document allows what the service refuses: {problem['name']}: {problem['detail']}")
