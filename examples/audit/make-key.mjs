// Writes a pair of Ed25519 keys: node make-key.mjs PRIVATE PUBLIC. The same as openssl genpkey -algorithm ed25519.
import { generateKeyPairSync } from "node:crypto";
import { writeFileSync } from "node:fs";

const [privateFile, publicFile] = process.argv.slice(2);
const { privateKey, publicKey } = generateKeyPairSync("ed25519");
writeFileSync(privateFile, privateKey.export({ type: "pkcs8", format: "pem" }), { mode: 0o600 });
writeFileSync(publicFile, publicKey.export({ type: "spki", format: "pem" }));
