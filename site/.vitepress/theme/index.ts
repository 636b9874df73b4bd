/** VitePress' theme with a component for Mermaid diagrams. */

import DefaultTheme from "vitepress/theme";
import type { App } from "vue";
import Diagram from "./Diagram.vue";

export default { extends: DefaultTheme, enhanceApp: ({ app }: { app: App }) => app.component("Diagram", Diagram) };
