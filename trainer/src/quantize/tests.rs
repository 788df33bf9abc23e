//! Written graphs: their form, that they run, and how far they are from float32.

use std::path::Path;

use diffbulk::engine::{Normalization, Pixels};
use diffbulk::model::pb::{ModelProto, NodeProto};

use super::calibrate::MinMax;
use super::graph::{self, Layer};
use super::measure::Reference;
use super::observe::Tiles;
use super::recipe::{Precision, QuantizeFlags, quantize};
use super::rounding::Moments;
use super::table::{Calibration, InputMeans, LayerPrecision, Settings, Table};
use super::{half, qdq, qlinear, split, weight_only};
use crate::data::dataset::testing::{TILE_PX, dataset};
use crate::export::onnx::{Dim, Element, Graph, Kernel, OPSET, Window};
use crate::train::random::Stream;

fn kernel(stream: &mut Stream, out: usize, input: usize, side: usize) -> Kernel {
    let deviation = 1.0 / ((input * side * side) as f32).sqrt();
    let data = stream.normals(out * input * side * side).iter().map(|v| v * deviation).collect();
    Kernel { out, input, side, data }
}

/// Pixels, a convolution with Relu, a depthwise one, a skip concatenation of unlike ranges, SiLU, a
/// convolution, pooling, a linear layer.
fn model() -> ModelProto {
    let mut stream = Stream::new(7, 7);
    let mut graph = Graph::new("small", OPSET);
    let side = Dim::Fixed(TILE_PX);
    let dims = [Dim::Symbol("N"), side.clone(), side, Dim::Fixed(3)];
    let image = graph.input("image", Element::U8, &dims);
    let planes = graph.transpose("planes", &image, &[0, 3, 1, 2]);
    let pixels = graph.to_f32("pixels", &planes);
    let half = graph.scalar("scale", 1.0 / 127.5);
    let scaled = graph.mul("scaled", &pixels, &half);
    let stem = kernel(&mut stream, 8, 3, 3);
    // Small, so that what the outputs tell is what varies between tiles.
    let bias: Vec<f32> = stream.normals(8).iter().map(|v| v * 0.02).collect();
    let x = graph.conv("stem", &scaled, &stem, Some(&bias), Window::same(3));
    let x = graph.op("Relu", "relu", &[&x], vec![]);
    let own = kernel(&mut stream, 8, 1, 3);
    let window = Window { groups: 8, ..Window::same(3) };
    let deep = graph.conv("depthwise", &x, &own, Some(&bias), window);
    let large = graph.scalar("large", 9.0);
    let deep = graph.mul("large.scaled", &deep, &large);
    let joined = graph.concat("joined", &[&x, &deep], 1);
    let joined = graph.silu("silu", &joined);
    let mix = kernel(&mut stream, 8, 16, 1);
    let x = graph.conv("mix", &joined, &mix, None, Window::same(1));
    let pooled = graph.spatial_mean("pooled", &x);
    let out = stream.normals(4 * 8);
    let y = graph.linear("out", &pooled, &out, [4, 8], Some(&bias[..4]));
    graph.output("expression", &y, Element::F32, &[Dim::Symbol("N"), Dim::Fixed(4)]);
    graph.finish(Vec::new())
}

fn images() -> Vec<Vec<u8>> {
    (0..12u64)
        .map(|index| {
            let mut stream = Stream::new(index, 1);
            let level = stream.below(200) as u8;
            (0..TILE_PX * TILE_PX * 3).map(|_| level + stream.below(56) as u8).collect()
        })
        .collect()
}

struct Bench {
    model: ModelProto,
    pixels: Pixels,
    images: Vec<Vec<u8>>,
}

impl Bench {
    fn new() -> Self {
        let model = model();
        let file = graph::file(&model, Path::new("small.onnx")).unwrap();
        let pixels = Pixels::of(&file, TILE_PX, Normalization::default()).unwrap();
        Self { model, pixels, images: images() }
    }

    fn tiles(&self) -> Tiles<'_> {
        Tiles { images: &self.images, pixels: &self.pixels, origin: Path::new("small.onnx") }
    }

    fn layers(&self) -> Vec<Layer> {
        graph::layers(graph::graph(&self.model).unwrap())
    }

    fn table(&self, settings: Settings) -> Table {
        let layers = self.layers();
        let calibration = Calibration::of(&self.model, &layers, self.tiles(), &MinMax).unwrap();
        let graph = graph::graph(&self.model).unwrap();
        calibration.table(graph, &layers, settings, |_| LayerPrecision::Int8).unwrap()
    }

    fn decibels(&self, model: &ModelProto) -> f64 {
        let reference = Reference::new(&self.model, self.tiles(), None).unwrap();
        reference.measure(model, self.tiles()).unwrap().sqnr_db
    }
}

