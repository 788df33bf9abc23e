//! Every kernel against the scalar reference, over random shapes and steps.

use std::sync::Arc;
use std::time::Duration;

use super::super::adapter::Device;
use super::super::program::Program;
use super::super::reference;
use super::super::resident::Resident;
use super::super::shader::Abilities;
use super::super::testing::adapter_or_skip;
use super::super::tune::Choices;
use super::build::{Build, Random};
use crate::engine::fused::*;

/// Runs graphs on one device.
struct Bench {
    device: Arc<Device>,
    /// What of the device's abilities is tried.
    abilities: Vec<Abilities>,
}

impl Bench {
    fn open() -> Option<Self> {
        if !adapter_or_skip() {
            return None;
        }
        let device = Arc::new(Device::open(true).unwrap());
        let mut abilities = vec![];
        for half in [false, device.about.half] {
            let all = device.abilities(half);
            abilities.extend([
                Abilities { shared: false, subgroups: false, matrices: None, ..all },
                Abilities { shared: true, matrices: None, ..all },
                Abilities { shared: true, ..all },
            ]);
        }
        abilities.dedup();
        Some(Self { device, abilities })
    }

    /// What the graph makes of `image`, twice in a batch: the second must not see the first.
    fn run(
        &self,
        build: &Build,
        abilities: Abilities,
        choices: &Choices,
        image: &[u8],
    ) -> Vec<Vec<f32>> {
        let program = Program::new(build.graph.clone(), abilities, choices)
            .unwrap_or_else(|why| panic!("{why}\n{}", build.graph));
        let resident = Resident::new(Arc::clone(&self.device), Arc::new(program), 2).unwrap();
        let flight = resident.submit(0, &[image, image]).unwrap();
        resident.wait(flight, Duration::from_secs(60)).unwrap()
    }

    /// Largest difference to the reference, over the larger of 1 and the largest value.
    fn check(&self, build: &mut Build, what: &str, bound: f32) {
        let bytes = build.graph.buffers[build.graph.inputs[0]].layout.len();
        let image: Vec<u8> = (0..bytes).map(|_| build.random.next() as u8).collect();
        let expected = reference::run(&build.graph, &image);
        let largest = expected.iter().fold(1.0f32, |max, v| max.max(v.abs()));
        for abilities in super::all_abilities() {
            let program = Program::new(build.graph.clone(), abilities, &Default::default());
            for source in program.unwrap_or_else(|why| panic!("{what}: {why}")).sources {
                if let Err(problem) = super::validate(&source, abilities) {
                    panic!("{what} {abilities:?}\n{problem}\n{source}");
                }
            }
        }
        let mut of_integers: Option<Vec<f32>> = None;
        for &abilities in &self.abilities {
            let text = build.graph.to_string();
            let found = self.run(build, abilities, &Choices::default(), &image);
            let program = Program::new(build.graph.clone(), abilities, &Default::default());
            // Any other tiling computes the same bits.
            let mut choices = Choices::default();
            for choice in program.unwrap().ops.iter().filter_map(|op| op.choice.as_ref()) {
                let at = build.random.from(0, choice.tilings.len() - 1);
                choices.insert(choice.shape.clone(), choice.tilings[at]);
            }
            assert_eq!(found[0], found[1], "{what}\n{text}");
            assert_eq!(found[0].len(), expected.len());
            for (k, (found, expected)) in found[0].iter().zip(&expected).enumerate() {
                let difference = (found - expected).abs() / largest;
                // Steps of a grid among reals of float16 go either way.
                let bound = if abilities.half { 0.05 } else { bound };
                assert!(
                    difference <= bound,
                    "{what} {abilities:?}: value {k} is {found}, not {expected}\n{text}"
                );
            }
            let tiled = self.run(build, abilities, &choices, &image);
            assert_eq!(tiled[0], found[0], "{what} {abilities:?} {choices:?}\n{text}");
            // What follows integers is the same on every device.
            if build.graph.is_quantised() && !abilities.half {
                let other = of_integers.get_or_insert_with(|| found[0].clone());
                assert_eq!(*other, found[0], "{what} {abilities:?}\n{text}");
            }
        }
    }
}

