//! Frozen features of tiles and their views, computed once and kept: the U-Net's maps in half
//! precision, the encoder's vectors as they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData, f16};
use sha2::{Digest, Sha256};

use super::recipe::Recipe;
use crate::data::PairedDataset;
use crate::diffusion::UNet;
use crate::foundation::View;
use crate::train::atomic;
use crate::train::random::Stream;
use crate::{Error, Result};

/// The views of a tile that a head learns from: the tile itself first, in fours its flips and its
/// turns by turns, the first four as they are and all others with their stains jittered.
pub fn views(recipe: &Recipe, seed: u64) -> Vec<View> {
    let flips = View::flips();
    let turns: Vec<View> =
        View::dihedrals().into_iter().filter(|view| !flips.contains(view)).collect();
    let view = |index: usize| {
        let symmetries = if (index / 4).is_multiple_of(3) || index < 8 { &flips } else { &turns };
        let stain = (recipe.stain_jitter > 0.0 && index >= 4)
            .then(|| (recipe.stain_jitter, Stream::keyed(seed, &[index as u64]).bits()));
        View { dihedral: symmetries[index % 4].dihedral, stain }
    };
    (0..recipe.views).map(view).collect()
}

/// Features of `tiles` x `views`; the row of view v of tile t is v * tiles + t. Maps may be there
/// for the first views only; the other views then go with those of the first.
#[derive(Debug, Clone)]
pub struct Features {
    tiles: usize,
    views: usize,
    map_views: usize,
    /// Channels, height and width of every level, coarsest first.
    levels: Vec<[usize; 3]>,
    maps: Arc<Vec<f16>>,
    foundation: Arc<Vec<f32>>,
    foundation_dim: usize,
}

impl Features {
    /// Wraps features that are already there: `maps` one level after the other in every row.
    pub fn new(
        tiles: usize,
        views: usize,
        levels: Vec<[usize; 3]>,
        maps: Vec<f16>,
        foundation: Vec<f32>,
    ) -> Result<Self> {
        let rows = tiles * views;
        let values: usize = levels.iter().map(|l| l.iter().product::<usize>()).sum();
        let map_views = maps.len().checked_div(tiles * values).unwrap_or(0);
        let whole = maps.len() == tiles * map_views * values && map_views <= views;
        let missing = values > 0 && map_views == 0;
        if rows == 0 || !whole || missing || !foundation.len().is_multiple_of(rows) {
            return Err(Error::Request(format!(
                "features do not fit {tiles} tiles in {views} views; compute them again"
            )));
        }
        let foundation_dim = foundation.len() / rows;
        let (maps, foundation) = (Arc::new(maps), Arc::new(foundation));
        Ok(Self { tiles, views, map_views, levels, maps, foundation, foundation_dim })
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.tiles
    }

    /// Number of views of every tile.
    pub fn views(&self) -> usize {
        self.views
    }

    /// Channels of the levels, coarsest first.
    pub fn branch_channels(&self) -> Vec<usize> {
        self.levels.iter().map(|[channels, ..]| *channels).collect()
    }

    /// Length of a foundation vector.
    pub fn foundation_dim(&self) -> usize {
        self.foundation_dim
    }

    /// The same features without the U-Net's.
    pub fn without_diffusion(&self) -> Self {
        Self { levels: Vec::new(), maps: Arc::default(), ..self.clone() }
    }

    /// The same features without the encoder's.
    pub fn without_foundation(&self) -> Self {
        Self { foundation: Arc::default(), foundation_dim: 0, ..self.clone() }
    }

    /// Row of a tile's view.
    pub fn row(&self, tile: usize, view: usize) -> usize {
        view * self.tiles + tile
    }

    /// Rows whose maps are there, each once.
    pub fn map_rows(&self) -> usize {
        self.tiles * self.map_views
    }

    /// The row whose maps go with `row`.
    pub fn map_row(&self, row: usize) -> usize {
        if row < self.map_rows() { row } else { row % self.tiles }
    }

