//! Tiles on disk: an HDF5 file in the layout of HEST patches, with slide and patient beside.
//!
//! `img` (N, S, S, 3) u8 in chunks of one tile, `coords` (N, 2) top-left in level-0 px (-1 where
//! there is no whole image), `barcode`, `slide` and `patient` (N) strings; attributes of `img`:
//! downsample, patch_size_src, patch_size_target, pixel_size.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use hdf5_pure::{AttrValue, Dataset, File, FileBuilder};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Coordinates of a tile that has no place on a whole image.
pub const NO_COORDS: [i64; 2] = [-1, -1];

/// Who a tile is and where it is from.
#[derive(Debug, Clone, PartialEq)]
pub struct TileName {
    /// Slide (section) it is cut from.
    pub slide: String,
    /// Patient the slide is from.
    pub patient: String,
    /// Name within the slide.
    pub barcode: String,
    /// Top-left corner in level-0 px, or [`NO_COORDS`].
    pub coords: [i64; 2],
}

/// Collects tiles and writes them as one file.
///
/// The pixels are held in memory until [`TileWriter::write`]: N x S x S x 3 bytes, 150 MB for a
/// thousand tiles of 224 px.
pub struct TileWriter {
    tile_px: usize,
    images: Vec<u8>,
    names: Vec<TileName>,
    hash: Sha256,
}

impl TileWriter {
    /// A writer of square tiles of `tile_px` pixels.
    pub fn new(tile_px: usize) -> Self {
        Self { tile_px, images: Vec::new(), names: Vec::new(), hash: Sha256::new() }
    }

    /// Takes the next tile, `tile_px` x `tile_px` x 3 RGB bytes.
    pub fn push(&mut self, image: &[u8], name: TileName) -> Result<()> {
        if image.len() != self.tile_px * self.tile_px * 3 {
            return Err(Error::Check(format!(
                "tile {} of {} has {} bytes instead of {}",
                name.barcode,
                name.slide,
                image.len(),
                self.tile_px * self.tile_px * 3
            )));
        }
        self.hash.update(image);
        self.images.extend_from_slice(image);
        self.names.push(name);
        Ok(())
    }

    /// Names of the tiles taken so far.
    pub fn names(&self) -> &[TileName] {
        &self.names
    }

    /// SHA-256 of all pixels taken so far, hexadecimal.
    pub fn sha256(&self) -> String {
        hex(&self.hash.clone().finalize())
    }

    /// Writes the file. `um_per_px` is the scale of the tiles, `side_src` their side in level-0
    /// px (absent when it differs between slides or there is no whole image), `deflate` a
    /// compression level from 1 to 9 or 0 for none.
    pub fn write(
        self,
        path: &Path,
        um_per_px: f64,
        side_src: Option<f64>,
        deflate: u32,
    ) -> Result<()> {
        let count = self.names.len() as u64;
        let side = self.tile_px as u64;
        let mut builder = FileBuilder::new();
        let images = builder.create_dataset("img");
        let pixels = self.images.len() as u64;
        images
            .with_raw_data(hdf5_pure::make_u8_type(), self.images, pixels)
            .with_shape(&[count, side, side, 3]);
        if count > 0 {
            images.with_chunks(&[1, side, side, 3]);
            if deflate > 0 {
                images.with_shuffle().with_deflate(deflate);
            }
        }
        let target = side as f64;
        images.set_attr("patch_size_target", AttrValue::I64(side as i64));
        images.set_attr("pixel_size", AttrValue::F64(um_per_px));
        if let Some(src) = side_src {
            images.set_attr("patch_size_src", AttrValue::F64(src));
            images.set_attr("downsample", AttrValue::F64(src / target));
        }
        let coords: Vec<i64> = self.names.iter().flat_map(|name| name.coords).collect();
        builder.create_dataset("coords").with_i64_data(&coords).with_shape(&[count, 2]);
        let mut strings = |dataset: &str, value: fn(&TileName) -> &str| {
            let values: Vec<&str> = self.names.iter().map(value).collect();
            builder.create_dataset(dataset).with_vlen_strings(&values);
        };
        strings("barcode", |name| &name.barcode);
        strings("slide", |name| &name.slide);
        strings("patient", |name| &name.patient);
        builder.write(path).map_err(|error| {
            Error::data(path, format!("cannot be written ({error}); is the disk full?"))
        })
    }
}