fn padding(random: &mut Random, most: usize) -> Padding {
    let mut side = || random.from(0, most);
    Padding { top: side(), bottom: side(), left: side(), right: side() }
}

fn reach(size: usize, kernel: usize, dilation: usize, stride: usize, pad: usize) -> usize {
    (size + pad - ((kernel - 1) * dilation + 1)) / stride + 1
}

fn geometry(
    build: &mut Build,
    channels: usize,
    size: [usize; 2],
    depthwise: bool,
) -> (Conv, [usize; 3]) {
    let random = &mut build.random;
    let outputs = if depthwise { channels } else { random.from(1, 40) };
    let kernel = [random.from(1, 3), random.from(1, 5)];
    let stride = [random.from(1, 2), random.from(1, 2)];
    let dilation = [random.from(1, 2), 1];
    let padding = padding(random, 2);
    let p = padding;
    let dims = [
        reach(size[0], kernel[0], dilation[0], stride[0], p.top + p.bottom),
        reach(size[1], kernel[1], dilation[1], stride[1], p.left + p.right),
        outputs,
    ];
    let group = if depthwise { 1 } else { channels };
    let weights = build.weights(&[outputs, group, kernel[0], kernel[1]]);
    let groups = if depthwise { channels } else { 1 };
    let conv = Conv { weights, channels, outputs, kernel, stride, dilation, padding, groups };
    (conv, dims)
}

#[test]
fn convolutions() {
    let Some(bench) = Bench::open() else { return };
    for seed in 0..12 {
        let mut build = Build::new(seed);
        let c = build.random.from(1, 12);
        let size = [2 * build.random.from(3, 7), 2 * build.random.from(3, 7)];
        let image = build.image([size[0], size[1], c]);
        let mut inputs = vec![(build.source(image, 1, seed % 2 == 0), 1)];
        if build.random.chance() {
            inputs.push((build.source(image, 2, false), 2));
        }
        if build.random.chance() {
            inputs.push((build.source(image, 1, false), 1));
        }
        let dims = |build: &Build, id: BufferId| build.graph.buffers[id].layout.dims();
        let channels = inputs.iter().map(|&(id, _)| dims(&build, id)[2]).sum();
        let (conv, made) = geometry(&mut build, channels, size, false);
        let steps = build.steps(made, None, seed % 4 == 3);
        build.op(Core::Conv(conv), &inputs, steps);
        bench.check(&mut build, "convolution", 2e-5);
    }
}

#[test]
fn winograd_convolutions() {
    let Some(bench) = Bench::open() else { return };
    for seed in [10, 13] {
        let mut build = Build::new(seed);
        let c = build.random.from(32, 40);
        let size = [2 * build.random.from(11, 13), 2 * build.random.from(11, 13)];
        let image = build.image([size[0], size[1], c]);
        let inputs =
            [(build.source(image, 1, seed % 2 == 0), 1), (build.source(image, 2, false), 2)];
        let channels = inputs.iter().map(|&(id, _)| build.graph.buffers[id].layout.dims()[2]).sum();
        let outputs = build.random.from(64, 70);
        let conv = Conv {
            weights: build.weights(&[outputs, channels, 3, 3]),
            channels,
            outputs,
            kernel: [3; 2],
            stride: [1; 2],
            dilation: [1; 2],
            padding: Padding { top: 1, bottom: 1, left: 2, right: build.random.from(0, 1) },
            groups: 1,
        };
        let made = [size[0], reach(size[1], 3, 1, 1, 2 + conv.padding.right), outputs];
        let steps = build.steps(made, None, seed == 13);
        build.op(Core::Conv(conv), &inputs, steps);
        let abilities = Abilities { shared: true, ..Default::default() };
        let program = Program::new(build.graph.clone(), abilities, &Default::default()).unwrap();
        assert!(program.list().contains("winograd"), "{}", program.list());
        bench.check(&mut build, "winograd", 5e-5);
    }
}

