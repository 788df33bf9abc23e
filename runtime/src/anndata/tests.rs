use proptest::prelude::*;

use super::*;

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|v| (*v).to_owned()).collect()
}

fn example(x: Matrix) -> AnnData {
    AnnData {
        x,
        obs_names: strings(&["a", "b,\"c\"", "µ/β 3"]),
        obs: vec![
            ("x".into(), Column::Float(vec![1.5, -2.0, f64::MAX])),
            ("confidence".into(), Column::Float32(vec![0.25, 0.5, 1.0])),
            ("count".into(), Column::Integer(vec![i64::MIN, 0, 7])),
            ("kept".into(), Column::Boolean(vec![true, false, true])),
            ("note".into(), Column::Text(strings(&["", "two\nlines", "ü"]))),
            ("slide".into(), Column::categorical(&["C2", "C3", "C2"])),
        ],
        var_names: strings(&["ERBB2", "HLA-A/B"]),
        var: vec![("rank".into(), Column::Integer(vec![1, 2]))],
        obsm: vec![Embedding {
            name: "spatial".into(),
            width: 2,
            values: vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        }],
        uns: vec![
            ("bytes".into(), Value::Bytes { shape: vec![1, 2, 3], values: vec![1, 2, 3, 4, 5, 6] }),
            ("flag".into(), Value::Boolean(true)),
            ("genes".into(), Value::Texts(strings(&["x", ""]))),
            (
                "model".into(),
                Value::Map(vec![
                    ("name".into(), Value::Text("her2st-edge".into())),
                    ("tile_px".into(), Value::Integer(224)),
                    ("um_per_px".into(), Value::Number(0.69)),
                ]),
            ),
            ("widths".into(), Value::Numbers(vec![1.0, 2.5])),
        ],
    }
}

fn dense() -> Matrix {
    Matrix::Dense { rows: 3, columns: 2, values: vec![0.0, 1.5, -2.0, 0.0, 3.0, f32::MIN_POSITIVE] }
}

#[test]
fn dense_round_trip() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.h5ad");
    let data = example(dense());
    data.write_h5ad(&path).unwrap();
    assert_eq!(AnnData::read_h5ad(&path).unwrap(), data);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn sparse_round_trip_small_and_compressed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.h5ad");
    let rows: Vec<Vec<f32>> = (0..3).map(|r| dense().dense_row(r)).collect();
    let data = example(Matrix::Csr(Csr::from_dense_rows(2, rows.iter().map(Vec::as_slice))));
    data.write_h5ad(&path).unwrap();
    assert_eq!(AnnData::read_h5ad(&path).unwrap(), data);

    let mut csr = Csr { columns: 1000, ..Csr::default() };
    for row in 0..400u32 {
        csr.push_row((0..1000).filter(|c| (c + row) % 7 == 0).map(|c| (c, (c * row) as f32)));
    }
    let large = AnnData {
        x: Matrix::Csr(csr),
        obs_names: (0..400).map(|i| i.to_string()).collect(),
        var_names: (0..1000).map(|i| format!("G{i}")).collect(),
        ..AnnData::default()
    };
    large.write_h5ad(&path).unwrap();
    assert_eq!(AnnData::read_h5ad(&path).unwrap(), large);
}

#[test]
fn empty_round_trip() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.h5ad");
    for x in [
        Matrix::Dense { rows: 0, columns: 2, values: vec![] },
        Matrix::Csr(Csr { rows: 0, columns: 2, indptr: vec![0], ..Csr::default() }),
    ] {
        let data = AnnData {
            x,
            var_names: strings(&["A", "B"]),
            obs: vec![("x".into(), Column::Float(vec![]))],
            obsm: vec![Embedding { name: "spatial".into(), width: 2, values: vec![] }],
            ..AnnData::default()
        };
        data.write_h5ad(&path).unwrap();
        assert_eq!(AnnData::read_h5ad(&path).unwrap(), data);
    }
}

#[test]
fn spooled_rows_are_the_same_file() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (directory.path().join("a.h5ad"), directory.path().join("b.h5ad"));
    let data = example(dense());
    data.write_h5ad(&a).unwrap();
    let mut spool = RowSpool::create(&b, 2).unwrap();
    for row in 0..3 {
        spool.push(&data.x.dense_row(row)).unwrap();
    }
    assert!(spool.push(&[1.0]).is_err());
    spool.write_h5ad(&b, &data).unwrap();
    assert_eq!(AnnData::read_h5ad(&b).unwrap(), data);
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "no leftovers");

    let mut short = RowSpool::create(&b, 2).unwrap();
    short.push(&[1.0, 2.0]).unwrap();
    let message = short.write_h5ad(&b, &data).unwrap_err().to_string();
    assert!(message.contains("1 spooled rows"), "{message}");
}

