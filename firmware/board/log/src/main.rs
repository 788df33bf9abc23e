//! Decodes the log of the board: `diffbulk-board-log IMAGE < LOG`. Reads as long as there is
//! something to read, so that it serves behind a pipe as well as on a file.

use std::io::{Read, Write};
use std::process::ExitCode;

use defmt_decoder::{DecodeError, Table};

fn main() -> ExitCode {
    let Some(image) = std::env::args_os().nth(1) else {
        eprintln!("usage: diffbulk-board-log IMAGE < LOG");
        return ExitCode::FAILURE;
    };
    let named = |problem: String| format!("{}: {problem}", image.display());
    let decoded = std::fs::read(&image)
        .map_err(|error| named(error.to_string()))
        .and_then(|elf| decode(&elf, std::io::stdin().lock()).map_err(named));
    match decoded {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Prints one line a frame: seconds, level, message, and the module that said it.
fn decode(elf: &[u8], mut log: impl Read) -> Result<(), String> {
    let table = Table::parse(elf)
        .map_err(|error| error.to_string())?
        .ok_or("it has no defmt messages; give the image that is running")?;
    let places = table.get_locations(elf).map_err(|error| error.to_string())?;
    let mut decoder = table.new_stream_decoder();
    let (mut buffer, mut out) = ([0; 1024], std::io::stdout().lock());
    loop {
        let count = log.read(&mut buffer).map_err(|error| error.to_string())?;
        if count == 0 {
            return Ok(());
        }
        decoder.received(&buffer[..count]);
        loop {
            let frame = match decoder.decode() {
                Ok(frame) => frame,
                Err(DecodeError::UnexpectedEof) => break,
                Err(DecodeError::Malformed) if table.encoding().can_recover() => {
                    eprintln!("a damaged frame");
                    continue;
                }
                Err(DecodeError::Malformed) => return Err("the log is damaged".into()),
            };
            let time = frame.display_timestamp().map(|time| time.to_string()).unwrap_or_default();
            let level = frame.level().map_or("", |level| level.as_str());
            let place = places.get(&frame.index()).map(|place| format!(" ({})", place.module));
            let line = format!("{time} {level:5} {}", frame.display_message());
            // Nobody listens any more: that is the end, too.
            if writeln!(out, "{line}{}", place.unwrap_or_default()).is_err() {
                return Ok(());
            }
        }
    }
}
