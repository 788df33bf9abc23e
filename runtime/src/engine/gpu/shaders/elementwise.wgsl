// One thread a pixel and four channels.
@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = number(group, groups, thread);
  if (i >= $COUNT) { return; }
  begin(group);
  let c4 = i % $C4;
  let pixel = i / $C4;
  finish(core(pixel, c4), pixel, c4);
}
