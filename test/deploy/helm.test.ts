/** Tests deploy/helm: the chart passes lint, its output is valid under Kubernetes' own schemas, and its values are checked. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { before, test } from "node:test";
import { Ajv } from "ajv";
import { readConfig, settings } from "../../src/config.ts";
import { promtool } from "../prometheus/_prometheus.ts";
import { gatewayApi, helm as helmCommand, keda, prometheusOperator } from "../support/go.ts";
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
  "prometheusRule.enabled=true",
  "prometheusRule.runbook=https://wiki.example/stepd",
  "prometheusRule.labels.release=monitoring",
  "dashboard.enabled=true",
  "dashboard.annotations.folder=stepd",
  "ingress.enabled=true",
  "ingress.className=nginx",
  "ingress.hosts[0]=stepd.example",
  "ingress.tls[0].secretName=public",
  "ingress.annotations.nginx\\.ingress\\.kubernetes\\.io/proxy-request-buffering=off",
  "httpRoute.enabled=true",
  "httpRoute.parentRefs[0].name=public",
  "httpRoute.hostnames[0]=stepd.example",
  "extraEnv[0].name=NODE_OPTIONS",
  "extraEnv[0].value=--trace-warnings",
  "extraVolumes[0].name=shared",
  "extraVolumes[0].hostPath.path=/dev/shm/stepd",
  "extraVolumes[0].hostPath.type=Directory",
  "extraVolumeMounts[0].name=shared",
  "extraVolumeMounts[0].mountPath=/dev/shm/stepd",
  "settings.STEPD_SHARED_DIR=/dev/shm/stepd",
  "settings.STEPD_ACCESS_LOG=true",
  "settings.STEPD_OTLP_URL=http://collector.monitoring.svc:4318",
  "networkPolicy.collectors[0].ports[0].port=4318",
  "resources.limits.ephemeral-storage=16Mi",
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

/** KEDA in the place of the HorizontalPodAutoscaler. */
const KEDA = ["autoscaling.enabled=true", "autoscaling.keda.enabled=true", "autoscaling.keda.serverAddress=http://prometheus.monitoring.svc:9090"];

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
  readonly data?: Readonly<Record<string, string>>;
}

interface PodSpec {
  readonly containers: readonly [Container];
  readonly securityContext: unknown;
  readonly enableServiceLinks: boolean;
  readonly automountServiceAccountToken: boolean;
  readonly terminationGracePeriodSeconds: number;
  readonly volumes?: readonly { readonly name: string; readonly secret?: { readonly secretName: string } }[];
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

/** Validates manifests against the schemas of Kubernetes, prometheus-operator, KEDA and the Gateway API. Returns one line per manifest. */
const validate = async (rendered: string, kubernetes: string) => {
  const operator = join(await prometheusOperator(), "example/prometheus-operator-crd");
  const definitions = [
    join(operator, "monitoring.coreos.com_servicemonitors.yaml"),
    join(operator, "monitoring.coreos.com_prometheusrules.yaml"),
    join(await keda(), "config/crd/bases/keda.sh_scaledobjects.yaml"),
    join(await gatewayApi(), "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"),
  ];
  return pipe([join(root, "test/deploy/validate.py"), kubernetes, ...definitions], rendered);
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
    assert.equal(all.code, 0, all.output);
    const lines = (output: string): readonly string[] => output.trim().split("\n").sort();
    const more = [
      "ConfigMap run-stepd-dashboard",
      ...["HTTPRoute", "HorizontalPodAutoscaler", "Ingress", "PrometheusRule", "ServiceMonitor"].map((kind) => `${kind} run-stepd`),
    ];
    assert.deepEqual(lines(all.output), [...lines(plain.output), ...more.map((line) => `ok ${line}`)].sort());
    const scaled = await validate(render(KEDA, kubernetes), kubernetes);
    assert.deepEqual(scaled, { code: 0, output: `${plain.output}ok ScaledObject run-stepd\n` });
  });
}

