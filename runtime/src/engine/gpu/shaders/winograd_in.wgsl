// Input transform of F(4x4, 3x3): one thread a tile of 6x6 pixels and four channels.
fn forward(d0: V, d1: V, d2: V, d3: V, d4: V, d5: V) -> array<V, 6> {
  return array<V, 6>(
    4.0 * d0 - 5.0 * d2 + d4,
    d3 + d4 - 4.0 * (d1 + d2),
    d4 - d3 + 4.0 * (d1 - d2),
    d4 - d2 + 2.0 * (d3 - d1),
    d4 - d2 - 2.0 * (d3 - d1),
    4.0 * d1 - 5.0 * d3 + d5,
  );
}

fn pixel_at(y: u32, x: u32, c4: u32) -> V {
  // Padding wraps round to large numbers.
  let inside = y < $HEIGHT && x < $WIDTH;
  return select(V(0.0), core(select(0u, y * $WIDTH + x, inside), c4), inside);
}

fn work(i: u32) {
  let c4 = i % $K4;
  let t = i / $K4;
  let top = t / $ACROSS * 4u - $TOP;
  let left = t % $ACROSS * 4u - $LEFT;
  let to = base + $TO + t * $K4 + c4;
  let step = $COUNT;
$BODY
}