    /// Foundation vectors of rows [rows, F], if there are any.
    pub fn foundation(&self, rows: &[usize], device: &Device) -> Option<Tensor<2>> {
        let width = self.foundation_dim;
        if width == 0 {
            return None;
        }
        let values: Vec<f32> =
            rows.iter().flat_map(|r| &self.foundation[r * width..][..width]).copied().collect();
        Some(Tensor::from_data(TensorData::new(values, [rows.len(), width]), device))
    }

    /// The vector of one row.
    pub fn foundation_row(&self, row: usize) -> &[f32] {
        &self.foundation[row * self.foundation_dim..][..self.foundation_dim]
    }

    /// Feature maps of rows, a tensor [rows, C, H, W] a level.
    pub fn maps(&self, rows: &[usize], device: &Device) -> Vec<Tensor<4>> {
        let stride: usize = self.levels.iter().map(|l| l.iter().product::<usize>()).sum();
        let mut offset = 0;
        let mut out = Vec::with_capacity(self.levels.len());
        for [channels, height, width] in &self.levels {
            let size = channels * height * width;
            let values = rows
                .iter()
                .flat_map(|row| &self.maps[self.map_row(*row) * stride + offset..][..size]);
            let values: Vec<f32> = values.map(|v| v.to_f32()).collect();
            let shape = [rows.len(), *channels, *height, *width];
            out.push(Tensor::from_data(TensorData::new(values, shape), device));
            offset += size;
        }
        out
    }
}

/// Maps of `rows` in all `views`, and the shape of every level. A view that was computed before
/// is read from `cache`; `model_key` names the U-Net and the tiles there.
pub fn diffusion_maps(
    dataset: &PairedDataset,
    rows: &[usize],
    views: &[View],
    unet: &UNet,
    model_key: &str,
    cache: Option<&Path>,
    mut progress: impl FnMut() -> Result<()>,
) -> Result<(Vec<[usize; 3]>, Vec<f16>)> {
    let size = dataset.tile_px();
    let config = unet.config();
    if size != config.img_resolution {
        return Err(Error::Request(format!(
            "the dataset's tiles are {size} px but the U-Net was trained on {} px; \
             prepare the dataset with that size or train another U-Net",
            config.img_resolution
        )));
    }
    let mut levels: Vec<[usize; 3]> = Vec::new();
    let mut maps: Vec<f16> = Vec::new();
    for view in views {
        let file = cache.map(|folder| {
            let mut hash = Sha256::new();
            hash.update(format!("{model_key}\n{}\n{rows:?}", view.name()));
            folder.join(format!("maps-{}.bin", hex(&hash.finalize()[..12])))
        });
        if let Some((shape, values)) = file.as_deref().and_then(|f| read_maps(f, rows.len())) {
            levels = shape;
            maps.extend(values);
            rows.iter().try_for_each(|_| progress())?;
            continue;
        }
        let start = maps.len();
        for &row in rows {
            let image = view.apply(&dataset.image(row)?, size);
            let features = unet.features(image_tensor(&image, size, &unet.device()));
            levels = features.iter().map(|f| [f.dims()[1], f.dims()[2], f.dims()[3]]).collect();
            for map in features {
                let values =
                    map.into_data().convert::<f32>().try_into_vec::<f32>().map_err(|e| {
                        Error::Check(format!("the U-Net's features cannot be read back: {e:?}"))
                    })?;
                maps.extend(values.into_iter().map(f16::from_f32));
            }
            progress()?;
        }
        if let Some(file) = file {
            write_maps(&file, &levels, &maps[start..])?;
        }
    }
    Ok((levels, maps))
}