#[test]
fn pointwise_and_residual_convolutions() {
    let Some(bench) = Bench::open() else { return };
    for seed in 20..26 {
        let mut build = Build::new(seed);
        let c = build.random.from(1, 70);
        let size = [2 * build.random.from(2, 6), 2 * build.random.from(2, 6)];
        let image = build.image([size[0], size[1], c]);
        let source = build.source(image, 1, false);
        let beside = build.source(image, 2, false);
        let outputs = 4 * c;
        let weights = build.weights(&[outputs, c, 1, 1]);
        let conv = Conv {
            weights,
            channels: c,
            outputs,
            kernel: [1; 2],
            stride: [1; 2],
            dilation: [1; 2],
            padding: Padding::default(),
            groups: 1,
        };
        // What is added is enlarged on the way.
        let steps = build.steps([size[0], size[1], outputs], Some(beside), seed % 3 == 0);
        build.op(Core::Conv(conv), &[(source, 1)], steps);
        bench.check(&mut build, "pointwise", 2e-5);
    }
}

#[test]
fn depthwise_convolutions() {
    let Some(bench) = Bench::open() else { return };
    for seed in 30..36 {
        let mut build = Build::new(seed);
        let c = build.random.from(2, 40);
        let size = [build.random.from(6, 14), build.random.from(6, 14)];
        let image = build.image([size[0], size[1], c]);
        let source = build.source(image, 1, false);
        let (conv, made) = geometry(&mut build, c, size, true);
        let steps = build.steps(made, None, false);
        build.op(Core::Conv(conv), &[(source, 1)], steps);
        bench.check(&mut build, "depthwise", 1e-5);
    }
}

#[test]
fn integer_convolutions_equal_the_scalar_kernels_bit_for_bit() {
    let Some(bench) = Bench::open() else { return };
    for seed in 40..60 {
        let mut build = Build::new(seed);
        let depthwise = seed % 3 == 0;
        // The last ones take a pixel norm, which is of reals.
        let normed = seed >= 52 && !depthwise;
        let c = build.random.from(2, 24);
        let size = [2 * build.random.from(3, 6), 2 * build.random.from(3, 6)];
        let image = build.image([size[0], size[1], c]);
        let mut inputs = vec![(build.source(image, 1, false), 1)];
        if !depthwise && build.random.chance() {
            inputs.push((build.source(image, 2, false), 2));
        }
        let channels = inputs.iter().map(|&(id, _)| build.graph.buffers[id].layout.dims()[2]).sum();
        let (conv, made) = geometry(&mut build, channels, size, depthwise);
        let scales: Vec<f32> =
            (0..conv.outputs).map(|_| 0.004 + build.random.real().abs()).collect();
        let row = conv.weights.values().len() / conv.outputs;
        let integers: Vec<i8> = (0..row * conv.outputs)
            .map(|_| build.random.from(0, 254) as i16 - 127)
            .map(|v| v as i8)
            .collect();
        let zero_point = build.random.from(0, 255) as u8;
        let input = Grid { scale: 0.011, zero_point };
        let products: Vec<f32> = scales.iter().map(|s| s * input.scale).collect();
        let bias: Vec<f32> =
            products.iter().map(|p| p * build.random.from(0, 2000) as f32).collect();
        let mut digits = vec![];
        if !depthwise && !normed && seed % 4 >= 2 {
            for _ in 0..2 {
                let digit: Vec<i8> =
                    integers.iter().map(|_| build.random.from(0, 127) as i8 - 64).collect();
                digits.push(digit.into());
            }
        }
        let integers = integers.into();
        let integer = IntegerConv { conv, integers, digits, scales: scales.into(), input };
        let mut steps = vec![Step::Offset(Channels::Each(bias.into()))];
        let grid = Grid { scale: 0.5, zero_point: 17 };
        if normed {
            let stored = build.map(made);
            steps.extend([
                Step::Activate(Activation::Snap(grid)),
                Step::Norm { epsilon: 1e-3 },
                Step::Activate(Activation::Silu),
                Step::Store(stored),
            ]);
            build.graph.outputs = vec![stored];
        } else if seed % 2 == 0 {
            let (first, second) = (build.map(made), build.map(made));
            steps.extend([
                Step::Activate(Activation::Snap(grid)),
                Step::Store(first),
                Step::Activate(Activation::Silu),
                Step::Store(second),
            ]);
            build.graph.outputs = vec![if seed % 4 == 0 { first } else { second }];
            if seed % 4 == 2 {
                // What depends on more than the byte comes after the tables.
                let (factors, third) = (build.random.reals(made[2]).into(), build.map(made));
                steps.extend([Step::Scale(Channels::Each(factors)), Step::Store(third)]);
                build.graph.outputs = vec![third];
            }
        } else {
            let first = build.map(made);
            steps.push(Step::Activate(Activation::Clip { low: -3.0, high: 40.0 }));
            steps.push(Step::Store(first));
            build.graph.outputs = vec![first];
        }
        build.op(Core::IntegerConv(integer), &inputs, steps);
        let bound = if normed { 1e-5 } else { 0.0 };
        if normed {
            let abilities = Abilities { shared: true, ..Default::default() };
            let list =
                Program::new(build.graph.clone(), abilities, &Default::default()).unwrap().list();
            assert!(list.contains("tiled]") && !list.contains("[norm]"), "{list}");
        }
        bench.check(&mut build, "integer convolution", bound);
    }
}

