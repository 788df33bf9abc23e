// What the kernels' `math` computes, operation by operation: additions and products that are each rounded by
// themselves, so that the bits are those of every other engine.
fn exp_exact(x: V) -> V {
  let a = clamp(x, V(-87.0), V(88.0));
  let n = round(exact(a * 1.44269504));
  var r = a - exact(n * 0.693359375);
  r = exact(r) - exact(n * -0.000212194440);
  r = exact(r);
  var p = exact(r * 0.00019875691) + 0.0013981999;
  p = exact(exact(p) * r) + 0.008333452;
  p = exact(exact(p) * r) + 0.041665796;
  p = exact(exact(p) * r) + 0.16666665;
  p = exact(exact(p) * r) + 0.5;
  p = exact(exact(p) * exact(r * r)) + exact(r + 1.0);
  return exact(p) * bitcast<V>((vec4<i32>(n) + 127) << vec4<u32>(23u));
}
fn reciprocal_exact(x: V) -> V {
  var r = bitcast<V>(vec4<u32>(0x7ef311c7u) - bitcast<vec4<u32>>(x));
  for (var k = 0; k < 4; k++) { r = exact(r * exact(2.0 - exact(x * r))); }
  return r;
}
fn sigmoid_exact(v: V) -> V { return reciprocal_exact(exact(1.0 + exact(exp_exact(-max(v, V(-87.0)))))); }
fn silu_exact(v: V) -> V {
  let x = exact(max(v, V(-87.0)));
  return exact(x * sigmoid_exact(x));
}
fn root_exact(x: V) -> V {
  let half = exact(0.5 * x);
  var y = bitcast<V>(vec4<u32>(0x5f3759dfu) - (bitcast<vec4<u32>>(x) >> vec4<u32>(1u)));
  for (var k = 0; k < 4; k++) { y = exact(y * exact(1.5 - exact(exact(half * y) * y))); }
  return exact(x * y);
}
// Of a norm, from the sums of the squares of four channels of sixteen each and one over the number of channels.
fn norm_factor(sums: array<V, 4>, share: f32, epsilon: f32) -> f32 {
  let four = exact(exact(sums[0] + sums[2]) + exact(sums[1] + sums[3]));
  let two = exact(V(four.xy + four.zw, 0.0, 0.0));
  let mean = exact(exact(V(two.x + two.y)) * share);
  return reciprocal_exact(exact(root_exact(mean) + epsilon)).x;
}
