/** Recognizes a file's format by its first bytes, and reads the file. */
import { type Checkpoint, type Finding, Unreadable } from "./checkpoint.ts";
import { readSafetensors } from "./safetensors.ts";

export interface Reading {
  readonly checkpoint: Checkpoint | undefined;
  /** The reader's own findings. `examine` adds the findings from the values. */
  readonly findings: readonly Finding[];
}

const HEAD = 512;

/** Formats that users mistake for checkpoints, recognized by the first bytes. */
const UNREADABLE_FORMATS: readonly { readonly code: string; readonly starts: readonly string[]; readonly sentence: string }[] = [
  {
    code: "git-lfs-pointer",
    starts: ["version https://git-lfs"],
    sentence: "The file is a pointer of Git LFS, not the checkpoint itself: the repository was cloned without its large files. Run git lfs pull.",
  },
  {
    code: "web-page",
    starts: ["<!doctype", "<!DOCTYPE", "<html", "<HTML", "<?xml"],
    sentence: "The file is a web page, not a checkpoint: the download gave an error or a login page.",
  },
  { code: "compressed", starts: ["\x1f\x8b", "\x28\xb5\x2f\xfd", "BZh", "\xfd7zXZ"], sentence: "The file is compressed. Decompress it first." },
  { code: "hdf5", starts: ["\x89HDF"], sentence: "The file is HDF5, as Keras writes it. Save the optimizer's variables as safetensors to look at them here." },
  {
    code: "json",
    starts: ["{", "["],
    sentence: "The file is JSON text, such as a configuration or an index of shards. The tensors are in the files that it names.",
  },
  {
    code: "old-torch",
    starts: ["\x80\x02", "\x80\x03", "\x80\x04", "\x80\x05"],
    sentence: "The file is a bare pickle, such as torch.save wrote before version 1.6. Load it in torch with weights_only=True, and save it again.",
  },
];

/** This check precedes the others, because the length at the start of a safetensors file may look like another format. */
const isSafetensors = (head: string): boolean => head[8] === "{" && head.slice(4, 8) === "\0\0\0\0";

const isZip = (head: string): boolean => head.startsWith("PK\x03\x04") || head.startsWith("PK\x05\x06");

/** Reads a file. Never throws for its content: an unreadable file gives a finding. */
export const readFile = async (file: File): Promise<Reading> => {
  try {
    if (file.size === 0) throw new Unreadable("empty", "The file is empty: its writer was stopped, or the disk was full.");
    const head = String.fromCharCode(...new Uint8Array(await file.slice(0, HEAD).arrayBuffer()));
    if (isSafetensors(head)) return { checkpoint: await readSafetensors(file), findings: [] };
    const format = UNREADABLE_FORMATS.find(({ starts }) => starts.some((start) => head.trimStart().startsWith(start)));
    if (format) throw new Unreadable(format.code, format.sentence);
    if (head.slice(257, 262) === "ustar")
      throw new Unreadable("tar", "The file is a tar archive, such as a folder of orbax. Unpack it; stepd.optax writes states that can be read here.");
    if (!isZip(head)) return { checkpoint: await readSafetensors(file), findings: [] };
    // This module is large, so it is loaded only for files of torch.
    const { readTorch } = await import("./torch.ts");
    return await readTorch(file);
  } catch (error) {
    if (error instanceof Unreadable) return { checkpoint: undefined, findings: [{ code: error.code, level: "error", sentence: error.message }] };
    if (error instanceof DOMException)
      return {
        checkpoint: undefined,
        findings: [{ code: "not-read", level: "error", sentence: "The browser cannot read it: it is a folder, or was moved or changed after it was chosen." }],
      };
    throw error;
  }
};
