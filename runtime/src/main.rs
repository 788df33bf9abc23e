//! The `diffbulk` program.

fn main() -> std::process::ExitCode {
    diffbulk::cli::main()
}
