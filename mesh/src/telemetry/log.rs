//! Starts the log and changes its level while it runs.
//!
//! In: a format and filter directives. Out: the process's `tracing` subscriber and a [`LogHandle`]. Lines are written
//! by a thread of their own, so that a slow reader of standard output does not hold up a data thread until
//! [`LINES_WAITING`] lines wait; then it does, because a lost line of an access log is worse.

use std::{
    io::{self, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use tracing_subscriber::{
    EnvFilter, Registry, filter::ParseError, fmt::MakeWriter, layer::SubscriberExt, reload,
};

use super::LogFormat;

/// Lines that may wait for the writer; a sender of one more waits until there is room.
const LINES_WAITING: usize = 10_000;
/// Lines put into one write.
const LINES_PER_WRITE: usize = 1024;
/// How long the writer lets lines gather after each write. While it sleeps nobody has to wake it: a wake for each line
/// was a tenth of what a short connection costs.
const GATHERING: Duration = Duration::from_millis(5);

/// How to log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Form of a line. In the environment: `LOG_FORMAT`, `json` or anything else for plain.
    pub format: LogFormat,
    /// Filter directives such as `info,mesh::xds=debug`. In the environment: `RUST_LOG`. Default `info`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Plain, filter: "info".into() }
    }
}

/// Why the log did not start, or its level did not change.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A directive cannot be read.
    #[error("`{directives}` are no log filter directives")]
    Directives {
        /// The text as given.
        directives: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The process already logs elsewhere.
    #[error("the process has a logger already")]
    Started,
    /// The thread that writes lines did not start.
    #[error("starting the log's thread")]
    Thread {
        /// What the system said.
        source: io::Error,
    },
}

/// Changes the running log.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    initial: String,
    lines: Lines,
}

/// Starts logging to standard output.
///
/// # Errors
/// [`LogError`] if the filter cannot be read or the process has a logger.
pub fn start_log(config: &LogConfig) -> Result<LogHandle, LogError> {
    let lines = Lines::to(io::stdout()).map_err(|source| LogError::Thread { source })?;
    let (subscriber, handle) = build(config, lines)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Started)?;
    Ok(handle)
}

fn build(
    config: &LogConfig,
    lines: Lines,
) -> Result<(impl tracing::Subscriber + Send + Sync, LogHandle), LogError> {
    let (filter, handle) = reload::Layer::new(parse(&config.filter)?);
    let format =
        tracing_subscriber::fmt::layer().event_format(config.format).with_writer(lines.clone());
    let subscriber = Registry::default().with(filter).with(format);
    Ok((subscriber, LogHandle { filter: handle, initial: config.filter.clone(), lines }))
}

impl LogHandle {
    /// The directives in force.
    pub fn current(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Adds directives to those in force; a bare level replaces the default level.
    ///
    /// # Errors
    /// [`LogError::Directives`] leaves the filter as it was.
    pub fn add(&self, directives: &str) -> Result<(), LogError> {
        parse(directives)?;
        let current = self.current();
        self.set(&if current.is_empty() {
            directives.to_owned()
        } else {
            format!("{current},{directives}")
        })
    }

    /// Returns to the directives of the start.
    ///
    /// # Errors
    /// [`LogError::Directives`] cannot happen: they were read before.
    pub fn reset(&self) -> Result<(), LogError> {
        self.set(&self.initial)
    }

    /// Waits until every line so far is written.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.lines.0.send(Line::Flush(done)).is_ok() {
            let _ = written.recv();
        }
    }

    fn set(&self, directives: &str) -> Result<(), LogError> {
        let filter = parse(directives)?;
        self.filter.reload(filter).map_err(|_| LogError::Started)
    }
}

fn parse(directives: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(directives)
        .map_err(|source| LogError::Directives { directives: directives.into(), source })
}

enum Line {
    Text(Box<[u8]>),
    Flush(SyncSender<()>),
}

/// Hands lines to the thread that writes them.
#[derive(Clone)]
struct Lines(SyncSender<Line>);

impl Lines {
    fn to(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, waiting) = sync_channel(LINES_WAITING);
        thread::Builder::new().name("log".into()).spawn(move || write_lines(&waiting, output))?;
        Ok(Self(lines))
    }
}

