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
// Exponents of positive normal numbers, and their 24 bits as whole numbers.
fn exponent(bits: vec4<u32>) -> vec4<i32> { return vec4<i32>((bits >> vec4<u32>(23u)) & vec4<u32>(255u)) - 127; }
fn whole(bits: vec4<u32>) -> vec4<u32> { return (bits & vec4<u32>(0x7fffffu)) | vec4<u32>(0x800000u); }
// The 25 bits `q`, of which the last is half a unit, as 24: half to even, where `more` says that more bits follow.
fn halved(q: vec4<u32>, more: vec4<bool>) -> V {
  let up = (q & vec4<u32>(1u)) & (select(vec4<u32>(0u), vec4<u32>(1u), more) | ((q >> vec4<u32>(1u)) & vec4<u32>(1u)));
  return V((q >> vec4<u32>(1u)) + up);
}
fn power(exponent: vec4<i32>) -> V {
  let held = vec4<u32>(clamp(exponent, vec4<i32>(-126), vec4<i32>(127)) + 127);
  return bitcast<V>(held << vec4<u32>(23u));
}
// `a / b`, rounded to nearest, of normal numbers, b positive: a quotient of whole numbers is guessed, and put right by
// what is left over, of which 32 bits are enough.
fn quotient_exact(a: V, b: V) -> V {
  let sign = bitcast<vec4<u32>>(a) & vec4<u32>(0x80000000u);
  let bits_a = bitcast<vec4<u32>>(a) ^ sign;
  let bits_b = bitcast<vec4<u32>>(b);
  let n = whole(bits_a);
  let d = whole(bits_b);
  let small = n < d;
  let shift = select(vec4<u32>(24u), vec4<u32>(25u), small);
  var q = vec4<u32>(V(n) / V(d) * select(V(16777216.0), V(33554432.0), small));
  var left = bitcast<vec4<i32>>((n << shift) - q * d);
  for (var k = 0; k < 64; k++) {
    let low = left < vec4<i32>(0);
    let high = left >= vec4<i32>(d);
    if (!any(low | high)) { break; }
    q += select(select(vec4<u32>(0u), vec4<u32>(1u), high), vec4<u32>(0xffffffffu), low);
    left += select(select(vec4<i32>(0), -vec4<i32>(d), high), vec4<i32>(d), low);
  }
  let scale = exponent(bits_a) - exponent(bits_b) - vec4<i32>(shift) + 1;
  let part = scale / 2;
  let value = exact(exact(halved(q, left != vec4<i32>(0)) * power(part)) * power(scale - part));
  return select(bitcast<V>(bitcast<vec4<u32>>(value) | sign), a, bits_a < vec4<u32>(0x800000u));
}
// The square root, rounded to nearest, of normal numbers or 0, likewise.
fn root_exact(x: V) -> V {
  let bits = bitcast<vec4<u32>>(x);
  let odd = (exponent(bits) & vec4<i32>(1)) != vec4<i32>(0);
  // Twice 25 bits, of which 32 are kept.
  let shift = select(vec4<u32>(25u), vec4<u32>(26u), odd);
  let n = whole(bits);
  var s = vec4<u32>(sqrt(V(n) * select(V(33554432.0), V(67108864.0), odd)));
  var left = bitcast<vec4<i32>>((n << shift) - s * s);
  for (var k = 0; k < 64; k++) {
    let low = left < vec4<i32>(0);
    let high = left > vec4<i32>(2u * s);
    if (!any(low | high)) { break; }
    left += select(select(vec4<i32>(0), -vec4<i32>(2u * s + 1u), high), vec4<i32>(2u * s - 1u), low);
    s += select(select(vec4<u32>(0u), vec4<u32>(1u), high), vec4<u32>(0xffffffffu), low);
  }
  let scale = (exponent(bits) - select(vec4<i32>(0), vec4<i32>(1), odd)) / 2 - 23;
  return select(exact(halved(s, left != vec4<i32>(0)) * power(scale)), V(0.0), bits < vec4<u32>(0x800000u));
}
fn sigmoid_exact(v: V) -> V {
  return quotient_exact(V(1.0), exact(1.0 + exact(exp_exact(-max(v, V(-87.0))))));
}
fn silu_exact(v: V) -> V {
  let x = exact(max(v, V(-87.0)));
  return quotient_exact(x, exact(1.0 + exact(exp_exact(-x))));
}
// Of a norm, from the sums of the squares of four channels of sixteen each and one over the number of channels.
fn norm_factor(sums: array<V, 4>, share: f32, epsilon: f32) -> f32 {
  let four = exact(exact(sums[0] + sums[2]) + exact(sums[1] + sums[3]));
  let two = exact(V(four.xy + four.zw, 0.0, 0.0));
  let mean = exact(exact(V(two.x + two.y)) * share);
  return quotient_exact(V(1.0), exact(root_exact(mean) + epsilon)).x;
}