/// Tiles read from a file, by row or all at once.
pub struct TileSet {
    path: PathBuf,
    tile_px: usize,
    count: usize,
    images: Dataset,
    all: OnceLock<Vec<u8>>,
}

impl TileSet {
    /// Opens dataset `img` of the HDF5 file at `path`: (N, S, S, 3) bytes.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_hdf5(path)?;
        let images = file.dataset("img").map_err(|error| {
            Error::data(path, format!("has no dataset `img` of tiles ({error})"))
        })?;
        let shape = images.shape().map_err(|error| Error::data(path, error.to_string()))?;
        let [count, height, width, 3] = shape[..] else {
            return Err(Error::data(
                path,
                format!("`img` has shape {shape:?}; expected (tiles, side, side, 3)"),
            ));
        };
        if height != width || height == 0 {
            return Err(Error::data(
                path,
                format!("`img` has tiles of {width} x {height} px; expected square tiles"),
            ));
        }
        let element =
            images.element_size().map_err(|error| Error::data(path, error.to_string()))?;
        if element != 1 {
            return Err(Error::data(
                path,
                format!("`img` has {element} bytes a value; expected RGB bytes (uint8)"),
            ));
        }
        let (Ok(tile_px), Ok(count)) = (usize::try_from(height), usize::try_from(count)) else {
            return Err(Error::data(
                path,
                format!("`img` of shape {shape:?} is too large to read"),
            ));
        };
        Ok(Self { path: path.to_owned(), tile_px, count, images, all: OnceLock::new() })
    }

    /// Number of tiles.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no tile.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Side of the tiles in pixels.
    pub fn tile_px(&self) -> usize {
        self.tile_px
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tile `row` as S x S x 3 RGB bytes, row-major: from the file, or from memory after
    /// [`TileSet::preload`].
    pub fn image(&self, row: usize) -> Result<Vec<u8>> {
        let bytes = self.tile_px * self.tile_px * 3;
        if row >= self.count {
            return Err(Error::data(
                &self.path,
                format!("has {} tiles, so there is no tile {row}", self.count),
            ));
        }
        if let Some(all) = self.all.get() {
            return Ok(all[row * bytes..(row + 1) * bytes].to_vec());
        }
        let image = self.images.read_raw_rows(row as u64, 1).map_err(|error| {
            Error::data(
                &self.path,
                format!("tile {row} cannot be read ({error}); make the file again"),
            )
        })?;
        if image.len() != bytes {
            return Err(Error::data(&self.path, format!("tile {row} is cut short")));
        }
        Ok(image)
    }

    /// Reads all tiles into memory (N x S x S x 3 bytes) and returns them; later calls of
    /// [`TileSet::image`] are then cheap. For loops that come back to every tile many times.
    pub fn preload(&self) -> Result<&[u8]> {
        if let Some(all) = self.all.get() {
            return Ok(all);
        }
        let all = self.images.read_raw().map_err(|error| {
            Error::data(&self.path, format!("`img` cannot be read ({error}); make the file again"))
        })?;
        if all.len() != self.count * self.tile_px * self.tile_px * 3 {
            return Err(Error::data(&self.path, "`img` is cut short; make the file again"));
        }
        Ok(self.all.get_or_init(|| all))
    }
}

