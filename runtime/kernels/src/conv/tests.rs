use std::ops::Range;

use proptest::prelude::*;

use super::{
    Conv2d, ConvAlgorithm, ConvSpec, Prepared, SourceSpec, reference,
    winograd::{self, Size, When, Winograd},
};
use crate::{
    Activation, Epilogue, Isa, PixelNorm, Residual, Second, Source,
    testing::{cases, distance, instruction_sets, values},
};

#[derive(Debug, Clone)]
struct Case {
    spec: ConvSpec,
    bias: bool,
    scale: bool,
    silu: bool,
    residual: u8,
    norm: bool,
    activation: Activation,
    second: bool,
    row_sums: bool,
    rows: Range<usize>,
    seed: u64,
}

impl Case {
    fn weights(&self) -> Vec<f32> {
        let fan = self.spec.group_channels() * self.spec.kernel[0] * self.spec.kernel[1];
        values(self.spec.weights_len(), self.seed)
            .into_iter()
            .map(|v| v / (fan as f32).sqrt())
            .collect()
    }

    fn bias(&self) -> Option<Vec<f32>> {
        self.bias.then(|| values(self.spec.out_channels, self.seed + 1))
    }

    /// First and second output and row sums of the rows `rows`, by `run`.
    fn outputs(
        &self,
        rows: Range<usize>,
        run: impl FnOnce(&[Source], &mut Epilogue, &mut [f32], Range<usize>),
    ) -> [Vec<f32>; 3] {
        let s = &self.spec;
        let maps: Vec<_> =
            s.sources.iter().map(|m| values(s.source_len(m), self.seed + 2)).collect();
        let scales: Vec<_> = s.sources.iter().map(|m| values(m.channels, self.seed + 3)).collect();
        let sources: Vec<_> = maps
            .iter()
            .zip(&scales)
            .map(|(data, scale)| Source {
                data,
                scale: self.scale.then_some(&scale[..]),
                silu: self.silu,
            })
            .collect();
        let row_len = s.out_width() * s.out_channels;
        let part = rows.start * row_len..rows.end * row_len;
        let residual = values(s.out_len(), self.seed + 4);
        let even = [s.out_height(), s.out_width()].map(|side| side % 2 == 0 && !s.depthwise);
        let mut dst = residual[part.clone()].to_vec();
        let mut second = vec![0.0; part.len()];
        let mut sums = vec![0.0; rows.len() * s.out_channels];
        let mut epilogue = Epilogue {
            residual: match self.residual {
                0 => Residual::None,
                1 if even == [true; 2] => {
                    Residual::Enlarged { data: &residual[..s.out_len() / 4], scale: 0.9 }
                }
                1 | 2 => Residual::Add { data: &residual[part.clone()], scale: 0.7 },
                _ => Residual::InPlace { scale: -1.3 },
            },
            pixel_norm: self.norm.then_some(PixelNorm { eps: 0.2, gain: 1.5 }),
            activation: self.activation,
            second: self.second.then_some(Second {
                data: &mut second,
                scale: 0.8,
                activation: Activation::Silu,
            }),
            row_sums: self.row_sums.then_some(&mut sums),
        };
        run(&sources, &mut epilogue, &mut dst, rows);
        [dst, second, sums]
    }

    fn reference(&self) -> [Vec<f32>; 3] {
        let bias = self.bias().unwrap_or(vec![0.0; self.spec.out_channels]);
        self.outputs(self.rows.clone(), |sources, epilogue, dst, rows| {
            let mut scratch = vec![0.0; self.spec.out_width() * self.spec.out_channels];
            reference::run(
                &self.spec,
                &self.weights(),
                &bias,
                sources,
                epilogue,
                dst,
                &mut scratch,
                rows,
            );
        })
    }

    fn run(&self, conv: &Conv2d, rows: Range<usize>) -> [Vec<f32>; 3] {
        // NaN in the scratch shows what is read before it is written.
        let mut scratch = vec![f32::NAN; conv.scratch_len_transformed()];
        self.outputs(rows, |sources, epilogue, dst, rows| {
            conv.run(sources, epilogue, dst, &mut scratch, rows)
        })
    }

    fn algorithms(&self, isa: Isa) -> Vec<ConvAlgorithm> {
        if self.spec.depthwise {
            return vec![ConvAlgorithm::Depthwise];
        }
        if isa == Isa::NeonFp16 {
            return vec![ConvAlgorithm::GemmHalf];
        }
        let mut all = vec![ConvAlgorithm::Gemm];
        if winograd::fits(&self.spec) {
            all.extend([ConvAlgorithm::Winograd2, ConvAlgorithm::Winograd4]);
        }
        all
    }

