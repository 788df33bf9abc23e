// One thread a query, with softmax on line over tiles of keys and values that the workgroup shares.
var<workgroup> keys: array<V, $KEYS>;
var<workgroup> values: array<V, $KEYS>;

fn element(i: u32) -> V { return $ELEMENT; }

fn squares(at: u32) -> f32 {
  var sum = 0.0;
  for (var d = 0u; d < $D4u; d++) {
    let x = element(at + d);
    sum += dot(x, x);
  }
  return sum;
}

fn factor(at: u32) -> f32 { return $NORM; }

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  begin(group);
  let head = group.y;
  let heads4 = $HEADS * $D4u;
  let wanted = group.x * 64u + thread;
  let pixel = min(wanted, $PIXELS - 1u);
  let map = head * $D4u;
  let at = map + pixel * $C4;
  let scale = factor(at) * $SCALE;
$QUERY
  var most = -3.0e38;
  var total = 0.0;
  for (var start = 0u; start < $PIXELS; start += $TILEu) {
    let count = min($TILEu, $PIXELS - start);
    workgroupBarrier();
    if (thread < count) {
      let place = map + (start + thread) * $C4 + heads4;
      let f = factor(place);
      for (var d = 0u; d < $D4u; d++) { keys[thread * $D4u + d] = element(place + d) * f; }
    } else if (thread >= 32u && thread < 32u + count) {
      let place = map + (start + thread - 32u) * $C4 + 2u * heads4;
      let f = factor(place);
      for (var d = 0u; d < $D4u; d++) { values[(thread - 32u) * $D4u + d] = element(place + d) * f; }
    }
    workgroupBarrier();
    for (var k = 0u; k < count; k++) {
      let row = k * $D4u;
$SCORE
      let larger = max(most, score);
      let keep = exp(most - larger);
      let share = exp(score - larger);
      most = larger;
      total = total * keep + share;
$GATHER
    }
  }
  if (wanted < $PIXELS) {
$STORE
  }
}
