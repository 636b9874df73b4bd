/** TLS, and client certificates where an authority for them is given. The files are read again when they change. */
import { readFileSync } from "node:fs";
import type { ServerOptions } from "node:https";
import { createSecureContext, type Server as TlsServer } from "node:tls";
import { watch } from "./_watch.ts";

export interface TlsFiles {
  readonly cert: string;
  readonly key: string;
  /** The authorities whose client certificates are taken; empty where none are asked for. */
  readonly clientCa: string;
}

/** The options of the server. Throws Error where the files do not make a certificate with its key. */
export const tlsOptions = (files: TlsFiles): ServerOptions => {
  const options = { ...read(files), minVersion: "TLSv1.2" as const, requestCert: files.clientCa !== "", rejectUnauthorized: true };
  createSecureContext(options);
  return options;
};

/** Takes over changed files for new connections; where they do not fit together, those before stay. */
export const renewTls = (server: TlsServer, files: TlsFiles, onReload: (error: Error | undefined) => void): Disposable =>
  watch(pathsOf(files), () => {
    try {
      server.setSecureContext(tlsOptions(files));
      onReload(undefined);
    } catch (error) {
      onReload(error as Error);
    }
  });

const pathsOf = ({ cert, key, clientCa }: TlsFiles): readonly string[] => [cert, key, clientCa].filter((path) => path !== "");

const read = ({ cert, key, clientCa }: TlsFiles) => ({
  cert: readFileSync(cert),
  key: readFileSync(key),
  ...(clientCa !== "" && { ca: readFileSync(clientCa) }),
});
