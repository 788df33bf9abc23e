// Convolution channel by channel, $TM pixels and four channels a thread.
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
  // Offset, groups of channels, width, shift of enlarging.
  let source = params[$FIRST];
  var k = 0u;
  for (var ky = 0; ky < $KH; ky++) {
    for (var kx = 0; kx < $KW; kx++) {
$ADDRESS
      let w = $WEIGHT;
      k += $STEP;
$MULTIPLY
    }
  }
$STORE
}
