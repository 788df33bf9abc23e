// A workgroup computes four outputs; its threads share the sum.
@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
  $SUBGROUP
) {
  begin(group);
  let n4 = group.x;
  var sum = V(0.0);
  var row = n4 * $K4;
  for (var s = 0u; s < $SOURCES; s++) {
    // Offset and number of elements.
    let source = params[$FIRST + s];
    for (var k = thread; k < source.y; k += 64u) {
      let x = V(arena[base + source.x + k]);
      let w = (row + k) * 4u;
      sum += V(
        dot(V(weights[w]), x), dot(V(weights[w + 1u]), x),
        dot(V(weights[w + 2u]), x), dot(V(weights[w + 3u]), x),
      );
    }
    row += source.y;
  }
  let total = over_workgroup(sum, thread$SUBGROUP_ARGUMENTS);
  if (thread == 0u) { finish(total, 0u, n4); }
}
