"""Takes two steps through the client that openapi-python-client generated from
/openapi.json: generated.py URL.

Reads the params of a step as JSON from standard input. Prints the results as JSON:
list, describe, step, the following step, and the error of a describe that fails. The
client's folder, stepd_rest, is on PYTHONPATH.
"""

import json
import sys

from stepd_rest import Client
from stepd_rest.api.optimizer import optimizer_describe, optimizer_list, optimizer_step
from stepd_rest.models import StepParams

call = json.load(sys.stdin)
client = Client(base_url=sys.argv[1])
first = optimizer_step.sync(client=client, body=StepParams.from_dict(call))
next_call = StepParams.from_dict({**call, "params": first.params.to_dict(), "state": first.state})
results = {
    "list": optimizer_list.sync(client=client),
    "describe": optimizer_describe.sync("adamw", client=client),
    "step": first,
    "next": optimizer_step.sync(client=client, body=next_call),
    "error": optimizer_describe.sync("adamv", client=client),
}
json.dump({name: result.to_dict() for name, result in results.items()}, sys.stdout)
