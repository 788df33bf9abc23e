// Convolution, $TM pixels and four channels a thread, from global memory.
@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = number(group, groups, thread);
  let c4 = i % $N4;
  let first = i / $N4 * $TMu;
  if (first >= $PIXELS) { return; }
  begin(group);
$SETUP
  var k = c4;
  for (var ky = 0; ky < $KH; ky++) {
    for (var kx = 0; kx < $KW; kx++) {
      for (var s = 0u; s < $SOURCES; s++) {
        // Offset, groups of channels, width, shift of enlarging.
        let source = params[$FIRST + s];
$ADDRESS
        for (var c = 0u; c < source.y; c++) {
$WEIGHTS
          k += $ROWSu * $N4;
$MULTIPLY
        }
      }
    }
  }
$STORE
}
