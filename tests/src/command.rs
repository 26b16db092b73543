//! Runs one command to its end.
//!
//! In: a program, its arguments, perhaps its standard input. Out: its standard output, or an error with the command line
//! and what it said. Nothing here knows namespaces; `process` runs what stays.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::gate::step;

/// Runs `program` and gives its standard output.
///
/// # Errors
/// If it cannot be started or does not end with success.
pub fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Result<String> {
    feed(program, arguments, "")
}

/// Runs `program` with `input` on its standard input and gives its standard output.
///
/// # Errors
/// If it cannot be started or does not end with success.
pub fn feed<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
    input: &str,
) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    let line = command_line(&command);
    // To its end: such a command runs outside the cluster's cgroup, where no removal would stop it half-way.
    let _step = step();
    let output = finish(start(command)?, input).with_context(|| format!("running `{line}`"))?;
    ensure!(
        output.status.success(),
        "`{line}`: {}: {}",
        output.status,
        text(&output.stderr).trim()
    );
    Ok(text(&output.stdout))
}

/// Runs `command` with `input` on its standard input; an unsuccessful end is not an error.
///
/// # Errors
/// If it cannot be started.
pub fn output(command: Command, input: &str) -> Result<Output> {
    let line = command_line(&command);
    let step = step();
    let child = start(command)?;
    drop(step);
    finish(child, input).with_context(|| format!("running `{line}`"))
}

fn start(mut command: Command) -> Result<Child> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("starting `{}`", command_line(&command)))
}

fn finish(mut child: Child, input: &str) -> Result<Output> {
    let mut stdin = child.stdin.take().context("standard input was piped above")?;
    // A program that ends without reading its input closes the pipe: its exit status tells what happened.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    Ok(child.wait_with_output()?)
}

/// Runs lines of `ip` commands in one process, in a namespace if one is named.
///
/// # Errors
/// At the first line that fails, with its number.
pub fn ip_batch(netns: Option<&str>, lines: &[String]) -> Result<()> {
    let mut arguments: Vec<OsString> =
        netns.map(|name| ["-n".into(), name.into()]).into_iter().flatten().collect();
    arguments.extend(["-batch".into(), "-".into()]);
    feed("ip", arguments, &lines.join("\n"))
        .with_context(|| format!("in namespace {}", netns.unwrap_or("of the host")))
        .map(drop)
}

/// What a person would type.
pub fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Bytes of a program as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_named_with_what_it_said() {
        let error = run("sh", ["-c", "echo no >&2; exit 3"]).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c echo no >&2; exit 3`: exit status: 3: no");
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(feed("cat", [""; 0], "some text").unwrap(), "some text");
    }
}
