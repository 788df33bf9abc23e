// 36 products of matrices: transformed tiles times transformed weights, from tiles in shared memory.
var<workgroup> left: array<V, 128>;
var<workgroup> right: array<V, 256>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  begin(group);
  let blocks = ($TILES + 31u) / 32u;
  let which = group.y / blocks;
  let first = group.y % blocks * 32u;
  let first4 = group.x * 16u;
  let row = thread / 8u;
  let column = thread % 8u;
  let depth = thread % 4u;
  let sources = base + $FROM + which * $TILES * $K4;
  let rows = which * 4u * $K4;
$SETUP
  for (var c = 0u; c < $K4; c += 4u) {
    for (var m = thread / 4u; m < 32u; m += 16u) {
      let is = first + m < $TILES && c + depth < $K4;
      left[depth * 32u + m] =
        select(V(0.0), V(arena[sources + select(0u, (first + m) * $K4 + c + depth, is)]), is);
    }
    for (var s = 0u; s < 4u; s++) {
      let i = thread + s * 64u;
      let r = 4u * c + i / 16u;
      let n = first4 + i % 16u;
      let is = n < $N4 && r < 4u * $K4;
      right[i] = select(V(0.0), V(weights[select(0u, (rows + r) * $N4 + n, is)]), is);
    }
    workgroupBarrier();
    for (var d = 0u; d < 4u; d++) {
$MULTIPLY
    }
    workgroupBarrier();
  }
$STORE
}
