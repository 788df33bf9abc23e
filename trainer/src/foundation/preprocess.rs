//! From the bytes of a tile to the input of an encoder.

/// The tile `image` of `size` x `size` x 3 bytes at `target` x `target` pixels, as floats on the
/// byte scale, row-major HWC: bilinear with half-pixel centres and no smoothing, which is ONNX
/// `Resize` in mode `linear` as it is by default, so that an exported graph can do the same.
pub fn resize_bilinear(image: &[u8], size: usize, target: usize) -> Vec<f32> {
    if size == target {
        return image.iter().map(|&value| f32::from(value)).collect();
    }
    let step = size as f32 / target as f32;
    // Left neighbour, right neighbour and weight of the right one, for every target position.
    let taps: Vec<(usize, usize, f32)> = (0..target)
        .map(|i| {
            let at = ((i as f32 + 0.5) * step - 0.5).clamp(0.0, (size - 1) as f32);
            let left = at as usize;
            (left, (left + 1).min(size - 1), at - left as f32)
        })
        .collect();
    let mut out = Vec::with_capacity(target * target * 3);
    for &(top, bottom, down) in &taps {
        for &(left, right, across) in &taps {
            for channel in 0..3 {
                let value = |y: usize, x: usize| f32::from(image[(y * size + x) * 3 + channel]);
                let above = value(top, left) + (value(top, right) - value(top, left)) * across;
                let below =
                    value(bottom, left) + (value(bottom, right) - value(bottom, left)) * across;
                out.push(above + (below - above) * down);
            }
        }
    }
    out
}

/// Pixels on the byte scale, HWC, as an encoder's input: (v / 255 - mean) / std, CHW.
pub fn normalise(pixels: &[f32], mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
    let plane = pixels.len() / 3;
    let mut out = vec![0.0; plane * 3];
    for channel in 0..3 {
        let (scale, shift) = (1.0 / (255.0 * std[channel]), mean[channel] / std[channel]);
        for (i, value) in out[channel * plane..(channel + 1) * plane].iter_mut().enumerate() {
            *value = pixels[i * 3 + channel] * scale - shift;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_onnx_resize() {
        // onnxruntime Resize, linear, half_pixel: [10, 20; 30, 40] to 4 x 4, then to 1 x 1.
        let tile: Vec<u8> = [10u8, 20, 30, 40].iter().flat_map(|&v| [v; 3]).collect();
        let red: Vec<f32> = resize_bilinear(&tile, 2, 4).into_iter().step_by(3).collect();
        let expected = [
            10.0, 12.5, 17.5, 20.0, 15.0, 17.5, 22.5, 25.0, 25.0, 27.5, 32.5, 35.0, 30.0, 32.5,
            37.5, 40.0,
        ];
        for (a, b) in red.iter().zip(expected) {
            assert!((a - b).abs() < 1e-4, "{red:?}");
        }
        assert_eq!(resize_bilinear(&tile, 2, 1), [25.0; 3]);
        assert_eq!(resize_bilinear(&tile, 2, 2)[3], 20.0);
    }

    #[test]
    fn normalises_each_channel_into_its_plane() {
        let got =
            normalise(&[0.0, 51.0, 255.0, 255.0, 51.0, 0.0], [0.0, 0.2, 0.5], [1.0, 0.5, 0.25]);
        for (a, b) in got.iter().zip([0.0, 1.0, 0.0, 0.0, 2.0, -2.0]) {
            assert!((a - b).abs() < 1e-6, "{got:?}");
        }
    }
}
