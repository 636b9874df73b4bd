# DO NOT EDIT: written by `npm run generate`.
"""The errors of the server, one class each."""

from ._errors import ServerError

__all__ = [
    "BlobMissing",
    "DigestMismatch",
    "Draining",
    "InternalError",
    "InvalidParams",
    "InvalidRequest",
    "MethodNotAllowed",
    "MethodNotFound",
    "NonFiniteGradient",
    "NotAcceptable",
    "NotFound",
    "Overloaded",
    "ParseError",
    "PayloadTooLarge",
    "SlowBody",
    "StateCorrupt",
    "StateMismatch",
    "TensorMismatch",
    "TensorsCorrupt",
    "Unauthenticated",
    "UnsupportedDtype",
    "UnsupportedMediaType",
    "WorkerLost",
]


class ParseError(ServerError):
    """The body is not well-formed."""

    name = "PARSE_ERROR"
    code = -32700
    status = 400


class InvalidRequest(ServerError):
    """The body is not a JSON-RPC 2.0 request."""

    name = "INVALID_REQUEST"
    code = -32600
    status = 400


class MethodNotFound(ServerError):
    """There is no such method."""

    name = "METHOD_NOT_FOUND"
    code = -32601
    status = 404


class InvalidParams(ServerError):
    """The parameters are not valid."""

    name = "INVALID_PARAMS"
    code = -32602
    status = 400


class InternalError(ServerError):
    """The server failed."""

    name = "INTERNAL_ERROR"
    code = -32603
    status = 500


class UnsupportedDtype(ServerError):
    """A tensor has a dtype that is not supported here."""

    name = "UNSUPPORTED_DTYPE"
    code = -32010
    status = 422


class TensorMismatch(ServerError):
    """Tensors that belong together do not match."""

    name = "TENSOR_MISMATCH"
    code = -32011
    status = 422


class TensorsCorrupt(ServerError):
    """A tensors blob is not a valid safetensors file."""

    name = "TENSORS_CORRUPT"
    code = -32012
    status = 422


class StateMismatch(ServerError):
    """The state does not fit the optimizer or the parameters."""

    name = "STATE_MISMATCH"
    code = -32013
    status = 422


class StateCorrupt(ServerError):
    """The state is not a valid stepd state."""

    name = "STATE_CORRUPT"
    code = -32014
    status = 422


class NonFiniteGradient(ServerError):
    """A gradient holds NaN or infinity."""

    name = "NON_FINITE_GRADIENT"
    code = -32015
    status = 422


class BlobMissing(ServerError):
    """The cache has no blob of this handle."""

    name = "BLOB_MISSING"
    code = -32016
    status = 404


class Overloaded(ServerError):
    """The server has no room for this call now."""

    name = "OVERLOADED"
    code = -32020
    status = 429


class Draining(ServerError):
    """The server is shutting down."""

    name = "DRAINING"
    code = -32021
    status = 503


class PayloadTooLarge(ServerError):
    """The call is larger than this server takes."""

    name = "PAYLOAD_TOO_LARGE"
    code = -32022
    status = 413


class UnsupportedMediaType(ServerError):
    """The media type or encoding is not supported."""

    name = "UNSUPPORTED_MEDIA_TYPE"
    code = -32023
    status = 415


class NotAcceptable(ServerError):
    """No media type that the caller accepts is available."""

    name = "NOT_ACCEPTABLE"
    code = -32024
    status = 406


class Unauthenticated(ServerError):
    """The call is not authenticated."""

    name = "UNAUTHENTICATED"
    code = -32025
    status = 401


class NotFound(ServerError):
    """There is nothing at this address."""

    name = "NOT_FOUND"
    code = -32026
    status = 404


class MethodNotAllowed(ServerError):
    """The address does not take this HTTP method."""

    name = "METHOD_NOT_ALLOWED"
    code = -32027
    status = 405


class WorkerLost(ServerError):
    """The server lost a worker in this call."""

    name = "WORKER_LOST"
    code = -32029
    status = 503


class SlowBody(ServerError):
    """The body came too slowly for the memory that it holds."""

    name = "SLOW_BODY"
    code = -32030
    status = 408


class DigestMismatch(ServerError):
    """The body does not have the digest that its header says."""

    name = "DIGEST_MISMATCH"
    code = -32028
    status = 400