const SETTINGS: Settings =
    Settings { weight_bits: 8, integer_outputs: true, bias_correction: true };

fn nodes<'a>(model: &'a ModelProto, op: &str) -> Vec<&'a NodeProto> {
    model.graph.as_ref().unwrap().node.iter().filter(|node| node.op_type == op).collect()
}

#[test]
fn layers_are_found_with_what_others_see_of_them() {
    let layers = Bench::new().layers();
    let names: Vec<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(names, ["stem", "depthwise", "mix", "out"]);
    assert_eq!(layers[0].seen, "relu");
    assert_eq!((layers[1].groups, layers[1].inputs()), (8, 8));
    assert_eq!((layers[3].axis, layers[3].outputs(), layers[3].inputs()), (0, 4, 8));
}

#[test]
fn a_qdq_graph_has_the_form_that_runtimes_fuse() {
    let bench = Bench::new();
    let table = bench.table(SETTINGS);
    let written = qdq::write(&bench.model, &bench.layers(), &table).unwrap();
    // Every int8 layer reads nothing but what DequantizeLinear made, bias included.
    let made: Vec<&String> =
        nodes(&written, "DequantizeLinear").iter().map(|node| &node.output[0]).collect();
    for op in ["Conv", "Gemm"] {
        for layer in nodes(&written, op) {
            assert!(layer.input.iter().all(|input| made.contains(&input)), "{layer:?}");
        }
    }
    // One pair a tensor, whoever reads it: four inputs, and the outputs of depthwise and mix that are
    // nobody's input (stem's is depthwise's, out's is the graph's).
    assert_eq!(nodes(&written, "QuantizeLinear").len(), 6);
    // The weights are there once, as integers.
    let names: Vec<&str> =
        written.graph.as_ref().unwrap().initializer.iter().map(|t| t.name.as_str()).collect();
    assert!(names.contains(&"stem.weight.int8") && !names.contains(&"stem.weight"));
    assert!(bench.decibels(&written) > 25.0, "{}", bench.decibels(&written));
}

#[test]
fn coarser_weights_and_more_integers_cost_more() {
    let bench = Bench::new();
    let write = |settings| {
        let table = bench.table(settings);
        bench.decibels(&qdq::write(&bench.model, &bench.layers(), &table).unwrap())
    };
    let fine = write(Settings { integer_outputs: false, ..SETTINGS });
    let seven = write(Settings { integer_outputs: false, weight_bits: 7, ..SETTINGS });
    assert!(fine > seven, "{fine} {seven}");
}

#[test]
fn the_integer_operators_give_what_qdq_gives() {
    let bench = Bench::new();
    let mut table = bench.table(SETTINGS);
    let head = table.layers.get_mut("out").unwrap();
    head.precision = LayerPrecision::Weights8;
    let layers = bench.layers();
    let written = qlinear::write(&bench.model, &layers, &table).unwrap();
    assert_eq!(nodes(&written, "QLinearConv").len(), 3);
    assert!(nodes(&written, "Conv").is_empty());
    let other = qdq::write(&bench.model, &layers, &table).unwrap();
    let reference = Reference::new(&other, bench.tiles(), None).unwrap();
    let same = reference.measure(&written, bench.tiles()).unwrap();
    assert!(same.largest < 1e-2, "{same:?}");
}

#[test]
fn weights_alone_lose_little() {
    let bench = Bench::new();
    let layers = bench.layers();
    let means = InputMeans::of(&bench.model, &layers, bench.tiles()).unwrap();
    let decibels = |bits, means: Option<&InputMeans>| {
        bench.decibels(&weight_only::write(&bench.model, &layers, bits, means, None).unwrap())
    };
    let moments = Moments::of(&bench.model, &layers, bench.tiles()).unwrap();
    let rounded = weight_only::write(&bench.model, &layers, 4, Some(&means), Some(&moments));
    let rounded = bench.decibels(&rounded.unwrap());
    // The same network in numpy, one scale a row from its largest weight: 40.9 dB with 8 bits and
    // 12.9 with 4; without correction of the biases 36.1 and 8.8.
    let (eight, four) = (decibels(8, Some(&means)), decibels(4, Some(&means)));
    assert!(eight > 40.0 && four > 10.0 && eight > four, "{eight} {four}");
    assert!(decibels(8, None) < eight && decibels(4, None) < four);
    // Rounding a row's weights together leaves less of their error in its output.
    assert!(rounded > four + 2.0, "{rounded} {four}");
}

