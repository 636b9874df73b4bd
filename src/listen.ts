/** Opens the listening sockets of the settings. Throws ConfigError with the setting to change. */
import { lstat, rm } from "node:fs/promises";
import type { Server } from "node:http";
import net from "node:net";
import { type Config, ConfigError } from "./config.ts";

/** A place to listen at, and the settings that it comes from. */
interface Place {
  readonly where: net.ListenOptions;
  readonly names: readonly [string, string] | readonly [string];
}

/** Returns the place for calls. */
export const placeOfCalls = ({ socket, host, port }: Config): Place =>
  socket === "" ? { where: { host, port }, names: ["STEPD_HOST", "STEPD_PORT"] } : { where: { path: socket }, names: ["STEPD_SOCKET"] };

/** Returns the place for the admin server, if there is one. */
export const placeOfAdmin = ({ adminHost, adminPort }: Config): Place | undefined =>
  adminPort === undefined ? undefined : { where: { host: adminHost, port: adminPort }, names: ["STEPD_ADMIN_HOST", "STEPD_ADMIN_PORT"] };

/** Starts listening. Replaces the socket file of a killed process. */
export const listen = async (server: Server | net.Server, place: Place): Promise<void> => {
  if (place.where.path !== undefined) await removeStaleSocket(place.where.path);
  await open(server, place);
};

/** Returns whether a place is free. Leaves no trace, and disturbs no server that listens there. Throws ConfigError if nobody could listen there. */
export const isFree = async (place: Place): Promise<boolean> => {
  const server = net.createServer((socket) => socket.destroy());
  try {
    await open(server, place);
  } catch (error) {
    const isTaken = ((error as ConfigError).cause as NodeJS.ErrnoException).code === "EADDRINUSE";
    const { path } = place.where;
    if (isTaken && (path === undefined || (await lstat(path)).isSocket())) return false;
    throw error;
  }
  await new Promise((resolve) => server.close(resolve));
  return true;
};

const open = async (server: Server | net.Server, { where, names }: Place): Promise<void> => {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", (error: NodeJS.ErrnoException) => {
    reject(listenError(where, names, error));
  });
  server.listen(where, resolve);
  await promise;
};

/** Creates the error for a server that cannot listen. It names the setting to change. */
const listenError = ({ path, host, port }: net.ListenOptions, [at, portName = ""]: readonly string[], error: NodeJS.ErrnoException): ConfigError => {
  if (path !== undefined) {
    const reason = error.code === "EADDRINUSE" ? "in use" : error.message;
    return new ConfigError(`${at}: expected a path to create a socket at, found ${JSON.stringify(path)} (${reason})`, { cause: error });
  }
  if (error.code === "EADDRINUSE") return new ConfigError(`${portName}: expected a free port on ${host}, found ${port} in use`, { cause: error });
  if (error.code === "EACCES") return new ConfigError(`${portName}: expected a port that this user may listen on, found ${port}`, { cause: error });
  return new ConfigError(`${at}: expected an address of this machine, found ${JSON.stringify(host)} (${error.message})`, { cause: error });
};

/** Removes the socket file of a killed process, if nobody listens on it. */
const removeStaleSocket = async (path: string): Promise<void> => {
  // A plain file refuses connections, too, so only a socket may be removed.
  if (!(await lstat(path).catch(() => undefined))?.isSocket()) return;
  const isAnswered = await new Promise<boolean>((resolve) => {
    const probe = net.connect(path, () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code !== "ECONNREFUSED"));
  });
  if (!isAnswered) await rm(path, { force: true });
};