/// Reads the names of the tiles in the file at `path`.
pub fn read_names(path: &Path) -> Result<Vec<TileName>> {
    let file = open_hdf5(path)?;
    let wrong = |dataset: &str, error: &dyn std::fmt::Display| {
        Error::data(path, format!("dataset `{dataset}` cannot be read ({error})"))
    };
    let strings = |dataset: &str| {
        file.dataset(dataset).and_then(|d| d.read_string()).map_err(|e| wrong(dataset, &e))
    };
    let coords =
        file.dataset("coords").and_then(|d| d.read_i64()).map_err(|e| wrong("coords", &e))?;
    let (slides, patients, barcodes) =
        (strings("slide")?, strings("patient")?, strings("barcode")?);
    let count = slides.len();
    if patients.len() != count || barcodes.len() != count || coords.len() != count * 2 {
        return Err(Error::data(
            path,
            format!(
                "names {count} slides, {} patients, {} barcodes and {} coordinates; make the file \
                 again",
                patients.len(),
                barcodes.len(),
                coords.len() / 2
            ),
        ));
    }
    Ok(slides
        .into_iter()
        .zip(patients)
        .zip(barcodes)
        .zip(coords.chunks_exact(2))
        .map(|(((slide, patient), barcode), coords)| TileName {
            slide,
            patient,
            barcode,
            coords: [coords[0], coords[1]],
        })
        .collect())
}

/// Opens an HDF5 file for reading without taking it into memory.
pub(super) fn open_hdf5(path: &Path) -> Result<File> {
    if !path.is_file() {
        return Err(Error::data(path, "there is no such file"));
    }
    File::open_streaming(path).map_err(|error| {
        Error::data(path, format!("cannot be read as HDF5 ({error}); fetch or make it again"))
    })
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(i: usize) -> TileName {
        TileName {
            slide: format!("S{}", i % 2),
            patient: "P".into(),
            barcode: format!("b{i}"),
            coords: [i as i64 * 10, 3],
        }
    }

    #[test]
    fn tiles_come_back_as_they_went() {
        let dir = tempfile::tempdir().unwrap();
        for deflate in [0, 4] {
            let path = dir.path().join(format!("tiles{deflate}.h5"));
            let mut writer = TileWriter::new(4);
            let tiles: Vec<Vec<u8>> =
                (0..5).map(|i| (0..48).map(|v| (v * 5 + i * 31) as u8).collect()).collect();
            for (i, tile) in tiles.iter().enumerate() {
                writer.push(tile, name(i)).unwrap();
            }
            assert!(writer.push(&[0; 47], name(9)).is_err());
            writer.write(&path, 0.5, Some(8.0), deflate).unwrap();

            let set = TileSet::open(&path).unwrap();
            assert_eq!((set.len(), set.tile_px()), (5, 4));
            for (i, tile) in tiles.iter().enumerate() {
                assert_eq!(&set.image(i).unwrap(), tile);
            }
            assert!(set.image(5).is_err());
            assert_eq!(set.preload().unwrap(), tiles.concat());
            assert_eq!(set.image(3).unwrap(), tiles[3]);
            assert_eq!(read_names(&path).unwrap(), (0..5).map(name).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_tiles_are_a_file_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.h5");
        TileWriter::new(4).write(&path, 0.5, None, 0).unwrap();
        assert!(TileSet::open(&path).unwrap().is_empty());
        assert!(read_names(&path).unwrap().is_empty());
    }

    #[test]
    fn files_that_are_not_tiles_say_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad.h5");
        let problem = || TileSet::open(&path).err().expect("refused").to_string();
        assert!(problem().contains("no such file"));
        std::fs::write(&path, "text").unwrap();
        assert!(problem().contains("as HDF5"));
        let write = |name: &str, shape: &[u64], floats: bool| {
            let count = shape.iter().product::<u64>() as usize;
            let mut builder = FileBuilder::new();
            let dataset = builder.create_dataset(name);
            if floats {
                dataset.with_f32_data(&vec![0.0; count]);
            } else {
                dataset.with_u8_data(&vec![0; count]);
            }
            dataset.with_shape(shape);
            builder.write(&path).unwrap();
        };
        write("images", &[1, 2, 2, 3], false);
        assert!(problem().contains("no dataset `img`"));
        write("img", &[2, 2, 3], false);
        assert!(problem().contains("shape"));
        write("img", &[1, 2, 3, 3], false);
        assert!(problem().contains("square"));
        write("img", &[1, 2, 2, 3], true);
        assert!(problem().contains("uint8"));
    }
}