    /// The convolution prepared with Winograd weights that are transformed at other times than its shape's size
    /// would have it.
    fn transformed(&self, isa: Isa, algorithm: ConvAlgorithm) -> Vec<Conv2d> {
        let size = match algorithm {
            ConvAlgorithm::Winograd2 => Size::Two,
            ConvAlgorithm::Winograd4 => Size::Four,
            _ => return vec![],
        };
        let spec = self.spec.clone();
        let (weights, bias) = (self.weights(), self.bias().unwrap_or(vec![0.0; spec.out_channels]));
        let prepare = |when| {
            let conv = Winograd::transformed(when, isa, &spec, size, &weights, &bias);
            let prepared = Prepared::Winograd(conv);
            Conv2d { spec: spec.clone(), isa, algorithm, prepared }
        };
        [When::Ahead, When::EachCall, When::EachBlock].map(prepare).into()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let expected = self.reference();
        for isa in instruction_sets() {
            for algorithm in self.algorithms(isa) {
                let conv = Conv2d::with_algorithm(
                    isa,
                    &self.spec,
                    &self.weights(),
                    self.bias().as_deref(),
                    algorithm,
                )
                .unwrap();
                let found = self.run(&conv, self.rows.clone());
                for other in self.transformed(isa, algorithm) {
                    let other = self.run(&other, self.rows.clone());
                    let bits = |all: &[Vec<f32>; 3]| {
                        all.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>()
                    };
                    prop_assert_eq!(
                        bits(&other),
                        bits(&found),
                        "{} {:?}: weights transformed at another time",
                        isa,
                        algorithm
                    );
                }
                let bound = match algorithm {
                    ConvAlgorithm::Winograd4 => 5e-5,
                    ConvAlgorithm::GemmHalf => 1e-2,
                    _ => 1e-5,
                };
                for (what, (found, expected)) in
                    ["first", "second", "row sums"].iter().zip(found.iter().zip(&expected))
                {
                    let off = distance(found, expected);
                    prop_assert!(off < bound, "{isa} {algorithm:?}: {what} output off by {off}");
                }
                // Any split gives the same bits.
                let middle = self.rows.start + self.rows.len() / 3;
                let (low, high) = (
                    self.run(&conv, self.rows.start..middle),
                    self.run(&conv, middle..self.rows.end),
                );
                for (i, whole) in found.iter().enumerate() {
                    let parts: Vec<_> =
                        low[i].iter().chain(&high[i]).map(|v| v.to_bits()).collect();
                    let whole: Vec<_> = whole.iter().map(|v| v.to_bits()).collect();
                    prop_assert_eq!(
                        parts,
                        whole,
                        "{} {:?}: a split changes the bits",
                        isa,
                        algorithm
                    );
                }
            }
        }
        Ok(())
    }
}

fn activation() -> impl Strategy<Value = Activation> {
    prop_oneof![
        Just(Activation::None),
        Just(Activation::Silu),
        Just(Activation::Sigmoid),
        Just(Activation::Relu),
        Just(Activation::Clip { low: -0.5, high: 0.75 }),
    ]
}

fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..8, Just(16), Just(32), 9usize..52]
}

/// A shape from its plain parts, made valid.
fn spec(three: bool) -> impl Strategy<Value = ConvSpec> {
    let map = (
        1usize..14,
        1usize..14,
        prop::collection::vec((channels(), any::<bool>()), 1..=2),
        channels(),
    );
    let kernel = (
        [1usize..=5, 1..=5],
        [1usize..=3, 1..=3],
        [1usize..=2, 1..=2],
        [0usize..=2, 0..=2, 0..=2, 0..=2],
    );
    (map, kernel).prop_map(
        move |((height, width, sources, out_channels), (kernel, stride, dilation, padding))| {
            let (kernel, stride, dilation) =
                if three { ([3; 2], [1; 2], [1; 2]) } else { (kernel, stride, dilation) };
            let enlarged = sources.iter().any(|s| s.1);
            let side = |side: usize, axis: usize| {
                let reach = (kernel[axis] - 1) * dilation[axis] + 1;
                let side = side.max(reach.saturating_sub(padding[axis] + padding[axis + 2]));
                if enlarged { side.next_multiple_of(2) } else { side }
            };
            ConvSpec {
                height: side(height, 0).max(1),
                width: side(width, 1).max(1),
                sources: sources
                    .into_iter()
                    .map(|(channels, upsample)| SourceSpec { channels, upsample })
                    .collect(),
                out_channels,
                kernel,
                stride,
                dilation,
                padding,
                depthwise: false,
            }
        },
    )
}

