/** The panel "API": Swagger UI shows the reference from openapi.json. */
import { useEffect, useRef, useState } from "preact/hooks";
import { assetUrl, Failure, messageOf } from "../common/panel.tsx";
import { authorizationHeader, requestJson, root } from "../common/session.ts";

interface SwaggerRequest {
  headers: Record<string, string>;
}

/** The part of Swagger UI's interface that the panel uses. */
type SwaggerUi = (options: {
  readonly spec: unknown;
  readonly domNode: HTMLElement;
  readonly validatorUrl: null;
  readonly docExpansion: "list";
  readonly defaultModelsExpandDepth: number;
  readonly requestInterceptor: (request: SwaggerRequest) => SwaggerRequest;
}) => unknown;

const loadScript = (url: string): Promise<void> =>
  new Promise((resolve, reject) => {
    const script = Object.assign(document.createElement("script"), { src: url });
    script.onload = () => resolve();
    script.onerror = () => reject(new Error("The reference was not loaded: the server does not answer, or has another version by now. Load the page again."));
    document.head.append(script);
  });

let loading: Promise<SwaggerUi> | undefined;

/** Loads Swagger UI once, when the panel is first opened, because it is larger than the rest of the page. */
const loadSwaggerUi = (): Promise<SwaggerUi> => {
  loading ??= (async () => {
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: assetUrl("swagger-style") }));
    await loadScript(assetUrl("swagger-script"));
    return (globalThis as unknown as { SwaggerUIBundle: SwaggerUi }).SwaggerUIBundle;
  })();
  return loading.catch((error) => {
    loading = undefined;
    throw error;
  });
};

/** Sets the class dark-mode on the html element, which makes Swagger UI dark. */
const followTheme = (): (() => void) => {
  const { documentElement } = document;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const follow = (): void => {
    const { theme } = documentElement.dataset;
    documentElement.classList.toggle("dark-mode", theme === "dark" || (theme !== "light" && system.matches));
  };
  follow();
  system.addEventListener("change", follow);
  document.addEventListener("themechange", follow);
  return () => {
    system.removeEventListener("change", follow);
    document.removeEventListener("themechange", follow);
    documentElement.classList.remove("dark-mode");
  };
};

export const Reference = () => {
  const place = useRef<HTMLDivElement>(null);
  const [error, setError] = useState<string>();
  useEffect(followTheme, []);
  // Swagger UI brings its own main landmark, but a page may have only one.
  useEffect(() => {
    const host = place.current;
    if (!host) return;
    const observer = new MutationObserver(() => host.querySelector("main:not([role])")?.setAttribute("role", "none"));
    observer.observe(host, { childList: true, subtree: true });
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    let isCurrent = true;
    Promise.all([loadSwaggerUi(), requestJson<Record<string, unknown>>("openapi.json")])
      .then(([show, document]) => {
        if (!isCurrent || !place.current) return;
        show({
          // The document names the server "/", which lacks a proxy's path prefix.
          spec: { ...document, servers: [{ url: root.replace(/\/$/, "") }] },
          domNode: place.current,
          validatorUrl: null,
          docExpansion: "list",
          defaultModelsExpandDepth: 0,
          requestInterceptor: (request) => {
            const token = authorizationHeader();
            if (token !== undefined) request.headers["Authorization"] ??= token;
            return request;
          },
        });
      })
      .catch((error) => isCurrent && setError(messageOf(error)));
    return () => {
      isCurrent = false;
    };
  }, []);
  return (
    <>
      <p>The reference of openapi.json. “Try it out” sends real calls to this server.</p>
      <Failure error={error} />
      <div ref={place} class="reference" />
    </>
  );
};
