/** Tests deploy/helm: the chart passes lint, its output is valid under Kubernetes' own schemas, and its values are checked. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { before, test } from "node:test";
import { readConfig } from "../../src/config.ts";
import { helm as helmCommand, prometheusOperator } from "../support/go.ts";
import { python } from "../support/python.ts";
import { root } from "../support/tree.ts";

const chart = join(root, "deploy/helm/stepd");
/** The oldest version of Kubernetes that the chart supports, and the newest that the validator has schemas for. */
const KUBERNETES = ["1.31", "1.37"];

const EVERYTHING = [
  "autoscaling.enabled=true",
  "serviceMonitor.enabled=true",
  "serviceMonitor.labels.release=monitoring",
  "tokens.secretName=stepd-tokens",
  "tls.secretName=stepd-tls",
  "tls.clientCaKey=ca.crt",
  "settings.STEPD_MAX_IN_FLIGHT=64",
  "settings.STEPD_LOG_LEVEL=debug",
  "image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
  "image.pullSecrets[0].name=registry",
  "service.type=LoadBalancer",
  "service.annotations.a=b",
  "podAnnotations.a=b",
  "podLabels.a=b",
  "priorityClassName=high",
  "nodeSelector.disk=fast",
  "tolerations[0].key=k",
  "tolerations[0].operator=Exists",
  "affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight=1",
  "affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.topologyKey=zone",
];

interface Container {
  readonly env: readonly { readonly name: string; readonly value: string }[];
  readonly resources: { readonly requests: { readonly memory: string }; readonly limits: { readonly memory: string } };
  readonly ports: readonly { readonly name: string; readonly containerPort: number }[];
  readonly securityContext: unknown;
  readonly volumeMounts?: readonly { readonly name: string; readonly mountPath: string }[];
  readonly startupProbe: { readonly httpGet: { readonly port: string } };
  readonly livenessProbe: { readonly httpGet: { readonly port: string } };
  readonly readinessProbe: { readonly httpGet: { readonly port: string } };
}

interface Manifest {
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly labels: Readonly<Record<string, string>> };
  readonly spec: Readonly<Record<string, never>>;
}

interface PodSpec {
  readonly containers: readonly [Container];
  readonly securityContext: unknown;
  readonly enableServiceLinks: boolean;
  readonly automountServiceAccountToken: boolean;
  readonly terminationGracePeriodSeconds: number;
  readonly volumes?: readonly { readonly name: string; readonly secret: { readonly secretName: string } }[];
}

let helm: string;
before(async () => {
  helm = await helmCommand();
});

const runHelm = (...values: readonly string[]) => spawnSync(helm, values, { encoding: "utf8" });

const render = (values: readonly string[] = [], kubernetes: string = KUBERNETES.at(-1) as string): string => {
  const { status, stdout, stderr } = runHelm("template", "run", chart, "--kube-version", kubernetes, ...values.flatMap((value) => ["--set", value]));
  assert.equal(status, 0, stderr);
  return stdout;
};

/** Runs a Python program with a text as its input. */
const pipe = async (args: readonly string[], input: string): Promise<{ readonly code: number | null; readonly output: string }> => {
  const child = spawn(await python(), args, { stdio: ["pipe", "pipe", "inherit"] });
  const exit = new Promise<number | null>((resolve) => child.on("exit", resolve));
  child.stdin.end(input);
  return { output: await text(child.stdout), code: await exit };
};

const parse = async (rendered: string): Promise<readonly Manifest[]> => {
  const { output } = await pipe(["-c", "import json, sys, yaml; print(json.dumps([m for m in yaml.safe_load_all(sys.stdin) if m]))"], rendered);
  return JSON.parse(output);
};

const podOf = (manifests: readonly Manifest[]): PodSpec => {
  const deployment = manifests.find(({ kind }) => kind === "Deployment") as unknown as { readonly spec: { readonly template: { readonly spec: PodSpec } } };
  return deployment.spec.template.spec;
};

const environmentOf = ({ containers: [{ env }] }: PodSpec): Record<string, string> => Object.fromEntries(env.map(({ name, value }) => [name, value]));

/** Validates manifests against the schemas of Kubernetes and prometheus-operator. Returns one line per manifest. */
const validate = async (rendered: string, kubernetes: string) => {
  const definition = join(await prometheusOperator(), "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml");
  return pipe([join(root, "test/deploy/validate.py"), kubernetes, definition], rendered);
};

test("helm lint reports nothing", () => {
  for (const values of [[], EVERYTHING]) {
    const { status, stdout } = runHelm("lint", "--strict", chart, ...values.flatMap((value) => ["--set", value]));
    assert.equal(status, 0, stdout);
  }
});

for (const kubernetes of KUBERNETES) {
  test(`the rendered chart is valid in Kubernetes ${kubernetes}`, async () => {
    const plain = await validate(render([], kubernetes), kubernetes);
    assert.deepEqual(plain, {
      code: 0,
      output: "ok NetworkPolicy run-stepd\nok PodDisruptionBudget run-stepd\nok Service run-stepd\nok Service run-stepd-admin\nok Deployment run-stepd\n",
    });
    const all = await validate(render(EVERYTHING, kubernetes), kubernetes);
    assert.deepEqual(all, { code: 0, output: `${plain.output}ok HorizontalPodAutoscaler run-stepd\nok ServiceMonitor run-stepd\n` });
  });
}

