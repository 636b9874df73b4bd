/** Opens what the settings name: the arena, the workers, and the files. Each function throws ConfigError with the setting to change. */
import { Arena } from "./arena/arena.ts";
import { SharedFolder } from "./blobs/blobs.ts";
import { type Config, ConfigError } from "./config.ts";
import { readTls, type Tls, type TlsFiles, type TokenFacts, Tokens } from "./http/server.ts";
import { KernelsError, Pool, poolBytes } from "./pool/pool.ts";
import { SigningKey } from "./receipts/receipts.ts";

const KERNELS = new URL("../build/kernels.wasm", import.meta.url);

/** Large inputs leave this fraction of the arena free for small calls. */
const SMALL_CALL_SHARE = 1 / 16;

export const makeArena = ({ arenaMib, workers }: Config): Arena => {
  try {
    return new Arena(arenaMib, poolBytes(workers), SMALL_CALL_SHARE);
  } catch (error) {
    throw new ConfigError(`STEPD_ARENA_MIB: expected what this process may reserve, found ${arenaMib} (${(error as Error).message})`);
  }
};

export const startPool = async ({ workers, wideVectors }: Config, arena: Arena, onWorkerLost: (cause: unknown) => void): Promise<Pool> => {
  try {
    return await Pool.start(arena, KERNELS, workers, { wideVectors: wideVectors === "auto", onWorkerLost });
  } catch (error) {
    throw error instanceof KernelsError ? new ConfigError(error.message) : error;
  }
};

/** Opens the shared folder. Returns undefined if the settings name none. */
export const openFolder = ({ sharedDir }: Config): SharedFolder | undefined => {
  if (sharedDir === "") return undefined;
  try {
    return new SharedFolder(sharedDir);
  } catch (error) {
    throw new ConfigError(`STEPD_SHARED_DIR: expected a folder, found ${JSON.stringify(sharedDir)} (${(error as Error).message})`);
  }
};

/** Reads the key of receipts. Returns undefined if the settings name none. */
export const readReceiptKey = ({ receiptKeyFile }: Config): SigningKey | undefined => {
  if (receiptKeyFile === "") return undefined;
  try {
    return new SigningKey(receiptKeyFile);
  } catch (error) {
    throw new ConfigError(`STEPD_RECEIPT_KEY_FILE: ${(error as Error).message}`);
  }
};

export const tlsFiles = ({ tlsCertFile: cert, tlsKeyFile: key, tlsClientCaFile: clientCa }: Config): TlsFiles | undefined =>
  cert === "" ? undefined : { cert, key, clientCa };

/** Reads the certificates. Returns undefined if the settings name none. */
export const readCertificates = (config: Config): Tls | undefined => {
  const files = tlsFiles(config);
  try {
    return files && readTls(files);
  } catch (error) {
    throw new ConfigError((error as Error).message);
  }
};

/** Reads the tokens, and watches their file. Returns undefined if the settings name none. */
export const readTokens = ({ tokensFile }: Config, onReload: (result: TokenFacts | Error) => void): Tokens | undefined => {
  if (tokensFile === "") return undefined;
  try {
    return new Tokens(tokensFile, { onReload });
  } catch (error) {
    throw new ConfigError(`STEPD_TOKENS_FILE: ${(error as Error).message}`);
  }
};
