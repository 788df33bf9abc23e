//! Binary morphology on a mask: what lies beyond the edge is taken to be as the edge is, so that
//! tissue cut by the edge of the picture is not worn away there.

use std::collections::VecDeque;

/// A row-major picture of one value per pixel.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plane<T> {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) values: Vec<T>,
}

/// Pixels all of whose neighbours within `radius` (a disc) are set.
pub(super) fn erode(mask: &Plane<bool>, radius: usize) -> Plane<bool> {
    spread(mask, radius, false)
}

/// Pixels with a set neighbour within `radius` (a disc).
pub(super) fn dilate(mask: &Plane<bool>, radius: usize) -> Plane<bool> {
    spread(mask, radius, true)
}

/// Removes what a disc of `radius` does not fit into.
pub(super) fn open(mask: &Plane<bool>, radius: usize) -> Plane<bool> {
    within_frame(mask, radius, |mask| dilate(&erode(mask, radius), radius))
}

/// Closes gaps that a disc of `radius` does not fit into.
pub(super) fn close(mask: &Plane<bool>, radius: usize) -> Plane<bool> {
    within_frame(mask, radius, |mask| erode(&dilate(mask, radius), radius))
}

/// Spreads the value `grow` over a disc. Of every row only the half-width of the disc matters:
/// first the distance to the nearest `grow` pixel along the row, then a comparison per row.
fn spread(mask: &Plane<bool>, radius: usize, grow: bool) -> Plane<bool> {
    let (width, height) = (mask.width, mask.height);
    let far = radius + 1;
    let mut along = vec![far; width * height];
    for (values, distances) in mask.values.chunks(width).zip(along.chunks_mut(width)) {
        let mut distance = far;
        for (value, slot) in values.iter().zip(distances.iter_mut()) {
            distance = if *value == grow { 0 } else { (distance + 1).min(far) };
            *slot = distance;
        }
        distance = far;
        for (value, slot) in values.iter().zip(distances.iter_mut()).rev() {
            distance = if *value == grow { 0 } else { (distance + 1).min(far) };
            *slot = distance.min(*slot);
        }
    }
    // Half a pixel more than the radius makes small discs round.
    let reach = |dy: usize| (((radius * radius + radius / 2 - dy * dy) as f64).sqrt()) as usize;
    let reaches: Vec<usize> = (0..=radius).map(reach).collect();
    let mut values = vec![!grow; width * height];
    for y in 0..height {
        let target = &mut values[y * width..][..width];
        for other in y.saturating_sub(radius)..=(y + radius).min(height - 1) {
            let reach = reaches[y.abs_diff(other)];
            for (value, &distance) in target.iter_mut().zip(&along[other * width..][..width]) {
                if distance <= reach {
                    *value = grow;
                }
            }
        }
    }
    Plane { width, height, values }
}

/// Applies `change` to the mask inside a frame that repeats its edge.
fn within_frame(
    mask: &Plane<bool>,
    radius: usize,
    change: impl Fn(&Plane<bool>) -> Plane<bool>,
) -> Plane<bool> {
    let frame = 2 * radius;
    let (width, height) = (mask.width + 2 * frame, mask.height + 2 * frame);
    let mut values = Vec::with_capacity(width * height);
    for y in 0..height {
        let row = y.saturating_sub(frame).min(mask.height - 1) * mask.width;
        values.extend(
            (0..width).map(|x| mask.values[row + x.saturating_sub(frame).min(mask.width - 1)]),
        );
    }
    let changed = change(&Plane { width, height, values });
    let values = (0..mask.height)
        .flat_map(|y| changed.values[(y + frame) * width + frame..][..mask.width].iter().copied())
        .collect();
    Plane { width: mask.width, height: mask.height, values }
}

/// Sets the unset islands of at most `area` pixels that do not touch the edge of the picture.
pub(super) fn fill_holes(mask: &mut Plane<bool>, area: f64) {
    let (width, height) = (mask.width, mask.height);
    for hole in islands(mask, false) {
        let at_edge = |&index: &usize| {
            let (x, y) = (index % width, index / width);
            x == 0 || y == 0 || x + 1 == width || y + 1 == height
        };
        if hole.len() as f64 <= area && !hole.iter().any(at_edge) {
            for index in hole {
                mask.values[index] = true;
            }
        }
    }
}

/// The connected sets (by edges) of pixels with `value`: indices of each, in scan order of their
/// first pixels.
pub(super) fn islands(mask: &Plane<bool>, value: bool) -> Vec<Vec<usize>> {
    let (width, height) = (mask.width, mask.height);
    let mut seen: Vec<bool> = mask.values.iter().map(|&own| own != value).collect();
    let mut found = Vec::new();
    let mut queue = VecDeque::new();
    for start in 0..seen.len() {
        if std::mem::replace(&mut seen[start], true) {
            continue;
        }
        let mut island = Vec::new();
        queue.push_back(start);
        while let Some(index) = queue.pop_front() {
            island.push(index);
            let (x, y) = (index % width, index / width);
            let neighbours = [
                (x > 0).then(|| index - 1),
                (x + 1 < width).then(|| index + 1),
                (y > 0).then(|| index - width),
                (y + 1 < height).then(|| index + width),
            ];
            for next in neighbours.into_iter().flatten() {
                if !std::mem::replace(&mut seen[next], true) {
                    queue.push_back(next);
                }
            }
        }
        found.push(island);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(rows: &[&str]) -> Plane<bool> {
        Plane {
            width: rows[0].len(),
            height: rows.len(),
            values: rows.iter().flat_map(|row| row.bytes().map(|b| b == b'#')).collect(),
        }
    }

    #[test]
    fn opening_removes_specks_and_keeps_what_the_edge_cuts() {
        let mask = plane(&["####....", "####..#.", "####....", "####...."]);
        let opened = plane(&["####....", "####....", "####....", "####...."]);
        assert_eq!(open(&mask, 1), opened);
    }

    #[test]
    fn closing_joins_over_small_gaps() {
        let mask = plane(&["###.###", "###.###", "###.###"]);
        assert!(close(&mask, 1).values.iter().all(|&set| set));
        let wide = plane(&["##....##", "##....##"]);
        assert_eq!(close(&wide, 1), wide);
    }

    #[test]
    fn only_small_enclosed_holes_are_filled() {
        let mut mask = plane(&["#####", "#.#..", "#####"]);
        fill_holes(&mut mask, 4.0);
        assert_eq!(mask, plane(&["#####", "###..", "#####"]));
        let mut mask = plane(&["####", "#..#", "####"]);
        fill_holes(&mut mask, 1.0);
        assert_eq!(mask, plane(&["####", "#..#", "####"]));
    }

    #[test]
    fn islands_are_connected_by_edges() {
        let mask = plane(&["#.#", ".#.", "#.#"]);
        assert_eq!(islands(&mask, true).len(), 5);
        assert_eq!(islands(&mask, false).len(), 4);
    }
}
