/** The navigation: what a reader wants to do, then the pages for it. A test requires every page of the site here. */
interface Item {
  readonly text: string;
  readonly link?: string;
  readonly collapsed?: boolean;
  readonly items?: Item[];
}

/** An item of a Markdown file. A README is the page of its folder. */
const page = (text: string, file: string): Item => ({ text, link: file.replace(/README\.md$/, "") });

export const sidebar: Item[] = [
  page("stepd in a page", "/README.md"),
  {
    text: "Use it",
    items: [
      page("torch", "/docs/torch.md"),
      page("JAX", "/docs/jax.md"),
      page("Keras", "/docs/keras.md"),
      page("Python", "/clients/python/README.md"),
      page("Go", "/clients/go/README.md"),
      page("TypeScript", "/clients/typescript/README.md"),
      {
        text: "HTTP",
        collapsed: true,
        items: [
          page("Wire format", "/docs/wire-format.md"),
          page("Sending less", "/docs/blobs.md"),
          page("optimizer.reduce", "/docs/reduce.md"),
          page("The state", "/docs/state-format.md"),
          page("Receipts", "/docs/receipts.md"),
          page("Limits", "/docs/limits.md"),
        ],
      },
      page("JSON-RPC and OpenAPI tools", "/docs/interoperability.md"),
      {
        text: "Recipes",
        collapsed: false,
        items: [
          page("All recipes", "/docs/recipes/README.md"),
          page("Weight decay for some tensors", "/docs/recipes/decay.md"),
          page("Warm-up and cosine", "/docs/recipes/schedule.md"),
          page("Stop and resume", "/docs/recipes/resume.md"),
          page("From a torch checkpoint", "/docs/recipes/torch-checkpoint.md"),
          page("Three replicas on one machine", "/docs/recipes/three-replicas.md"),
          page("Dashboards", "/docs/recipes/dashboards.md"),
          page("Mixed precision", "/docs/recipes/mixed-precision.md"),
          page("Gradient clipping", "/docs/recipes/clipping.md"),
          page("Sending less", "/docs/recipes/sending-less.md"),
          page("LoRA", "/docs/recipes/lora.md"),
        ],
      },
      {
        text: "Optimizers and schedules",
        collapsed: true,
        items: [
          page("Optimizers", "/docs/optimizers.md"),
          page("Hyperparameters", "/docs/hyperparameters.md"),
          page("From another library", "/docs/peers.md"),
          page("Schedules", "/docs/schedules.md"),
          page("LAMB variants", "/docs/lamb.md"),
          page("Narrow moments", "/docs/narrow-moments.md"),
          page("Checkpoints of torch and optax", "/docs/state-conversion.md"),
          page("Federated training", "/docs/federated.md"),
        ],
      },
      {
        text: "Examples",
        collapsed: true,
        items: [
          page("A trainer in Go", "/examples/go-trainer/README.md"),
          page("A coordinator in Go", "/examples/go-coordinator/README.md"),
          page("LoRA with torch", "/examples/torch-finetune/README.md"),
          page("Federated averaging", "/examples/federated/README.md"),
          page("DiLoCo", "/examples/diloco/README.md"),
          page("In a browser", "/examples/browser/README.md"),
          page("Adam's improvements", "/examples/adam-improvements/README.md"),
        ],
      },
    ],
  },
  {
    text: "Run it",
    items: [
      page("Deployment", "/docs/deployment.md"),
      page("Container", "/docs/container.md"),
      page("Settings", "/docs/settings.md"),
      page("Operations", "/docs/operations.md"),
      page("Metrics", "/docs/metrics.md"),
      page("The page in the browser", "/docs/page.md"),
      page("The stepd command", "/docs/cli.md"),
      page("Security", "/SECURITY.md"),
    ],
  },
  {
    text: "Understand it",
    items: [
      page("Request lifecycle", "/docs/request-lifecycle.md"),
      page("Determinism", "/docs/determinism.md"),
      page("Audit", "/docs/audit.md"),
      page("Performance", "/docs/performance.md"),
      page("Performance: findings", "/docs/performance-findings.md"),
      page("Adam's improvements, measured", "/docs/adam-improvements.md"),
      {
        text: "Decisions",
        collapsed: true,
        items: [
          page("All decisions", "/docs/decisions/README.md"),
          page("Stateless", "/docs/decisions/stateless.md"),
          page("WebAssembly kernels", "/docs/decisions/webassembly.md"),
          page("One arena", "/docs/decisions/arena.md"),
          page("No fused multiply-add", "/docs/decisions/no-fma.md"),
          page("Safetensors states", "/docs/decisions/safetensors.md"),
          page("Handles", "/docs/decisions/handles.md"),
        ],
      },
      page("Changes", "/CHANGELOG.md"),
    ],
  },
  {
    text: "Change it",
    items: [
      page("Contributing", "/CONTRIBUTING.md"),
      page("Adding an optimizer", "/docs/adding-an-optimizer.md"),
      page("Benchmarks", "/bench/README.md"),
      page("Releases", "/RELEASE.md"),
      page("Code of conduct", "/CODE_OF_CONDUCT.md"),
    ],
  },
];
