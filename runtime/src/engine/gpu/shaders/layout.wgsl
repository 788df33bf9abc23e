// Between the graph's own order, channels first, and a map's; one thread four values of the result.
fn plain(i: u32) -> f32 { return V(arena[base + $FROM + i / 4u])[i % 4u]; }
fn map(pixel: u32, c: u32) -> f32 { return V(arena[base + $FROM + pixel * $C4 + c / 4u])[c % 4u]; }

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = number(group, groups, thread);
  if (i >= $COUNT) { return; }
  begin(group);
  var v = V(0.0);
  for (var lane = 0u; lane < 4u; lane++) {
$LANE
  }
  arena[base + $TO + i] = S(v);
}
