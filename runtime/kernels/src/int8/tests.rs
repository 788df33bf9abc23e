use proptest::prelude::*;

use super::*;
use crate::{ConvSpec, Isa, SourceSpec};

/// The convolution written down.
fn by_definition(
    spec: &ConvSpec,
    zero: u8,
    weights: &[i8],
    bias: &[i32],
    source: &[u8],
) -> Vec<i32> {
    let channels = spec.in_channels();
    let per_output = if spec.depthwise { 1 } else { channels };
    let [height, width] = spec.kernel;
    let mut out = Vec::new();
    for y in 0..spec.out_height() {
        for x in 0..spec.out_width() {
            for o in 0..spec.out_channels {
                let mut sum = bias[o];
                for (tap, w) in weights[o * per_output * height * width..]
                    [..per_output * height * width]
                    .iter()
                    .enumerate()
                {
                    let (i, down, across) =
                        (tap / (height * width), tap / width % height, tap % width);
                    let i = if spec.depthwise { o } else { i };
                    let sy = (y * spec.stride[0] + down * spec.dilation[0]) as isize
                        - spec.padding[0] as isize;
                    let sx = (x * spec.stride[1] + across * spec.dilation[1]) as isize
                        - spec.padding[1] as isize;
                    let inside = (0..spec.height as isize).contains(&sy)
                        && (0..spec.width as isize).contains(&sx);
                    if inside {
                        let q = source[(sy as usize * spec.width + sx as usize) * channels + i];
                        sum += (i32::from(q) - i32::from(zero)) * i32::from(*w);
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

fn run(conv: &Conv2d, source: &[u8], rows: std::ops::Range<usize>) -> Vec<i32> {
    let width = conv.spec().out_width() * conv.spec().out_channels;
    let mut out = vec![0; rows.len() * width];
    let mut scratch = vec![0xaa; conv.scratch_len(rows.len())];
    let mut sums = vec![0x55; conv.sums_len()];
    conv.run(source, &mut Output::Sums(&mut out), &mut scratch, &mut sums, rows);
    out
}

/// Bytes from a seed; `kind` 0 random, 1 all large, 2 all zero, 3 extremes only.
fn bytes(seed: u64, count: usize, kind: u8) -> Vec<u8> {
    let mut state = seed | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let byte = (state >> 56) as u8;
            match kind {
                0 => byte,
                1 => 255,
                2 => 0,
                _ => {
                    if byte & 1 == 0 {
                        0
                    } else {
                        255
                    }
                }
            }
        })
        .collect()
}

fn weights(seed: u64, count: usize, kind: u8, limit: i8) -> Vec<i8> {
    bytes(seed ^ 0x9e37, count, kind)
        .into_iter()
        .map(|byte| ((i32::from(byte) - 128) * i32::from(limit) / 128) as i8)
        .collect()
}

prop_compose! {
    fn specs()(
        height in 1usize..9, width in 1usize..20, inputs in 1usize..41, outputs in 1usize..50,
        kernel in prop::sample::select(vec![[1, 1], [3, 3], [1, 3], [5, 5], [2, 2]]),
        stride in 1usize..3, dilation in 1usize..3, pad in 0usize..3, depthwise in any::<bool>(),
    ) -> ConvSpec {
        let reach = |k: usize| (k - 1) * dilation + 1;
        ConvSpec {
            sources: vec![SourceSpec::new(if depthwise { outputs } else { inputs })],
            height: height.max(reach(kernel[0])),
            width: width.max(reach(kernel[1])),
            out_channels: outputs,
            kernel,
            stride: [stride, stride],
            dilation: [dilation, dilation],
            padding: [pad, pad / 2, pad / 2, pad],
            depthwise,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 60 }))]

    #[test]
    fn every_instruction_set_gives_the_integers_of_the_definition(
        spec in specs(), seed in any::<u64>(), zero in any::<u8>(),
        kind in 0u8..4, weight_kind in 0u8..4, limit in prop::sample::select(vec![63i8, 127]),
    ) {
        let source = bytes(seed, spec.source_len(&spec.sources[0]), kind);
        let own = weights(seed, spec.weights_len(), weight_kind, limit);
        let bias: Vec<i32> = (0..spec.out_channels as i32).map(|o| o * 1000 - 5000).collect();
        let expected = by_definition(&spec, zero, &own, &bias, &source);
        for isa in Isa::available() {
            let conv = Conv2d::new(isa, &spec, zero, &own, Some(&bias)).unwrap();
            let rows = spec.out_height();
            let found = run(&conv, &source, 0..rows);
            prop_assert_eq!(&found, &expected, "{}", isa);
            // In two parts: the same integers.
            let mut parts = run(&conv, &source, 0..rows / 2);
            parts.extend(run(&conv, &source, rows / 2..rows));
            prop_assert_eq!(&parts, &expected, "{} in parts", isa);
        }
    }

    /// Kernels that round where the sums lie give what rounding the sums afterwards does, ties and overflows included.
    #[test]
    fn every_instruction_set_rounds_the_sums_alike(
        spec in specs(), seed in any::<u64>(), zero in any::<u8>(), zero_point in any::<u8>(),
        limit in prop::sample::select(vec![63i8, 127]), tabled in any::<bool>(),
        factor in prop::sample::select(vec![0.5f32, 0.125, 0.0031, -0.25, 1e30, -1e30, f32::INFINITY, f32::NAN]),
    ) {
        let source = bytes(seed, spec.source_len(&spec.sources[0]), 0);
        let own = weights(seed, spec.weights_len(), 0, limit);
        let channels = spec.out_channels;
        let factors: Vec<f32> =
            (0..channels).map(|o| if o % 3 == 0 { factor } else { 0.01 * o as f32 }).collect();
        let table = tabled.then(|| Box::new(std::array::from_fn(|q| (q * 7 % 256) as u8)));
        let requantize = Requantize { factors, zero_point, table };
        let sums = by_definition(&spec, zero, &own, &vec![0; channels], &source);
        let expected: Vec<u8> = sums
            .iter()
            .enumerate()
            .map(|(at, sum)| {
                let real = (*sum as f32 * requantize.factors[at % channels]).round_ties_even();
                // A conversion saturates, and makes 0 of NaN.
                let byte = if real.is_nan() { 0 } else { (real + f32::from(zero_point)) as u8 };
                requantize.table.as_ref().map_or(byte, |table| table[usize::from(byte)])
            })
            .collect();
        for isa in Isa::available() {
            let conv = Conv2d::new(isa, &spec, zero, &own, None).unwrap();
            let mut to = vec![0; sums.len()];
            let mut scratch = vec![0xaa; conv.scratch_len(spec.out_height())];
            let mut room = vec![0x55; conv.sums_len()];
            let mut output = Output::Bytes { to: &mut to, requantize: &requantize };
            conv.run(&source, &mut output, &mut scratch, &mut room, 0..spec.out_height());
            prop_assert_eq!(&to, &expected, "{}", isa);
        }
    }
}

#[test]
fn extremes_do_not_saturate() {
    // All products at their largest: what maddubs alone gets wrong.
    let spec = ConvSpec::same(4, 4, 64, 16, 3);
    for (byte, weight) in [(255u8, 127i8), (255, -127), (0, 127)] {
        let source = vec![byte; spec.source_len(&spec.sources[0])];
        let own = vec![weight; spec.weights_len()];
        let expected = by_definition(&spec, 7, &own, &[0; 16], &source);
        for isa in Isa::available() {
            let conv = Conv2d::new(isa, &spec, 7, &own, None).unwrap();
            assert_eq!(run(&conv, &source, 0..4), expected, "{isa}");
        }
    }
}

#[test]
fn sums_become_bytes_as_onnx_rounds() {
    let spec = ConvSpec::same(1, 3, 1, 1, 1);
    let conv = Conv2d::new(Isa::Scalar, &spec, 0, &[1], None).unwrap();
    let mut sums = vec![0; conv.sums_len()];
    let mut scratch = vec![0; conv.scratch_len(1)];
    let mut requantize = Requantize { factors: vec![0.5], zero_point: 10, table: None };
    let mut to = [0u8; 3];
    // 0.5, 1.5 and 127.5 halves: to even.
    let mut output = Output::Bytes { to: &mut to, requantize: &requantize };
    conv.run(&[1, 3, 255], &mut output, &mut scratch, &mut sums, 0..1);
    assert_eq!(to, [10, 12, 138]);
    let mut table = Box::new([0u8; 256]);
    table[12] = 99;
    requantize.table = Some(table);
    let mut output = Output::Bytes { to: &mut to, requantize: &requantize };
    conv.run(&[1, 3, 255], &mut output, &mut scratch, &mut sums, 0..1);
    assert_eq!(to, [0, 99, 0]);
    let mut reals = [0.0f32; 3];
    let mut output = Output::Reals { to: &mut reals, factors: &[0.25] };
    conv.run(&[1, 3, 255], &mut output, &mut scratch, &mut sums, 0..1);
    assert_eq!(reals, [0.25, 0.75, 63.75]);
}

#[test]
fn quantising_saturates_and_rounds_to_even() {
    let mut to = [0; 6];
    quantize(&[0.5, 1.5, -1e9, 1e9, f32::NAN, -0.25], 1.0, 100, &mut to);
    assert_eq!(to, [100, 102, 0, 255, 0, 100]);
}

#[test]
fn contradictions_are_refused() {
    let spec = ConvSpec::same(4, 4, 8, 8, 3);
    assert!(Conv2d::new(Isa::Scalar, &spec, 0, &[0; 3], None).is_err());
    let mut two = spec.clone();
    two.sources.push(SourceSpec::new(8));
    let own = vec![0; two.weights_len()];
    let error = Conv2d::new(Isa::Scalar, &two, 0, &own, None).unwrap_err().to_string();
    assert!(error.contains("one source"), "{error}");
}

proptest! {
    #[test]
    fn looking_up_is_indexing(from in prop::collection::vec(any::<u8>(), 0..300), seed in any::<u8>()) {
        let table = std::array::from_fn(|q| (q as u8).wrapping_mul(31).wrapping_add(seed) ^ 0x5a);
        let mut found = vec![0; from.len()];
        super::look_up(&table, &from, &mut found);
        let expected: Vec<u8> = from.iter().map(|&q| table[usize::from(q)]).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn bytes_become_the_reals_of_the_definition(
        from in prop::collection::vec(any::<u8>(), 0..300),
        scale in 1e-4f32..9.0,
        zero in any::<u8>(),
    ) {
        let mut found = vec![0.0; from.len()];
        super::dequantize(&from, scale, zero, &mut found);
        for (found, q) in found.iter().zip(&from) {
            let expected = scale * (f32::from(*q) - f32::from(zero));
            prop_assert_eq!(found.to_bits(), expected.to_bits());
        }
    }
}
