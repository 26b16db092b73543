//! Runs other programs.
//!
//! In: a command. Out: success, or an error with the command line. Nothing is run unannounced, except to ask.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Announces and runs a command, with its output on this terminal.
///
/// # Errors
/// It cannot be started, or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("starting {line}"))?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

/// Asks a command for its output.
///
/// # Errors
/// It cannot be started, fails, or does not print text.
pub(crate) fn ask(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("starting {line}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {}: {}", output.status, said.trim());
    String::from_utf8(output.stdout).with_context(|| format!("reading the output of {line}"))
}

/// A command as one would type it, with the environment that it gets.
pub(crate) fn line(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let environment = set.map(|(name, value)| format!("{}={}", shown(name), shown(value)));
    let words = [command.get_program()].into_iter().chain(command.get_args()).map(shown);
    environment.chain(words).collect::<Vec<_>>().join(" ")
}

fn shown(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    if text.contains('\x1f') {
        return format!("$'{}'", text.replace('\x1f', "\\x1f"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_typed_again() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["build", "-Z", "build-std=core", "two words", "it's"]);
        command.env("FLAGS", "-Ca\x1f-Cb").env_remove("GONE");
        assert_eq!(
            line(&command),
            r"FLAGS=$'-Ca\x1f-Cb' /usr/bin/cargo build -Z build-std=core 'two words' 'it'\''s'"
        );
    }

    #[test]
    fn a_failing_command_is_named_with_what_it_said() {
        let error = ask(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().ends_with("exit status: 3: why"), "{error}");
    }
}