fn depthwise() -> impl Strategy<Value = ConvSpec> {
    (spec(false), 0usize..3).prop_map(|(mut spec, kernel)| {
        // Two in three are of the square kernels that have code of their own.
        if kernel > 0 {
            spec.kernel = [2 * kernel + 1; 2];
            spec.stride = [spec.stride[0].min(2); 2];
            spec.dilation = [1; 2];
            spec.height = spec.height.max(spec.kernel[0]);
            spec.width = spec.width.max(spec.kernel[0]);
        }
        spec.sources.truncate(1);
        spec.sources[0].upsample = false;
        spec.sources[0].channels = spec.out_channels;
        spec.depthwise = true;
        spec
    })
}

fn case(spec: impl Strategy<Value = ConvSpec>) -> impl Strategy<Value = Case> {
    let flags =
        (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (spec, flags, activation(), 0u8..4, 0.0f64..1.0, 0.0f64..1.0, 0u64..1_000_000).prop_map(
        |(spec, (bias, scale, silu, norm, second, row_sums), activation, residual, a, b, seed)| {
            let at = |share: f64| (share * (spec.out_height() + 1) as f64) as usize;
            let rows = at(a.min(b))..at(a.max(b));
            Case {
                spec,
                bias,
                scale,
                silu,
                residual,
                norm,
                activation,
                second,
                row_sums,
                rows,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn three_by_three_equals_the_reference(case in case(spec(true))) {
        case.check()?;
    }

    #[test]
    fn any_shape_equals_the_reference(case in case(spec(false))) {
        case.check()?;
    }

    #[test]
    fn depthwise_equals_the_reference(case in case(depthwise())) {
        case.check()?;
    }
}

#[test]
fn contradictions_are_refused() {
    let good = ConvSpec::same(8, 8, 4, 4, 3);
    let weights = values(good.weights_len(), 1);
    let fails = |change: &dyn Fn(&mut ConvSpec), part: &str| {
        let mut spec = good.clone();
        change(&mut spec);
        let message = Conv2d::new(Isa::Scalar, &spec, &weights, None).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    fails(&|s| s.sources.clear(), "0 sources");
    fails(&|s| s.stride = [0, 1], "is 0");
    fails(&|s| s.kernel = [30, 3], "larger than the padded input");
    fails(&|s| s.out_channels = 5, "144 values where the shape asks for 180");
    fails(&|s| (s.depthwise, s.out_channels) = (true, 6), "they must be equal");
    fails(&|s| (s.height, s.sources[0].upsample) = (7, true), "both must be even");
    let strided = ConvSpec { stride: [2; 2], ..good.clone() };
    let error =
        Conv2d::with_algorithm(Isa::Scalar, &strided, &weights, None, ConvAlgorithm::Winograd4)
            .unwrap_err();
    assert!(error.to_string().contains("winograd 4x4 on scalar cannot compute"), "{error}");
}

/// NaN stays where it can be seen, in every algorithm.
#[test]
fn a_nan_is_not_lost() {
    let spec = ConvSpec::same(6, 6, 3, 5, 3);
    let mut map = values(6 * 6 * 3, 7);
    map[(3 * 6 + 2) * 3 + 1] = f32::NAN;
    for isa in instruction_sets() {
        for algorithm in [ConvAlgorithm::Gemm, ConvAlgorithm::Winograd2, ConvAlgorithm::Winograd4] {
            let conv =
                Conv2d::with_algorithm(isa, &spec, &values(spec.weights_len(), 8), None, algorithm)
                    .unwrap();
            let (mut dst, mut scratch) = (vec![0.0; spec.out_len()], vec![0.0; conv.scratch_len()]);
            for activation in [Activation::None, Activation::Relu, Activation::Silu] {
                let mut epilogue = Epilogue::activation(activation);
                conv.run(&[Source::new(&map)], &mut epilogue, &mut dst, &mut scratch, 0..6);
                assert!(
                    dst[(3 * 6 + 2) * 5..][..5].iter().all(|v| v.is_nan()),
                    "{isa} {algorithm:?} {activation:?}"
                );
            }
        }
    }
}
