//! What one tile costs: cutting it out of a slide, and predicting it with the shipped model.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use diffbulk::model::Model;
use diffbulk::{engine, slide, tiling};

fn tiles(criterion: &mut Criterion) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let slide = slide::open(&root.join("tests/data/cmu-1-small-region.svs")).expect("the slide");
    let model = Model::open(&root.join("models/her2st-edge.onnx")).expect("the shipped model");
    let size = model.metadata().tile_px;
    let side = model.tile_um() / slide.info().um_per_px.expect("its scale");
    let read = || tiling::read_tile(&*slide, 1000.0, 1000.0, side, size).expect("a tile");
    criterion.bench_function("read and resample a tile", |bench| bench.iter(read));

    let tile = read();
    for name in ["cpu", "tract"] {
        let engine = engine::open(name, &model).expect("the engine");
        let mut session = engine.session().expect("a session");
        criterion.bench_function(&format!("predict a tile, {name}, one thread"), |bench| {
            bench.iter(|| session.predict(black_box(&tile)).expect("a prediction"));
        });
    }
}

criterion_group!(benches, tiles);
criterion_main!(benches);
