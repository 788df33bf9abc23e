//! The `diffbulk-train` program: arguments in, messages and progress out; no logic.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use diffbulk_trainer::{Result, data, evaluate, export, numerics, quantize, train};

/// Trains DiffBulk models and exports them as ONNX files.
#[derive(Parser)]
#[command(name = "diffbulk-train", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// One variant per subcommand; each holds the `Args` of the module that runs it.
#[derive(Subcommand)]
enum Command {
    Prepare(data::prepare::PrepareArgs),
    Pretrain(train::pretrain::PretrainArgs),
    Finetune(train::finetune::FinetuneArgs),
    Evaluate(evaluate::run::EvaluateArgs),
    /// Check the numbers of this build against a directory of reference tensors
    Verify(numerics::Args),
    /// Write a frozen image encoder as an ONNX file
    Encoder(export::encoder::EncoderArguments),
    /// Write the fused predictor as one ONNX file
    Export(Box<export::command::ExportArguments>),
    /// Compare an exported predictor with the modules it was made from
    CheckExport(Box<export::check::CheckArguments>),
    Quantize(Box<quantize::command::QuantizeArguments>),
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Prepare(args) => data::prepare::run(&args),
        Command::Pretrain(args) => train::pretrain::run(&args),
        Command::Finetune(args) => train::finetune::run(&args),
        Command::Evaluate(args) => evaluate::run::run(&args),
        Command::Verify(args) => numerics::run(&args),
        Command::Encoder(args) => export::encoder::run(&args).map(tell),
        Command::Export(args) => export::command::run(&args).map(tell),
        Command::CheckExport(args) => export::check::run(&args).map(tell),
        Command::Quantize(args) => quantize::command::run(&args).map(tell),
    }
}

fn tell(message: String) {
    println!("{message}");
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
