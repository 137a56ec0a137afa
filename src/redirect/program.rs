//! Runs the programs that know the kernel's rules.

use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::RedirectError;

/// Runs a program to its end with this input, and returns what it printed. One that this future leaves is killed.
pub async fn run(program: &'static str, arguments: &[impl AsRef<std::ffi::OsStr>], input: &str) -> Result<String, RedirectError> {
    let failed = |error: std::io::Error| RedirectError::Program { program, reason: error.to_string() };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early says why on its standard error.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(RedirectError::Refused { program, message: if message.is_empty() { output.status.to_string() } else { message } })
}
