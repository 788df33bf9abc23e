var<workgroup> parts: array<V, $THREADS>;

// The sum over all threads of the workgroup, for all of them: over subgroups first.
fn over_workgroup(value: V, thread: u32, number: u32, lane: u32, count: u32) -> V {
  let part = subgroupAdd(value);
  if (lane == 0u) { parts[number] = part; }
  workgroupBarrier();
  var sum = parts[0];
  for (var k = 1u; k < count; k++) { sum += parts[k]; }
  workgroupBarrier();
  return sum;
}
