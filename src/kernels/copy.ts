/** Copies a shard of a tensor. The scalar is the number of bytes per element. */
export function copy(source: usize, target: usize, count: usize, scalars: usize): void {
  memory.copy(target, source, count * <usize>load<f64>(scalars));
}
