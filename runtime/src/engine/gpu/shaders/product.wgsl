// A product of matrices whose left side is gathered on the way: a workgroup computes $BM pixels of $BN4 times
// four channels from tiles in shared memory, $BK4 times four channels of the left side a step.
$SHARED
@compute @workgroup_size($THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
  $SUBGROUP
) {
  begin(group);
$PLANE
  let first4 = group.x * $BN4u;
  // This thread's share of a tile's left side: one group of channels of some pixels.
  let depth = thread % $BK4u;
$SETUP
$BEGIN
  for (var ky = 0; ky < $KH; ky++) {
    for (var kx = 0; kx < $KW; kx++) {
      for (var s = 0u; s < $SOURCES; s++) {
        // Offset, groups of channels, width, shift of enlarging.
        let source = params[$FIRST + s];
$ADDRESS
        for (var c = 0u; c < source.y; c += $BK4u) {
          let full = c + depth < source.y;
$LOAD_LEFT
$LOAD_RIGHT
          workgroupBarrier();
          for (var d = 0u; d < $STEPSu; d++) {
$MULTIPLY
          }
          workgroupBarrier();
          k += $ROWSu * min($BK4u, source.y - c);
        }
      }
    }
  }
$STORE
}
