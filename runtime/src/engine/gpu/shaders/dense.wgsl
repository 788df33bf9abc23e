// A workgroup computes some elements of four outputs; its threads share the sums.
@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
  $SUBGROUP
) {
  begin(group);
$SETUP
  for (var s = 0u; s < $SOURCES; s++) {
    // Offset and number of elements.
    let source = params[$FIRST + s];
    for (var k = thread; k < source.y; k += 64u) {
      let x = V(arena[base + source.x + k]);
$MULTIPLY
    }
$NEXT
  }
$STORE
}
