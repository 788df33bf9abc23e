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

@compute @workgroup_size($THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  begin(group);
  let head = group.y;
  let heads4 = $HEADS * $D4u;
  let wanted = group.x * $THREADSu + thread;
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
    for (var i = thread; i < 2u * count; i += $THREADSu) {
      // Keys first, then values.
      let which = i / count;
      let k = i % count;
      let place = map + (start + k) * $C4 + (which + 1u) * heads4;
      let f = factor(place);
      for (var d = 0u; d < $D4u; d++) {
        let x = element(place + d) * f;
        if (which == 0u) { keys[k * $D4u + d] = x; } else { values[k * $D4u + d] = x; }
      }
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