#[test]
fn poolings_and_moments() {
    let Some(bench) = Bench::open() else { return };
    for seed in 60..68 {
        let mut build = Build::new(seed);
        let c = build.random.from(1, 70);
        let size = [build.random.from(5, 20), build.random.from(5, 20)];
        let image = build.image([size[0], size[1], c]);
        let source = build.source(image, 1, false);
        if seed % 2 == 0 {
            let kernel = [build.random.from(1, 3), build.random.from(2, 3)];
            let stride = [build.random.from(1, 2), build.random.from(1, 2)];
            let padding = padding(&mut build.random, kernel[0].min(kernel[1]) - 1);
            let p = padding;
            let made = [
                reach(size[0], kernel[0], 1, stride[0], p.top + p.bottom),
                reach(size[1], kernel[1], 1, stride[1], p.left + p.right),
                c,
            ];
            let (maximum, count_padding) = (build.random.chance(), build.random.chance());
            let pool = Pool { maximum, kernel, stride, padding, count_padding };
            let steps = build.steps(made, None, seed % 4 == 0);
            build.op(Core::Pool(pool), &[(source, 1)], steps);
        } else {
            let (mean, deviation) = (build.map([1, 1, c]), build.map([1, 1, c]));
            let core = Core::Moments { mean: true, deviation: true };
            build.op(core, &[(source, 1)], vec![]);
            build.graph.ops.last_mut().unwrap().outputs = vec![mean, deviation];
            let all = build.map([1, 1, 2 * c]);
            build.op(Core::Map, &[(mean, 1), (deviation, 1)], vec![Step::Store(all)]);
            build.graph.outputs = vec![all];
        }
        bench.check(&mut build, "pooling", 1e-5);
    }
}

#[test]
fn maps_with_norms_and_concatenations() {
    let Some(bench) = Bench::open() else { return };
    for seed in 70..78 {
        let mut build = Build::new(seed);
        let c = build.random.from(1, 90);
        let size = [2 * build.random.from(1, 8), 2 * build.random.from(1, 8)];
        let image = build.image([size[0], size[1], c]);
        let (a, b) = (build.source(image, 1, true), build.source(image, 2, false));
        let inputs = [(a, 1), (b, 2), (a, 1)];
        let inputs = &inputs[..build.random.from(1, 3)];
        let channels = inputs.iter().map(|&(id, _)| build.graph.buffers[id].layout.dims()[2]).sum();
        let steps = build.steps([size[0], size[1], channels], None, seed % 2 == 0);
        build.op(Core::Map, inputs, steps);
        bench.check(&mut build, "map", 1e-5);
    }
}

