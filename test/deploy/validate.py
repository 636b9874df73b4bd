"""Validates Kubernetes manifests on standard input: validate.py VERSION [CRD.yaml ...]

Prints one line per manifest. The exit status is 1 if any manifest is invalid. The
schemas come from the package kubernetes-validate, and from CRD files for custom
resources. An unknown field is an error.
"""

import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import yaml


def strict(schema: Any) -> Any:
    """Return a schema that refuses all fields that it does not name."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    # Python wants a flag at the start of a pattern, Go takes it anywhere.
    if isinstance(result.get("pattern"), str):
        result["pattern"] = result["pattern"].replace("^(?i)", "(?i)^")
    if "properties" in schema and isinstance(schema["properties"], dict) and schema.get("type") == "object":
        result.setdefault("additionalProperties", False)
    return result


def custom_resources(paths: list[str]) -> dict[tuple[str, str], Any]:
    """Return the schemas by apiVersion and kind."""
    schemas = {}
    for path in paths:
        spec = yaml.safe_load(Path(path).read_text())["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            # The definition does not describe metadata.
            schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
            schemas[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return schemas


def main(version: str, *definitions: str) -> int:
    schemas = custom_resources(list(definitions))
    code = 0
    for manifest in yaml.safe_load_all(sys.stdin):
        if manifest is None:
            continue
        api, kind, name = manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]
        try:
            if (api, kind) in schemas:
                jsonschema.validate(manifest, schemas[api, kind])
            else:
                kubernetes_validate.validate(manifest, version, strict=True)
            print(f"ok {kind} {name}")
        except (jsonschema.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            where = "/".join(str(part) for part in getattr(error, "absolute_path", []))
            print(f"wrong {kind} {name}: /{where}: {error.message}")
            code = 1
    return code


sys.exit(main(*sys.argv[1:]))