test("the validation finds unknown fields, wrong types and invalid custom resources", async () => {
  const rendered = render(EVERYTHING);
  for (const [right, wrong, found] of [
    ["readOnlyRootFilesystem", "readOnlyRootFileSystem", /wrong Deployment .*readOnlyRootFileSystem/],
    ["minReplicas: 3", "minReplicas: three", /wrong HorizontalPodAutoscaler .*three/],
    ["      interval: 15s", "      intervall: 15s", /wrong ServiceMonitor .*intervall/],
    ["      timeouts:", "      timeout:", /wrong HTTPRoute .*timeout/],
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
  const mounts = new Map(pod.containers[0].volumeMounts?.map(({ name, mountPath }) => [name, mountPath]));
  assert.deepEqual([config.maxInFlight, config.logLevel, config.accessLog, config.sharedDir], [64, "debug", "on", mounts.get("shared")]);
  assert.equal(environmentOf(pod)["NODE_OPTIONS"], "--trace-warnings");
  const secrets = new Map(pod.volumes?.map(({ name, secret }) => [secret?.secretName, mounts.get(name)]));
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

const find = (manifests: readonly Manifest[], kind: string): Manifest => manifests.find((manifest) => manifest.kind === kind) as Manifest;

test("KEDA aims at the same bytes, which the ServiceMonitor's labels find", async () => {
  const manifests = await parse(render([...KEDA, "serviceMonitor.enabled=true", "autoscaling.targetArenaPercent=75", "arenaMib=4096"]));
  const [{ metadata }] = find(manifests, "ScaledObject").spec["triggers"] as unknown as [{ metadata: Record<string, string> }];
  assert.equal(metadata["threshold"], `${3072 * 2 ** 20}`);
  const admin = manifests.find(({ kind, metadata: { name } }) => kind === "Service" && name.endsWith("-admin")) as Manifest;
  assert.ok(metadata["query"]?.includes(`stepd_in_flight_bytes{namespace="default", service="${admin.metadata.name}"}`), metadata["query"]);
  assert.equal(find(manifests, "Deployment").spec["replicas"], undefined);
  assert.equal(
    (await parse(render(KEDA))).find(({ kind }) => kind === "HorizontalPodAutoscaler"),
    undefined,
  );
});

test("the scrape job is named stepd, whatever the chart's name is", async () => {
  for (const override of [[], ["nameOverride=optimizer"], ["fullnameOverride=optimizer"]]) {
    const { spec } = find(await parse(render(["serviceMonitor.enabled=true", ...override])), "ServiceMonitor");
    assert.equal(spec["jobLabel"], undefined);
    assert.deepEqual((spec["endpoints"] as unknown as [{ relabelings: unknown }])[0].relabelings, [
      { action: "replace", targetLabel: "job", replacement: "stepd" },
    ]);
  }
});

test("the PrometheusRule has the deployed rules with links to the given runbook, and promtool accepts it", async (t) => {
  const { spec } = find(await parse(render(EVERYTHING)), "PrometheusRule");
  const rules = JSON.stringify(spec);
  const names = (text: string): readonly string[] => [...text.matchAll(/"?alert"?: ?"?(\w+)/g)].map(([, name = ""]) => name);
  const deployed = readFileSync(join(root, "deploy/prometheus/stepd.rules.yml"), "utf8");
  assert.deepEqual(names(rules), names(deployed));
  for (const name of names(rules)) assert.ok(rules.includes(`https://wiki.example/stepd#${name.toLowerCase()}"`), name);
  const folder = mkdtempSync(join(os.tmpdir(), "stepd-chart-rules-"));
  t.after(() => rmSync(folder, { recursive: true }));
  writeFileSync(join(folder, "rules.json"), rules);
  const { status, output } = await promtool(["check", "rules", "rules.json"], "", folder);
  assert.equal(status, 0, output);
});

test("the dashboard's ConfigMap holds the deployed dashboard under the sidecar's label", async () => {
  const { data, metadata } = find(await parse(render(EVERYTHING)), "ConfigMap");
  assert.deepEqual(JSON.parse(data?.["stepd.json"] ?? ""), JSON.parse(readFileSync(join(root, "deploy/grafana/stepd.json"), "utf8")));
  assert.equal(metadata.labels["grafana_dashboard"], "1");
});

test("given resources complete and replace the computed ones", async () => {
  const [{ resources }] = podOf(await parse(render(["resources.limits.cpu=4", "resources.requests.memory=3Gi"]))).containers;
  assert.deepEqual(resources, { requests: { cpu: "2", memory: "3Gi" }, limits: { cpu: 4, memory: "1536Mi" } });
});

test("the chart's schema takes a setting if and only if the service does", () => {
  const schema = JSON.parse(readFileSync(join(chart, "values.schema.json"), "utf8"));
  const { properties } = schema.properties.settings as { readonly properties: Readonly<Record<string, object>> };
  const ajv = new Ajv({ strict: false });
  const values = [-1, 0, 1, 16, 65536, 2 ** 30, 2 ** 31, 1.5, "", "on", "off", "auto", "debug", "loud"];
  let [taken, refused] = [0, 0];
  for (const { name, kind } of Object.values(settings)) {
    if (!Object.hasOwn(properties, name)) continue;
    const validate = ajv.compile(properties[name] as object);
    for (const value of values) {
      // A number is no path and no name, although its text could be one.
      if (typeof value === "number" && kind.schema["type"] !== "integer") continue;
      if (typeof value === "string" && kind.schema["type"] === "integer") continue;
      const parses = (): boolean => {
        try {
          kind.parse(String(value), name);
          return true;
        } catch {
          return false;
        }
      };
      // Lists of URLs are strings to the chart.
      if (/ORIGINS|REPLICAS|URL/.test(name)) continue;
      assert.equal(validate(value), parses(), `${name}: ${JSON.stringify(value)}`);
      if (validate(value)) taken++;
      else refused++;
    }
  }
  assert.ok(taken > 40 && refused > 40, `${taken} ${refused}`);
});

for (const [value, message] of [
  ["settings.STEPD_WORKER=2", /STEPD_WORKER/],
  ["settings.STEPD_MAX_IN_FLIGHT=0", /\/settings\/STEPD_MAX_IN_FLIGHT/],
  ["settings.STEPD_LOG_LEVEL=loud", /\/settings\/STEPD_LOG_LEVEL/],
  ["extraEnv[0].name=STEPD_PORT", /\/extraEnv\/0\/name/],
  ["ingress.enabled=true", /\/ingress\/hosts/],
  ["httpRoute.enabled=true", /\/httpRoute\/parentRefs/],
  ["prometheusRule.enabled=true", /\/prometheusRule\/runbook/],
  ["autoscaling.keda.enabled=true", /\/autoscaling\/keda\/serverAddress/],
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

test("KEDA without the autoscaler is refused", () => {
  const values = KEDA.filter((value) => !value.startsWith("autoscaling.enabled")).join(",");
  const { status, stderr } = runHelm("template", "run", chart, "--kube-version", "1.37", "--set", values);
  assert.notEqual(status, 0);
  assert.match(stderr, /autoscaling\.keda\.enabled: expected autoscaling\.enabled beside it, found false/);
});

test("an autoscaler with maxReplicas below minReplicas is refused", () => {
  const { status, stderr } = runHelm("template", "run", chart, "--kube-version", "1.37", "--set", "autoscaling.enabled=true,autoscaling.maxReplicas=2");
  assert.notEqual(status, 0);
  assert.match(stderr, /autoscaling\.maxReplicas: expected at least minReplicas \(3\), found 2/);
});
