// Mean over all pixels of $LANES times four channels a workgroup, and the deviation if it is wanted.
var<workgroup> parts: array<V, 256>;

fn over_pixels(value: V, thread: u32) -> V {
  parts[thread] = value;
  workgroupBarrier();
  for (var half = 128u; half >= $LANESu; half /= 2u) {
    if (thread < half) { parts[thread] += parts[thread + half]; }
    workgroupBarrier();
  }
  let sum = parts[thread % $LANESu];
  workgroupBarrier();
  return sum;
}

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  begin(group);
  let wanted = group.x * $LANESu + thread % $LANESu;
  let c4 = min(wanted, $C4 - 1u);
  let first = thread / $LANESu;
  var sum = V(0.0);
  for (var pixel = first; pixel < $PIXELS; pixel += 256u / $LANESu) { sum += core(pixel, c4); }
  let mean = over_pixels(sum, thread) / f32($PIXELS);
  let writes = first == 0u && wanted < $C4;
$BODY
}
