/** Reads and checks the files for TLS with optional client certificates. Changed files are read again. */
import { createPrivateKey, type KeyObject, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import type { ServerOptions } from "node:https";
import { createSecureContext, type Server as TlsServer } from "node:tls";
import type { Certificate } from "../telemetry/telemetry.ts";
import { watch } from "./_watch.ts";

export interface TlsFiles {
  readonly cert: string;
  readonly key: string;
  /** The file with the certificate authorities of clients. Empty if clients need no certificate. */
  readonly clientCa: string;
}

export interface Tls {
  readonly options: ServerOptions;
  /** All certificates of the files. Metrics export their validity periods. */
  readonly certificates: readonly Certificate[];
}

const CERTIFICATE = /-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----.*?-----END (?:X509 |TRUSTED )?CERTIFICATE-----/gs;

/** Reads and checks the files. Throws an Error that names the setting if a file is invalid or if the key does not match. */
export const readTls = ({ cert: certFile, key: keyFile, clientCa }: TlsFiles): Tls => {
  const [cert, chain] = readCertificates("STEPD_TLS_CERT_FILE", certFile);
  const key = readFile("STEPD_TLS_KEY_FILE", keyFile);
  const privateKey = parseKey(key);
  // A TLS context accepts a key of another type, but then every handshake fails. So the key is checked here.
  if (!chain[0]?.checkPrivateKey(privateKey)) {
    const types = [chain[0]?.publicKey.asymmetricKeyType, privateKey.asymmetricKeyType];
    throw new Error(`STEPD_TLS_KEY_FILE: expected the private key of the first certificate (${types[0]}), found another key (${types[1]})`);
  }
  const [ca, authorities] = clientCa === "" ? [undefined, []] : readCertificates("STEPD_TLS_CLIENT_CA_FILE", clientCa);
  const options = { cert, key, ...(ca && { ca }), minVersion: "TLSv1.2" as const, requestCert: clientCa !== "", rejectUnauthorized: true };
  try {
    createSecureContext(options);
  } catch (error) {
    throw new Error(`STEPD_TLS_CERT_FILE: expected a certificate and a key for TLS 1.2 or newer, found: ${(error as Error).message}`);
  }
  return { options, certificates: [...chain.map(certificateOf("certificate")), ...authorities.map(certificateOf("client_ca"))] };
};

/** Watches the files and applies changes to new connections. Invalid files leave the previous certificates in use. */
export const watchTls = (server: TlsServer, files: TlsFiles, onReload: (result: Tls | Error) => void): Disposable =>
  watch(pathsOf(files), () => {
    let result: Tls | Error;
    try {
      result = readTls(files);
      server.setSecureContext(result.options);
    } catch (error) {
      result = error as Error;
    }
    onReload(result);
  });

const pathsOf = ({ cert, key, clientCa }: TlsFiles): readonly string[] => [cert, key, clientCa].filter((path) => path !== "");

const readFile = (setting: string, path: string): Buffer => {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new Error(`${setting}: expected a file that can be read, found ${(error as Error).message}`);
  }
};

/** Reads all certificates of a PEM file. The file must have at least one. */
const readCertificates = (setting: string, path: string): readonly [Buffer, readonly X509Certificate[]] => {
  const bytes = readFile(setting, path);
  const blocks = bytes.toString("latin1").match(CERTIFICATE) ?? [];
  if (blocks.length === 0) throw new Error(`${setting}: expected certificates in PEM, found none`);
  const certificates = blocks.map((block, index) => {
    try {
      return new X509Certificate(block);
    } catch (error) {
      throw new Error(`${setting}: expected certificates in PEM, found a broken one at place ${index + 1} (${(error as Error).message})`);
    }
  });
  return [bytes, certificates];
};

const parseKey = (bytes: Buffer): KeyObject => {
  try {
    return createPrivateKey(bytes);
  } catch (error) {
    throw new Error(`STEPD_TLS_KEY_FILE: expected a private key in PEM without a passphrase, found: ${(error as Error).message}`);
  }
};

const certificateOf =
  (file: Certificate["file"]) =>
  ({ subject, validFromDate, validToDate }: X509Certificate): Certificate => ({
    file,
    subject: subject?.replaceAll("\n", ", ") ?? "",
    validFrom: validFromDate,
    validTo: validToDate,
  });
