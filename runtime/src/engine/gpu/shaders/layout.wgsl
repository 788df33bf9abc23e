// Between the graph's own order, channels first, and a map's; one thread four values of the result.
fn plain(i: u32) -> f32 { return V(arena[base + $FROM + i / 4u])[i % 4u]; }
fn map(pixel: u32, c: u32) -> f32 { return V(arena[base + $FROM + pixel * $C4 + c / 4u])[c % 4u]; }

fn work(i: u32) {
  var v = V(0.0);
  for (var lane = 0u; lane < 4u; lane++) {
$LANE
  }
  arena[base + $TO + i] = S(v);
}
