use super::*;
use burn::tensor::f16;

const TILES: usize = 48;

/// Two hidden factors: one shows in the maps, one in the foundation vectors.
fn factors(tile: usize) -> [f64; 2] {
    let mut stream = Stream::keyed(9, &[tile as u64]);
    [stream.normal(), stream.normal()]
}

fn features() -> Features {
    let levels = vec![[4, 2, 2], [3, 4, 4]];
    let mut maps = Vec::new();
    let mut foundation = Vec::new();
    for view in 0..2 {
        for tile in 0..TILES {
            let [a, b] = factors(tile);
            let mut noise = Stream::keyed(5, &[view, tile as u64]);
            for value in 0..(4 * 4 + 3 * 16) {
                let wave = (value as f64 * 1.3).sin();
                maps.push(f16::from_f64(a * wave + 0.05 * noise.normal()));
            }
            for value in 0..5 {
                foundation.push((b * (value as f64 - 2.0) + 0.05 * noise.normal()) as f32);
            }
        }
    }
    Features::new(TILES, 2, levels, maps, foundation).unwrap()
}

fn expression(tiles: &[usize]) -> DMatrix<f64> {
    DMatrix::from_fn(tiles.len(), 6, |i, gene| {
        let [a, b] = factors(tiles[i]);
        2.0 + if gene % 2 == 0 { a } else { b } * (1.0 + gene as f64 * 0.2)
    })
}

fn recipe() -> Recipe {
    Recipe {
        branch_out: 8,
        groups: 2,
        standardized: true,
        components: Some(2),
        members: 2,
        joint_epochs: 4,
        epochs: 12,
        batch: 8,
        joint_batch: 8,
        joint_learning_rate: 2e-2,
        learning_rate: 1e-2,
        dropout: 0.1,
        input_dropout: 0.05,
        noise: 0.05,
        mixup: 0.4,
        ..Recipe::default()
    }
}

fn train(recipe: &Recipe, features: &Features, folder: Option<&std::path::Path>) -> Head {
    let tiles: Vec<usize> = (0..32).collect();
    let sections = vec!["a".to_owned(); tiles.len()];
    let targets = Targets::new(recipe, &expression(&tiles), &sections, 6);
    let checkpoints = folder.map(|f| Checkpoints::open(f, "key").unwrap());
    let watched = recipe.early_stopping.as_ref().map(|stopping| Watched {
        tiles: (32..40).collect(),
        expression: expression(&(32..40).collect::<Vec<_>>()),
        patience: stopping.patience,
    });
    let fit = Fit {
        features,
        tiles: &tiles,
        targets: &targets,
        recipe,
        watched,
        seed: 3,
        device: &Device::flex(),
        checkpoints: checkpoints.as_ref(),
    };
    fit.run(&mut Log::new(None, false, "").unwrap()).unwrap()
}

fn held_out_pearson(head: &Head, features: &Features) -> Vec<Option<f64>> {
    let tiles: Vec<usize> = (40..TILES).collect();
    let predicted = predict(head, features, &tiles, &Device::flex()).unwrap();
    let draws = crate::evaluate::metrics::Scores::new(&predicted, &expression(&tiles), &[]);
    draws.gene_pearson
}

#[test]
fn every_way_of_training_learns_what_its_features_show() {
    let features = features();
    let jointly = Recipe { epochs: 0, joint_epochs: 25, ..recipe() };
    for recipe in [recipe(), jointly] {
        let fused = held_out_pearson(&train(&recipe, &features, None), &features);
        assert!(fused.iter().all(|r| r.unwrap() > 0.8), "{fused:?}");
    }
    let maps = features.without_foundation();
    let only_maps = held_out_pearson(&train(&recipe(), &maps, None), &maps);
    assert!(only_maps[0].unwrap() > 0.8 && only_maps[1].unwrap() < 0.8, "{only_maps:?}");
    let vectors = features.without_diffusion();
    let only_vectors = held_out_pearson(&train(&recipe(), &vectors, None), &vectors);
    assert!(only_vectors[1].unwrap() > 0.8, "{only_vectors:?}");
    assert!(only_vectors[0].unwrap() < 0.8, "{only_vectors:?}");
}

#[test]
fn a_stopped_training_resumes_to_the_same_numbers() {
    let features = features();
    let whole = Recipe { epochs: 0, joint_epochs: 3, ..recipe() };
    let part = Recipe { joint_epochs: 1, ..whole.clone() };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("checkpoint");
    train(&part, &features, Some(&folder));
    let resumed = train(&whole, &features, Some(&folder)).to_weights();
    let straight = train(&whole, &features, None).to_weights();
    assert_eq!(resumed, straight);

    let members = recipe();
    let straight = train(&members, &features, None).to_weights();
    let folder = folder.with_file_name("members");
    train(&members, &features, Some(&folder));
    std::fs::remove_file(folder.join("member-2.safetensors")).unwrap();
    assert_eq!(train(&members, &features, Some(&folder)).to_weights(), straight);
}

#[test]
fn early_stopping_keeps_the_best_epoch() {
    let stopping =
        crate::train::finetune::recipe::EarlyStopping { section: "w".into(), patience: 2 };
    let recipe = Recipe { epochs: 60, joint_epochs: 2, early_stopping: Some(stopping), ..recipe() };
    let features = features();
    let head = train(&recipe, &features, None);
    assert!(held_out_pearson(&head, &features).iter().all(|r| r.unwrap() > 0.7));
}

#[test]
fn a_head_comes_back_from_its_files() {
    let features = features();
    let head = train(&recipe(), &features, None);
    let again = Head::from_weights(
        head.config(),
        &head.to_weights(),
        std::path::Path::new("head.safetensors"),
        &Device::flex(),
    )
    .unwrap();
    let tiles: Vec<usize> = (0..TILES).collect();
    let device = Device::flex();
    assert_eq!(
        predict(&head, &features, &tiles, &device).unwrap(),
        predict(&again, &features, &tiles, &device).unwrap()
    );
    assert!(head.to_weights().get("member2.gate.0.weight").is_some());
}
