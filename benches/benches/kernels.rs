//! The CPU engine's kernels by shape and algorithm: those of the shipped predictor and of a 6 GMAC edge U-Net.
//! Criterion's `elem/s` are float operations a second; the share of the measured multiply-add peak is printed too.
//!
//! `cargo bench -p diffbulk-benches --bench kernels -- 3x3` runs a part; `DIFFBULK_CPU` picks the instruction set.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use diffbulk_kernels::{
    Activation, Attention, Conv2d, ConvAlgorithm, ConvSpec, Dense, Epilogue, InvertedResidual,
    InvertedResidualSpec, Isa, Layer, PixelNorm, Second, Source, measure_peak, pointwise,
};

/// Values that are neither zero nor alike.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 2_654_435_761) % 1009) as f32 / 1009.0 - 0.5).collect()
}

struct Bench<'a> {
    criterion: &'a mut Criterion,
    isa: Isa,
    peak: f64,
}

impl Bench<'_> {
    fn run(&mut self, group: &str, name: &str, macs: u64, mut f: impl FnMut()) {
        let mut g = self.criterion.benchmark_group(group);
        g.throughput(Throughput::Elements(2 * macs));
        let mut best = f64::INFINITY;
        g.bench_function(name, |b| {
            b.iter_custom(|n| {
                let start = Instant::now();
                for _ in 0..n {
                    f();
                }
                let spent = start.elapsed();
                best = best.min(spent.as_secs_f64() / n as f64);
                spent
            });
        });
        g.finish();
        if best.is_finite() {
            let speed = 2.0 * macs as f64 / best;
            let (gflops, share) = (speed / 1e9, 100.0 * speed / self.peak);
            println!(
                "{group}/{name}: best {gflops:.1} GFLOP/s, {share:.0} % of the multiply-add peak of one core"
            );
        }
    }

    fn conv(&mut self, group: &str, spec: &ConvSpec, algorithm: ConvAlgorithm) {
        let (weights, map) =
            (values(spec.weights_len()), values(spec.height * spec.width * spec.in_channels()));
        let conv = Conv2d::with_algorithm(self.isa, spec, &weights, None, algorithm)
            .expect("a valid shape");
        let (mut dst, mut scratch) = (vec![0.0; spec.out_len()], vec![0.0; conv.scratch_len()]);
        let rows = spec.out_height();
        let [k, s] = [spec.kernel[0], spec.stride[0]];
        let (from, to) = (spec.in_channels(), spec.out_channels);
        let name = format!(
            "{from}-{to} k{k} s{s} {}px {}",
            spec.height,
            algorithm.name().replace(' ', "-")
        );
        self.run(group, &name, conv.macs(), || {
            let mut epilogue = Epilogue::activation(Activation::Clip { low: 0.0, high: 6.0 });
            conv.run(
                &[Source::new(black_box(&map))],
                &mut epilogue,
                &mut dst,
                &mut scratch,
                0..rows,
            );
        });
    }
}