test("the validation finds unknown fields, wrong types and invalid custom resources", async () => {
  const rendered = render(EVERYTHING);
  for (const [right, wrong, found] of [
    ["readOnlyRootFilesystem", "readOnlyRootFileSystem", /wrong Deployment .*readOnlyRootFileSystem/],
    ["minReplicas: 3", "minReplicas: three", /wrong HorizontalPodAutoscaler .*three/],
    ["      interval: 15s", "      intervall: 15s", /wrong ServiceMonitor .*intervall/],
  ] as const) {
    assert.ok(rendered.includes(right), right);
    const { code, output } = await validate(rendered.replace(right, wrong), KUBERNETES.at(-1) as string);
    assert.equal(code, 1);
    assert.match(output, found);
  }
});

test("the pod is confined and has no access to the cluster", async () => {
  const pod = podOf(await parse(render()));
  assert.deepEqual(pod.securityContext, {
    runAsNonRoot: true,
    runAsUser: 10001,
    runAsGroup: 10001,
    fsGroup: 10001,
    seccompProfile: { type: "RuntimeDefault" },
  });
  assert.deepEqual(pod.containers[0].securityContext, { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: ["ALL"] } });
  assert.equal(pod.automountServiceAccountToken, false);
  // The service links of a service named stepd would set the variable STEPD_PORT in the pod.
  assert.equal(pod.enableServiceLinks, false);
});

test("the pod's settings are valid, with and without secrets", async () => {
  const plain = readConfig(environmentOf(podOf(await parse(render()))));
  assert.deepEqual([plain.host, plain.port, plain.adminHost, plain.adminPort, plain.tokensFile, plain.tlsCertFile], ["0.0.0.0", 8080, "0.0.0.0", 8081, "", ""]);
  const pod = podOf(await parse(render(EVERYTHING)));
  const config = readConfig(environmentOf(pod));
  assert.deepEqual([config.maxInFlight, config.logLevel], [64, "debug"]);
  const mounts = new Map(pod.containers[0].volumeMounts?.map(({ name, mountPath }) => [name, mountPath]));
  const secrets = new Map(pod.volumes?.map(({ name, secret }) => [secret.secretName, mounts.get(name)]));
  assert.equal(config.tokensFile, `${secrets.get("stepd-tokens")}/tokens`);
  assert.deepEqual(
    [config.tlsCertFile, config.tlsKeyFile, config.tlsClientCaFile],
    ["tls.crt", "tls.key", "ca.crt"].map((name) => `${secrets.get("stepd-tls")}/${name}`),
  );
});

test("probes use the port without tokens, and memory and stop time suffice", async () => {
  for (const values of [["arenaMib=4096", "nodeMib=700", "drain.graceMs=1", "drain.timeoutMs=600000"], []]) {
    const pod = podOf(await parse(render(values)));
    const config = readConfig(environmentOf(pod));
    const [{ ports, startupProbe, livenessProbe, readinessProbe, resources }] = pod.containers;
    for (const probe of [startupProbe, livenessProbe, readinessProbe])
      assert.equal(ports.find(({ name }) => name === probe.httpGet.port)?.containerPort, config.adminPort);
    assert.equal(resources.limits.memory, `${config.arenaMib + (values.length > 0 ? 700 : 512)}Mi`);
    assert.equal(resources.requests.memory, resources.limits.memory);
    assert.ok(config.arenaMib + 128 + 10 * config.maxJsonMib <= Number.parseInt(resources.limits.memory, 10));
    assert.ok(pod.terminationGracePeriodSeconds * 1000 > config.drainGraceMs + config.drainTimeoutMs + 5000);
  }
});

test("the autoscaler aims at its share of the arena, and the deployment then sets no number of replicas", async () => {
  const manifests = await parse(render(["autoscaling.enabled=true", "autoscaling.targetArenaPercent=75", "arenaMib=4096"]));
  const { spec } = manifests.find(({ kind }) => kind === "HorizontalPodAutoscaler") as Manifest;
  assert.deepEqual(spec["metrics"], [
    { type: "Pods", pods: { metric: { name: "stepd_in_flight_bytes" }, target: { type: "AverageValue", averageValue: `${3072 * 2 ** 20}` } } },
  ]);
  assert.equal(manifests.find(({ kind }) => kind === "Deployment")?.spec["replicas"], undefined);
  assert.equal((await parse(render(["replicas=7"]))).find(({ kind }) => kind === "Deployment")?.spec["replicas"], 7);
});

for (const [value, message] of [
  ["arenaMib=5000", /arenaMib.*maximum/],
  ["replica=5", /additional properties 'replica' not allowed/],
  ["settings.STEPD_PORT=9", /STEPD_PORT/],
  ["tls.clientCaKey=ca.crt", /\/tls\/secretName/],
  ["image.digest=abc", /\/image\/digest/],
  ["serviceMonitor.interval=soon", /\/serviceMonitor\/interval/],
] as const) {
  test(`the value ${value} is refused`, () => {
    const { status, stderr } = runHelm("template", "run", chart, "--kube-version", "1.37", "--set", value);
    assert.notEqual(status, 0);
    assert.match(stderr, message);
  });
}

test("an autoscaler with maxReplicas below minReplicas is refused", () => {
  const { status, stderr } = runHelm("template", "run", chart, "--kube-version", "1.37", "--set", "autoscaling.enabled=true,autoscaling.maxReplicas=2");
  assert.notEqual(status, 0);
  assert.match(stderr, /autoscaling\.maxReplicas: expected at least minReplicas \(3\), found 2/);
});
