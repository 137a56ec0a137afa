//! The program: see the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    rolegate::cli::main(std::env::args_os(), &|name| std::env::var(name).ok())
}