fn kernels(criterion: &mut Criterion) {
    let isa = Isa::from_environment().unwrap_or_else(|e| panic!("{e}"));
    let peak = measure_peak(isa);
    println!("{isa}: multiply-add peak of one core {:.1} GFLOP/s", peak / 1e9);
    let mut b = Bench { criterion, isa, peak };

    // Input and output channels, side of the map; the last five are of the 6 GMAC preset (32 channels, 112 pixels).
    let three = [
        [16, 16, 56],
        [48, 16, 56],
        [32, 32, 56],
        [32, 32, 28],
        [64, 64, 28],
        [64, 64, 14],
        [160, 64, 14],
        [96, 96, 7],
        [192, 96, 7],
        [32, 32, 112],
        [96, 32, 112],
        [64, 64, 56],
        [192, 96, 28],
        [256, 128, 14],
    ];
    for [from, to, side] in three {
        let spec = ConvSpec::same(side, side, from, to, 3);
        for algorithm in [ConvAlgorithm::Gemm, ConvAlgorithm::Winograd2, ConvAlgorithm::Winograd4] {
            b.conv("3x3", &spec, algorithm);
        }
    }
    for [from, to, side] in
        [[16, 96, 112], [24, 144, 56], [96, 24, 56], [112, 672, 14], [672, 112, 14], [96, 288, 7]]
    {
        b.conv("1x1", &ConvSpec::same(side, side, from, to, 1), ConvAlgorithm::Gemm);
    }
    let stem =
        ConvSpec { stride: [2; 2], padding: [0, 0, 1, 1], ..ConvSpec::same(224, 224, 3, 32, 3) };
    b.conv("stem", &stem, ConvAlgorithm::Gemm);
    for [channels, kernel, stride, side] in
        [[96, 3, 2, 112], [144, 3, 1, 56], [480, 3, 1, 14], [672, 5, 1, 14]]
    {
        let spec = ConvSpec {
            stride: [stride; 2],
            depthwise: true,
            ..ConvSpec::same(side, side, channels, channels, kernel)
        };
        b.conv("depthwise", &spec, ConvAlgorithm::Depthwise);
    }

    let spec = InvertedResidualSpec {
        height: 112,
        width: 112,
        in_channels: 16,
        expanded_channels: 96,
        out_channels: 24,
        kernel: [3; 2],
        stride: [2; 2],
        padding: [0, 0, 1, 1],
    };
    let (expand, depthwise, project) = (values(16 * 96), values(9 * 96), values(96 * 24));
    let layer = |weights, activation| Layer { weights, bias: None, activation };
    let clip = Activation::Clip { low: 0.0, high: 6.0 };
    let block = InvertedResidual::new(
        isa,
        &spec,
        layer(&expand, clip),
        layer(&depthwise, clip),
        layer(&project, Activation::None),
    )
    .expect("a valid shape");
    let (map, mut scratch) = (values(112 * 112 * 16), vec![0.0; block.scratch_len()]);
    let [height, width, channels] = block.out_shape();
    let mut dst = vec![0.0; height * width * channels];
    b.run("inverted residual", "16-96-24 112px", block.macs(), || {
        block.run(black_box(&map), &mut Epilogue::default(), &mut dst, &mut scratch, 0..height);
    });

    let attention = Attention::new(isa, 49, 3, 32, 0.176_776_7, Some(1e-4)).expect("a valid shape");
    let (qkv, mut dst, mut scratch) =
        (values(49 * 288), vec![0.0; 49 * 96], vec![0.0; attention.scratch_len()]);
    b.run("attention", "49x3x32", attention.macs(), || {
        attention.run(black_box(&qkv), &mut dst, &mut scratch, 0..49);
    });

    let (weights, map) = (values(608 * 128), values(608));
    let dense = Dense::new(isa, 608, 128, &weights, None).expect("a valid shape");
    let mut dst = vec![0.0; 128];
    b.run("dense", "608-128", dense.macs(), || {
        dense.run(black_box(&map), Activation::Silu, &mut dst, 0..128);
    });

    let map = values(56 * 56 * 32);
    let (mut dst, mut second) = (vec![0.0; map.len()], vec![0.0; map.len()]);
    // One operation a value in Criterion's figure: this one is about memory and the exponential.
    b.run("pointwise", "pixel norm and SiLU 32x56px", map.len() as u64 / 2, || {
        let mut epilogue = Epilogue {
            pixel_norm: Some(PixelNorm { eps: 1e-4, gain: 1.0 }),
            second: Some(Second { data: &mut second, scale: 1.0, activation: Activation::Silu }),
            ..Epilogue::default()
        };
        pointwise(isa, 56, 32, Source::new(black_box(&map)), &mut epilogue, &mut dst);
    });
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300));
    targets = kernels
}
criterion_main!(all);
