// Mean and reciprocal deviation of a group of channels over all pixels, one workgroup each.
fn value(i: u32, first: u32, width: u32, start: u32) -> V {
  let c4 = first + i % width;
  return $VALUE;
}

fn inside(v: V, i: u32, first: u32, width: u32, start: u32) -> V {
  let c = vec4<u32>(0u, 1u, 2u, 3u) + 4u * (first + i % width);
  return select(V(0.0), v, (c >= vec4<u32>(start)) & (c < vec4<u32>(start + $SIZE)));
}

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
  $SUBGROUP
) {
  begin(group);
  let start = group.x * $SIZE;
  let first = start / 4u;
  let width = (start + $SIZE + 3u) / 4u - first;
  let count = f32($PIXELS * $SIZE);
  var sum = V(0.0);
  for (var i = thread; i < $PIXELS * width; i += 256u) {
    sum += inside(value(i, first, width, start), i, first, width, start);
  }
  let mean = dot(over_workgroup(sum, thread$SUBGROUP_ARGUMENTS), V(1.0)) / count;
  sum = V(0.0);
  for (var i = thread; i < $PIXELS * width; i += 256u) {
    let d = inside(value(i, first, width, start) - mean, i, first, width, start);
    sum += d * d;
  }
  let variance = dot(over_workgroup(sum, thread$SUBGROUP_ARGUMENTS), V(1.0)) / count;
  if (thread == 0u) {
    let at = words_base + 2u * group.x;
    words[at] = bitcast<u32>(mean);
    words[at + 1u] = bitcast<u32>(1.0 / sqrt(variance + $EPSILON));
  }
}
