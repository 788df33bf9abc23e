//! `diffbulk scan-sim`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use super::{interrupt, print};
use crate::model::{Model, locate};
use crate::scan_sim::{self, Board, Report, Settings, Walk};
use crate::serve::{Address, Token};
use crate::{Error, Result, slide};

/// Plays a stored slide to `diffbulk serve` as a scanner's camera would.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Slide to play.
    slide: PathBuf,

    /// Where `diffbulk serve` listens.
    #[arg(long, value_name = "ADDRESS", default_value = "tcp:127.0.0.1:7400")]
    host: Address,

    /// The board, whose cable then runs through here; without, it is at the host already.
    #[arg(long, value_name = "tcp:...|serial:...", conflicts_with = "walk")]
    board: Option<Address>,

    /// Where `serve` expects the board [default: as the camera].
    #[arg(long, value_name = "ADDRESS", requires = "board")]
    board_host: Option<Address>,

    /// Cut the board's cable for three seconds after so many results.
    #[arg(long, value_name = "N,M,...", value_delimiter = ',', requires = "board")]
    cut_board_after: Vec<u64>,

    /// Play the board too, without a machine, with so many tiles under way at once.
    #[arg(long, value_name = "N")]
    walk: Option<usize>,

    /// Tiles a second at most.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,

    /// Send pictures as JPEG, as many cameras do, instead of raw.
    #[arg(long)]
    jpeg: bool,

    /// Micrometres per pixel of the slide's finest level, where the file does not tell.
    #[arg(long, value_name = "UM")]
    mpp: Option<f64>,

    /// The host's model, whose tile every picture has to cover [default: the shipped model].
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,

    /// File whose first line is the host's token.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let stop = interrupt::flag()?;
    let slide = slide::open(&arguments.slide)?;
    let um_per_px = arguments.mpp.or(slide.info().um_per_px).ok_or_else(|| {
        Error::slide(slide.path(), "it does not tell its scale; give its um/px with --mpp")
    })?;
    let model = Model::open(&locate::locate(arguments.model.as_deref())?)?;
    let host_board = arguments.board_host.as_ref().unwrap_or(&arguments.host).clone();
    let mut settings =
        Settings::new(arguments.host.clone(), host_board, model.metadata(), arguments.jpeg);
    settings.token = arguments.token_file.as_deref().map(Token::read).transpose()?;
    settings.rate = arguments.rate;
    settings.board = match (&arguments.board, arguments.walk) {
        (Some(board), _) => Board::Here(board.clone(), arguments.cut_board_after.clone()),
        (None, Some(ahead)) => {
            Board::Walker(Walk { ahead: ahead.max(1), rate: settings.rate.take() })
        }
        (None, None) => Board::Elsewhere,
    };
    let report = scan_sim::run(&*slide, um_per_px, &settings, &stop)?;
    if arguments.json {
        let json = serde_json::to_string(&report)
            .map_err(|error| Error::Request(format!("the report cannot be written: {error}")))?;
        print(&format!("{json}\n"))?;
    } else {
        print(&text(&report))?;
    }
    if report.summary.is_some() { Ok(()) } else { Err(Error::Interrupted) }
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "{} pictures, {} results, {} put off, {} failed, {} rescans, {} refocuses, {} skipped, \
         {} connections, {:.1} s\n",
        report.pictures,
        report.results,
        report.put_off,
        report.failed,
        report.rescans,
        report.refocuses,
        report.skipped,
        report.connections,
        report.seconds,
    );
    if let (Some(p50), Some(p99)) = (report.p50_ms, report.p99_ms) {
        let _ = writeln!(text, "last pixel byte to vector: p50 {p50:.1} ms, p99 {p99:.1} ms");
    }
    if let Some(summary) = &report.summary {
        let _ = writeln!(
            text,
            "board: {:?}, {} kept, {} skipped, {} rescans; best tiles {}",
            summary.reason,
            summary.kept,
            summary.skipped,
            summary.rescans,
            summary
                .best
                .iter()
                .map(|best| format!("{} ({:.2})", best.tile.0, best.score))
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    text
}
