//! `rolegate man`: man pages in roff, from the commands that the parser reads.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use super::commands::{self, DIRECTORY, HELP};
use super::output::{print_text, say};
use super::texts::ending;

/// Prints the page of the program, or writes the pages of all commands.
pub(super) fn write(matches: &ArgMatches) -> ExitCode {
    let pages = pages();
    let Some(directory) = matches.get_one::<String>(DIRECTORY).map(Path::new) else {
        let page = pages.first().map(|(_, page)| page.as_str()).unwrap_or_default();
        return print_text(page.as_bytes(), "the man page");
    };
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| pages.iter().try_for_each(|(name, page)| std::fs::write(directory.join(format!("{name}.1")), page)));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("rolegate: cannot write the man pages to {}: {error}", directory.display()));
            ExitCode::FAILURE
        }
    }
}

/// Returns the names and texts of all pages; that of the program is the first.
fn pages() -> Vec<(String, String)> {
    let mut program = commands::visible();
    program.build();
    let mut pages = Vec::new();
    add(&program, "", &mut pages);
    pages
}

fn add(command: &Command, path: &str, pages: &mut Vec<(String, String)>) {
    pages.push((page_name(path), page(command, path)));
    for sub in below(command) {
        add(sub, format!("{path} {}", sub.get_name()).trim_start(), pages);
    }
}

/// Returns the commands below a command that have a page.
fn below(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != HELP)
}

fn page_name(path: &str) -> String {
    format!("rolegate {path}").trim_end().replace(' ', "-")
}

fn page(command: &Command, path: &str) -> String {
    let name = page_name(path);
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let version = format!("rolegate {}", env!("CARGO_PKG_VERSION"));
    let mut page = format!(".TH \"{}\" 1 \"\" \"{version}\" \"User Commands\"\n", name.to_uppercase());
    // No hyphenation and no adjustment: flags and values stay whole.
    page.push_str(".nh\n.ad l\n.SH NAME\n");
    line(&mut page, &format!("{} \\- {}", escaped(&name), escaped(&about)));
    page.push_str(".SH SYNOPSIS\n.nf\n");
    let usage = command.clone().render_usage().to_string();
    for usage in usage.trim_start_matches("Usage:").lines() {
        line(&mut page, &escaped(usage.trim()));
    }
    page.push_str(".fi\n.SH DESCRIPTION\n");
    let long = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    for (at, paragraph) in long.split("\n\n").enumerate() {
        if at > 0 {
            page.push_str(".PP\n");
        }
        line(&mut page, &escaped(paragraph));
    }
    let mut subs = below(command).peekable();
    if subs.peek().is_some() {
        page.push_str(".SH COMMANDS\n");
    }
    for sub in subs {
        let name = page_name(format!("{path} {}", sub.get_name()).trim_start());
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = write!(page, ".TP\n\\fB{}\\fR(1)\n", escaped(&name));
        line(&mut page, &escaped(&about));
    }
    options(&mut page, command);
    end(&mut page, path);
    page
}

fn options(page: &mut String, command: &Command) {
    let shown: Vec<&Arg> = command.get_arguments().filter(|arg| !arg.is_hide_set()).collect();
    let mut headings: Vec<Option<&str>> = Vec::new();
    for arg in &shown {
        if !headings.contains(&arg.get_help_heading()) {
            headings.push(arg.get_help_heading());
        }
    }
    page.push_str(".SH OPTIONS\n");
    for heading in headings {
        if let Some(heading) = heading {
            let _ = writeln!(page, ".SS \"{}\"", escaped(heading));
        }
        for arg in shown.iter().filter(|arg| arg.get_help_heading() == heading) {
            let _ = write!(page, ".TP\n{}\n", signature(arg));
            line(page, &escaped(&arg.get_help().map(ToString::to_string).unwrap_or_default()));
        }
    }
}

/// Returns how an argument is written, such as `--node NAME` or `--insecure[=BOOL]`.
fn signature(arg: &Arg) -> String {
    let value = arg.get_value_names().into_iter().flatten().next().map(|name| format!("\\fI{}\\fR", escaped(name)));
    let value = value.filter(|_| arg.get_action().takes_values());
    let Some(long) = arg.get_long() else { return value.unwrap_or_else(|| escaped(arg.get_id().as_str())) };
    let long = format!("\\fB\\-\\-{}\\fR", escaped(long));
    let short = arg.get_short().map(|short| format!("\\fB\\-{short}\\fR, ")).unwrap_or_default();
    match value {
        Some(value) if arg.is_require_equals_set() => format!("{short}{long}[={value}]"),
        Some(value) => format!("{short}{long} {value}"),
        None => format!("{short}{long}"),
    }
}

fn end(page: &mut String, path: &str) {
    if let Some(ending) = ending(path) {
        if !ending.exit_codes.is_empty() {
            page.push_str(".SH \"EXIT STATUS\"\n");
            line(page, &escaped(&format!("{}.", ending.exit_codes)));
        }
        page.push_str(".SH EXAMPLES\n");
        for (what, example) in ending.examples {
            page.push_str(".PP\n");
            line(page, &escaped(&format!("{what}:")));
            page.push_str(".PP\n.nf\n.RS\n");
            line(page, &escaped(example));
            page.push_str(".RE\n.fi\n");
        }
    }
    if !path.is_empty() {
        page.push_str(".SH \"SEE ALSO\"\n.BR rolegate (1)\n");
    }
}

/// Appends a line of text. A control character of roff at its beginning has no effect.
fn line(page: &mut String, text: &str) {
    if text.starts_with(['.', '\'']) {
        page.push_str("\\&");
    }
    page.push_str(text);
    page.push('\n');
}

/// Escapes what roff does not print as it is written (groff_char(7)). Long lists may be broken at their commas.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '"' => escaped.push_str("\\(dq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            ',' => escaped.push_str(",\\:"),
            '\n' => escaped.push(' '),
            c if c.is_ascii() => escaped.push(c),
            c => {
                let _ = write!(escaped, "\\[u{:04X}]", u32::from(c));
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
