//! Arguments in, messages and progress out; no logic.
//!
//! Every subcommand is one file: its flags are documented where they are parsed. [`main`] turns
//! the outcome into an exit code: 0 done, 1 failed, 2 wrong usage, 130 stopped on request.

mod adapters;
mod bench;
mod bench_quant;
mod bench_tensors;
mod engine;
mod info;
mod interrupt;
mod model;
mod predict;
mod progress;
mod scan_sim;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{Error, Result};

/// Exit code after a failure.
const FAILED: u8 = 1;

/// Exit code after Ctrl-C, as shells report it.
const INTERRUPTED: u8 = 130;

/// Spatial gene expression from H&E slides, tile by tile.
#[derive(Debug, Parser)]
#[command(name = "diffbulk", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Predict a slide's expression and write tables, pictures and a report.
    Predict(Box<predict::Arguments>),
    /// Predict tile by tile while a scanner scans.
    Serve(Box<serve::Arguments>),
    /// Play a stored slide as a scanner's camera.
    ScanSim(scan_sim::Arguments),
    /// Sign, check and install models.
    Model(model::Arguments),
    /// Tell what a model or a slide is.
    Info(info::Arguments),
    /// Measure speed and memory on this machine.
    Bench(bench::Arguments),
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let command = Arguments::parse().command;
    log(&command);
    let outcome = match command {
        Command::Predict(arguments) => predict::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::ScanSim(arguments) => scan_sim::run(&arguments),
        Command::Info(arguments) => info::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Model(arguments) => model::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ Error::Interrupted) => {
            eprintln!("{error}");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("{}", chain(&error));
            ExitCode::from(FAILED)
        }
    }
}

/// Log lines on standard error: warnings of a command, everything worth knowing of the daemon and
/// its camera. `RUST_LOG` decides otherwise.
fn log(command: &Command) {
    let usual = match command {
        Command::Serve(_) | Command::ScanSim(_) => "info",
        _ => "warn",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    match command {
        Command::Serve(arguments) if arguments.log == "json" => lines.json().init(),
        Command::Serve(_) => lines.init(),
        _ => lines.without_time().init(),
    }
}

/// The error and its causes, one a line.
fn chain(error: &Error) -> String {
    let mut text = format!("error: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        // Some messages already end with their source's.
        let message = error.to_string();
        if !text.ends_with(&message) {
            text.push_str("\n  caused by: ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// Prints to standard output; a closed pipe (as in `| head`) is not an error.
fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io(std::path::Path::new("standard output"))(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        let io = Error::Io {
            path: "out".into(),
            source: std::io::Error::from(std::io::ErrorKind::StorageFull),
        };
        let error = Error::Kept { rows: 3, journal: "j".into(), source: Box::new(io) };
        let text = chain(&error);
        assert!(text.starts_with("error: stopped after 3 tiles"), "{text}");
        assert_eq!(text.matches("caused by").count(), 1, "{text}");
    }
}
