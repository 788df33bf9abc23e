//! Pictures that show whether a model learns: originals, denoised and generated tiles.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use image::{Rgb, RgbImage};

use super::random::Stream;
use super::step::{planar, row_tensor};
use super::tiles::{Tile, TileSource};
use crate::diffusion::parameters::host;
use crate::diffusion::sampler::{Schedule, sample};
use crate::diffusion::{Condition, Denoiser};
use crate::{Error, Result};

/// Noise level of the denoising examples: strong enough to hide cells, weak enough to keep tissue.
const DENOISE_SIGMA: f64 = 1.0;
/// Steps of the sampler.
const STEPS: usize = 16;
/// Space between tiles in pixels.
const GUTTER: usize = 4;

/// The tiles a run shows every time: evenly spread over the labelled ones.
pub fn shown(source: &dyn TileSource, count: usize) -> Vec<Tile> {
    let (labelled, total) = (source.labelled(), source.labelled() + source.unlabelled());
    let pool = if labelled > 0 { labelled } else { total };
    let count = count.min(pool);
    (0..count)
        .map(|i| {
            let at = (2 * i + 1) * pool / (2 * count.max(1));
            if labelled > 0 { Tile::Labelled(at) } else { Tile::Unlabelled(at) }
        })
        .collect()
}

/// Writes a PNG with one column a tile and, from top to bottom: the originals, the originals with
/// noise, denoised with and without genes, and generated from pure noise with and without genes.
/// Rows with genes are left out for networks without.
pub fn write(
    path: &Path,
    denoiser: &Denoiser,
    source: &dyn TileSource,
    tiles: &[Tile],
    seed: u64,
    device: &Device,
) -> Result<()> {
    let size = source.tile_px();
    let n = tiles.len();
    if n == 0 {
        return Ok(());
    }
    let mut values = Vec::with_capacity(n * 3 * size * size);
    let mut expression = Vec::new();
    for tile in tiles {
        values.extend(planar(&source.image(*tile)?, size));
        expression.extend(source.expression(*tile).unwrap_or_default());
    }
    let tensor = |values: Vec<f32>| -> Tensor<4> {
        Tensor::from_data(TensorData::new(values, [n, 3, size, size]), device)
    };
    let noise =
        |what: u64| tensor(Stream::keyed(seed, &[0x6172, what]).normals(n * 3 * size * size));
    let genes = source.gene_rows().len();
    let condition = (genes > 0 && expression.len() == n * genes).then(|| Condition {
        values: Tensor::from_data(TensorData::new(expression, [n, genes]), device),
        rows: Some(row_tensor(source.gene_rows(), device)),
        dropout: None,
    });

    let x0 = tensor(values);
    let noisy = x0.clone() + noise(0).mul_scalar(DENOISE_SIGMA);
    let sigma: Tensor<1> = Tensor::full([n], DENOISE_SIGMA, device);
    let schedule = Schedule { steps: STEPS, ..Schedule::default() };
    let denoise = |c: Option<&Condition>| denoiser.denoise(noisy.clone(), sigma.clone(), c);
    let generate = |c: Option<&Condition>| sample(denoiser, noise(1), c, &schedule);

    let mut rows = vec![host(x0)?, host(noisy.clone())?];
    if condition.is_some() {
        rows.push(host(denoise(condition.as_ref()))?);
    }
    rows.push(host(denoise(None))?);
    if condition.is_some() {
        rows.push(host(generate(condition.as_ref()))?);
    }
    rows.push(host(generate(None))?);

    let picture = compose(&rows, n, size);
    let mut bytes = Vec::new();
    picture
        .write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png)
        .map_err(|e| Error::data(path, format!("cannot be encoded: {e}")))?;
    super::atomic::write(path, &bytes)
}

fn compose(rows: &[Vec<f32>], columns: usize, size: usize) -> RgbImage {
    let pitch = size + GUTTER;
    let (width, height) = (columns * pitch - GUTTER, rows.len() * pitch - GUTTER);
    let mut picture = RgbImage::from_pixel(width as u32, height as u32, Rgb([255; 3]));
    let area = size * size;
    for (r, row) in rows.iter().enumerate() {
        for (c, tile) in row.chunks_exact(3 * area).enumerate() {
            for i in 0..area {
                let byte = |channel: usize| {
                    ((tile[channel * area + i] + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
                };
                let (x, y) = (c * pitch + i % size, r * pitch + i / size);
                picture.put_pixel(x as u32, y as u32, Rgb([byte(0), byte(1), byte(2)]));
            }
        }
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{Config, Parameters};
    use crate::train::tiles::made_up::MadeUp;

    #[test]
    fn a_picture_has_a_column_a_tile_and_starts_with_the_originals() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grid.png");
        let source = MadeUp::new(32, 8, 3);
        let symbols = ["A", "B", "C"].map(str::to_owned).to_vec();
        let config = Config::preset("tiny").unwrap().with_vocabulary(symbols);
        let device = Device::flex();
        let parameters = Parameters::initialize(&config, 1, &device);
        let denoiser = Denoiser::new(&config, &parameters.effective()).unwrap();
        let tiles = shown(&source, 3);
        write(&path, &denoiser, &source, &tiles, 1, &device).unwrap();
        let picture = image::open(&path).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (3 * 36 - 4, 6 * 36 - 4));
        let original = source.image(tiles[1]).unwrap();
        assert_eq!(picture.get_pixel(36 + 5, 7).0, original[(7 * 32 + 5) * 3..][..3]);
    }
}
