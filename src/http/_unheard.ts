/** Counts what ends before the application hears of it: connections over the limit, and requests that node itself answers. */
import type { Server } from "node:http";
import type { Socket } from "node:net";
import type { Refusal, Telemetry } from "../telemetry/telemetry.ts";

export const countUnheard = (server: Server, isTls: boolean, telemetry: Telemetry): void => {
  server.on("drop", () => telemetry.refused("CONNECTIONS"));
  // Not by clientError: with a listener for that node answers nothing. It ends the connection with the same error.
  server.on(isTls ? "secureConnection" : "connection", (socket: Socket) => {
    socket.on("error", ({ code = "" }: NodeJS.ErrnoException) => {
      const reason = reasonOf(code);
      if (reason) telemetry.refused(reason);
    });
  });
};

/** Of what node's parser refuses: 408, 431, and 400 or 413. Undefined where the caller went away, also where node calls that malformed. */
const reasonOf = (code: string): Refusal | undefined => {
  if (code === "ERR_HTTP_REQUEST_TIMEOUT") return "SLOW_REQUEST";
  if (code === "HPE_HEADER_OVERFLOW") return "HEADERS_TOO_LARGE";
  return code.startsWith("HPE_") && code !== "HPE_INVALID_EOF_STATE" ? "MALFORMED" : undefined;
};
