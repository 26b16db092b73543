//! How a log line reads: plain, tab-separated text, or one JSON object.
//!
//! In: a `tracing` event. Out: one line. The mesh opens no spans, so a line shows none.

use std::{
    cell::{Cell, RefCell},
    fmt::{self, Write as _},
};

use serde_json::Value;
use time::OffsetDateTime;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// The two forms of a log line.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// `time <tab> level <tab> target <tab> message <tab> key=value ...`; strings are quoted.
    #[default]
    Plain,
    /// `{"level","time","scope","message", ...fields}`.
    Json,
}

impl<S, N> FormatEvent<S, N> for LogFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self {
            Self::Plain => plain(&mut to, event),
            Self::Json => json(&mut to, event),
        }
    }
}

thread_local! {
    /// What plain lines are put together in: a line of the access log grows past several sizes of a fresh string.
    static PLAIN: RefCell<PlainFields> = RefCell::default();
    /// The second that was written last, and its text.
    static SECOND: Cell<(i64, [u8; SECOND_BYTES])> = const { Cell::new((i64::MIN, [0; SECOND_BYTES])) };
}

fn plain(to: &mut Writer<'_>, event: &Event<'_>) -> fmt::Result {
    // An event that a field's own `Debug` tells of, or of a thread that is ending, has strings of its own.
    let kept =
        PLAIN.try_with(|kept| kept.try_borrow_mut().map(|mut kept| std::mem::take(&mut *kept)));
    let mut line = kept.ok().and_then(Result::ok).unwrap_or_default();
    line.message.clear();
    line.fields.clear();
    event.record(&mut line);
    let written = write_plain(to, event, &line);
    let _ = PLAIN.try_with(|kept| kept.try_borrow_mut().map(|mut kept| *kept = line));
    written
}

fn write_plain(to: &mut Writer<'_>, event: &Event<'_>, line: &PlainFields) -> fmt::Result {
    write!(to, "{Now}")?;
    for part in ["\t", level(event), "\t", event.metadata().target(), "\t", &line.message] {
        to.write_str(part)?;
    }
    if !line.fields.is_empty() {
        to.write_str("\t")?;
        to.write_str(&line.fields)?;
    }
    to.write_str("\n")
}

fn json(to: &mut Writer<'_>, event: &Event<'_>) -> fmt::Result {
    let mut line = JsonFields::default();
    event.record(&mut line);
    write!(to, r#"{{"level":"{}","time":"{}","scope":"#, level(event), Now)?;
    write!(to, "{}", Value::from(event.metadata().target()))?;
    if let Some(message) = line.message {
        write!(to, r#","message":{}"#, Value::from(message))?;
    }
    for (name, value) in line.fields {
        write!(to, ",{}:{value}", Value::from(name))?;
    }
    writeln!(to, "}}")
}

fn level(event: &Event<'_>) -> &'static str {
    match *event.metadata().level() {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// The present moment in UTC, RFC 3339 with microseconds.
struct Now;

/// `2026-08-20T10:00:00`
const SECOND_BYTES: usize = 19;

impl fmt::Display for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = OffsetDateTime::now_utc();
        let (second, micros) = (now.unix_timestamp(), now.microsecond());
        let kept = SECOND.try_with(Cell::get).ok().filter(|(kept, _)| *kept == second);
        let text = match kept {
            Some((_, text)) => text,
            None => {
                let text = second_text(now);
                let _ = SECOND.try_with(|kept| kept.set((second, text)));
                text
            }
        };
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)?;
        write!(f, ".{micros:06}Z")
    }
}

fn second_text(now: OffsetDateTime) -> [u8; SECOND_BYTES] {
    let (year, month, day) = (now.year(), u8::from(now.month()), now.day());
    let (hour, minute, second) = (now.hour(), now.minute(), now.second());
    let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    text.as_bytes().try_into().unwrap_or([b'?'; SECOND_BYTES])
}

/// The message apart, and the other fields as `key=value`.
#[derive(Default)]
struct PlainFields {
    message: String,
    fields: String,
}

impl Visit for PlainFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a `String` cannot fail.
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
            return;
        }
        if !self.fields.is_empty() {
            self.fields.push(' ');
        }
        self.fields.push_str(field.name());
        self.fields.push('=');
        let _ = write!(self.fields, "{value:?}");
    }
}

/// The message apart, and the other fields in order.
#[derive(Default)]
struct JsonFields {
    message: Option<String>,
    fields: Vec<(&'static str, Value)>,
}

impl JsonFields {
    fn push(&mut self, field: &Field, value: Value) {
        self.fields.push((field.name(), value));
    }
}

impl Visit for JsonFields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = Some(text);
        } else {
            self.push(field, text.into());
        }
    }
}