#[test]
fn functions_of_one_map_join_what_makes_it() {
    let Some(bench) = Bench::open() else { return };
    for seed in 120..124 {
        let mut build = Build::new(seed);
        let c = build.random.from(1, 12);
        let image = build.image([7, 5, c]);
        let source = build.source(image, 1, false);
        let (conv, made) = geometry(&mut build, c, [7, 5], false);
        let [first, second, third, all] =
            [made, made, made, [made[0], made[1], 3 * made[2]]].map(|dims| build.map(dims));
        let silu = Step::Activate(Activation::Silu);
        let clip = Step::Activate(Activation::Clip { low: -0.2, high: 0.3 });
        let scale = Step::Scale(Channels::One(1.5));
        // The second is made of the first's value, which the maker has gone on from.
        let steps = vec![Step::Store(first), clip, Step::Store(third)];
        build.op(Core::Conv(conv), &[(source, 1)], steps);
        build.op(Core::Map, &[(first, 1)], vec![scale, silu, Step::Store(second)]);
        let inputs = [(first, 1), (second, 1), (third, 1)];
        build.op(Core::Map, &inputs, vec![Step::Store(all)]);
        build.graph.outputs = vec![all];
        let program =
            Program::new(build.graph.clone(), Abilities::default(), &Default::default()).unwrap();
        assert_eq!(program.ops.len(), 3, "{}", program.list());
        bench.check(&mut build, "joined", 2e-5);
    }
}

#[test]
fn attention() {
    let Some(bench) = Bench::open() else { return };
    for (seed, heads, dim) in [(80, 1, 4), (81, 3, 32), (82, 2, 64), (83, 5, 8)] {
        let mut build = Build::new(seed);
        let size = [build.random.from(1, 11), build.random.from(2, 11)];
        let image = build.image([size[0], size[1], 3 * heads * dim]);
        let source = build.source(image, 1, false);
        let norm = if seed % 2 == 0 { None } else { Some(1e-4) };
        let attention = Attention { heads, dim, norm, scale: 1.0 / (dim as f32).sqrt() };
        let steps = build.steps([size[0], size[1], heads * dim], None, seed == 83);
        build.op(Core::Attention(attention), &[(source, 1)], steps);
        bench.check(&mut build, "attention", 2e-5);
    }
}

#[test]
fn group_norms() {
    let Some(bench) = Bench::open() else { return };
    for (seed, groups, each) in [(90, 8, 4), (91, 3, 5), (92, 1, 30), (93, 4, 16), (94, 6, 2)] {
        let mut build = Build::new(seed);
        let c = groups * each;
        let size = [build.random.from(2, 20), build.random.from(2, 20)];
        let image = build.image([size[0], size[1], c]);
        let source = build.source(image, 1, false);
        let scale = Channels::Each(build.random.reals(c).into());
        let offset = Channels::Each(build.random.reals(c).into());
        let mut steps =
            vec![Step::Scale(scale), Step::Offset(offset), Step::Activate(Activation::Silu)];
        let out = if seed % 2 == 0 {
            steps.push(Step::Pool);
            build.map([1, 1, c])
        } else {
            build.map([size[0], size[1], c])
        };
        steps.push(Step::Store(out));
        build.graph.outputs = vec![out];
        build.op(Core::GroupNorm { groups, epsilon: 1e-5 }, &[(source, 1)], steps);
        bench.check(&mut build, "group norm", 2e-5);
    }
}

#[test]
fn matrices() {
    let Some(bench) = Bench::open() else { return };
    for seed in 100..106 {
        let mut build = Build::new(seed);
        let c = build.random.from(1, 300);
        let image = build.image([1, 1, c]);
        let (a, b) = (build.source(image, 1, false), build.source(image, 1, true));
        let inputs = [(a, 1), (b, 1)];
        let inputs = &inputs[..build.random.from(1, 2)];
        let channels = inputs.iter().map(|&(id, _)| build.graph.buffers[id].layout.dims()[2]).sum();
        let outputs = build.random.from(1, 60);
        let weights = build.weights(&[outputs, channels]);
        let steps = build.steps([1, 1, outputs], None, seed % 3 == 0);
        build.op(Core::Dense(Dense { weights, channels, outputs }), inputs, steps);
        bench.check(&mut build, "matrix", 1e-5);
    }
}
