// Four threads a pixel, which share its sum of squares.
var<workgroup> sums: array<V, 64>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  begin(group);
  let lane = thread % 4u;
  let wanted = (group.y * groups.x + group.x) * 16u + thread / 4u;
  let inside = wanted < $PIXELS;
  let pixel = min(wanted, $PIXELS - 1u);
  var square = V(0.0);
$BODY
}
