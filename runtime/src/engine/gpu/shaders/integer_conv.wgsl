// Convolution of bytes, $TM pixels and four channels a thread: dot products of four bytes.
@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = (group.y * groups.x + group.x) * 64u + thread;
  let n4 = i % $N4;
  let first = i / $N4 * $TMu;
  if (first >= $PIXELS) { return; }
  tile = group.z;
  base = tile * $STRIDE;
  let source = params[$FIRST];
$SETUP
  var k = n4;
  for (var ky = 0; ky < $KH; ky++) {
    for (var kx = 0; kx < $KW; kx++) {
$ADDRESS
      for (var c = 0u; c < source.y; c++) {
        let w = weights[k];
        k += $N4;
$MULTIPLY
      }
    }
  }
$STORE
}
