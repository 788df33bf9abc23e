//! What a run did, as it is written to `run.json` and shown at the end.

use std::path::{Component, Path};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::journal::Settings;
use super::pipeline::DamagedTile;

/// Everything needed to know what a set of outputs is and to make it again.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// False when the run was stopped: the outputs hold the tiles up to there, and the same
    /// command continues.
    pub complete: bool,
    /// When this run started, UTC, RFC 3339.
    pub started: String,
    /// The program.
    pub program: ProgramReport,
    /// Which engine predicted which tiles, in tile order; one entry unless it changed on the way.
    pub engines: Vec<EngineShare>,
    /// The model.
    pub model: ModelReport,
    /// The slide.
    pub slide: SlideReport,
    /// Everything that decides the numbers, by name.
    pub settings: Settings,
    /// Genes that are written, in order.
    pub genes: Vec<String>,
    /// Tile counts.
    pub tiles: TileCounts,
    /// Tiles that could not be read because the slide is damaged there.
    pub damaged: Vec<DamagedReport>,
    /// Genes with the highest mean over the predicted tiles, the highest first.
    pub top_genes: Vec<GeneMean>,
    /// Where the time went.
    pub timings: Timings,
    /// The output files, relative to the directory of this report.
    pub files: Vec<String>,
}

/// The program that ran.
#[derive(Debug, Clone, Serialize)]
pub struct ProgramReport {
    /// Its version.
    pub version: String,
    /// Engine that ran the model.
    pub engine: String,
    /// Inference threads.
    pub threads: usize,
}

/// A run of tiles that one engine predicted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineShare {
    /// The engine.
    pub engine: String,
    /// How many tiles.
    pub tiles: u64,
    /// Id of the first, where tiles have an order.
    pub first: Option<String>,
    /// Id of the last.
    pub last: Option<String>,
}

impl EngineShare {
    /// No tile yet.
    pub fn new(engine: &str) -> Self {
        Self { engine: engine.into(), tiles: 0, first: None, last: None }
    }

    /// One more tile.
    pub fn take(&mut self, id: &str) {
        self.tiles += 1;
        self.first.get_or_insert_with(|| id.into());
        self.last = Some(id.into());
    }
}

/// The model that was used.
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// File name.
    pub file: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Arithmetic of weights and activations.
    pub precision: String,
    /// Unit of the predicted values.
    pub unit: String,
    /// Licence of the weights.
    pub license: String,
    /// Side of the tile in pixels.
    pub tile_px: u32,
    /// Micrometres per pixel of the tile.
    pub um_per_px: f64,
}

/// The slide that was read.
#[derive(Debug, Clone, Serialize)]
pub struct SlideReport {
    /// File name.
    pub file: String,
    /// Size and digest that recognise the file.
    pub identity: crate::slide::Identity,
    /// File format in words.
    pub format: String,
    /// Scanner vendor, where the file tells.
    pub vendor: Option<String>,
    /// Width of level 0 in pixels.
    pub width: u32,
    /// Height of level 0 in pixels.
    pub height: u32,
    /// Micrometres per level-0 pixel that was used.
    pub um_per_px: f64,
    /// Where that came from: `file` or `user`.
    pub um_per_px_from: &'static str,
}

/// How many tiles there were and what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TileCounts {
    /// Tiles of the grid, or given centres.
    pub total: u64,
    /// Tiles looked at; `total` in a complete run.
    pub seen: u64,
    /// Of those, tiles left out because they hold too little tissue.
    pub skipped: u64,
    /// Of those, tiles left out because the slide is damaged there.
    pub damaged: u64,
    /// Of those, tiles predicted.
    pub predicted: u64,
    /// Of the predicted, those taken over from an earlier, unfinished run.
    pub resumed: u64,
}

/// A tile that was left out because the slide is damaged there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DamagedReport {
    /// Its id.
    pub id: String,
    /// Left edge in level-0 px.
    pub x: f64,
    /// Top edge in level-0 px.
    pub y: f64,
    /// Side in level-0 px.
    pub side: f64,
    /// Which part of the slide, and what is wrong with it.
    pub problem: String,
}