/// RGB bytes to [1, 3, size, size] in [-1, 1].
pub fn image_tensor(image: &[u8], size: usize, device: &Device) -> Tensor<4> {
    let plane = size * size;
    let mut values = vec![0.0f32; 3 * plane];
    for (i, pixel) in image.chunks_exact(3).take(plane).enumerate() {
        for (channel, value) in pixel.iter().enumerate() {
            values[channel * plane + i] = f32::from(*value) / 127.5 - 1.0;
        }
    }
    Tensor::from_data(TensorData::new(values, [1, 3, size, size]), device)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a file, hexadecimal.
pub fn file_sha256(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    Ok(hex(&Sha256::digest(&bytes)))
}

/// A cache file: number of levels, their shapes, then the values, all little-endian.
fn write_maps(path: &Path, levels: &[[usize; 3]], values: &[f16]) -> Result<()> {
    let folder: PathBuf = path.parent().map(Into::into).unwrap_or_default();
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let header = std::iter::once(levels.len()).chain(levels.iter().flatten().copied());
    let mut bytes: Vec<u8> = header.flat_map(|v| (v as u32).to_le_bytes()).collect();
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    atomic::write(path, &bytes)
}

/// The cache file's levels and values, unless it is missing or not whole.
fn read_maps(path: &Path, rows: usize) -> Option<(Vec<[usize; 3]>, Vec<f16>)> {
    let bytes = std::fs::read(path).ok()?;
    let number = |i: usize| -> Option<usize> {
        let b = bytes.get(4 * i..4 * i + 4)?;
        Some(u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
    };
    let count = number(0).filter(|n| *n <= 16)?;
    let levels: Option<Vec<[usize; 3]>> = (0..count)
        .map(|i| Some([number(1 + 3 * i)?, number(2 + 3 * i)?, number(3 + 3 * i)?]))
        .collect();
    let levels = levels?;
    let body = bytes.get(4 * (1 + 3 * count)..)?;
    let expected: usize = levels.iter().map(|l| l.iter().product::<usize>()).sum();
    if body.len() != expected * rows * 2 {
        return None;
    }
    let values = body.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
    Some((levels, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_differ_and_repeat() {
        let recipe = Recipe { views: 16, stain_jitter: 0.2, ..Recipe::default() };
        let all = views(&recipe, 1);
        assert_eq!(all[..4], View::flips());
        assert_eq!(all, views(&recipe, 1));
        for i in 0..16 {
            assert!((0..i).all(|j| all[i] != all[j]), "view {i} repeats another");
            assert_eq!(all[i].stain.is_some(), i >= 4);
        }
        let symmetries: std::collections::BTreeSet<u8> = all.iter().map(|v| v.dihedral).collect();
        assert_eq!(symmetries.len(), 8);
    }

    #[test]
    fn views_without_maps_go_with_those_of_the_first() {
        let maps = (0..2 * 3).map(|v| f16::from_f32(v as f32)).collect();
        let features = Features::new(2, 3, vec![[3, 1, 1]], maps, vec![0.0; 6]).unwrap();
        let device = Device::flex();
        let map = |row| features.maps(&[row], &device)[0].to_data().try_into_vec::<f32>().unwrap();
        for tile in 0..2 {
            for view in 0..3 {
                assert_eq!(map(features.row(tile, view)), map(tile));
            }
        }
    }

    #[test]
    fn rows_of_levels_come_out_where_they_went_in() {
        let levels = vec![[2, 1, 1], [1, 2, 2]];
        let maps = (0..2 * 2 * 6).map(|v| f16::from_f32(v as f32)).collect();
        let features = Features::new(2, 2, levels, maps, vec![0.0, 1.0, 2.0, 3.0]).unwrap();
        let device = Device::flex();
        let rows = [features.row(1, 0), features.row(0, 1)];
        let maps = features.maps(&rows, &device);
        let values = |t: &Tensor<4>| t.to_data().try_into_vec::<f32>().unwrap();
        assert_eq!(values(&maps[0]), [6.0, 7.0, 12.0, 13.0]);
        assert_eq!(values(&maps[1]), [8.0, 9.0, 10.0, 11.0, 14.0, 15.0, 16.0, 17.0]);
        let vectors = features.foundation(&rows, &device).unwrap();
        assert_eq!(vectors.to_data().try_into_vec::<f32>().unwrap(), [1.0, 2.0]);
        assert!(Features::new(2, 2, vec![[1, 1, 1]], Vec::new(), Vec::new()).is_err());
    }

    #[test]
    fn a_cache_file_that_is_not_whole_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let values: Vec<f16> = (0..12).map(|v| f16::from_f32(v as f32)).collect();
        write_maps(&path, &[[2, 1, 1], [1, 2, 2]], &values).unwrap();
        let (levels, read) = read_maps(&path, 2).unwrap();
        assert_eq!((levels.len(), read), (2, values));
        assert!(read_maps(&path, 3).is_none());
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(read_maps(&path, 2).is_none());
        }
    }
}
