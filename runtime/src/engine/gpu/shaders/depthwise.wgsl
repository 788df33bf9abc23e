// Convolution channel by channel, $TM pixels and four channels a thread.
fn work(i: u32) {
  let c4 = i % $N4;
  let first = i / $N4 * $TMu;
$SETUP
  // Offset, groups of channels, width, shift of enlarging.
  let source = params[$FIRST];
  var k = 0u;
  for (var ky = 0; ky < $KH; ky++) {
    for (var kx = 0; kx < $KW; kx++) {
$ADDRESS
      let w = $WEIGHT;
      k += $STEP;
$MULTIPLY
    }
  }
$STORE
}
