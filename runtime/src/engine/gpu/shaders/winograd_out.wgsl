// Output transform of F(4x4, 3x3): one thread a tile of 4x4 pixels and four channels.
fn backward(m0: V, m1: V, m2: V, m3: V, m4: V, m5: V) -> array<V, 4> {
  let a = m1 + m2;
  let b = m1 - m2;
  let c = m3 + m4;
  let d = m3 - m4;
  return array<V, 4>(m0 + a + c, b + 2.0 * d, a + 4.0 * c, b + 8.0 * d + m5);
}

fn work(i: u32) {
  let c4 = i % $N4;
  let t = i / $N4;
  let y = t / $ACROSS * 4u;
  let x = t % $ACROSS * 4u;
  let at = base + $FROM + t * $N4 + c4;
  let step = $COUNT;
$BODY
}
