/** Code for a first step on this server, in four languages. */

const curl = (root: string, needsToken: boolean): string => `curl -sS --fail-with-body ${root}v1/step -H 'Content-Type: application/json'${
  needsToken
    ? ` \\
  -H "Authorization: Bearer $STEPD_TOKEN"`
    : ""
} -d '{
  "optimizer": {"name": "adamw", "lr": 0.1},
  "params": {"w": {"shape": [3], "values": [1, 2, 3]}},
  "grads": {"w": {"shape": [3], "values": [0.1, 0.2, -0.3]}}}'`;

const python = (url: string, needsToken: boolean): string => `import ${needsToken ? "os\n\nimport " : ""}numpy as np
import stepd

client = stepd.Client("${url}"${needsToken ? ', token=os.environ["STEPD_TOKEN"]' : ""})
params = {"w": np.array([1, 2, 3], np.float32)}
state = None
for _ in range(10):
    grads = {"w": 2 * params["w"]}
    result = client.step({"name": "adamw", "lr": 0.1}, params, grads, state)
    params, state = result.params, result.state
print(result.step, params)`;

const go = (url: string, needsToken: boolean): string => `client, err := stepd.New("${url}"${needsToken ? ', stepd.WithToken(os.Getenv("STEPD_TOKEN"))' : ""})
if err != nil {
	log.Fatal(err)
}
w := []float32{1, 2, 3}
params := stepd.Tensors{stepd.From("w", w)}
result, err := client.Step(ctx, stepd.StepRequest{
	Optimizer: stepd.AdamW(0.1),
	Params:    params,
	Grads:     stepd.Tensors{stepd.From("w", []float32{0.1, 0.2, -0.3})},
	Into:      params, // w itself is updated
})
if err != nil {
	log.Fatal(err)
}
fmt.Println(result.Step, w)`;

const typescript = (url: string, needsToken: boolean): string => `import { Client } from "@stepd/client";

const client = new Client("${url}"${needsToken ? ", { token: process.env.STEPD_TOKEN }" : ""});
let params = { w: { shape: [3], data: Float32Array.of(1, 2, 3) } };
let state = null;
for (let step = 0; step < 10; step++) {
  const grads = { w: { shape: [3], data: params.w.data.map((value) => 2 * value) } };
  ({ params, state } = await client.step({ optimizer: { name: "adamw", lr: 0.1 }, params, grads, state }));
}
console.log(state.steps, params.w.data);`;

export const snippets = (root: string, needsToken: boolean): Readonly<Record<string, string>> => {
  const url = root.replace(/\/$/, "");
  return { curl: curl(root, needsToken), Python: python(url, needsToken), Go: go(url, needsToken), TypeScript: typescript(url, needsToken) };
};
