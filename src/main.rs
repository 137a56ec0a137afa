//! The program: see the library.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use rolegate::cli;
use rolegate::environment;

fn main() -> ExitCode {
    if let Some(cleaned) = environment::cleaned(std::env::vars_os()) {
        let error = environment::start_again(std::env::args_os(), cleaned);
        let _ = writeln!(std::io::stderr(), "rolegate: cannot start again with a clean environment: {error}; empty variables may be read");
    }
    cli::main(std::env::args_os(), &|name| std::env::var(name).ok())
}