#[test]
fn keys_hdf5_cannot_hold_are_replaced_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.h5ad");
    let mut data = example(dense());
    data.obs = vec![("um/px".into(), Column::Float(vec![1.0; 3]))];
    data.uns = vec![(".".into(), Value::Integer(1)), ("a/b".into(), Value::Integer(2))];
    data.write_h5ad(&path).unwrap();
    let back = AnnData::read_h5ad(&path).unwrap();
    assert_eq!(back.obs[0].0, "um_px");
    assert_eq!(
        back.uns,
        [("_".to_owned(), Value::Integer(1)), ("a_b".to_owned(), Value::Integer(2))]
    );

    data.obs = vec![
        ("a/b".into(), Column::Float(vec![1.0; 3])),
        ("a_b".into(), Column::Float(vec![1.0; 3])),
    ];
    let message = data.write_h5ad(&path).unwrap_err().to_string();
    assert!(message.contains("a_b") && message.contains("taken"), "{message}");
    data.obs = vec![];
    data.obs_names[0] = "nul\0".into();
    let message = data.write_h5ad(&path).unwrap_err().to_string();
    assert!(message.contains("NUL"), "{message}");
}

#[test]
fn parts_that_disagree_are_named() {
    let mut data = example(dense());
    data.var_names.pop();
    assert!(data.check().unwrap_err().contains("3 x 2"));
    let mut data = example(dense());
    data.obs[0].1 = Column::Float(vec![1.0]);
    assert!(data.check().unwrap_err().contains("\"x\""));
    let mut data = example(dense());
    data.obsm[0].width = 3;
    assert!(data.check().unwrap_err().contains("spatial"));
    for csr in [
        Csr { rows: 3, columns: 2, indptr: vec![0, 1, 0, 1], indices: vec![0], values: vec![1.0] },
        Csr { rows: 3, columns: 2, indptr: vec![0, 1, 1, 1], indices: vec![2], values: vec![1.0] },
        Csr { rows: 3, columns: 2, indptr: vec![0, 1], indices: vec![0], values: vec![1.0] },
    ] {
        assert!(example(Matrix::Csr(csr)).check().is_err());
    }
}

#[test]
fn bad_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.h5ad");
    let message = AnnData::read_h5ad(&path).unwrap_err().to_string();
    assert!(message.contains("bad.h5ad") && message.contains("no such file"), "{message}");
    std::fs::write(&path, "just text").unwrap();
    let message = AnnData::read_h5ad(&path).unwrap_err().to_string();
    assert!(message.contains("bad.h5ad") && message.contains("HDF5"), "{message}");

    let mut other = hdf5_pure::FileBuilder::new();
    other.create_dataset("img").with_u8_data(&[1, 2, 3]);
    std::fs::write(&path, other.finish().unwrap()).unwrap();
    let message = AnnData::read_h5ad(&path).unwrap_err().to_string();
    assert!(message.contains("no obs"), "{message}");
}

#[test]
fn every_truncation_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.h5ad");
    example(dense()).write_h5ad(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(211) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(AnnData::read_h5ad(&path).is_err(), "{length} of {} bytes", whole.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_names_round_trip(
        names in prop::collection::vec("[^\\x00]{0,12}", 0..6),
        genes in prop::collection::vec("[^\\x00]{0,12}", 0..4),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.h5ad");
        let data = AnnData {
            x: Matrix::Dense {
                rows: names.len(),
                columns: genes.len(),
                values: (0..names.len() * genes.len()).map(|v| v as f32).collect(),
            },
            obs: vec![("label".into(), Column::categorical(&names))],
            obs_names: names,
            var_names: genes,
            ..AnnData::default()
        };
        data.write_h5ad(&path).unwrap();
        prop_assert_eq!(AnnData::read_h5ad(&path).unwrap(), data);
    }

    #[test]
    fn damaged_bytes_never_panic(position in 0usize..6000, value in any::<u8>()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.h5ad");
        example(dense()).write_h5ad(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let position = position % bytes.len();
        bytes[position] = value;
        std::fs::write(&path, bytes).unwrap();
        let _ = AnnData::read_h5ad(&path);
    }
}
