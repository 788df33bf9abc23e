//! Every kernel but the convolutions against a reference in plain loops.

use proptest::prelude::*;

use crate::{
    Activation, Attention, Conv2d, ConvSpec, Dense, Epilogue, GroupNorm, ImageInput,
    InvertedResidual, InvertedResidualSpec, Layer, PixelNorm, Residual, Second, Source,
    average_pool_2x2,
    epilogue::finish_reference,
    global_mean, mean_of_row_sums, mean_std, pointwise,
    testing::{cases, distance, instruction_sets, values},
    upsample_2x,
};

const BOUND: f32 = 1e-5;

fn read(src: &Source, i: usize, channels: usize) -> f32 {
    let v = src.data[i] * src.scale.map_or(1.0, |s| s[i % channels]);
    if src.silu { Activation::Silu.apply(v) } else { v }
}

/// Runs `f` with an epilogue that uses everything, once for the reference and once for the kernel.
fn both(
    [rows, width, channels]: [usize; 3],
    mut reference: impl FnMut(&mut [f32]),
    mut kernel: impl FnMut(&mut Epilogue, &mut [f32]),
) -> f32 {
    let len = rows * width * channels;
    let residual = values(len, 77);
    let run = |f: &mut dyn FnMut(&mut Epilogue, &mut [f32])| {
        let (mut dst, mut second, mut sums) =
            (vec![0.0; len], vec![0.0; len], vec![0.0; rows * channels]);
        let mut epilogue = Epilogue {
            residual: Residual::Add { data: &residual, scale: 0.6 },
            pixel_norm: Some(PixelNorm { eps: 0.2, gain: 1.1 }),
            activation: Activation::Clip { low: -1.0, high: 1.0 },
            second: Some(Second { data: &mut second, scale: 1.2, activation: Activation::Silu }),
            row_sums: Some(&mut sums),
        };
        f(&mut epilogue, &mut dst);
        [dst, second, sums].concat()
    };
    let expected = run(&mut |epilogue, dst| {
        reference(dst);
        finish_reference(epilogue, &[], dst, 0, width, channels);
    });
    let found = run(&mut |epilogue, dst| kernel(epilogue, dst));
    distance(&found, &expected)
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn pointwise_equals_the_reference(
        [rows, width, channels] in [1usize..5, 1usize..9, 1usize..40], scale: bool, silu: bool, seed in 0u64..1000,
    ) {
        let (map, factors) = (values(rows * width * channels, seed), values(channels, seed + 1));
        let src = Source { data: &map, scale: scale.then_some(&factors), silu };
        for isa in instruction_sets() {
            let off = both(
                [rows, width, channels],
                |dst| (0..dst.len()).for_each(|i| dst[i] = read(&src, i, channels)),
                |epilogue, dst| pointwise(isa, width, channels, src, epilogue, dst),
            );
            prop_assert!(off < BOUND, "{isa}: {off}");
        }
    }

    #[test]
    fn enlarging_and_pooling_equal_the_reference(
        [height, width, channels] in [2usize..7, 2usize..7, 1usize..40], start in 0usize..3, seed in 0u64..1000,
    ) {
        let map = values(height * width * channels, seed);
        let src = Source::new(&map);
        for isa in instruction_sets() {
            let rows = start.min(2 * height - 1)..2 * height;
            let off = both(
                [rows.len(), 2 * width, channels],
                |dst| {
                    for (i, v) in dst.iter_mut().enumerate() {
                        let (p, c) = (i / channels, i % channels);
                        let (y, x) = (rows.start + p / (2 * width), p % (2 * width));
                        *v = map[(y / 2 * width + x / 2) * channels + c];
                    }
                },
                |epilogue, dst| upsample_2x(isa, [height, width, channels], src, epilogue, dst, rows.clone()),
            );
            prop_assert!(off < BOUND, "enlarging, {isa}: {off}");
            let rows = start.min(height / 2 - 1)..height / 2;
            let off = both(
                [rows.len(), width / 2, channels],
                |dst| {
                    for (i, v) in dst.iter_mut().enumerate() {
                        let (p, c) = (i / channels, i % channels);
                        let (y, x) = (rows.start + p / (width / 2), p % (width / 2));
                        let at = |dy, dx| map[((2 * y + dy) * width + 2 * x + dx) * channels + c];
                        *v = (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4.0;
                    }
                },
                |epilogue, dst| average_pool_2x2(isa, [height, width, channels], &map, epilogue, dst, rows.clone()),
            );
            prop_assert!(off < BOUND, "pooling, {isa}: {off}");
        }
    }

    #[test]
    fn moments_equal_the_reference(
        [pixels, channels] in [1usize..200, 1usize..40], from in 0.0f64..1.0, seed in 0u64..1000,
    ) {
        // A centre far from 0 shows a variance taken as a difference of squares.
        let map: Vec<_> = values(pixels * channels, seed).into_iter().map(|v| v + 100.0).collect();
        let range = (from * channels as f64) as usize..channels;
        let column = |c: usize| map.iter().skip(c).step_by(channels).map(|v| f64::from(*v));
        let mean: Vec<_> = range.clone().map(|c| column(c).sum::<f64>() / pixels as f64).collect();
        let std: Vec<_> = range
            .clone()
            .zip(&mean)
            .map(|(c, m)| (column(c).map(|v| (v - m).powi(2)).sum::<f64>() / pixels as f64).sqrt() as f32)
            .collect();
        let mean: Vec<_> = mean.into_iter().map(|m| m as f32).collect();
        for isa in instruction_sets() {
            let (mut m, mut s) = (vec![0.0; range.len()], vec![0.0; range.len()]);
            mean_std(isa, channels, &map, &mut m, Some(&mut s), range.clone());
            prop_assert!(distance(&m, &mean) < 1e-6, "{isa}: {m:?} {mean:?}");
            prop_assert!(distance(&s, &std) < 1e-5, "{isa}: {s:?} {std:?}");
            m.fill(0.0);
            global_mean(isa, channels, &map, &mut m, range.clone());
            prop_assert!(distance(&m, &mean) < 1e-6, "{isa}: {m:?} {mean:?}");
        }
    }

    #[test]
    fn group_norm_equals_the_reference(
        [pixels, groups, size] in [1usize..120, 1usize..6, 1usize..8], seed in 0u64..1000,
    ) {
        let channels = groups * size;
        let map: Vec<_> = values(pixels * channels, seed).into_iter().map(|v| v + 3.0).collect();
        let (scale, shift) = (values(channels, seed + 1), values(channels, seed + 2));
        let mut expected = vec![0.0; map.len()];
        for group in 0..groups {
            let at = |p: usize| (0..size).map(move |c| p * channels + group * size + c);
            let all = || (0..pixels).flat_map(at);
            let count = (pixels * size) as f64;
            let mean = all().map(|i| f64::from(map[i])).sum::<f64>() / count;
            let variance = all().map(|i| (f64::from(map[i]) - mean).powi(2)).sum::<f64>() / count;
            for i in all() {
                let v = (f64::from(map[i]) - mean) / (variance + 1e-2).sqrt();
                expected[i] = Activation::Silu.apply(v as f32 * scale[i % channels] + shift[i % channels]);
            }
        }
        let mean: Vec<_> = (0..channels)
            .map(|c| expected.iter().skip(c).step_by(channels).sum::<f32>() / pixels as f32)
            .collect();
        for isa in instruction_sets() {
            let norm = GroupNorm::new(isa, pixels, channels, groups, 1e-2, &scale, &shift, Activation::Silu).unwrap();
            let (mut dst, mut m) = (vec![0.0; map.len()], vec![0.0; channels]);
            let mut scratch = vec![f32::NAN; norm.scratch_len()];
            norm.run(&map, Some(&mut dst), Some(&mut m), &mut scratch);
            prop_assert!(distance(&dst, &expected) < 3e-5, "{isa}");
            prop_assert!(distance(&m, &mean) < 3e-5, "{isa}");
            m.fill(0.0);
            norm.run(&map, None, Some(&mut m), &mut scratch);
            prop_assert!(distance(&m, &mean) < 3e-5, "{isa}: only the mean");
        }
    }

    #[test]
    fn dense_equals_the_reference(
        [rows, inputs, outputs] in [1usize..12, 1usize..70, 1usize..120], from in 0.0f64..1.0, seed in 0u64..1000,
    ) {
        let (w, b, x) = (values(inputs * outputs, seed), values(outputs, seed + 1), values(rows * inputs, seed + 2));
        let part = (from * outputs as f64) as usize..outputs;
        let mut expected = Vec::new();
        for x in x.chunks(inputs) {
            for o in part.clone() {
                let sum: f32 = w[o * inputs..][..inputs].iter().zip(x).map(|(w, x)| w * x).sum();
                expected.push(Activation::Silu.apply(sum + b[o]));
            }
        }
        for isa in instruction_sets() {
            let dense = Dense::new(isa, inputs, outputs, &w, Some(&b)).unwrap();
            let mut dst = vec![0.0; expected.len()];
            dense.run(&x, Activation::Silu, &mut dst, part.clone());
            let off = distance(&dst, &expected);
            prop_assert!(off < BOUND, "{isa}: {off}");
        }
    }

    #[test]
    fn attention_equals_the_reference(
        [tokens, heads, size] in [1usize..60, 1usize..4, 1usize..40], norm: bool, from in 0.0f64..1.0,
        seed in 0u64..1000,
    ) {
        let channels = heads * size;
        let qkv = values(tokens * 3 * channels, seed);
        let part = (from * tokens as f64) as usize..tokens;
        let scale = 1.0 / (size as f32).sqrt();
        let head_of = |token: usize, kind: usize, head: usize| -> Vec<f32> {
            let values = &qkv[(token * 3 + kind) * channels + head * size..][..size];
            let rms = (values.iter().map(|v| v * v).sum::<f32>() / size as f32).sqrt();
            values.iter().map(|v| if norm { v / (rms + 0.1) } else { *v }).collect()
        };
        let mut expected = Vec::new();
        for token in part.clone() {
            for head in 0..heads {
                let q = head_of(token, 0, head);
                let dot = |k: &[f32]| scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f32>();
                let scores: Vec<_> = (0..tokens).map(|t| dot(&head_of(t, 1, head))).collect();
                let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let e: Vec<_> = scores.iter().map(|s| (s - highest).exp()).collect();
                let total: f32 = e.iter().sum();
                let mut out = vec![0.0; size];
                for (t, e) in e.iter().enumerate() {
                    out.iter_mut().zip(head_of(t, 2, head)).for_each(|(o, v)| *o += e / total * v);
                }
                expected.extend(out);
            }
        }
        let mut in_order = None;
        for isa in instruction_sets() {
            let op = Attention::new(isa, tokens, heads, size, scale, norm.then_some(0.1)).unwrap();
            let mut scratch = vec![f32::NAN; op.scratch_len()];
            let mut dst = vec![0.0; expected.len()];
            op.run(&qkv, &mut dst, &mut scratch, part.clone());
            let off = distance(&dst, &expected);
            prop_assert!(off < BOUND, "{isa}: {off}");
            let mut last = vec![0.0; channels];
            op.run(&qkv, &mut last, &mut scratch, tokens - 1..tokens);
            prop_assert_eq!(&last[..], &dst[dst.len() - channels..], "{}: a split changes the bits", isa);
            op.in_order().run(&qkv, &mut dst, &mut scratch, part.clone());
            prop_assert!(distance(&dst, &expected) < BOUND, "{isa}, in order");
            let same = in_order.get_or_insert_with(|| dst.clone());
            prop_assert_eq!(&dst, same, "{}: other bits", isa);
        }
    }

    #[test]
    fn images_equal_the_reference(
        [high, wide, channels, block] in [1usize..5, 1usize..6, 1usize..5, 1usize..5], ones: bool, seed in 0u64..1000,
    ) {
        let (height, width) = (high * block, wide * block);
        let image: Vec<_> = values(height * width * channels, seed).iter().map(|v| (v * 99.0) as i32 as u8).collect();
        let (scale, shift) = (values(channels, seed + 1), values(channels, seed + 2));
        for isa in instruction_sets() {
            let op = ImageInput::new(isa, height, width, channels, block, ones.then_some(1.0), &scale, &shift).unwrap();
            let [oh, ow, oc] = op.out_shape();
            prop_assert_eq!([oh, ow, oc], [high, wide, channels * block * block + usize::from(ones)]);
            let mut dst = vec![f32::NAN; oh * ow * oc];
            let (low, top) = dst.split_at_mut(high / 2 * ow * oc);
            op.run(&image, low, 0..high / 2);
            op.run(&image, top, high / 2..high);
            for (i, v) in dst.iter().enumerate() {
                let (p, k) = (i / oc, i % oc);
                let (by, bx, c) = (k / channels / block, k / channels % block, k % channels);
                let expected = if by == block {
                    1.0
                } else {
                    let (y, x) = (p / ow * block + by, p % ow * block + bx);
                    f32::from(image[(y * width + x) * channels + c]) * scale[c] + shift[c]
                };
                prop_assert!((v - expected).abs() < 1e-4, "{isa}: {v} where {expected} at {i}");
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(32))]

    /// Bit for bit what its three convolutions give, for any rows.
    #[test]
    fn an_inverted_residual_is_its_three_layers(
        [height, width, side] in [5usize..40, 5usize..30, 0usize..2], [cin, wide, cout] in [1usize..20, 1usize..140, 1usize..40],
        stride in 1usize..3, [a, b] in [0.0f64..1.0, 0.0f64..1.0], seed in 0u64..1000,
    ) {
        let kernel = 3 + 2 * side;
        let spec = InvertedResidualSpec {
            height,
            width,
            in_channels: cin,
            expanded_channels: wide,
            out_channels: cout,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [kernel / 2, kernel / 2, (kernel - 1) / 2, kernel / 2],
        };
        let [w1, w2, w3] = [cin * wide, kernel * kernel * wide, wide * cout].map(|len| values(len, seed + len as u64));
        let bias = values(wide, seed);
        let map = values(height * width * cin, seed + 1);
        let layer = |weights, bias, activation| Layer { weights, bias, activation };
        let middle = Activation::Clip { low: 0.0, high: 6.0 };
        for isa in instruction_sets() {
            let first = ConvSpec::same(height, width, cin, wide, 1);
            let second = ConvSpec {
                out_channels: wide,
                kernel: spec.kernel,
                stride: spec.stride,
                padding: spec.padding,
                depthwise: true,
                ..ConvSpec::same(height, width, wide, wide, 1)
            };
            let third = ConvSpec::same(second.out_height(), second.out_width(), wide, cout, 1);
            let step = |spec: &ConvSpec, w: &[f32], bias, map: &[f32], activation| {
                let conv = Conv2d::new(isa, spec, w, bias).unwrap();
                let (mut dst, mut scratch) = (vec![0.0; spec.out_len()], vec![0.0; conv.scratch_len()]);
                let rows = 0..spec.out_height();
                conv.run(&[Source::new(map)], &mut Epilogue::activation(activation), &mut dst, &mut scratch, rows);
                dst
            };
            let expected = step(&first, &w1, Some(&bias), &map, middle);
            let expected = step(&second, &w2, None, &expected, middle);
            let expected = step(&third, &w3, None, &expected, Activation::None);
            let last = layer(&w3, None, Activation::None);
            let block =
                InvertedResidual::new(isa, &spec, layer(&w1, Some(&bias), middle), layer(&w2, None, middle), last).unwrap();
            let [oh, ow, oc] = block.out_shape();
            let at = |share: f64| (share * (oh + 1) as f64) as usize;
            let rows = at(a.min(b))..at(a.max(b));
            let mut dst = vec![0.0; rows.len() * ow * oc];
            let mut scratch = vec![f32::NAN; block.scratch_len()];
            block.run(&map, &mut Epilogue::default(), &mut dst, &mut scratch, rows.clone());
            let expected = &expected[rows.start * ow * oc..rows.end * ow * oc];
            prop_assert!(dst.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
        }
    }
}

#[test]
fn activations_are_within_their_bounds() {
    let mut inputs: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.025).collect();
    inputs.extend([0.0, -0.0, 1e-30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3e38, -3e38]);
    let all = [
        Activation::None,
        Activation::Silu,
        Activation::Sigmoid,
        Activation::ExactSilu,
        Activation::ExactSigmoid,
        Activation::Relu,
        Activation::Clip { low: -2.0, high: 6.0 },
    ];
    let mut first = vec![];
    for isa in instruction_sets() {
        for activation in all {
            let mut dst = vec![0.0; inputs.len()];
            pointwise(
                isa,
                1,
                1,
                Source::new(&inputs),
                &mut Epilogue::activation(activation),
                &mut dst,
            );
            if activation.exact() == activation {
                // The sign of a zero is no one's concern: instruction sets differ in the larger of 0 and -0.
                let bits: Vec<u32> =
                    dst.iter().map(|y| if y.is_nan() { 0 } else { (y + 0.0).to_bits() }).collect();
                match first.iter().find(|(known, _)| *known == activation) {
                    Some((_, same)) => assert_eq!(&bits, same, "{isa} {activation:?}"),
                    None => first.push((activation, bits)),
                }
            }
            for (x, y) in inputs.iter().zip(dst) {
                let expected = activation.apply(*x);
                let near = (y - expected).abs() <= 4e-7 * expected.abs() + 1e-35;
                assert!(
                    near || y == expected || y.is_nan() && expected.is_nan(),
                    "{isa} {activation:?} {x}: {y} {expected}"
                );
            }
        }
    }
}

#[test]
fn row_sums_give_the_mean() {
    let mut mean = [0.0; 2];
    mean_of_row_sums(4, &[4.0, 8.0, 12.0, 0.0], &mut mean);
    assert_eq!(mean, [2.0, 1.0]);
}
