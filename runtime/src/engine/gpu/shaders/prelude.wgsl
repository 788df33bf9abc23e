alias V = vec4<f32>;
// All maps of a tile, four channels an element; tiles of a batch lie one after the other.
@group(0) @binding(0) var<storage, read_write> arena: array<S>;
@group(0) @binding(1) var<storage, read> weights: array<S>;
@group(0) @binding(2) var<uniform> params: array<vec4<u32>, PARAMS>;
@group(0) @binding(3) var<storage, read> images: array<u32>;
// Biases, factors and tables.
@group(0) @binding(4) var<storage, read> factors: array<vec4<f32>>;
// Words that pass between the dispatches of one operator.
@group(0) @binding(5) var<storage, read_write> scratch: array<u32>;
// Number of the tile in the batch, and the first element of its maps.
var<private> tile: u32;
var<private> base: u32;

fn silu(v: V) -> V { return v / (1.0 + exp(min(-v, V(80.0)))); }
fn sigmoid(v: V) -> V { return 1.0 / (1.0 + exp(min(-v, V(80.0)))); }
// Lanes past the last channel stay zero, so that they may be multiplied with anything.
fn only(v: V, c4: u32, channels: u32) -> V {
  return select(V(0.0), v, vec4<u32>(0u, 1u, 2u, 3u) + 4u * c4 < vec4<u32>(channels));
}
