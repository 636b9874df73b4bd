"""Teaches schemathesis about MessagePack, and about refusals that no schema can
express.
"""

import base64
import re

import msgpack
import schemathesis

MSGPACK = "application/vnd.msgpack"


def map_leaves(value, change):
    """Apply a change to every leaf of a value."""
    if isinstance(value, dict):
        return {key: map_leaves(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [map_leaves(item, change) for item in value]
    return change(value)


def bound_integer(value):
    """Keep integers within the 64 bits of MessagePack. JSON has no such limit."""
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**64 else value


@schemathesis.serializer(MSGPACK)
def pack(_, value):
    return msgpack.packb(map_leaves(value, bound_integer))


@schemathesis.deserializer(MSGPACK)
def unpack(_, response):
    """Decode a reply into the form of its schema: blobs become base64."""
    return map_leaves(msgpack.unpackb(response.content), lambda leaf: base64.b64encode(leaf).decode() if isinstance(leaf, bytes) else leaf)


# These INVALID_PARAMS errors depend on another field, on the server's files, or on
# names that only the server knows. Any other INVALID_PARAMS error means that a schema
# accepts input that the service refuses.
RELATIONS = re.compile(
    r"""
    \d+\ milestones,\ one\ fewer\ than\ schedules       # a sequence's milestones
    | (at\ least|more\ than)\ \d+,\ the\ milestone\ before\ it
    | more\ than\ the\ \d+\ steps\ taken                # a schedule past its end
    | at\ most\ \d+\ steps\ from\ there
    | learning\ rates\ that\ float32\ can\ hold
    | a\ known\ field.*                                # hyperparameters of a group, known only with the call's optimizer
    | (false|true)(,\ because|\ where)\ .*              # options that exclude each other
    | (no\ )?value\ where\ .*\ format\ is\ \w+          # conventions of state formats
    | another\ name\ at\ each\ index
    | one\ of\ adabelief,\ .*                           # names of optimizers
    | an\ optimizer\ that\ averages\ parameters:\ .*
    | an\ index\ below\ the\ count,\ .*                  # the part of a receipt
    | a\ schedule\ that\ multiplies\ the\ base\ rate      # parts of a chained schedule
    | less\ than\ total_steps,\ \d+
    | (none|the\ norm\ over\ all\ gradients|the\ whole\ tensor),\ .*  # slices of tensors
    | the\ name\ of\ a\ tensor\ in\ .*
    | options\ that\ canonical\ JSON\ can\ express.*
    | (.*\ )?at\ most\ 2\^53\ -\ 1.*                  # sums over tensors, products of their sizes
    | a\ regular\ file\ in\ the\ shared\ folder\ .*     # missing files
    | .*\ where\ .*                                     # hyperparameters that exclude each other
    | .*,\ because\ .*                                  # formats that lack something
    | at\ most\ trust_max,\ .*
    | at\ most\ \d+\ (schedules,|names\ with|\*\ in|fields).*   # sums over the call
    | a\ number\ within\ the\ range\ of\ \w+             # values by the dtype beside them
    | false\ with\ an\ optimizer\ .*
    | max_norm\ beside\ it,\ .*
    | same:\ this\ server\ keeps\ nothing\ .*            # replies by the server's settings and the call's form
    | a\ blob:\ this\ server\ shares\ no\ folder\ .*
    | a\ place\ (for\ the\ rounded|apart\ from\ that\ of\ the)\ parameters.*
    | params\ as\ a\ blob\ or\ a\ file\ beside\ it
    | .*\ beside\ it,\ whose\ shape\ it\ takes
    | gradients,\ or\ updates\ in\ reduce              # a step has one of the two
    | none\ beside\ reduce
    | a\ matrix\ of\ .*,\ as\ many\ as\ updates          # distances of as many updates
    | less\ than\ half\ of\ \d+\ updates               # the cut of a trimmed mean
    """,
    re.VERBOSE | re.DOTALL,
)

# These errors depend on the contents of blobs and tensors, or on the server's cache.
CONTENT = {"BLOB_MISSING", "STATE_CORRUPT", "STATE_MISMATCH", "TENSORS_CORRUPT", "TENSOR_MISMATCH", "NON_FINITE_GRADIENT", "UNSUPPORTED_DTYPE", "PAYLOAD_TOO_LARGE"}


@schemathesis.check
def refusal_is_of_content(_, response, case):
    """Replaces positive_data_acceptance, which reports every refusal of input that the
    schema accepts.
    """
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code < 400:
        return
    problem = msgpack.unpackb(response.content) if response.headers["content-type"] == [MSGPACK] else response.json()
    if problem["name"] in CONTENT or (problem["name"] in ("INVALID_PARAMS", "NOT_FOUND") and RELATIONS.fullmatch(problem.get("expected", ""))):
        return
    # JSON Schema cannot exclude one name of a property.
    if problem["name"] == "PARSE_ERROR" and "__proto__" in problem["detail"]:
        return
    raise AssertionError(f"the document allows what the service refuses: {problem['name']}: {problem['detail']}")