#[test]
fn float16_runs_and_islands_stay_float32() {
    let bench = Bench::new();
    let whole = half::write(&bench.model, &Default::default(), &Default::default()).unwrap();
    assert!(bench.decibels(&whole) > 40.0, "{}", bench.decibels(&whole));
    let islands = ["Conv".to_owned()].into_iter().collect();
    let written = half::write(&bench.model, &islands, &Default::default()).unwrap();
    let names: Vec<&str> =
        written.graph.as_ref().unwrap().initializer.iter().map(|t| t.name.as_str()).collect();
    assert!(names.contains(&"stem.weight") && !names.contains(&"stem.weight.f16"));
    assert!(names.contains(&"out.weight.f16"));
}

#[test]
fn a_split_concatenation_is_the_same_function() {
    let bench = Bench::new();
    let (apart, names) = split::split(&bench.model, bench.tiles(), split::APART).unwrap();
    assert_eq!(names, ["mix"]);
    assert_eq!(nodes(&apart, "Conv").len(), 4);
    assert!(nodes(&apart, "Concat").is_empty());
    assert!(bench.decibels(&apart) > 100.0);
    let (whole, names) = split::split(&bench.model, bench.tiles(), 1e6).unwrap();
    assert!(names.is_empty() && nodes(&whole, "Concat").len() == 1);
}

#[derive(clap::Parser)]
struct Program {
    #[command(flatten)]
    flags: QuantizeFlags,
}

fn flags(data: &Path, more: &[&str]) -> QuantizeFlags {
    let data = data.to_str().unwrap();
    let words = [&["p", "--data", data, "--calibration-tiles", "4"], more].concat();
    <Program as clap::Parser>::try_parse_from(words).unwrap().flags
}

#[test]
fn what_loses_more_than_allowed_is_refused_unless_forced() {
    let rows: Vec<Vec<f32>> = (0..12).map(|i| vec![i as f32, 1.0, (i * i) as f32, 2.0]).collect();
    let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
    let (dir, _) = dataset(&["A", "B", "C", "D"], &rows);
    let run = |precision, more: &[&str]| {
        quantize(&model(), precision, &flags(dir.path(), more), &[], Path::new("small.onnx"))
    };
    let refused = run(Precision::Int8, &["--min-sqnr", "150"]).unwrap_err().to_string();
    assert!(refused.contains("150") && refused.contains("--force"), "{refused}");
    let forced = run(Precision::Int8, &["--min-sqnr", "150", "--force"]).unwrap();
    assert_eq!(forced.recipe["measured"]["bound"]["forced"], true);
    let hash = forced.recipe["calibration"]["sha256"].as_str().unwrap();
    assert_eq!(hash.len(), 64);
    // The same seed takes the same tiles; another takes others.
    let again = run(Precision::Int8, &["--min-sqnr", "150", "--force"]).unwrap();
    assert_eq!(again.model, forced.model);
    let other = run(Precision::Int8, &["--force", "--quantize-seed", "5"]).unwrap();
    assert_ne!(other.recipe["calibration"]["sha256"], hash);
    assert!(run(Precision::Mixed, &["--force"]).is_ok());
    // Where the budget is missed, weights are rounded adaptively before anything is refused.
    let rounding = |more: &[&str]| {
        let quantized = run(Precision::W4, &[&["--force"], more].concat()).unwrap();
        quantized.recipe["rounding"].as_str().unwrap().to_owned()
    };
    assert_eq!(rounding(&["--min-sqnr", "150"]), "adaptive");
    assert_eq!(rounding(&["--min-sqnr", "150", "--rounding", "nearest"]), "nearest");
    assert_eq!(rounding(&["--min-sqnr=-150", "--max-drop", "1"]), "nearest");
}

#[test]
fn without_tiles_nothing_can_be_said() {
    let mut flags = flags(Path::new("nowhere"), &[]);
    flags.data = None;
    let error = quantize(&model(), Precision::Int8, &flags, &[], Path::new("m.onnx")).unwrap_err();
    assert!(error.to_string().contains("--data"), "{error}");
}
