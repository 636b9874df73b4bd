"""Calls a service through a Python JSON-RPC package, as its documentation shows:
clients.py PACKAGE URL.

Reads the params of the calls as JSON from standard input. Prints the results as JSON:
list, describe, step, and the error of a describe that fails.
"""

import json
import sys


def pelix(url, call):
    import jsonrpclib

    server = jsonrpclib.ServerProxy(url)
    try:
        server.optimizer.describe(**call["unknown"])
    except jsonrpclib.ProtocolError as failure:
        error = {"code": failure.args[0][0], "message": failure.args[0][1]}
    return server.optimizer.list(), server.optimizer.describe(**call["describe"]), server.optimizer.step(**call["step"]), error


def requests_(url, call):
    import jsonrpc_requests

    server = jsonrpc_requests.Server(url)
    try:
        server.optimizer.describe(**call["unknown"])
    except jsonrpc_requests.ProtocolError as failure:
        error = {key: failure.server_data["error"][key] for key in ("code", "message")}
    return server.optimizer.list(), server.optimizer.describe(**call["describe"]), server.optimizer.step(**call["step"]), error


def jsonrpcclient(url, call):
    import jsonrpcclient
    import requests

    def send(method, params=None):
        return jsonrpcclient.parse(requests.post(url, json=jsonrpcclient.request(method, params), timeout=60).json())

    error = send("optimizer.describe", call["unknown"])
    results = (send("optimizer.list"), send("optimizer.describe", call["describe"]), send("optimizer.step", call["step"]))
    return *(reply.result for reply in results), {"code": error.code, "message": error.message}


def tinyrpc(url, call):
    from tinyrpc import RPCClient
    from tinyrpc.exc import RPCError
    from tinyrpc.protocols.jsonrpc import JSONRPCProtocol
    from tinyrpc.transports.http import HttpPostClientTransport

    # The package sends no Content-Type by default (docs/interoperability.md).
    client = RPCClient(JSONRPCProtocol(), HttpPostClientTransport(url, headers={"Content-Type": "application/json"}))
    try:
        client.call("optimizer.describe", [], call["unknown"])
    except RPCError as failure:
        error = {"code": failure._jsonrpc_error_code, "message": failure.message}
    return client.call("optimizer.list", [], {}), client.call("optimizer.describe", [], call["describe"]), client.call("optimizer.step", [], call["step"]), error


PACKAGES = {"jsonrpclib-pelix": pelix, "jsonrpc-requests": requests_, "jsonrpcclient": jsonrpcclient, "tinyrpc": tinyrpc}

if __name__ == "__main__":
    package, address = sys.argv[1:]
    results = PACKAGES[package](address, json.load(sys.stdin))
    json.dump(dict(zip(("list", "describe", "step", "error"), results, strict=True)), sys.stdout)