impl Write for Lines {
    /// Takes one whole line: `tracing-subscriber` writes each event with one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0
            .send(Line::Text(line.into()))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Ends when the last sender is gone. A failed write loses its lines: there is nowhere to say so.
fn write_lines(lines: &Receiver<Line>, mut output: impl Write) {
    let mut batch = Vec::new();
    let mut flushed = Vec::new();
    while let Ok(first) = lines.recv() {
        for line in std::iter::once(first).chain(lines.try_iter().take(LINES_PER_WRITE - 1)) {
            match line {
                Line::Text(text) => batch.extend_from_slice(&text),
                Line::Flush(done) => flushed.push(done),
            }
        }
        let _ = output.write_all(&batch).and_then(|()| output.flush());
        batch.clear();
        if flushed.is_empty() {
            thread::sleep(GATHERING);
        }
        for done in flushed.drain(..) {
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
pub(in crate::telemetry) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Runs `act` under a log and returns the lines without their times.
    pub(in crate::telemetry) fn logged(
        format: LogFormat,
        filter: &str,
        act: impl FnOnce(&LogHandle),
    ) -> Vec<String> {
        let written = Written::default();
        let config = LogConfig { format, filter: filter.into() };
        let (subscriber, handle) = build(&config, Lines::to(written.clone()).unwrap()).unwrap();
        tracing::subscriber::with_default(subscriber, || act(&handle));
        handle.flush();
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Without the hint every event of every library is formed and then thrown away.
    #[test]
    fn the_filters_level_is_known_before_an_event_is_formed() {
        let config = LogConfig { format: LogFormat::Plain, filter: "info,access=debug".into() };
        let (subscriber, _log) = build(&config, Lines::to(Written::default()).unwrap()).unwrap();
        let hint = tracing::Subscriber::max_level_hint(&subscriber);
        assert_eq!(hint, Some(tracing::level_filters::LevelFilter::DEBUG));
    }

    #[test]
    fn a_plain_line_has_time_level_target_message_and_quoted_strings() {
        let lines = logged(LogFormat::Plain, "info", |_| {
            tracing::info!(target: "access", { src.addr = %"10.0.0.1:1", name = "web", bytes = 3, gone = None::<u8> }, "done");
        });
        let (time, rest) = lines[0].split_once('\t').unwrap();
        assert_eq!(rest, "info\taccess\tdone\tsrc.addr=10.0.0.1:1 name=\"web\" bytes=3");
        assert_eq!(time.len(), "2026-08-20T10:00:00.000000Z".len());
        assert!(
            time::OffsetDateTime::parse(time, &time::format_description::well_known::Rfc3339)
                .is_ok()
        );
    }

    #[test]
    fn a_json_line_is_one_object_with_fields_in_order() {
        let lines = logged(LogFormat::Json, "info", |_| {
            tracing::warn!(target: "access", name = "a\"b", bytes = 3, ok = true, "done\nnow");
        });
        let value: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(value["message"], "done\nnow");
        assert!(lines[0].starts_with(r#"{"level":"warn","time":""#), "{}", lines[0]);
        let rest = r#""scope":"access","message":"done\nnow","name":"a\"b","bytes":3,"ok":true}"#;
        assert!(lines[0].ends_with(rest), "{}", lines[0]);
    }

    #[test]
    fn a_line_break_in_a_value_does_not_break_the_line() {
        let lines = logged(LogFormat::Plain, "info", |_| tracing::info!(name = "a\nb", "done"));
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn directives_are_added_and_reset_while_it_runs() {
        let lines = logged(LogFormat::Plain, "warn", |log| {
            tracing::info!("hidden");
            log.add("info").unwrap();
            tracing::info!("shown");
            assert!(log.add("a=b=c").is_err());
            tracing::info!("still shown");
            log.reset().unwrap();
            tracing::info!("hidden again");
            assert_eq!(log.current(), "warn");
        });
        let messages: Vec<&str> =
            lines.iter().map(|line| line.split('\t').nth(3).unwrap()).collect();
        assert_eq!(messages, ["shown", "still shown"]);
    }
}
