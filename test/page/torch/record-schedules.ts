/**
 * Runs the panel's code for torch in torch, and writes it with its rates to schedules.json:
 *
 *   node test/page/torch/record-schedules.ts clients/python/.venv/bin/python
 */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { torchCode } from "../../../page/schedules/compose.ts";
import { compositions, RATE, stepsOf } from "../_compositions.ts";

const SCRIPT = `
import json, sys, warnings
import torch
warnings.simplefilter("ignore")
result = []
for code, count in json.load(sys.stdin):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=${RATE}, momentum=0.9)
    names = {"optimizer": optimizer}
    exec(code, names)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        names["scheduler"].step()
    result.append({"torch": torch.__version__, "code": code, "rates": rates})
json.dump(result, sys.stdout, indent=1)
`;

const [python = "python3"] = process.argv.slice(2);
const input = JSON.stringify(compositions.map((parts) => [torchCode(parts), stepsOf(parts)]));
const output = execFileSync(python, ["-c", SCRIPT], { input, encoding: "utf8" });
writeFileSync(join(import.meta.dirname, "schedules.json"), `${output}\n`);
