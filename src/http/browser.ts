/** Serves the page for browsers at /, or links to the server's routes if the caller does not accept HTML. */
import express, { type Express, type Response } from "express";
import type { ServerContext } from "./_context.ts";

/** The page loads nothing from other origins, and connects only to replicas that the operator named. Icons of the API reference are data URLs. */
const contentSecurityPolicy = (replicas: readonly string[]): string => {
  const origins = new Set(replicas.map((url) => new URL(url).origin));
  const connect = origins.size > 0 ? ` connect-src 'self' ${[...origins].join(" ")};` : "";
  return `default-src 'self';${connect} img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`;
};

/** Adds the routes `/` and `/page`. They need no token: the page asks for one, and the links are not secret. */
export const addPage = (app: Express, { page, pageReplicas, version, hasAdmin, authenticator, rpc }: ServerContext): void => {
  const policy = contentSecurityPolicy(pageReplicas);
  const setSecurityHeaders = (res: Response): void => {
    res.setHeader("Content-Security-Policy", policy);
    res.setHeader("X-Content-Type-Options", "nosniff");
    res.setHeader("Referrer-Policy", "no-referrer");
  };
  const links = {
    ...(page && { page: "./" }),
    info: "v1",
    rpc: "rpc",
    ...Object.fromEntries(rpc.methods.flatMap(({ name, rest }) => (rest ? [[name, rest.path.slice(1)]] : []))),
    openapi: "openapi.json",
    openrpc: "openrpc.json",
    live: "health/live",
    ready: "health/ready",
    ...(!hasAdmin && { metrics: "metrics" }),
  };
  const summary = {
    name: "stepd",
    version,
    authentication: authenticator ? "bearer" : "none",
    links,
    ...(page && pageReplicas.length > 0 && { replicas: pageReplicas }),
  };
  app.get("/", (req, res) => {
    res.setHeader("Vary", "Accept");
    if (!page || req.accepts(["json", "html"]) !== "html") {
      res.json(summary);
      return;
    }
    setSecurityHeaders(res);
    // The names of all other files change with their content, so only index.html must be fresh.
    res.setHeader("Cache-Control", "no-cache");
    res.sendFile("index.html", { root: page, cacheControl: false });
  });
  if (!page) return;
  app.use("/page", express.static(page, { index: false, redirect: false, immutable: true, maxAge: "1y", setHeaders: setSecurityHeaders }));
};