impl From<DamagedTile> for DamagedReport {
    fn from(DamagedTile { tile, problem }: DamagedTile) -> Self {
        Self { id: tile.id, x: tile.x, y: tile.y, side: tile.side, problem }
    }
}

/// Mean of a gene over the predicted tiles.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GeneMean {
    /// The gene.
    pub gene: String,
    /// Its mean in the model's unit.
    pub mean: f64,
}

/// Seconds spent, by stage.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Timings {
    /// Opening the slide and loading the model.
    pub open_s: f64,
    /// Overview and tissue.
    pub tissue_s: f64,
    /// Predicting tiles.
    pub predict_s: f64,
    /// Processor time of a thread that runs the model, on average: the rest of `predict_s` it waited
    /// for a tile, a processor or a device. 0 where the system does not tell.
    pub inference_s: f64,
    /// Writing outputs.
    pub write_s: f64,
    /// Everything.
    pub total_s: f64,
    /// Tiles predicted per second of `predict_s`, those taken over left out.
    pub tiles_per_s: f64,
}

/// Removes what an unfinished earlier run left in `directory` and this one has not written anew
/// (because it was asked for other formats): those files hold only part of the tiles and would
/// look like this run's. What they are is told by that run's own report at `report`.
pub(crate) fn remove_outdated(directory: &Path, report: &Path, written: &[String]) {
    let Ok(text) = std::fs::read(report) else { return };
    let Ok(earlier) = serde_json::from_slice::<EarlierRun>(&text) else { return };
    if earlier.complete {
        return;
    }
    for name in earlier.files.iter().filter(|name| !written.contains(name)) {
        // Only plain names: a report from elsewhere must not reach outside the directory.
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            continue;
        }
        let file = directory.join(name);
        match std::fs::remove_file(&file) {
            Ok(()) => tracing::info!("{}: removed, it was part of a run", file.display()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(
                "{}: holds only part of the tiles and cannot be removed ({error})",
                file.display()
            ),
        }
    }
}

/// What is needed of an earlier run's report.
#[derive(Deserialize)]
struct EarlierRun {
    complete: bool,
    files: Vec<String>,
}

/// Running means over rows.
#[derive(Debug, Clone)]
pub(crate) struct Means {
    sums: Vec<f64>,
    rows: u64,
}

impl Means {
    pub(crate) fn new(genes: usize) -> Self {
        Self { sums: vec![0.0; genes], rows: 0 }
    }

    pub(crate) fn push(&mut self, expression: &[f32]) {
        self.rows += 1;
        for (sum, &value) in self.sums.iter_mut().zip(expression) {
            *sum += f64::from(value);
        }
    }

    /// The `count` genes with the highest mean; none without rows.
    pub(crate) fn top(&self, genes: &[String], count: usize) -> Vec<GeneMean> {
        if self.rows == 0 {
            return Vec::new();
        }
        let mean = |(gene, sum): (&String, &f64)| GeneMean {
            gene: gene.clone(),
            mean: sum / self.rows as f64,
        };
        let mut means: Vec<GeneMean> = genes.iter().zip(&self.sums).map(mean).collect();
        means.sort_by(|a, b| b.mean.total_cmp(&a.mean));
        means.truncate(count);
        means
    }
}

/// `time` in UTC as RFC 3339 with whole seconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date (proleptic Gregorian), counting from 0000-03-01 so that the leap day is
    // the last day of a year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_767_225_599), "2025-12-31T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn the_highest_means_come_first() {
        let genes: Vec<String> = ["A", "B", "C"].map(String::from).to_vec();
        let mut means = Means::new(3);
        assert!(means.top(&genes, 2).is_empty());
        means.push(&[1.0, 5.0, 2.0]);
        means.push(&[1.0, 3.0, 4.0]);
        let top = means.top(&genes, 2);
        assert_eq!(top[0], GeneMean { gene: "B".into(), mean: 4.0 });
        assert_eq!(top[1].gene, "C");
    }
}
