var<workgroup> parts: array<V, $THREADS>;

// The sum over all threads of the workgroup, for all of them.
fn over_workgroup(value: V, thread: u32) -> V {
  parts[thread] = value;
  workgroupBarrier();
  for (var half = $THREADSu / 2u; half > 0u; half /= 2u) {
    if (thread < half) { parts[thread] += parts[thread + half]; }
    workgroupBarrier();
  }
  let sum = parts[0];
  workgroupBarrier();
  return sum;
}
