//! Laying tiles without expression over the tissue of a whole section.

use diffbulk::tissue::TissueMask;

/// One tile of the lattice: its name and its top-left corner in level-0 px.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Place {
    /// `x<column>_y<row>` on the lattice.
    pub(super) name: String,
    /// Left edge in level-0 px.
    pub(super) x: f64,
    /// Top edge in level-0 px.
    pub(super) y: f64,
}

/// The lattice of squares of `side` level-0 px every `stride` level-0 px that lie fully inside an
/// image of `width` x `height` px and are tissue for at least `min_tissue` of their area. The
/// lattice is centred, so that no edge of the image is favoured.
pub(super) fn places(
    mask: &TissueMask,
    (width, height): (u32, u32),
    side: f64,
    stride: f64,
    min_tissue: f64,
) -> Vec<Place> {
    let axis = |length: u32| -> Vec<f64> {
        let room = f64::from(length) - side;
        if room < 0.0 {
            return Vec::new();
        }
        let count = (room / stride).floor();
        let first = ((room - count * stride) / 2.0).floor();
        (0..=count as u64).map(|i| (first + i as f64 * stride).floor()).collect()
    };
    let (columns, rows) = (axis(width), axis(height));
    let mut places = Vec::new();
    for (row, &y) in rows.iter().enumerate() {
        for (column, &x) in columns.iter().enumerate() {
            if mask.fraction(x, y, side) >= min_tissue {
                places.push(Place { name: format!("x{column}_y{row}"), x, y });
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(
        width: u32,
        height: u32,
        downsample: f64,
        tissue: impl Fn(u32, u32) -> bool,
    ) -> TissueMask {
        let mask =
            (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| tissue(x, y));
        TissueMask { width, height, downsample, mask: mask.collect() }
    }

    #[test]
    fn tiles_lie_on_tissue_and_inside_the_image() {
        // The left half of a 100 x 60 px image is tissue.
        let half = mask(10, 6, 10.0, |x, _| x < 5);
        let places = places(&half, (100, 60), 20.0, 20.0, 0.9);
        let corners: Vec<_> = places.iter().map(|p| (p.x, p.y)).collect();
        assert_eq!(corners, [(0., 0.), (20., 0.), (0., 20.), (20., 20.), (0., 40.), (20., 40.)]);
        assert_eq!(places[3].name, "x1_y1");
    }

    #[test]
    fn a_small_image_has_none_and_the_lattice_is_centred() {
        let all = mask(4, 4, 10.0, |_, _| true);
        assert!(places(&all, (19, 40), 20.0, 10.0, 0.0).is_empty());
        let places = places(&all, (26, 20), 20.0, 20.0, 0.5);
        assert_eq!(places.len(), 1);
        assert_eq!((places[0].x, places[0].y), (3.0, 0.0));
    }
}
