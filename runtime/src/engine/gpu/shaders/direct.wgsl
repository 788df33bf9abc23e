// Convolution, $TM pixels and four channels a thread, from global memory.
fn work(i: u32) {
  let c4 = i % $N4;
  let first = i / $N4 * $TMu;
$SETUP
  var k = c4;
  for (var ky = 0; ky < $KH; ky++) {
    for (var kx = 0; kx < $KW; kx++) {
      for (var s = 0u; s < $SOURCES; s++) {
        // Offset, groups of channels, width, shift of enlarging.
        let source = params[$FIRST + s];
$ADDRESS
        for (var c = 0u; c < source.y; c++) {
$WEIGHTS
          k += $ROWSu * $N4;
$MULTIPLY
        }
      }
    }
  }
$STORE
}
