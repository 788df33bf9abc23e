alias V = vec4<f32>;
// All maps of a tile, four channels an element; tiles of a batch lie one after the other.
@group(0) @binding(0) var<storage, read_write> arena: array<S>;
@group(0) @binding(1) var<storage, read> weights: array<S>;
@group(0) @binding(2) var<uniform> params: array<vec4<u32>, PARAMS>;
@group(0) @binding(3) var<storage, read> images: array<u32>;
// Biases, factors and tables.
@group(0) @binding(4) var<storage, read> factors: array<vec4<f32>>;
// What passes between the dispatches of one operator, then all maps of bytes of a tile, four channels a word.
@group(0) @binding(5) var<storage, read_write> words: array<u32>;
// Number of the tile in the batch, the first element of its maps, and its first word.
var<private> tile: u32;
var<private> base: u32;
var<private> words_base: u32;

// Finds the tile that a workgroup is to compute.
fn begin(group: vec3<u32>) {
  tile = group.z;
  base = tile * params[0].x;
  words_base = tile * params[0].y;
}
// The value as it is once rounded: what follows is not contracted with the operation before. The number is
// always 0, which a compiler cannot know.
fn exact(v: V) -> V { return bitcast<V>(bitcast<vec4<u32>>(v) ^ vec4<u32>(params[0].z)); }
// Four bytes of a grid as reals; `zero` is 128 less its zero point, since bytes are kept as `q - 128`.
fn of_grid(word: u32, scale: f32, zero: f32) -> V {
  return exact(scale * (V(unpack4xI8(word)) + zero));
}
// The numbers, 0 to 255, of a grid's values nearest to `v`, by one over its scale.
fn to_grid(v: V, inverse: f32, zero: f32) -> V {
  return clamp(round(exact(v) * inverse) + zero, V(0.0), V(255.0));
}
fn packed(q: V) -> u32 { return pack4xI8(vec4<i32>(q) - 128); }

fn silu(v: V) -> V { return v / (1.0 + exp(min(-v, V(80.0)))); }
fn sigmoid(v: V) -> V { return 1.0 / (1.0 + exp(min(-v, V(80.0)))); }
fn is_channel(c4: u32, channels: u32) -> vec4<bool> {
  return vec4<u32>(0u, 1u, 2u, 3u) + 4u * c4 < vec4<u32>(channels);
}
// Lanes past the last channel stay zero, so that they may be multiplied with anything.
fn only(v: V, c4: u32, channels: u32) -> V { return select(V(0.0), v, is_channel(c4, channels)); }
