// One thread a pixel and four channels.
fn work(i: u32) {
  let c4 = i % $C4;
  let pixel = i / $C4;
  finish(core(pixel, c4), pixel, c4);
}
