// DO NOT EDIT: written by `npm run generate`.
/** The contents of schemas/. */
export const schemas: readonly { readonly $id: string; readonly [keyword: string]: unknown }[] = [
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "average-result.schema.json",
    "title": "AverageResult",
    "description": "The averaged parameters, in the form of the request. A parameter without steps is unchanged.",
    "type": "object",
    "required": [
      "params"
    ],
    "additionalProperties": false,
    "properties": {
      "params": {
        "$ref": "tensor.schema.json#/$defs/TensorsResult"
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "average.schema.json",
    "title": "AverageParams",
    "description": "Parameters and state after a step of an optimizer that evaluates a model with averaged parameters.",
    "examples": [
      {
        "optimizer": {
          "name": "schedule_free_sgd"
        },
        "params": {
          "w": {
            "shape": [
              2
            ],
            "values": [
              1,
              2
            ]
          }
        },
        "state": "SQEAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJmb3JtYXQiOiJzdGVwZC5zdGF0ZS8xIiwib3B0aW1pemVyIjoic2NoZWR1bGVfZnJlZV9zZ2QiLCJyZXZpc2lvbiI6IjEifSwiei93Ijp7ImR0eXBlIjoiRjMyIiwic2hhcGUiOlsyXSwiZGF0YV9vZmZzZXRzIjpbMCw4XX0sImxyX21heC93Ijp7ImR0eXBlIjoiRjY0Iiwic2hhcGUiOltdLCJkYXRhX29mZnNldHMiOls4LDE2XX0sIndlaWdodF9zdW0vdyI6eyJkdHlwZSI6IkY2NCIsInNoYXBlIjpbXSwiZGF0YV9vZmZzZXRzIjpbMTYsMjRdfSwic3RlcC93Ijp7ImR0eXBlIjoiSTY0Iiwic2hhcGUiOltdLCJkYXRhX29mZnNldHMiOlsyNCwzMl19fQAAAD8AAMA/AAAAAAAA8D8AAAAAAAAAQAIAAAAAAAAA"
      }
    ],
    "type": "object",
    "required": [
      "optimizer",
      "params",
      "state"
    ],
    "additionalProperties": false,
    "properties": {
      "optimizer": {
        "$ref": "optimizer.schema.json"
      },
      "groups": {
        "description": "Parameter groups, as in the step.",
        "type": "array",
        "maxItems": 4096,
        "items": {
          "$ref": "group.schema.json"
        }
      },
      "params": {
        "$ref": "tensor.schema.json#/$defs/TensorsSource"
      },
      "state": {
        "$ref": "tensor.schema.json#/$defs/BlobSource"
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "convention.schema.json",
    "title": "Convention",
    "description": "Describes how a safetensors file stores an optimizer's state; docs/state-conversion.md explains the formats.",
    "type": "object",
    "required": [
      "format"
    ],
    "additionalProperties": false,
    "properties": {
      "format": {
        "description": "stepd: stepd's own format; torch: a flattened state_dict; qhoptim: the same with bias-corrected moments, as in qhoptim and IPRally; optax: optax's own format.",
        "enum": [
          "stepd",
          "torch",
          "qhoptim",
          "optax"
        ]
      },
      "optimizer": {
        "description": "The optimizer of a file that is not in stepd's format; defaults to the call's.",
        "type": "string"
      },
      "names": {
        "description": "torch and qhoptim: the parameter names by index in the file. Absent if the file itself contains names.",
        "type": "array",
        "items": {
          "type": "string"
        }
      },
      "betas": {
        "description": "qhoptim: the betas of the run, which must not have changed.",
        "type": "array",
        "items": {
          "type": "number",
          "minimum": 0,
          "exclusiveMaximum": 1
        },
        "minItems": 2,
        "maxItems": 2
      },
      "step": {
        "description": "The step count of parameters whose step count is not in the file.",
        "type": "integer",
        "minimum": 1,
        "maximum": 9007199254740991
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "convert-result.schema.json",
    "title": "ConvertResult",
    "description": "A converted state.",
    "type": "object",
    "required": [
      "state",
      "lost"
    ],
    "additionalProperties": false,
    "properties": {
      "state": {
        "$ref": "tensor.schema.json#/$defs/Blob"
      },
      "lost": {
        "description": "One sentence for each part of the given state that the result cannot contain. Empty if converting back gives the same numbers.",
        "type": "array",
        "items": {
          "type": "string"
        }
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "convert.schema.json",
    "title": "ConvertParams",
    "description": "A state to convert: from one format to another (both default to stepd's own), to another optimizer of its family, or to more slots.",
    "examples": [
      {
        "state": "0AAAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJmb3JtYXQiOiJzdGVwZC5zdGF0ZS8xIiwib3B0aW1pemVyIjoic2dkIiwicmV2aXNpb24iOiIxIn0sInN0ZXAvdyI6eyJkdHlwZSI6Ikk2NCIsInNoYXBlIjpbXSwiZGF0YV9vZmZzZXRzIjpbMCw4XX0sIm1vbWVudHVtX2J1ZmZlci93Ijp7ImR0eXBlIjoiRjMyIiwic2hhcGUiOlsyXSwiZGF0YV9vZmZzZXRzIjpbOCwxNl19fSAgICAgAAAAAAAAAAAAAAAAAAAAAA==",
        "to": {
          "format": "torch"
        }
      }
    ],
    "type": "object",
    "required": [
      "state"
    ],
    "additionalProperties": false,
    "properties": {
      "state": {
        "$ref": "tensor.schema.json#/$defs/BlobSource"
      },
      "from": {
        "$ref": "convention.schema.json"
      },
      "to": {
        "$ref": "convention.schema.json"
      },
      "optimizer": {
        "description": "The optimizer of the result, of the same family; defaults to the state's own. In a state of several optimizers, it replaces those of its family.",
        "type": "string"
      },
      "state_dtype": {
        "description": "The format of the result's moments; defaults to the format that they have, and to F32 in the formats of other libraries.",
        "enum": [
          "F32",
          "BF16",
          "Q8"
        ]
      },
      "fill": {
        "description": "Slots to add if they are missing: max_exp_avg_sq as a copy of exp_avg_sq; momentum_buffer and grad_avg as zeros.",
        "type": "array",
        "items": {
          "type": "string"
        }
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "describe-result.schema.json",
    "title": "DescribeResult",
    "description": "The complete description of one optimizer.",
    "type": "object",
    "required": [
      "name",
      "title",
      "revision",
      "family",
      "formula",
      "references",
      "hyperparameters",
      "slots",
      "bytes_per_parameter"
    ],
    "additionalProperties": false,
    "properties": {
      "name": {
        "type": "string"
      },
      "title": {
        "type": "string"
      },
      "revision": {
        "type": "integer"
      },
      "family": {
        "description": "Optimizers of one family accept each other's state.",
        "type": "string"
      },
      "formula": {
        "type": "string"
      },
      "references": {
        "type": "array",
        "items": {
          "type": "string"
        }
      },
      "hyperparameters": {
        "description": "JSON Schema of the optimizer object.",
        "type": "object"
      },
      "slots": {
        "description": "Slots of a parameter: the slots that the default hyperparameters need, and all possible slots.",
        "type": "object",
        "required": [
          "default",
          "all"
        ],
        "additionalProperties": false,
        "properties": {
          "default": {
            "type": "array",
            "items": {
              "type": "string"
            }
          },
          "all": {
            "type": "array",
            "items": {
              "type": "string"
            }
          }
        }
      },
      "bytes_per_parameter": {
        "description": "Bytes per element that an F32 step with the default hyperparameters transfers.",
        "type": "object",
        "required": [
          "in",
          "out",
          "state"
        ],
        "additionalProperties": false,
        "properties": {
          "in": {
            "type": "integer"
          },
          "out": {
            "type": "integer"
          },
          "state": {
            "type": "integer"
          }
        }
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "describe.schema.json",
    "title": "DescribeParams",
    "description": "The optimizer to describe.",
    "type": "object",
    "required": [
      "name"
    ],
    "additionalProperties": false,
    "properties": {
      "name": {
        "type": "string",
        "examples": [
          "adamw"
        ]
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "discover-result.schema.json",
    "title": "DiscoverResult",
    "description": "The OpenRPC document.",
    "type": "object"
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "discover.schema.json",
    "title": "DiscoverParams",
    "description": "No parameters.",
    "type": "object",
    "required": [],
    "additionalProperties": false,
    "properties": {}
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "distances-result.schema.json",
    "title": "DistancesResult",
    "description": "A symmetric matrix in the order of the updates.",
    "type": "object",
    "required": [
      "distances"
    ],
    "additionalProperties": false,
    "properties": {
      "distances": {
        "description": "Sums of squared differences, in float64: block by block, then tensor by tensor in the order of the names' UTF-8 bytes.",
        "type": "array",
        "items": {
          "type": "array",
          "items": {
            "$ref": "tensor.schema.json#/$defs/Value"
          }
        }
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "distances.schema.json",
    "title": "DistancesParams",
    "description": "The squared distances between updates, for a choice among them such as Krum. Updates are deltas or gradients: between whole parameters, rounding may exceed the differences.",
    "examples": [
      {
        "updates": [
          {
            "tensors": {
              "w": {
                "shape": [
                  2
                ],
                "values": [
                  0.1,
                  0.2
                ]
              }
            }
          },
          {
            "tensors": {
              "w": {
                "shape": [
                  2
                ],
                "values": [
                  0.1,
                  0.4
                ]
              }
            }
          }
        ]
      }
    ],
    "type": "object",
    "required": [
      "updates"
    ],
    "additionalProperties": false,
    "properties": {
      "updates": {
        "description": "The updates, all with the same tensors, as in optimizer.reduce. Weights have no influence.",
        "type": "array",
        "maxItems": 256,
        "items": {
          "$ref": "reduce.schema.json#/$defs/Update"
        }
      },
      "distances": {
        "description": "The result of an earlier call for other tensors of the same updates, to which this call adds. Calls in the order of the names' UTF-8 bytes give the bits of one call.",
        "type": "array",
        "maxItems": 256,
        "items": {
          "type": "array",
          "maxItems": 256,
          "items": {
            "$ref": "tensor.schema.json#/$defs/Value"
          }
        }
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "error.schema.json",
    "title": "ErrorData",
    "description": "The details of an error, besides its code and message.",
    "type": "object",
    "required": [
      "name"
    ],
    "additionalProperties": false,
    "properties": {
      "name": {
        "description": "Stable name of the error.",
        "type": "string"
      },
      "field": {
        "description": "JSON pointer to the faulty parameter.",
        "type": "string"
      },
      "expected": {
        "type": "string"
      },
      "found": {
        "type": "string"
      },
      "retry_after": {
        "description": "Seconds to wait before a retry.",
        "type": "integer"
      },
      "limit": {
        "description": "Whose limit refused the call: `server` if the server is full, `share` if it is full and this caller holds the largest share of it, `caller` for a limit of this caller.",
        "type": "string",
        "enum": [
          "server",
          "share",
          "caller"
        ]
      },
      "tensors": {
        "description": "The first of the tensors concerned.",
        "type": "array",
        "items": {
          "type": "string"
        }
      },
      "request_id": {
        "type": "string"
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "evaluate-result.schema.json",
    "title": "EvaluateResult",
    "description": "The schedule's values for each step of the range.",
    "type": "object",
    "required": [
      "lrs"
    ],
    "additionalProperties": false,
    "properties": {
      "lrs": {
        "description": "Learning rates.",
        "type": "array",
        "items": {
          "type": "number"
        }
      },
      "momentums": {
        "description": "Momentums, if the schedule cycles them. In a sequence, null at the steps of a schedule that does not cycle them.",
        "type": "array",
        "items": {
          "type": [
            "number",
            "null"
          ]
        }
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "evaluate.schema.json",
    "title": "EvaluateParams",
    "description": "A range of steps of a schedule.",
    "examples": [
      {
        "schedule": {
          "name": "cosine",
          "T_max": 100
        },
        "lr": 0.1,
        "count": 3
      }
    ],
    "type": "object",
    "required": [
      "schedule"
    ],
    "additionalProperties": false,
    "properties": {
      "schedule": {
        "$ref": "schedule.schema.json"
      },
      "lr": {
        "description": "The base learning rate. A step uses the optimizer's lr as its base rate.",
        "type": "number",
        "minimum": 0,
        "maximum": 3.4028234663852886e+38,
        "default": 0.001
      },
      "from": {
        "description": "Number of steps before the range; 0 starts at the first step.",
        "type": "integer",
        "minimum": 0,
        "maximum": 9007199254740990,
        "default": 0
      },
      "count": {
        "description": "Number of steps in the range.",
        "type": "integer",
        "minimum": 1,
        "maximum": 10000,
        "default": 1
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "group.schema.json",
    "title": "Group",
    "description": "A parameter group: hyperparameters, or another optimizer, for some tensors.",
    "type": "object",
    "required": [
      "tensors",
      "optimizer"
    ],
    "additionalProperties": false,
    "properties": {
      "tensors": {
        "description": "Parameter names; * matches any characters. A parameter belongs to the first group that matches it.",
        "type": "array",
        "minItems": 1,
        "items": {
          "type": "string",
          "minLength": 1,
          "maxLength": 1024
        }
      },
      "optimizer": {
        "description": "Hyperparameters that differ from the call's optimizer. With name, the group has an optimizer of its own: absent hyperparameters take that optimizer's defaults, and nothing is inherited from the call's.",
        "type": "object",
        "properties": {
          "name": {
            "type": "string"
          }
        },
        "tsType": "{ readonly name?: string; readonly [hyperparameter: string]: unknown }"
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "init-result.schema.json",
    "title": "InitResult",
    "description": "The initial state, at step 0.",
    "type": "object",
    "required": [
      "state"
    ],
    "additionalProperties": false,
    "properties": {
      "state": {
        "$ref": "tensor.schema.json#/$defs/Blob"
      },
      "receipt": {
        "$ref": "receipt.schema.json"
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "init.schema.json",
    "title": "InitParams",
    "description": "Parameters whose initial state is returned. Their values matter only with master_weights.",
    "examples": [
      {
        "optimizer": {
          "name": "adamw"
        },
        "params": {
          "w": {
            "shape": [
              3
            ],
            "values": [
              1,
              2,
              3
            ]
          }
        }
      }
    ],
    "type": "object",
    "required": [
      "optimizer",
      "params"
    ],
    "additionalProperties": false,
    "properties": {
      "optimizer": {
        "$ref": "optimizer.schema.json"
      },
      "groups": {
        "description": "Parameter groups; a parameter belongs to the first one that matches it.",
        "type": "array",
        "maxItems": 4096,
        "items": {
          "$ref": "group.schema.json"
        }
      },
      "params": {
        "$ref": "tensor.schema.json#/$defs/TensorsSource"
      },
      "slices": {
        "$ref": "tensor.schema.json#/$defs/Slices"
      },
      "master_weights": {
        "description": "Keep a float32 copy of each BF16 or F16 parameter in the state (slot master_param), and apply the steps to that copy.",
        "type": "boolean",
        "default": false
      },
      "receipt": {
        "$ref": "receipt.schema.json#/$defs/ReceiptOption"
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "inspect-result.schema.json",
    "title": "InspectResult",
    "description": "Contents of a state.",
    "type": "object",
    "required": [
      "format",
      "optimizer",
      "revision",
      "bytes",
      "elements",
      "tensors"
    ],
    "additionalProperties": false,
    "properties": {
      "format": {
        "const": "stepd.state/1"
      },
      "optimizer": {
        "description": "The optimizer of all parameters that name no other.",
        "type": "string"
      },
      "revision": {
        "type": "integer",
        "minimum": 1
      },
      "revisions": {
        "description": "The revisions of the other optimizers in the state, by name; absent if there are none.",
        "type": "object",
        "additionalProperties": {
          "type": "integer",
          "minimum": 1
        }
      },
      "bytes": {
        "description": "Size of the state in bytes.",
        "type": "integer",
        "minimum": 0
      },
      "elements": {
        "description": "Number of elements in all slots.",
        "type": "integer",
        "minimum": 0
      },
      "tensors": {
        "description": "Steps and slots by parameter name.",
        "type": "object",
        "additionalProperties": {
          "type": "object",
          "required": [
            "step",
            "slots"
          ],
          "additionalProperties": false,
          "properties": {
            "optimizer": {
              "description": "The parameter's optimizer, if it differs from the state's.",
              "type": "string"
            },
            "step": {
              "type": "integer",
              "minimum": 0
            },
            "slots": {
              "type": "object",
              "additionalProperties": {
                "type": "object",
                "required": [
                  "dtype",
                  "shape"
                ],
                "additionalProperties": false,
                "properties": {
                  "dtype": {
                    "type": "string"
                  },
                  "shape": {
                    "type": "array",
                    "items": {
                      "type": "integer",
                      "minimum": 0
                    }
                  }
                }
              }
            }
          }
        }
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "inspect.schema.json",
    "title": "InspectParams",
    "description": "A state whose contents are listed.",
    "examples": [
      {
        "state": "0AAAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJmb3JtYXQiOiJzdGVwZC5zdGF0ZS8xIiwib3B0aW1pemVyIjoic2dkIiwicmV2aXNpb24iOiIxIn0sInN0ZXAvdyI6eyJkdHlwZSI6Ikk2NCIsInNoYXBlIjpbXSwiZGF0YV9vZmZzZXRzIjpbMCw4XX0sIm1vbWVudHVtX2J1ZmZlci93Ijp7ImR0eXBlIjoiRjMyIiwic2hhcGUiOlsyXSwiZGF0YV9vZmZzZXRzIjpbOCwxNl19fSAgICAgAAAAAAAAAAAAAAAAAAAAAA=="
      }
    ],
    "type": "object",
    "required": [
      "state"
    ],
    "additionalProperties": false,
    "properties": {
      "state": {
        "$ref": "tensor.schema.json#/$defs/BlobSource"
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "list-result.schema.json",
    "title": "ListResult",
    "description": "The optimizers of this server.",
    "type": "object",
    "required": [
      "optimizers"
    ],
    "additionalProperties": false,
    "properties": {
      "optimizers": {
        "type": "array",
        "items": {
          "type": "object",
          "required": [
            "name",
            "title",
            "formula"
          ],
          "additionalProperties": false,
          "properties": {
            "name": {
              "type": "string"
            },
            "title": {
              "type": "string"
            },
            "formula": {
              "type": "string"
            }
          }
        }
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "list.schema.json",
    "title": "ListParams",
    "description": "No parameters.",
    "type": "object",
    "required": [],
    "additionalProperties": false,
    "properties": {}
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "norms-result.schema.json",
    "title": "NormsResult",
    "description": "Sums by tensor. To get clip.total_norm, add grad_squares of all tensors of all calls in float64, in UTF-8 order of the names, and take the square root.",
    "type": "object",
    "required": [
      "tensors",
      "grad_norm"
    ],
    "additionalProperties": false,
    "properties": {
      "tensors": {
        "description": "Sums by parameter name.",
        "type": "object",
        "additionalProperties": {
          "title": "TensorNorms",
          "type": "object",
          "required": [
            "grad_squares",
            "zeros",
            "non_finite"
          ],
          "additionalProperties": false,
          "properties": {
            "grad_squares": {
              "$ref": "tensor.schema.json#/$defs/Value"
            },
            "param_squares": {
              "$ref": "tensor.schema.json#/$defs/Value"
            },
            "grad_shard_squares": {
              "description": "Of a slice: the gradient's sum of squares over each 65,536 elements. The sums of all slices, added in the order of their offsets, are grad_squares of the whole tensor.",
              "type": "array",
              "items": {
                "$ref": "tensor.schema.json#/$defs/Value"
              }
            },
            "param_shard_squares": {
              "description": "The same of the parameter.",
              "type": "array",
              "items": {
                "$ref": "tensor.schema.json#/$defs/Value"
              }
            },
            "zeros": {
              "type": "integer"
            },
            "non_finite": {
              "type": "integer"
            }
          }
        }
      },
      "grad_norm": {
        "$ref": "tensor.schema.json#/$defs/Value"
      },
      "warnings": {
        "description": "Warnings about this call.",
        "type": "array",
        "items": {
          "type": "string"
        }
      },
      "cached": {
        "description": "Handles of what the server has kept, for the step that follows.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
          "grads": {
            "$ref": "tensor.schema.json#/$defs/CachedBlob"
          }
        }
      },
      "receipt": {
        "$ref": "receipt.schema.json"
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "norms.schema.json",
    "title": "NormsParams",
    "description": "Gradients, and optionally their parameters, whose sums of squares are computed: the first phase of exact clipping over several calls.",
    "examples": [
      {
        "grads": {
          "w": {
            "shape": [
              3
            ],
            "values": [
              0.1,
              0.2,
              -0.3
            ]
          }
        }
      }
    ],
    "type": "object",
    "required": [
      "grads"
    ],
    "additionalProperties": false,
    "properties": {
      "grads": {
        "$ref": "tensor.schema.json#/$defs/TensorsSource"
      },
      "params": {
        "$ref": "tensor.schema.json#/$defs/TensorsSource"
      },
      "slices": {
        "$ref": "tensor.schema.json#/$defs/Slices"
      },
      "loss_scale": {
        "description": "All gradients are first divided by this number: a normal float32.",
        "type": "number",
        "minimum": 1.1754943508222875e-38,
        "maximum": 3.4028234663852886e+38,
        "default": 1
      },
      "reply": {
        "description": "What the server keeps.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
          "cache": {
            "description": "Keep the gradients in the server's cache, if it has one and they came as a blob. The reply's field cached has their handle, which one step uses up.",
            "type": "boolean",
            "default": false
          }
        }
      },
      "receipt": {
        "$ref": "receipt.schema.json#/$defs/ReceiptOption"
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "optimizer.schema.json",
    "$comment": "DO NOT EDIT: written by `npm run generate` from src/optimizers.",
    "title": "Optimizer",
    "description": "An optimizer by name with its hyperparameters; absent ones take their defaults.",
    "type": "object",
    "required": [
      "name"
    ],
    "discriminator": {
      "propertyName": "name"
    },
    "oneOf": [
      {
        "title": "AdaBelief",
        "description": "m = lerp(m, g, 1-beta1); s = lerp(s, (g - m)^2, 1-beta2) + eps_root; p -= lr * m/(1-beta1^t) / (sqrt(s/(1-beta2^t)) + eps)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "adabelief"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.9,
              0.999
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "eps": {
            "type": "number",
            "default": 1e-16,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of exp_avg_var"
          },
          "eps_root": {
            "type": "number",
            "default": 1e-16,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to exp_avg_var at every step"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay; decoupled_weight_decay selects its form"
          },
          "decoupled_weight_decay": {
            "type": "boolean",
            "default": true,
            "description": "Subtract lr*weight_decay times the parameter from it, instead of adding weight_decay times the parameter to the gradient"
          },
          "rectify": {
            "type": "boolean",
            "default": false,
            "description": "Rectify the step as in radam"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Adadelta",
        "description": "g += weight_decay*p; s = lerp(s, g^2, 1-rho); d = sqrt(acc + eps)/sqrt(s + eps) * g; acc = lerp(acc, d^2, 1-rho); p -= lr*d",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "adadelta"
          },
          "lr": {
            "type": "number",
            "default": 1,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "rho": {
            "type": "number",
            "default": 0.9,
            "minimum": 0,
            "maximum": 1,
            "description": "Decay rate of square_avg and acc_delta"
          },
          "eps": {
            "type": "number",
            "default": 0.000001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added under both roots"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay (L2): weight_decay times the parameter is added to the gradient"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Adafactor",
        "description": "w = t^beta2_decay; from two axes on: row_var = lerp(row_var, mean of g^2 by row, w), col_var = lerp(col_var, mean of g^2 by column, w), v = row_var*col_var/max(mean(row_var), eps1); else v = variance = lerp(variance, g^2, w); u = g/sqrt(max(v, eps1^2)); p -= lr*weight_decay*p + max(eps2, rms(p))*min(lr, 1/sqrt(t)) * u/max(1, rms(u)/d)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "adafactor"
          },
          "lr": {
            "type": "number",
            "default": 0.01,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Upper bound of the relative step size 1/sqrt(t), and factor of weight_decay; with a schedule, its base rate"
          },
          "beta2_decay": {
            "type": "number",
            "default": -0.8,
            "minimum": -3.4028234663852886e+38,
            "maximum": 0,
            "description": "The second moment's weight of the new gradient at step t is t^beta2_decay"
          },
          "eps": {
            "type": "array",
            "items": {
              "type": [
                "number",
                "null"
              ],
              "minimum": 0,
              "maximum": 1e+38
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              null,
              0.001
            ],
            "description": "eps1, the smallest divisor of the update: null is 2^-23 for parameters below F64, and 2^-52 for F64; and eps2, the smallest root mean square of the parameter, a number"
          },
          "d": {
            "type": "number",
            "default": 1,
            "minimum": 1,
            "maximum": 3.4028234663852886e+38,
            "description": "Largest root mean square of an update; a larger update is scaled down"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Decoupled weight decay: lr*weight_decay times the parameter is subtracted from the parameter"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Adagrad",
        "description": "g += weight_decay*p; sum += g^2; p -= lr/(1 + (t-1)*lr_decay) * g/(sqrt(sum) + eps)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "adagrad"
          },
          "lr": {
            "type": "number",
            "default": 0.01,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "lr_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate decay: step t divides the rate by 1 + (t-1)*lr_decay"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay (L2): weight_decay times the parameter is added to the gradient"
          },
          "initial_accumulator_value": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Initial value of sum"
          },
          "eps": {
            "type": "number",
            "default": 1e-10,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Adam",
        "description": "g += weight_decay*p; m = lerp(m, g, 1-beta1); v = lerp(v, g^2, 1-beta2); p -= lr * m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "adam"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.9,
              0.999
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of the second moment, after the bias correction"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay (L2): weight_decay times the parameter is added to the gradient"
          },
          "amsgrad": {
            "type": "boolean",
            "default": false,
            "description": "Divide by the running maximum of exp_avg_sq (slot max_exp_avg_sq)"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "eps_root": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added under the root, as in optax"
          },
          "nesterov": {
            "type": "boolean",
            "default": false,
            "description": "Use Nesterov's form of the first moment, as in optax"
          },
          "bias_correction": {
            "type": "string",
            "enum": [
              "moments",
              "step_size",
              "none"
            ],
            "default": "moments",
            "description": "Correct the moments (paper), the step size alone, so that eps is added to the uncorrected root (Keras, and Flower's FedAdam), or nothing"
          },
          "caution": {
            "type": "boolean",
            "default": false,
            "description": "Zero the elements of the update whose sign differs from the gradient's, and scale up the others (timm)"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Adamax",
        "description": "g += weight_decay*p; m = lerp(m, g, 1-beta1); u = max(beta2*u, |g| + eps); p -= lr/(1-beta1^t) * m/u",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "adamax"
          },
          "lr": {
            "type": "number",
            "default": 0.002,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.9,
              0.999
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the size of each gradient"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay (L2): weight_decay times the parameter is added to the gradient"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "AdamW",
        "description": "m = lerp(m, g, 1-beta1); v = lerp(v, g^2, 1-beta2); p -= scale*weight_decay*p + lr * m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps), scale = lr, lr_t/lr or 1 by weight_decay_scale",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "adamw"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.9,
              0.999
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of the second moment, after the bias correction"
          },
          "weight_decay": {
            "type": "number",
            "default": 0.01,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Decoupled weight decay: weight_decay times the parameter, scaled by weight_decay_scale, is subtracted from the parameter"
          },
          "weight_decay_scale": {
            "type": "string",
            "enum": [
              "lr",
              "schedule",
              "none"
            ],
            "default": "lr",
            "description": "Factor of weight_decay: lr (torch), the schedule's factor lr_t/lr (the AdamW paper's fully decoupled form; lr_t/max_lr with one_cycle and cyclic), or 1 (IPRally's QHAdamW)"
          },
          "amsgrad": {
            "type": "boolean",
            "default": false,
            "description": "Divide by the running maximum of exp_avg_sq (slot max_exp_avg_sq)"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "eps_root": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added under the root, as in optax"
          },
          "nesterov": {
            "type": "boolean",
            "default": false,
            "description": "Use Nesterov's form of the first moment, as in optax"
          },
          "bias_correction": {
            "type": "string",
            "enum": [
              "moments",
              "step_size",
              "none"
            ],
            "default": "moments",
            "description": "Correct the moments (paper), the step size alone, so that eps is added to the uncorrected root (Keras, and Flower's FedAdam), or nothing"
          },
          "caution": {
            "type": "boolean",
            "default": false,
            "description": "Zero the elements of the update whose sign differs from the gradient's, and scale up the others (timm)"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Adan",
        "description": "d = g - g_previous; m = lerp(m, g, 1-beta1); n = lerp(n, d, 1-beta2); v = lerp(v, (g + w*d)^2, 1-beta3); u = (m/(1-beta1^t) + w*n/(1-beta2^t)) / (sqrt(v/(1-beta3^t) + eps_root) + eps); p = (p - lr*u) / (1 + lr*weight_decay), with no_prox p -= lr*(weight_decay*p + u)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "adan"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 3,
            "maxItems": 3,
            "default": [
              0.98,
              0.92,
              0.99
            ],
            "description": "Decay rates of exp_avg, exp_avg_diff and exp_avg_sq"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of the second moment, after the bias correction"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay; no_prox selects its form"
          },
          "no_prox": {
            "type": "boolean",
            "default": false,
            "description": "Subtract lr*weight_decay times the parameter from it, instead of dividing the new parameter by 1 + lr*weight_decay"
          },
          "diff_weight": {
            "type": [
              "number",
              "null"
            ],
            "default": null,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight of the difference and of exp_avg_diff; null is the second of betas (paper, timm), and optax has 1 minus it"
          },
          "eps_root": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added under the root, as in optax"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "AdEMAMix",
        "description": "m = lerp(m, g, 1-beta1); s = lerp(s, g, 1-beta3_t); v = lerp(v, g^2, 1-beta2); p -= lr * (m/(1-beta1^t) + alpha_t*s) / (sqrt(v/(1-beta2^t) + eps_root) + eps); alpha_t and beta3_t grow over the first t_alpha_beta3 steps",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "ademamix"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 3,
            "maxItems": 3,
            "default": [
              0.9,
              0.999,
              0.9999
            ],
            "description": "Decay rates of exp_avg, exp_avg_sq and exp_avg_slow"
          },
          "alpha": {
            "type": "number",
            "default": 5,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight of exp_avg_slow in the numerator"
          },
          "t_alpha_beta3": {
            "type": [
              "number",
              "null"
            ],
            "default": null,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Number of steps over which alpha grows from 0 and the decay rate of exp_avg_slow from the first of betas; null starts with their full values"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of the second moment, after the bias correction"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay; decoupled_weight_decay selects its form"
          },
          "decoupled_weight_decay": {
            "type": "boolean",
            "default": true,
            "description": "Subtract lr*weight_decay times the parameter from it, instead of adding weight_decay times the parameter to the gradient"
          },
          "eps_root": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added under the root, as in optax"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "ADOPT",
        "description": "n = clamp(g/max(sqrt(v), eps), +-(t-1)^clip_exp); m = lerp(m, n, 1-beta1); p -= lr*m; v = lerp(v, g^2, 1-beta2); first step: v = g^2 alone",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "adopt"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.9,
              0.9999
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "eps": {
            "type": "number",
            "default": 0.000001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Lower bound of the root of exp_avg_sq"
          },
          "use_clipping": {
            "type": "boolean",
            "default": true,
            "description": "Clamp the quotients to the range that clip_exp gives"
          },
          "clip_exp": {
            "type": "number",
            "default": 0.25,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "The quotients of step t are clamped to (t-1)^clip_exp"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay; decoupled_weight_decay selects its form"
          },
          "decoupled_weight_decay": {
            "type": "boolean",
            "default": false,
            "description": "Subtract lr*weight_decay times the parameter from it, instead of adding weight_decay times the parameter to the gradient"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "ASGD",
        "description": "g += weight_decay*p; p -= lambd*eta*p + eta*g; ax = lerp(ax, p, mu); eta = lr/(1 + lambd*lr*t)^alpha; mu = 1/max(1, t - t0)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "asgd"
          },
          "lr": {
            "type": "number",
            "default": 0.01,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "lambd": {
            "type": "number",
            "default": 0.0001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Decay of the parameter and of the rate"
          },
          "alpha": {
            "type": "number",
            "default": 0.75,
            "minimum": 0,
            "maximum": 1000,
            "description": "Exponent of the rate's decrease"
          },
          "t0": {
            "type": "number",
            "default": 1000000,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "The step after which parameters are averaged"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay (L2): weight_decay times the parameter is added to the gradient"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "LAMB",
        "description": "m, v as in adam; u = mhat/(sqrt(vhat) + eps) + weight_decay*p; p -= lr * trust_ratio * u, trust_ratio = |p|/|u| (1 where either is 0) within [trust_min, trust_max]",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "lamb"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.9,
              0.999
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "eps": {
            "type": "number",
            "default": 0.000001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of the second moment, after the bias correction"
          },
          "weight_decay": {
            "type": "number",
            "default": 0.01,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay; weight_decay_mode selects its form"
          },
          "weight_decay_mode": {
            "type": "string",
            "enum": [
              "in_update",
              "decoupled"
            ],
            "default": "in_update",
            "description": "Add weight_decay times the parameter to the update before its norm, or subtract lr times it from the parameter before the norms"
          },
          "bias_correction": {
            "type": "string",
            "enum": [
              "moments",
              "step_size",
              "none"
            ],
            "default": "moments",
            "description": "Correct the moments (paper), the step size outside the ratio (DeepSpeed), or nothing (albert)"
          },
          "adapt": {
            "type": "string",
            "enum": [
              "always",
              "decayed_only"
            ],
            "default": "always",
            "description": "When the trust ratio applies; decayed_only uses 1 if weight_decay is 0 (timm, apex)"
          },
          "trust_min": {
            "type": [
              "number",
              "null"
            ],
            "default": null,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Lower bound of the trust ratio"
          },
          "trust_max": {
            "type": [
              "number",
              "null"
            ],
            "default": null,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Upper bound of the trust ratio"
          },
          "max_grad_norm": {
            "type": [
              "number",
              "null"
            ],
            "default": null,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Divide all gradients by max(1, norm/max_grad_norm), the norm over all tensors; null does not clip (timm: 1.0)"
          },
          "grad_averaging": {
            "type": "boolean",
            "default": true,
            "description": "Multiply the new gradient by 1-beta1 in exp_avg; false adds it unscaled"
          },
          "eps_root": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added under the root, as in optax"
          },
          "caution": {
            "type": "boolean",
            "default": false,
            "description": "Zero the elements of the update whose sign differs from the gradient's, and scale up the others (timm)"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "LARS",
        "description": "d = ratio*(g + weight_decay*p), ratio = trust_coefficient*|p|/(|g| + weight_decay*|p| + eps) (1 where a norm is 0); buf = momentum*buf + (1-dampening)*d (first step: buf = d); p -= lr * (nesterov ? d + momentum*buf : buf)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "lars"
          },
          "lr": {
            "type": "number",
            "default": 1,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "momentum": {
            "type": "number",
            "default": 0.9,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Decay rate of momentum_buffer; 0 keeps no buffer"
          },
          "dampening": {
            "type": "number",
            "default": 0,
            "minimum": -3.4028234663852886e+38,
            "maximum": 3.4028234663852886e+38,
            "description": "Fraction of each new gradient that is not added to the buffer"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay (L2): weight_decay times the parameter is added to the gradient"
          },
          "nesterov": {
            "type": "boolean",
            "default": false,
            "description": "Nesterov momentum: step along the scaled gradient plus momentum times the buffer"
          },
          "trust_coefficient": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Factor of the trust ratio"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the trust ratio's denominator"
          },
          "trust_denominator": {
            "type": "string",
            "enum": [
              "sum",
              "decayed_grad"
            ],
            "default": "sum",
            "description": "Sum of the norms (timm), or norm of the decayed gradient (optax)"
          },
          "trust_clip": {
            "type": "boolean",
            "default": false,
            "description": "Keep ratio/lr at most 1, as LARC and timm do"
          },
          "always_adapt": {
            "type": "boolean",
            "default": false,
            "description": "Apply the trust ratio even if weight_decay is 0; otherwise trust_denominator sum uses 1 then"
          },
          "lr_in_momentum": {
            "type": "boolean",
            "default": false,
            "description": "Apply lr before the momentum buffer (optax) instead of after it (timm)"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Lion",
        "description": "u = sign(lerp(m, g, 1-beta1)); p -= lr*weight_decay*p + lr*u; m = lerp(m, g, 1-beta2)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "lion"
          },
          "lr": {
            "type": "number",
            "default": 0.0001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.9,
              0.99
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Decoupled weight decay: lr times weight_decay times the parameter is subtracted from the parameter"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "caution": {
            "type": "boolean",
            "default": false,
            "description": "Zero the elements of the update whose sign differs from the gradient's, and scale up the others (timm)"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Muon",
        "description": "buf = lerp(buf, g, 1-momentum); u = nesterov ? lerp(g, buf, momentum) : buf; X = u/max(|u|, eps); ns_steps times: A = X*X', X = a*X + (b*A + c*A*A)*X; p -= lr*weight_decay*p + lr*scale*X, scale by adjust_lr_fn from R rows and C columns: original sqrt(max(1, R/C)), match_rms_adamw 0.2*sqrt(max(R, C)), spectral_unclamped sqrt(R/C)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "muon"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "weight_decay": {
            "type": "number",
            "default": 0.1,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Decoupled weight decay: lr*weight_decay times the parameter is subtracted from the parameter"
          },
          "momentum": {
            "type": "number",
            "default": 0.95,
            "minimum": 0,
            "maximum": 1,
            "description": "Decay rate of momentum_buffer"
          },
          "nesterov": {
            "type": "boolean",
            "default": true,
            "description": "Use Nesterov's form: orthogonalize the mean of gradient and buffer, instead of the buffer"
          },
          "ns_steps": {
            "type": "number",
            "default": 5,
            "minimum": 0,
            "maximum": 99,
            "description": "Number of Newton-Schulz iterations, a whole number; each takes three matrix products"
          },
          "ns_coefficients": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": -1000,
              "maximum": 1000
            },
            "minItems": 3,
            "maxItems": 3,
            "default": [
              3.4445,
              -4.775,
              2.0315
            ],
            "description": "Coefficients a, b and c of the iteration"
          },
          "eps": {
            "type": "number",
            "default": 1e-7,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Smallest divisor of the update before the iterations"
          },
          "adjust_lr_fn": {
            "type": "string",
            "enum": [
              "original",
              "match_rms_adamw",
              "spectral_unclamped"
            ],
            "default": "original",
            "description": "Factor of lr by shape: sqrt(max(1, rows/columns)), 0.2*sqrt(max(rows, columns)), or sqrt(rows/columns)"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "NAdam",
        "description": "m, v as in adam; mu_t = beta1*(1 - 0.96^(t*momentum_decay)/2); P = mu_1*...*mu_t; p -= lr * ((1-mu_t)/(1-P)*g + mu_{t+1}/(1-P*mu_{t+1})*m) / (sqrt(v/(1-beta2^t)) + eps)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "nadam"
          },
          "lr": {
            "type": "number",
            "default": 0.002,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.9,
              0.999
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of the second moment, after the bias correction"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay (L2): weight_decay times the parameter is added to the gradient"
          },
          "decoupled_weight_decay": {
            "type": "boolean",
            "default": false,
            "description": "Decouple the weight decay: subtract lr*weight_decay times the parameter, instead of adding to the gradient"
          },
          "momentum_decay": {
            "type": "number",
            "default": 0.004,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Speed of the momentum's warm-up"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Prodigy",
        "description": "rate = d*lr (use_bias_correction: times sqrt(1-beta2^k)/(1-beta1^k)); m = beta1*m + (1-beta1)*d*g; v = beta2*v + (1-beta2)*d^2*g^2; s = beta3*s + d/d0*rate*g; over all tensors: numerator = beta3*numerator + d/d0*rate*<g, p0 - p>, d_hat = d_coef*numerator/|s|_1, d_max = max(d_max, d_hat), d = min(d_max, d*growth_rate); p -= rate*weight_decay*p + rate * m/(sqrt(v) + d*eps)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "prodigy"
          },
          "lr": {
            "type": "number",
            "default": 1,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Factor of the estimated step size; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.9,
              0.999
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "beta3": {
            "type": [
              "number",
              "null"
            ],
            "default": null,
            "minimum": 0,
            "maximum": 1,
            "description": "Decay rate of s and of the numerator; null takes the root of the second of betas"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of the second moment, after the bias correction"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay; decouple selects its form"
          },
          "decouple": {
            "type": "boolean",
            "default": true,
            "description": "Subtract rate*weight_decay times the parameter from it; false adds weight_decay times the parameter to the gradient"
          },
          "use_bias_correction": {
            "type": "boolean",
            "default": false,
            "description": "Correct the bias of the moments in the step size (optax: always)"
          },
          "safeguard_warmup": {
            "type": "boolean",
            "default": false,
            "description": "Leave lr out of s, for schedules that begin with small rates"
          },
          "d0": {
            "type": "number",
            "default": 0.000001,
            "exclusiveMinimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Estimate of the distance before the first step"
          },
          "d_coef": {
            "type": "number",
            "default": 1,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Factor of the estimate"
          },
          "growth_rate": {
            "type": [
              "number",
              "null"
            ],
            "default": null,
            "minimum": 1,
            "maximum": 3.4028234663852886e+38,
            "description": "Largest factor by which d grows in a step; null for no limit"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "QHAdam",
        "description": "g += weight_decay*p; m, v as in adam; p -= lr * (nu1*mhat + (1-nu1)*g) / (sqrt(nu2*vhat + (1-nu2)*g^2) + eps), mhat = m/(1-beta1^t), vhat = v/(1-beta2^t)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "qhadam"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.995,
              0.999
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "nus": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": -3.4028234663852886e+38,
              "maximum": 3.4028234663852886e+38
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.7,
              1
            ],
            "description": "Weights of the first and second moment, relative to the current gradient; any finite numbers"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of the second moment, after the bias correction"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay (L2): weight_decay times the parameter is added to the gradient"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "QHAdamW",
        "description": "m, v as in adamw; p -= scale*weight_decay*p + lr * (nu1*mhat + (1-nu1)*g) / (sqrt(nu2*vhat + (1-nu2)*g^2) + eps), scale = lr, lr_t/lr or 1 by weight_decay_scale",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "qhadamw"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.995,
              0.999
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "nus": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": -3.4028234663852886e+38,
              "maximum": 3.4028234663852886e+38
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.7,
              1
            ],
            "description": "Weights of the first and second moment, relative to the current gradient; any finite numbers"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of the second moment, after the bias correction"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Decoupled weight decay: weight_decay times the parameter, scaled by weight_decay_scale, is subtracted from the parameter"
          },
          "weight_decay_scale": {
            "type": "string",
            "enum": [
              "lr",
              "schedule",
              "none"
            ],
            "default": "lr",
            "description": "Factor of weight_decay: lr (torch), the schedule's factor lr_t/lr (the AdamW paper's fully decoupled form; lr_t/max_lr with one_cycle and cyclic), or 1 (IPRally's QHAdamW)"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "QHM",
        "description": "g += weight_decay*p (type grad); buf = lerp(buf, g, 1-momentum); p -= lr*weight_decay*p (type direct) + lr * (nu*buf + (1-nu)*g)",
        "type": "object",
        "required": [
          "name",
          "lr",
          "momentum",
          "nu"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "qhm"
          },
          "lr": {
            "type": "number",
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate. The paper's experiments use 1 with momentum 0.999 and nu 0.7"
          },
          "momentum": {
            "type": "number",
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Decay rate of momentum_buffer"
          },
          "nu": {
            "type": "number",
            "minimum": -3.4028234663852886e+38,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight of the buffer, relative to the current gradient"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay: a multiple of the parameter"
          },
          "weight_decay_type": {
            "type": "string",
            "enum": [
              "grad",
              "direct"
            ],
            "default": "grad",
            "description": "Add the decay to the gradient, or subtract lr times it from the parameter"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "RAdam",
        "description": "m, v as in adam; rho = rho_inf - 2t*beta2^t/(1-beta2^t); p -= lr * m/(1-beta1^t) * (rho > 5 ? rect(rho)*sqrt(1-beta2^t)/(sqrt(v) + eps) : 1)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "radam"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.9,
              0.999
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of the second moment, after the bias correction"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay (L2): weight_decay times the parameter is added to the gradient"
          },
          "decoupled_weight_decay": {
            "type": "boolean",
            "default": false,
            "description": "Decouple the weight decay: subtract lr*weight_decay times the parameter, instead of adding to the gradient"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "RMSprop",
        "description": "g += weight_decay*p; s = lerp(s, g^2, 1-alpha); q = centered ? max(s - h^2, 0), h = lerp(h, g, 1-alpha) : s; u = g/(sqrt(q + eps_root) + eps); p -= lr * (momentum ? buf = momentum*buf + u : u)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "rmsprop"
          },
          "lr": {
            "type": "number",
            "default": 0.01,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "alpha": {
            "type": "number",
            "default": 0.99,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Decay rate of square_avg and grad_avg"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay (L2): weight_decay times the parameter is added to the gradient"
          },
          "momentum": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Decay rate of momentum_buffer; 0 keeps no buffer"
          },
          "centered": {
            "type": "boolean",
            "default": false,
            "description": "Divide by the deviation from the mean gradient (slot grad_avg)"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "eps_root": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added under the root, as in optax"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Rprop",
        "description": "s = clamp(s * (g*prev > 0 ? eta_plus : g*prev < 0 ? eta_minus : 1), step_sizes); g = 0 where g*prev < 0; p -= sign(g)*s; prev = g (first step: s = lr)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "rprop"
          },
          "lr": {
            "type": "number",
            "default": 0.01,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Step size of the first step"
          },
          "etas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": -3.4028234663852886e+38,
              "maximum": 3.4028234663852886e+38
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.5,
              1.2
            ],
            "description": "Factors of the step size: below 1 where the gradient's sign turns, above 1 where it stays"
          },
          "step_sizes": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": -3.4028234663852886e+38,
              "maximum": 3.4028234663852886e+38
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.000001,
              50
            ],
            "description": "Smallest and largest step size"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Schedule-free AdamW",
        "description": "v = lerp(v, g^2, 1-beta2); u = g/(sqrt(v/(1-beta2^t)) + eps) + weight_decay*p; c = w_t/(w_1 + ... + w_t), w_t = t^r * lr_max^weight_lr_power; p += c*(z - p) - lr*(1 - beta1*(1-c))*u; z -= lr*u (first step: z = p before it); average: p + (1 - 1/beta1)*(z - p)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "schedule_free_adamw"
          },
          "lr": {
            "type": "number",
            "default": 0.0025,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.9,
              0.999
            ],
            "description": "Weight of the average x in the parameters, more than 0, and decay rate of exp_avg_sq"
          },
          "eps": {
            "type": "number",
            "default": 1e-8,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of the second moment, after the bias correction"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay: weight_decay times the parameter is added to the scaled gradient"
          },
          "warmup_steps": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Number of steps in which the learning rate grows linearly from 0"
          },
          "r": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 8,
            "description": "Power of the step number in the weight of each step in the average"
          },
          "weight_lr_power": {
            "type": "number",
            "default": 2,
            "minimum": 0,
            "maximum": 4,
            "description": "Power of the largest learning rate so far in the weight of each step in the average"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Schedule-free SGD",
        "description": "g += weight_decay*p; c = w_t/(w_1 + ... + w_t), w_t = t^r * lr_max^weight_lr_power; p += c*(z - p) - lr*(1 - momentum*(1-c))*g; z -= lr*g (first step: z = p before it); average: p + (1 - 1/momentum)*(z - p)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "schedule_free_sgd"
          },
          "lr": {
            "type": "number",
            "default": 1,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "momentum": {
            "type": "number",
            "default": 0.9,
            "minimum": 0,
            "maximum": 1,
            "description": "Weight of the average x in the parameters; more than 0"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay (L2): weight_decay times the parameter is added to the gradient"
          },
          "warmup_steps": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Number of steps in which the learning rate grows linearly from 0"
          },
          "r": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 8,
            "description": "Power of the step number in the weight of each step in the average"
          },
          "weight_lr_power": {
            "type": "number",
            "default": 2,
            "minimum": 0,
            "maximum": 4,
            "description": "Power of the largest learning rate so far in the weight of each step in the average"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "SGD",
        "description": "g += weight_decay*p; buf = momentum*buf + (1-dampening)*g (first step: buf = g); p -= lr * (nesterov ? g + momentum*buf : momentum ? buf : g)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "sgd"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "momentum": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Decay rate of momentum_buffer; 0 keeps no buffer"
          },
          "dampening": {
            "type": "number",
            "default": 0,
            "minimum": -3.4028234663852886e+38,
            "maximum": 3.4028234663852886e+38,
            "description": "Fraction of each new gradient that is not added to the buffer"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay (L2): weight_decay times the parameter is added to the gradient"
          },
          "nesterov": {
            "type": "boolean",
            "default": false,
            "description": "Nesterov momentum: step along the gradient plus momentum times the buffer"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Signum",
        "description": "buf = lerp(buf, g, 1-momentum); p -= lr*sign(buf)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "signum"
          },
          "lr": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "momentum": {
            "type": "number",
            "default": 0.9,
            "minimum": 0,
            "maximum": 1,
            "description": "Decay rate of momentum_buffer"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay; decoupled_weight_decay selects its form"
          },
          "decoupled_weight_decay": {
            "type": "boolean",
            "default": true,
            "description": "Subtract lr*weight_decay times the parameter from it, instead of adding weight_decay times the parameter to the gradient"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "state_dtype": {
            "type": "string",
            "enum": [
              "F32",
              "BF16",
              "Q8"
            ],
            "default": "F32",
            "description": "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      },
      {
        "title": "Yogi",
        "description": "m = lerp(m, g, 1-beta1); v -= (1-beta2)*sign(v - g^2)*g^2; p -= lr * m/(1-beta1^t) / (sqrt(v/(1-beta2^t) + eps_root) + eps)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "yogi"
          },
          "lr": {
            "type": "number",
            "default": 0.01,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Learning rate; with a schedule, its base rate"
          },
          "betas": {
            "type": "array",
            "items": {
              "type": "number",
              "minimum": 0,
              "exclusiveMaximum": 1
            },
            "minItems": 2,
            "maxItems": 2,
            "default": [
              0.9,
              0.999
            ],
            "description": "Decay rates of exp_avg and exp_avg_sq"
          },
          "eps": {
            "type": "number",
            "default": 0.001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added to the root of the second moment"
          },
          "initial_accumulator_value": {
            "type": "number",
            "default": 0.000001,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Initial value of exp_avg and exp_avg_sq"
          },
          "weight_decay": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Weight decay; decoupled_weight_decay selects its form"
          },
          "decoupled_weight_decay": {
            "type": "boolean",
            "default": true,
            "description": "Subtract lr*weight_decay times the parameter from it, instead of adding weight_decay times the parameter to the gradient"
          },
          "bias_correction": {
            "type": "string",
            "enum": [
              "moments",
              "step_size",
              "none"
            ],
            "default": "moments",
            "description": "Correct the moments (paper), the step size alone, so that eps is added to the uncorrected root (Keras, and Flower's FedAdam), or nothing"
          },
          "eps_root": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Added under the root, as in optax"
          },
          "maximize": {
            "type": "boolean",
            "default": false,
            "description": "Go up the gradient instead of down"
          },
          "ema": {
            "type": [
              "object",
              "null"
            ],
            "default": null,
            "required": [
              "decay"
            ],
            "additionalProperties": false,
            "properties": {
              "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Weight of the old average; 1 - decay is that of the new parameter"
              }
            },
            "description": "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average"
          }
        }
      }
    ]
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "plan-result.schema.json",
    "title": "PlanResult",
    "description": "Cost of a step as one call with a state.",
    "type": "object",
    "required": [
      "parameters",
      "bytes_in",
      "bytes_out",
      "state_bytes",
      "arena_bytes",
      "matrix_flops",
      "fits",
      "requests",
      "too_large"
    ],
    "additionalProperties": false,
    "properties": {
      "parameters": {
        "description": "Number of elements in all parameters.",
        "type": "integer",
        "minimum": 0
      },
      "bytes_in": {
        "description": "Bytes of params, grads and state.",
        "type": "integer",
        "minimum": 0
      },
      "bytes_out": {
        "description": "Bytes of the new params and state.",
        "type": "integer",
        "minimum": 0
      },
      "state_bytes": {
        "description": "Bytes of the state.",
        "type": "integer",
        "minimum": 0
      },
      "arena_bytes": {
        "description": "Upper bound of the memory that the call needs on the server.",
        "type": "integer",
        "minimum": 0
      },
      "matrix_flops": {
        "description": "Multiplications and additions in the matrix products of a step, such as those of muon; 0 for other optimizers.",
        "type": "number",
        "minimum": 0
      },
      "fits": {
        "description": "Whether this server accepts the step as one call.",
        "type": "boolean"
      },
      "requests": {
        "description": "Number of calls to split the step into, so that several fit at once; 0 if too_large names a tensor. A tensor that does not fit counts as slices, unless its optimizer needs it whole.",
        "type": "integer",
        "minimum": 0
      },
      "too_large": {
        "description": "Tensors that are too large on their own, and that their optimizer needs whole. Calls can have slices of others.",
        "type": "array",
        "items": {
          "type": "string"
        }
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "plan.schema.json",
    "title": "PlanParams",
    "description": "A step whose cost is estimated, without its data.",
    "examples": [
      {
        "optimizer": {
          "name": "adamw"
        },
        "tensors": {
          "w": {
            "shape": [
              4096,
              4096
            ],
            "dtype": "BF16"
          }
        }
      }
    ],
    "type": "object",
    "required": [
      "optimizer",
      "tensors"
    ],
    "additionalProperties": false,
    "properties": {
      "optimizer": {
        "$ref": "optimizer.schema.json"
      },
      "groups": {
        "description": "Parameter groups; a parameter belongs to the first one that matches it.",
        "type": "array",
        "maxItems": 4096,
        "items": {
          "$ref": "group.schema.json"
        }
      },
      "tensors": {
        "description": "Shapes and dtypes of the parameters by name.",
        "type": "object",
        "propertyNames": {
          "maxLength": 1024
        },
        "additionalProperties": {
          "title": "TensorShape",
          "type": "object",
          "required": [
            "shape"
          ],
          "additionalProperties": false,
          "properties": {
            "shape": {
              "type": "array",
              "maxItems": 32,
              "items": {
                "type": "integer",
                "minimum": 0,
                "maximum": 9007199254740991
              }
            },
            "dtype": {
              "$ref": "tensor.schema.json#/$defs/Dtype"
            }
          }
        },
        "tsType": "{ readonly [name: string]: { readonly shape: readonly number[]; readonly dtype?: Dtype } }"
      },
      "grad_dtype": {
        "$ref": "tensor.schema.json#/$defs/Dtype"
      },
      "master_weights": {
        "description": "Keep a float32 copy of each BF16 or F16 parameter in the state (slot master_param), and apply the steps to that copy.",
        "type": "boolean",
        "default": false
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "receipt.schema.json",
    "title": "Receipt",
    "description": "What a call did: its options, and the SHA-256 of each blob in and out, in hexadecimal. Tensors in lists of numbers have the digest of the canonical safetensors file with the same tensors.",
    "type": "object",
    "required": [
      "format",
      "version",
      "method",
      "options",
      "revisions",
      "inputs",
      "outputs"
    ],
    "additionalProperties": false,
    "properties": {
      "format": {
        "const": "stepd.receipt/1"
      },
      "version": {
        "description": "The version of the service.",
        "type": "string"
      },
      "method": {
        "enum": [
          "optimizer.step",
          "optimizer.init",
          "optimizer.norms",
          "optimizer.reduce"
        ]
      },
      "options": {
        "description": "The call without its blobs. Its optimizers have all their hyperparameters.",
        "type": "object"
      },
      "revisions": {
        "description": "The revision of each optimizer of the call. It rises with every change to the bits of a result.",
        "type": "object",
        "additionalProperties": {
          "type": "integer",
          "minimum": 1,
          "maximum": 9007199254740991
        }
      },
      "part": {
        "$ref": "receipt.schema.json#/$defs/ReceiptPart"
      },
      "inputs": {
        "description": "The digests of the call's blobs by field, for instance params, grads, state or reduce/updates/0/tensors.",
        "type": "object",
        "additionalProperties": {
          "$ref": "receipt.schema.json#/$defs/Sha256"
        }
      },
      "outputs": {
        "description": "The digests of the results: params and state of a step, and rounded_params if the reply has them; state of an initial state; grads or accumulator of a reduction.",
        "type": "object",
        "additionalProperties": {
          "$ref": "receipt.schema.json#/$defs/Sha256"
        }
      },
      "step": {
        "description": "The largest step count in the new state.",
        "type": "integer",
        "minimum": 0,
        "maximum": 9007199254740991
      },
      "skipped": {
        "description": "Whether the call did nothing, because of non_finite skip or a reduction without updates.",
        "type": "boolean"
      },
      "grad_norm": {
        "description": "The norm over all gradients of the call, for optimizer.norms.",
        "$ref": "tensor.schema.json#/$defs/Value"
      },
      "key": {
        "description": "The name of the key that signed the receipt: the SHA-256 of the public key in DER.",
        "$ref": "receipt.schema.json#/$defs/Sha256"
      },
      "signature": {
        "description": "The Ed25519 signature, in base64, of the receipt without this field, as canonical JSON (RFC 8785) in UTF-8.",
        "type": "string",
        "pattern": "^[A-Za-z0-9+/]{86}==$"
      }
    },
    "dependentRequired": {
      "key": [
        "signature"
      ],
      "signature": [
        "key"
      ]
    },
    "$defs": {
      "Sha256": {
        "type": "string",
        "pattern": "^[0-9a-f]{64}$"
      },
      "ReceiptPart": {
        "title": "ReceiptPart",
        "description": "Which part of a sharded step a call is. The parts of a step have one receipt each, with indexes from 0.",
        "type": "object",
        "required": [
          "index",
          "count"
        ],
        "additionalProperties": false,
        "properties": {
          "index": {
            "type": "integer",
            "minimum": 0,
            "maximum": 65535
          },
          "count": {
            "type": "integer",
            "minimum": 1,
            "maximum": 65536
          }
        }
      },
      "ReceiptOption": {
        "title": "ReceiptOption",
        "description": "Whether the reply has a receipt: the SHA-256 of each blob in and out, and the options. An object says which part of a sharded step this call is, and the receipt repeats it.",
        "if": {
          "type": "boolean"
        },
        "then": true,
        "else": {
          "$ref": "receipt.schema.json#/$defs/ReceiptPart"
        },
        "tsType": "boolean | ReceiptPart",
        "default": false
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "reduce-result.schema.json",
    "title": "ReduceResult",
    "description": "The pseudo-gradient, or the accumulator if the call does not finish.",
    "type": "object",
    "required": [
      "count",
      "weight",
      "dropped",
      "skipped"
    ],
    "additionalProperties": false,
    "properties": {
      "grads": {
        "description": "The pseudo-gradient, for optimizer.step: F64 for parameters or updates in F64, else F32. Without tensors if skipped.",
        "$ref": "tensor.schema.json#/$defs/Tensors"
      },
      "accumulator": {
        "description": "The sums of all updates so far (format stepd.sum/1).",
        "$ref": "tensor.schema.json#/$defs/Blob"
      },
      "count": {
        "description": "Number of updates in the result, including those of the accumulator. If tensors differ, the largest number.",
        "type": "integer"
      },
      "weight": {
        "description": "Sum of the weights of these updates. If tensors differ, the largest sum.",
        "$ref": "tensor.schema.json#/$defs/Value"
      },
      "dropped": {
        "description": "Indexes of the updates that were dropped because of non_finite drop.",
        "type": "array",
        "items": {
          "type": "integer"
        }
      },
      "skipped": {
        "description": "Whether the result is empty: there is no update, or all weights are 0.",
        "type": "boolean"
      },
      "receipt": {
        "$ref": "receipt.schema.json"
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "reduce.schema.json",
    "title": "ReduceParams",
    "description": "Combines the updates of several clients into one pseudo-gradient, in float64 and in the given order.",
    "examples": [
      {
        "params": {
          "w": {
            "shape": [
              2
            ],
            "values": [
              1,
              2
            ]
          }
        },
        "updates": [
          {
            "tensors": {
              "w": {
                "shape": [
                  2
                ],
                "values": [
                  0.9,
                  2.1
                ]
              }
            },
            "weight": 10
          },
          {
            "tensors": {
              "w": {
                "shape": [
                  2
                ],
                "values": [
                  0.8,
                  2.3
                ]
              }
            },
            "weight": 30
          }
        ]
      }
    ],
    "type": "object",
    "required": [
      "updates"
    ],
    "additionalProperties": false,
    "properties": {
      "params": {
        "$ref": "tensor.schema.json#/$defs/TensorsSource",
        "description": "The parameters that the updates started from: required for form params. They fix the names, shapes and dtypes of the result."
      },
      "updates": {
        "$ref": "reduce.schema.json#/$defs/Updates"
      },
      "form": {
        "$ref": "reduce.schema.json#/$defs/Form",
        "default": "params"
      },
      "method": {
        "$ref": "reduce.schema.json#/$defs/Method",
        "default": {
          "name": "mean"
        }
      },
      "accumulator": {
        "description": "The accumulator of the last call, for a mean over several calls; null or absent in the first call.",
        "if": {
          "type": "null"
        },
        "then": true,
        "else": {
          "$ref": "tensor.schema.json#/$defs/BlobSource"
        },
        "tsType": "Uint8Array | string | SharedBlob | CachedBlob | null"
      },
      "non_finite": {
        "$ref": "reduce.schema.json#/$defs/NonFinite",
        "default": "error"
      },
      "missing": {
        "$ref": "reduce.schema.json#/$defs/Missing",
        "default": "error"
      },
      "finish": {
        "description": "Whether the call returns the pseudo-gradient. Otherwise it returns the accumulator, for further updates in another call.",
        "type": "boolean",
        "default": true
      },
      "receipt": {
        "$ref": "receipt.schema.json#/$defs/ReceiptOption"
      }
    },
    "$defs": {
      "Update": {
        "title": "Update",
        "description": "One update: tensors, and their weight in the mean.",
        "type": "object",
        "required": [
          "tensors"
        ],
        "additionalProperties": false,
        "properties": {
          "tensors": {
            "$ref": "tensor.schema.json#/$defs/TensorsSource",
            "description": "Tensors in F32, F64, BF16 or F16. A blob may also have I8 tensors, whose values are multiplied by the F32 tensor <name>.scale: a scalar, or one number for each index of the first dimension."
          },
          "weight": {
            "description": "Weight in the mean, for instance the number of examples. It must be 1 for the median and the trimmed mean.",
            "type": "number",
            "minimum": 0,
            "maximum": 9007199254740991,
            "default": 1
          }
        }
      },
      "Updates": {
        "description": "The updates, in the order of the arithmetic. The same order gives the same bits, so sort them, for instance by client.",
        "type": "array",
        "maxItems": 4096,
        "items": {
          "$ref": "reduce.schema.json#/$defs/Update"
        }
      },
      "Form": {
        "title": "Form",
        "description": "What the updates contain: new parameters (the result is params - mean), deltas to add to the parameters (the result is -mean), or gradients (the result is the mean).",
        "enum": [
          "params",
          "deltas",
          "gradients"
        ]
      },
      "Method": {
        "title": "ReduceMethod",
        "description": "How the updates are combined, element by element.",
        "type": "object",
        "required": [
          "name"
        ],
        "discriminator": {
          "propertyName": "name"
        },
        "oneOf": [
          {
            "title": "Mean",
            "description": "The weighted mean: the sum of weight * update, divided by the sum of weights.",
            "type": "object",
            "required": [
              "name"
            ],
            "additionalProperties": false,
            "properties": {
              "name": {
                "const": "mean"
              },
              "divisor": {
                "description": "Divisor instead of the sum of weights, for instance the expected sum.",
                "type": [
                  "number",
                  "null"
                ],
                "exclusiveMinimum": 0,
                "default": null
              }
            }
          },
          {
            "title": "Median",
            "description": "The median. For an even number of updates, it is the mean of the two middle values.",
            "type": "object",
            "required": [
              "name"
            ],
            "additionalProperties": false,
            "properties": {
              "name": {
                "const": "median"
              }
            }
          },
          {
            "title": "TrimmedMean",
            "description": "The trimmed mean: each element's mean without its smallest and largest values, as many as cut at each end.",
            "type": "object",
            "required": [
              "name",
              "cut"
            ],
            "additionalProperties": false,
            "properties": {
              "name": {
                "const": "trimmed_mean"
              },
              "cut": {
                "description": "Number of values to remove at each end.",
                "type": "integer",
                "minimum": 0,
                "maximum": 2047
              }
            }
          }
        ]
      },
      "NonFinite": {
        "title": "NonFinite",
        "description": "What NaN or infinity in an update causes: error rejects the call, drop omits the whole update and lists it, propagate computes with it.",
        "enum": [
          "error",
          "drop",
          "propagate"
        ]
      },
      "Missing": {
        "title": "Missing",
        "description": "What a missing tensor in an update causes: error rejects the call, renormalize combines each tensor over the updates that have it.",
        "enum": [
          "error",
          "renormalize"
        ]
      },
      "Reduction": {
        "title": "Reduction",
        "description": "The updates of a step, combined into its gradients by optimizer.reduce. The parameters are those of the step.",
        "type": "object",
        "required": [
          "updates"
        ],
        "additionalProperties": false,
        "properties": {
          "updates": {
            "$ref": "reduce.schema.json#/$defs/Updates"
          },
          "form": {
            "$ref": "reduce.schema.json#/$defs/Form",
            "default": "params"
          },
          "method": {
            "$ref": "reduce.schema.json#/$defs/Method",
            "default": {
              "name": "mean"
            }
          },
          "accumulator": {
            "description": "The accumulator of the last call, for a mean over several calls; null or absent in the first call.",
            "if": {
              "type": "null"
            },
            "then": true,
            "else": {
              "$ref": "tensor.schema.json#/$defs/BlobSource"
            },
            "tsType": "Uint8Array | string | SharedBlob | CachedBlob | null"
          },
          "non_finite": {
            "$ref": "reduce.schema.json#/$defs/NonFinite",
            "default": "error"
          },
          "missing": {
            "$ref": "reduce.schema.json#/$defs/Missing",
            "default": "error"
          }
        }
      },
      "ReductionReport": {
        "title": "ReductionReport",
        "description": "What optimizer.reduce returns beside the pseudo-gradient.",
        "type": "object",
        "required": [
          "count",
          "weight",
          "dropped",
          "skipped"
        ],
        "additionalProperties": false,
        "properties": {
          "count": {
            "description": "Number of updates in the result, including those of the accumulator. If tensors differ, the largest number.",
            "type": "integer",
            "minimum": 0,
            "maximum": 9007199254740991
          },
          "weight": {
            "description": "Sum of the weights of these updates. If tensors differ, the largest sum.",
            "$ref": "tensor.schema.json#/$defs/Value"
          },
          "dropped": {
            "description": "Indexes of the updates that were dropped because of non_finite drop.",
            "type": "array",
            "items": {
              "type": "integer",
              "minimum": 0,
              "maximum": 9007199254740991
            }
          },
          "skipped": {
            "description": "Whether the result is empty: there is no update, or all weights are 0.",
            "type": "boolean"
          }
        }
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "schedule.schema.json",
    "$comment": "DO NOT EDIT: written by `npm run generate` from src/schedules.",
    "title": "Schedule",
    "description": "A learning-rate schedule by name with its arguments in torch's names; absent ones take their defaults.",
    "type": "object",
    "required": [
      "name"
    ],
    "discriminator": {
      "propertyName": "name"
    },
    "oneOf": [
      {
        "title": "ChainedSchedule",
        "description": "lr_t = lr times the factors of all schedules at step t; a factor is the schedule's rate divided by lr",
        "type": "object",
        "required": [
          "name",
          "schedules"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "chained"
          },
          "schedules": {
            "type": "array",
            "items": {
              "$ref": "schedule.schema.json"
            },
            "minItems": 1,
            "maxItems": 64,
            "description": "Schedules that multiply the base rate: all but one_cycle and cyclic, which set it"
          }
        }
      },
      {
        "title": "ConstantSchedule",
        "description": "lr_t = lr * factor for t < total_iters, or always if it is null, then lr",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "constant"
          },
          "factor": {
            "type": "number",
            "default": 0.3333333333333333,
            "minimum": 0,
            "maximum": 1,
            "description": "Factor of the base rate before step total_iters"
          },
          "total_iters": {
            "type": [
              "integer",
              "null"
            ],
            "default": 5,
            "minimum": 0,
            "maximum": 9007199254740991,
            "description": "Number of steps with the factor; null is all steps"
          }
        }
      },
      {
        "title": "CosineSchedule",
        "description": "lr_t = eta_min + (lr - eta_min) * (1 + cos(pi * t / T_max)) / 2",
        "type": "object",
        "required": [
          "name",
          "T_max"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "cosine"
          },
          "T_max": {
            "type": "integer",
            "minimum": 1,
            "maximum": 9007199254740991,
            "description": "Steps from the base rate to eta_min"
          },
          "eta_min": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "The lowest rate"
          }
        }
      },
      {
        "title": "CosineWarmRestartsSchedule",
        "description": "lr_t = eta_min + (lr - eta_min) * (1 + cos(pi * T_cur / T_i)) / 2, T_cur steps after the last restart, T_i = T_0 * T_mult^i",
        "type": "object",
        "required": [
          "name",
          "T_0"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "cosine_warm_restarts"
          },
          "T_0": {
            "type": "integer",
            "minimum": 1,
            "maximum": 9007199254740991,
            "description": "Steps until the first restart"
          },
          "T_mult": {
            "type": "integer",
            "default": 1,
            "minimum": 1,
            "maximum": 9007199254740991,
            "description": "Factor from the length of one period to the next"
          },
          "eta_min": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "The lowest rate"
          }
        }
      },
      {
        "title": "CyclicSchedule",
        "description": "lr_t = base_lr + (max_lr - base_lr) * height * scale; height goes 0 -> 1 in step_size_up steps and back in step_size_down; scale is 1, 1/2^(completed cycles) or gamma^t by mode",
        "type": "object",
        "required": [
          "name",
          "base_lr",
          "max_lr"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "cyclic"
          },
          "base_lr": {
            "type": "number",
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "The lowest rate"
          },
          "max_lr": {
            "type": "number",
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "The highest rate"
          },
          "step_size_up": {
            "type": "integer",
            "default": 2000,
            "minimum": 1,
            "maximum": 9007199254740991,
            "description": "Steps in which the rate rises"
          },
          "step_size_down": {
            "type": [
              "integer",
              "null"
            ],
            "default": null,
            "minimum": 1,
            "maximum": 9007199254740991,
            "description": "Steps in which the rate falls; null means step_size_up"
          },
          "mode": {
            "type": "string",
            "enum": [
              "triangular",
              "triangular2",
              "exp_range"
            ],
            "default": "triangular",
            "description": "Change of the height from cycle to cycle"
          },
          "gamma": {
            "type": "number",
            "default": 1,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Factor of the height per step in exp_range"
          },
          "cycle_momentum": {
            "type": "boolean",
            "default": true,
            "description": "Cycle the momentum, or the first of betas, inversely to the rate"
          },
          "base_momentum": {
            "type": "number",
            "default": 0.8,
            "minimum": 0,
            "exclusiveMaximum": 1,
            "description": "The lowest momentum, at the highest rate"
          },
          "max_momentum": {
            "type": "number",
            "default": 0.9,
            "minimum": 0,
            "exclusiveMaximum": 1,
            "description": "The highest momentum, at base_lr"
          }
        }
      },
      {
        "title": "ExponentialSchedule",
        "description": "lr_t = lr * gamma^t",
        "type": "object",
        "required": [
          "name",
          "gamma"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "exponential"
          },
          "gamma": {
            "type": "number",
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Factor of the rate per step"
          }
        }
      },
      {
        "title": "InverseSqrtSchedule",
        "description": "lr_t = lr * t / warmup_steps for t < warmup_steps, then lr / sqrt((t - warmup_steps + timescale) / timescale)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "inverse_sqrt"
          },
          "warmup_steps": {
            "type": "integer",
            "default": 0,
            "minimum": 0,
            "maximum": 9007199254740991,
            "description": "Steps from 0 to the base rate"
          },
          "timescale": {
            "type": [
              "integer",
              "null"
            ],
            "default": null,
            "minimum": 1,
            "maximum": 9007199254740991,
            "description": "Steps that divide the rate by the root of 2, after the warm-up; null is warmup_steps, or 10,000 without a warm-up"
          }
        }
      },
      {
        "title": "LinearSchedule",
        "description": "lr_t = lr * (start_factor + (end_factor - start_factor) * min(t, total_iters) / total_iters)",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "linear"
          },
          "start_factor": {
            "type": "number",
            "default": 0.3333333333333333,
            "minimum": 0,
            "maximum": 1,
            "description": "Factor of the base rate at the first step"
          },
          "end_factor": {
            "type": "number",
            "default": 1,
            "minimum": 0,
            "maximum": 1,
            "description": "Factor of the base rate from step total_iters on"
          },
          "total_iters": {
            "type": "integer",
            "default": 5,
            "minimum": 1,
            "maximum": 9007199254740991,
            "description": "Steps from start_factor to end_factor"
          }
        }
      },
      {
        "title": "MultistepSchedule",
        "description": "lr_t = lr * gamma^(number of milestones <= t)",
        "type": "object",
        "required": [
          "name",
          "milestones"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "multistep"
          },
          "milestones": {
            "type": "array",
            "maxItems": 1024,
            "items": {
              "type": "integer",
              "minimum": 0,
              "maximum": 9007199254740991
            },
            "description": "Steps at which the rate decays, in ascending order; one that is listed twice decays twice"
          },
          "gamma": {
            "type": "number",
            "default": 0.1,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Factor of the rate per decay"
          }
        }
      },
      {
        "title": "OneCycleSchedule",
        "description": "max_lr/div_factor -> max_lr at t = pct_start*total_steps - 1 -> max_lr/div_factor/final_div_factor at t = total_steps - 1; three_phase goes back to max_lr/div_factor at t = 2*pct_start*total_steps - 2 before; no steps after",
        "type": "object",
        "required": [
          "name",
          "max_lr",
          "total_steps"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "one_cycle"
          },
          "max_lr": {
            "type": "number",
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "The highest rate"
          },
          "total_steps": {
            "type": "integer",
            "minimum": 1,
            "maximum": 9007199254740991,
            "description": "Steps of the whole cycle"
          },
          "pct_start": {
            "type": "number",
            "default": 0.3,
            "minimum": 0,
            "maximum": 1,
            "description": "Fraction of the cycle in which the rate rises"
          },
          "anneal_strategy": {
            "type": "string",
            "enum": [
              "cos",
              "linear"
            ],
            "default": "cos",
            "description": "Shape of the curve between two rates"
          },
          "cycle_momentum": {
            "type": "boolean",
            "default": true,
            "description": "Cycle the momentum, or the first of betas, inversely to the rate"
          },
          "base_momentum": {
            "type": "number",
            "default": 0.85,
            "minimum": 0,
            "exclusiveMaximum": 1,
            "description": "The lowest momentum, where the rate is highest"
          },
          "max_momentum": {
            "type": "number",
            "default": 0.95,
            "minimum": 0,
            "exclusiveMaximum": 1,
            "description": "The highest momentum"
          },
          "div_factor": {
            "type": "number",
            "default": 25,
            "exclusiveMinimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Ratio of max_lr to the first rate"
          },
          "final_div_factor": {
            "type": "number",
            "default": 10000,
            "exclusiveMinimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Ratio of the first rate to the last"
          },
          "three_phase": {
            "type": "boolean",
            "default": false,
            "description": "Fall to the first rate in as many steps as the rise, then to the last rate"
          }
        }
      },
      {
        "title": "PolynomialSchedule",
        "description": "lr_t = lr * (1 - min(t, total_iters) / total_iters)^power",
        "type": "object",
        "required": [
          "name"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "polynomial"
          },
          "total_iters": {
            "type": "integer",
            "default": 5,
            "minimum": 1,
            "maximum": 9007199254740991,
            "description": "Steps until the rate is 0"
          },
          "power": {
            "type": "number",
            "default": 1,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Exponent: any number of at least 0, not only integers"
          }
        }
      },
      {
        "title": "SequenceSchedule",
        "description": "lr_t = schedules[i] at step t - milestones[i-1] with the same base rate, i = number of milestones <= t",
        "type": "object",
        "required": [
          "name",
          "schedules",
          "milestones"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "sequence"
          },
          "schedules": {
            "type": "array",
            "items": {
              "$ref": "schedule.schema.json"
            },
            "minItems": 1,
            "maxItems": 64,
            "description": "One schedule more than milestones; a schedule may be a sequence itself"
          },
          "milestones": {
            "type": "array",
            "maxItems": 1024,
            "items": {
              "type": "integer",
              "minimum": 1,
              "maximum": 9007199254740991
            },
            "description": "Steps at which the next schedule begins, in ascending order"
          }
        }
      },
      {
        "title": "StepSchedule",
        "description": "lr_t = lr * gamma^floor(t / step_size)",
        "type": "object",
        "required": [
          "name",
          "step_size"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "step"
          },
          "step_size": {
            "type": "integer",
            "minimum": 1,
            "maximum": 9007199254740991,
            "description": "Steps between two decays"
          },
          "gamma": {
            "type": "number",
            "default": 0.1,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Factor of the rate per decay"
          }
        }
      },
      {
        "title": "TableSchedule",
        "description": "lr_t = lrs[min(t, length - 1)]",
        "type": "object",
        "required": [
          "name",
          "lrs"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "table"
          },
          "lrs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 10000,
            "items": {
              "type": "number",
              "minimum": 0,
              "maximum": 3.4028234663852886e+38
            },
            "description": "The rates of the steps, from the first one; later steps have the last rate"
          }
        }
      },
      {
        "title": "WarmupCosineSchedule",
        "description": "lr_t = lr times a line from start_factor to 1 in warmup_steps steps, then eta_min + (lr - eta_min) * (1 + cos(pi * (t - warmup_steps) / (total_steps - warmup_steps))) / 2 up to total_steps, then eta_min",
        "type": "object",
        "required": [
          "name",
          "warmup_steps",
          "total_steps"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "warmup_cosine"
          },
          "warmup_steps": {
            "type": "integer",
            "minimum": 0,
            "maximum": 9007199254740991,
            "description": "Steps up to the base rate"
          },
          "total_steps": {
            "type": "integer",
            "minimum": 1,
            "maximum": 9007199254740991,
            "description": "Steps up to eta_min, the warm-up included"
          },
          "start_factor": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "Factor of the base rate in the first step"
          },
          "eta_min": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 3.4028234663852886e+38,
            "description": "The lowest rate"
          }
        }
      },
      {
        "title": "WarmupStableDecaySchedule",
        "description": "lr_t = lr times a line from min_lr_ratio to 1 in warmup_steps steps, then lr for stable_steps, then down to lr * min_lr_ratio in decay_steps by 1 - x, (1 + cos(pi * x)) / 2 or 1 - sqrt(x)",
        "type": "object",
        "required": [
          "name",
          "warmup_steps",
          "stable_steps",
          "decay_steps"
        ],
        "additionalProperties": false,
        "properties": {
          "name": {
            "const": "warmup_stable_decay"
          },
          "warmup_steps": {
            "type": "integer",
            "minimum": 0,
            "maximum": 9007199254740991,
            "description": "Steps up to the base rate"
          },
          "stable_steps": {
            "type": "integer",
            "minimum": 0,
            "maximum": 9007199254740991,
            "description": "Steps at the base rate"
          },
          "decay_steps": {
            "type": "integer",
            "minimum": 1,
            "maximum": 9007199254740991,
            "description": "Steps down to the last rate"
          },
          "decay_type": {
            "type": "string",
            "enum": [
              "linear",
              "cosine",
              "1-sqrt"
            ],
            "default": "cosine",
            "description": "Shape of the fall"
          },
          "min_lr_ratio": {
            "type": "number",
            "default": 0,
            "minimum": 0,
            "maximum": 1,
            "description": "Ratio of the first and the last rate to the base rate"
          }
        }
      }
    ]
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "step-result.schema.json",
    "title": "StepResult",
    "description": "New parameters and new state, unless the call omits them.",
    "type": "object",
    "required": [
      "step",
      "lr",
      "skipped"
    ],
    "additionalProperties": false,
    "properties": {
      "params": {
        "$ref": "tensor.schema.json#/$defs/TensorsResult"
      },
      "state": {
        "$ref": "tensor.schema.json#/$defs/BlobResult"
      },
      "step": {
        "description": "The largest step count in the new state.",
        "type": "integer",
        "minimum": 0
      },
      "lr": {
        "description": "The learning rate of this step.",
        "type": "number"
      },
      "skipped": {
        "description": "Whether the step did nothing, because of non_finite skip or a reduction without updates.",
        "type": "boolean"
      },
      "stats": {
        "title": "Stats",
        "description": "Euclidean norms of the gradients (after the loss scale, before clipping), of the parameters before the step, and of their change; counts of gradient values. Absent for a skipped step.",
        "type": "object",
        "required": [
          "grad_norm",
          "param_norm",
          "update_norm",
          "zeros",
          "non_finite",
          "clipped"
        ],
        "additionalProperties": false,
        "properties": {
          "grad_norm": {
            "$ref": "tensor.schema.json#/$defs/Value"
          },
          "param_norm": {
            "$ref": "tensor.schema.json#/$defs/Value"
          },
          "update_norm": {
            "$ref": "tensor.schema.json#/$defs/Value"
          },
          "zeros": {
            "description": "Gradient values that are zero.",
            "type": "integer"
          },
          "non_finite": {
            "description": "Gradient values that are NaN or infinite.",
            "type": "integer"
          },
          "clipped": {
            "description": "Whether clipping by norm scaled the gradients.",
            "type": "boolean"
          },
          "tensors": {
            "description": "Statistics by parameter name.",
            "type": "object",
            "additionalProperties": {
              "title": "TensorStats",
              "type": "object",
              "required": [
                "grad_norm",
                "param_norm",
                "update_norm",
                "zeros",
                "non_finite"
              ],
              "additionalProperties": false,
              "properties": {
                "grad_norm": {
                  "$ref": "tensor.schema.json#/$defs/Value"
                },
                "param_norm": {
                  "$ref": "tensor.schema.json#/$defs/Value"
                },
                "update_norm": {
                  "$ref": "tensor.schema.json#/$defs/Value"
                },
                "zeros": {
                  "description": "Gradient values that are zero.",
                  "type": "integer"
                },
                "non_finite": {
                  "description": "Gradient values that are NaN or infinite.",
                  "type": "integer"
                },
                "trust_ratio": {
                  "$ref": "tensor.schema.json#/$defs/Value"
                }
              }
            }
          }
        }
      },
      "reduce": {
        "$ref": "reduce.schema.json#/$defs/ReductionReport"
      },
      "warnings": {
        "description": "Warnings about this step, in alphabetical order.",
        "type": "array",
        "items": {
          "type": "string"
        }
      },
      "cached": {
        "title": "Cached",
        "description": "Handles of the results in the server's cache. The next call may send a handle instead of the bytes.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
          "params": {
            "$ref": "tensor.schema.json#/$defs/CachedBlob"
          },
          "state": {
            "$ref": "tensor.schema.json#/$defs/CachedBlob"
          }
        }
      },
      "receipt": {
        "$ref": "receipt.schema.json"
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "step.schema.json",
    "title": "StepParams",
    "description": "One optimizer step: parameters, gradients and state. The gradients are in grads, or the updates in reduce are combined into them. A gradient has the name and shape of its parameter. A parameter without a gradient does not change, and its step count stays.",
    "examples": [
      {
        "optimizer": {
          "name": "adamw",
          "lr": 0.1
        },
        "params": {
          "w": {
            "shape": [
              3
            ],
            "values": [
              1,
              2,
              3
            ]
          }
        },
        "grads": {
          "w": {
            "shape": [
              3
            ],
            "values": [
              0.1,
              0.2,
              -0.3
            ]
          }
        }
      }
    ],
    "type": "object",
    "required": [
      "optimizer",
      "params"
    ],
    "additionalProperties": false,
    "properties": {
      "optimizer": {
        "$ref": "optimizer.schema.json"
      },
      "groups": {
        "description": "Parameter groups; a parameter belongs to the first one that matches it.",
        "type": "array",
        "maxItems": 4096,
        "items": {
          "$ref": "group.schema.json"
        }
      },
      "params": {
        "$ref": "tensor.schema.json#/$defs/TensorsSource"
      },
      "grads": {
        "$ref": "tensor.schema.json#/$defs/TensorsSource"
      },
      "reduce": {
        "$ref": "reduce.schema.json#/$defs/Reduction"
      },
      "state": {
        "description": "The state of the last reply; null or absent at the first step.",
        "if": {
          "type": "null"
        },
        "then": true,
        "else": {
          "$ref": "tensor.schema.json#/$defs/BlobSource"
        },
        "tsType": "Uint8Array | string | SharedBlob | CachedBlob | null"
      },
      "slices": {
        "$ref": "tensor.schema.json#/$defs/Slices"
      },
      "schedule": {
        "$ref": "schedule.schema.json"
      },
      "clip": {
        "description": "Gradient clipping, after the loss scale.",
        "type": "object",
        "additionalProperties": false,
        "minProperties": 1,
        "properties": {
          "max_norm": {
            "description": "Multiply all gradients by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does. The norm is over all gradients of the call, or total_norm.",
            "type": "number",
            "exclusiveMinimum": 0
          },
          "max_value": {
            "description": "Clamp each value to the range from -max_value to max_value.",
            "type": "number",
            "exclusiveMinimum": 0
          },
          "total_norm": {
            "description": "The norm over all gradients of the step, if this call has only some of them (optimizer.norms returns the sums). max_grad_norm of an optimizer uses it, too.",
            "anyOf": [
              {
                "type": "number",
                "minimum": 0
              },
              {
                "enum": [
                  "Infinity",
                  "NaN"
                ]
              }
            ],
            "tsType": "number | \"Infinity\" | \"NaN\""
          }
        },
        "not": {
          "required": [
            "max_norm",
            "max_value"
          ]
        },
        "$comment": "one of max_norm and max_value, or total_norm alone for an optimizer with max_grad_norm"
      },
      "loss_scale": {
        "description": "All gradients are first divided by this number: a normal float32.",
        "type": "number",
        "minimum": 1.1754943508222875e-38,
        "maximum": 3.4028234663852886e+38,
        "default": 1
      },
      "non_finite": {
        "description": "What NaN or infinity in a gradient causes: error rejects the call, skip returns everything unchanged with skipped: true, propagate computes with it.",
        "enum": [
          "error",
          "skip",
          "propagate"
        ],
        "default": "error"
      },
      "others_non_finite": {
        "description": "Whether another call of the same step has NaN or infinity in its gradients. If it has, non_finite applies to this call, too.",
        "type": "boolean",
        "default": false
      },
      "stats": {
        "description": "Statistics in the reply: none, over all tensors, or also of each tensor.",
        "enum": [
          "none",
          "global",
          "tensor"
        ],
        "default": "none"
      },
      "master_weights": {
        "description": "Keep a float32 copy of each BF16 or F16 parameter in the state (slot master_param), and apply the steps to that copy.",
        "type": "boolean",
        "default": false
      },
      "stochastic_rounding": {
        "description": "Round BF16 parameters stochastically; equal seeds give equal bits. Without a seed, or with master weights, they are rounded to nearest even.",
        "type": "object",
        "required": [
          "seed"
        ],
        "additionalProperties": false,
        "properties": {
          "seed": {
            "type": "integer",
            "minimum": 0,
            "maximum": 9007199254740991
          }
        }
      },
      "reply": {
        "title": "ReplyOptions",
        "description": "Selects the results in the reply, and their places.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
          "params": {
            "description": "The new parameters: unchanged, rounded to BF16 (to nearest even), or omitted.",
            "enum": [
              "same",
              "bf16",
              "none"
            ],
            "default": "same"
          },
          "state": {
            "description": "The new state: included, or omitted if the server caches it.",
            "enum": [
              "same",
              "none"
            ],
            "default": "same"
          },
          "cache": {
            "description": "Keep the new parameters and the new state in the server's cache, if it has one. The reply's field cached has their handles.",
            "type": "boolean",
            "default": false
          },
          "into": {
            "title": "ReplyPlaces",
            "description": "Places in the shared folder that receive the results instead of the reply. By default a result overwrites the blob that it replaces.",
            "type": "object",
            "additionalProperties": false,
            "properties": {
              "params": {
                "$ref": "tensor.schema.json#/$defs/SharedBlob"
              },
              "state": {
                "$ref": "tensor.schema.json#/$defs/SharedBlob"
              }
            }
          }
        }
      },
      "receipt": {
        "$ref": "receipt.schema.json#/$defs/ReceiptOption"
      }
    }
  },
  {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "tensor.schema.json",
    "title": "Tensor",
    "description": "The forms of tensors and states in requests and replies.",
    "$defs": {
      "Blob": {
        "title": "Blob",
        "description": "Bytes: bin in MessagePack, a base64 string in JSON.",
        "contentEncoding": "base64",
        "blob": true,
        "tsType": "Uint8Array | string"
      },
      "Slices": {
        "title": "Slices",
        "description": "Names each tensor of this call that is a part of a larger one: a flat slice, which begins at element offset of the whole tensor. Offsets are multiples of 65,536, so that all calls together give the bits of one.",
        "type": "object",
        "propertyNames": {
          "maxLength": 1024
        },
        "additionalProperties": {
          "title": "Slice",
          "type": "object",
          "required": [
            "offset"
          ],
          "additionalProperties": false,
          "properties": {
            "offset": {
              "type": "integer",
              "minimum": 0,
              "maximum": 9007199254675456,
              "multipleOf": 65536
            }
          }
        },
        "tsType": "{ readonly [name: string]: { readonly offset: number } }"
      },
      "Dtype": {
        "title": "Dtype",
        "description": "Element type, under its safetensors name.",
        "type": "string",
        "enum": [
          "F32",
          "F64",
          "BF16",
          "F16"
        ]
      },
      "Value": {
        "title": "Value",
        "description": "One element. JSON has no NaN and no infinity, so these are strings.",
        "anyOf": [
          {
            "type": "number"
          },
          {
            "enum": [
              "NaN",
              "Infinity",
              "-Infinity"
            ]
          }
        ],
        "tsType": "number | \"NaN\" | \"Infinity\" | \"-Infinity\""
      },
      "PlainTensor": {
        "title": "PlainTensor",
        "description": "A tensor as a list of numbers in row-major order, for small tensors and for curl.",
        "type": "object",
        "required": [
          "shape",
          "values"
        ],
        "additionalProperties": false,
        "properties": {
          "shape": {
            "description": "Size of each dimension; [] is a scalar.",
            "type": "array",
            "maxItems": 32,
            "items": {
              "type": "integer",
              "minimum": 0,
              "maximum": 9007199254740991
            }
          },
          "dtype": {
            "$ref": "#/$defs/Dtype",
            "default": "F32"
          },
          "values": {
            "type": "array",
            "items": {
              "$ref": "#/$defs/Value"
            },
            "tsType": "readonly (number | \"NaN\" | \"Infinity\" | \"-Infinity\")[]"
          }
        }
      },
      "PlainTensors": {
        "title": "PlainTensors",
        "description": "Tensors by name.",
        "type": "object",
        "propertyNames": {
          "maxLength": 1024
        },
        "additionalProperties": {
          "$ref": "#/$defs/PlainTensor"
        },
        "tsType": "{ readonly [name: string]: PlainTensor }"
      },
      "Tensors": {
        "title": "Tensors",
        "description": "One safetensors file as a blob, or tensors by name. A reply has the form of its request.",
        "if": {
          "blob": true
        },
        "then": {
          "$ref": "#/$defs/Blob"
        },
        "else": {
          "$ref": "#/$defs/PlainTensors"
        },
        "tsType": "Uint8Array | string | { readonly [name: string]: PlainTensor }"
      },
      "SharedBlob": {
        "title": "SharedBlob",
        "description": "A range of a file in the folder that the server shares with trainers on its host (STEPD_SHARED_DIR).",
        "type": "object",
        "required": [
          "file",
          "offset",
          "length"
        ],
        "additionalProperties": false,
        "properties": {
          "file": {
            "description": "Name of a regular file in the folder; with tokens, in the token's own subfolder.",
            "type": "string",
            "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$",
            "$comment": "a name of at most 128 letters, digits, _ . and -, that does not start with . or -"
          },
          "offset": {
            "description": "Offset of the first byte.",
            "type": "integer",
            "minimum": 0,
            "maximum": 9007199254740991
          },
          "length": {
            "description": "Number of bytes. For a place that receives a result, its maximum size.",
            "type": "integer",
            "minimum": 0,
            "maximum": 9007199254740991
          }
        }
      },
      "CachedBlob": {
        "title": "CachedBlob",
        "description": "A blob in the server's cache (STEPD_CACHE_MIB). The field cached of an earlier reply named it. The server may have evicted it.",
        "type": "object",
        "required": [
          "handle"
        ],
        "additionalProperties": false,
        "properties": {
          "handle": {
            "description": "The name that the server gave the blob. It means nothing to other servers and other callers.",
            "type": "string",
            "minLength": 1,
            "maxLength": 64
          }
        }
      },
      "BlobSource": {
        "title": "BlobSource",
        "description": "A blob, or a reference to one in the shared folder or the cache.",
        "if": {
          "type": "object",
          "required": [
            "file"
          ],
          "properties": {
            "file": {
              "type": "string"
            }
          }
        },
        "then": {
          "$ref": "#/$defs/SharedBlob"
        },
        "else": {
          "if": {
            "type": "object",
            "required": [
              "handle"
            ],
            "properties": {
              "handle": {
                "type": "string"
              }
            }
          },
          "then": {
            "$ref": "#/$defs/CachedBlob"
          },
          "else": {
            "$ref": "#/$defs/Blob"
          }
        },
        "tsType": "Uint8Array | string | SharedBlob | CachedBlob"
      },
      "TensorsSource": {
        "title": "TensorsSource",
        "description": "Tensors, or a reference to their safetensors file in the shared folder or the cache.",
        "if": {
          "type": "object",
          "required": [
            "file"
          ],
          "properties": {
            "file": {
              "type": "string"
            }
          }
        },
        "then": {
          "$ref": "#/$defs/SharedBlob"
        },
        "else": {
          "if": {
            "type": "object",
            "required": [
              "handle"
            ],
            "properties": {
              "handle": {
                "type": "string"
              }
            }
          },
          "then": {
            "$ref": "#/$defs/CachedBlob"
          },
          "else": {
            "$ref": "#/$defs/Tensors"
          }
        },
        "tsType": "Uint8Array | string | { readonly [name: string]: PlainTensor } | SharedBlob | CachedBlob"
      },
      "BlobResult": {
        "title": "BlobResult",
        "description": "A blob, or the place in the shared folder that contains it.",
        "if": {
          "type": "object",
          "required": [
            "file"
          ],
          "properties": {
            "file": {
              "type": "string"
            }
          }
        },
        "then": {
          "$ref": "#/$defs/SharedBlob"
        },
        "else": {
          "$ref": "#/$defs/Blob"
        },
        "tsType": "Uint8Array | string | SharedBlob"
      },
      "TensorsResult": {
        "title": "TensorsResult",
        "description": "Tensors, or the place in the shared folder that contains their file.",
        "if": {
          "type": "object",
          "required": [
            "file"
          ],
          "properties": {
            "file": {
              "type": "string"
            }
          }
        },
        "then": {
          "$ref": "#/$defs/SharedBlob"
        },
        "else": {
          "$ref": "#/$defs/Tensors"
        },
        "tsType": "Uint8Array | string | { readonly [name: string]: PlainTensor } | SharedBlob"
      }
    }
  }
];
