// One thread a query: the largest score, then exponentials and sums in the order of the pixels.
fn element(i: u32) -> V { return $ELEMENT; }

fn factor(at: u32) -> f32 { return $NORM; }

fn norm_of(at: u32) -> f32 {
  var sums = array<V, 4>(V(0.0), V(0.0), V(0.0), V(0.0));
  for (var d = 0u; d < $D4u; d++) {
    let x = element(at + d);
    sums[d % 4u] = exact(sums[d % 4u] + exact(x * x));
  }
  return norm_factor(sums, $SHARE, $EPSILON);
}

@compute @workgroup_size($THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let pixel = group.x * $THREADSu + thread;
  if (pixel >= $PIXELS) { return; }
  begin(group);
  let head = group.y;
  let heads4 = $HEADS * $D4u;
  let map = head * $D4u;
  let at = map + pixel * $C4;
  let scale = exact(V($SCALE * factor(at))).x;
  var query: array<V, $D4>;
  for (var d = 0u; d < $D4u; d++) { query[d] = exact(element(at + d) * scale); }
  var most = -3.0e38;
  for (var k = 0u; k < $PIXELS; k++) { most = max(most, score(map + k * $C4 + heads4, &query)); }
  var total = V(0.0);
  var sum: array<V, $D4>;
  for (var d = 0u; d < $D4u; d++) { sum[d] = V(0.0); }
  for (var k = 0u; k < $PIXELS; k++) {
    let place = map + k * $C4 + heads4;
    let share = exact(exp_exact(exact(V(score(place, &query) - most))));
    total = exact(total + share);
    let f = factor(place + heads4);
    for (var d = 0u; d < $D4u; d++) {
      sum[d] = exact(sum[d] + exact(share * exact(element(place + heads4 + d) * f)));
    }
  }
  let over = quotient_exact(V(1.0), total);
  for (var d = 0u; d < $D4u; d++) { finish(exact(over * sum[d]), pixel, head * $D4u + d); }
}

fn score(at: u32, query: ptr<function, array<V, $D4>>) -> f32 {
  let f = factor(at);
  var sum = V(0.0);
  for (var d = 0u; d < $D4u; d++) {
    let product = exact((*query)[d] * exact(element(at + d) * f));
    sum = exact(sum + product.x);
    sum = exact(sum + product.y);
    sum = exact(sum + product.z);
    sum = exact(sum + product.w);
  }
  return sum.x;
}
