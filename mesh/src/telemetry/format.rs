//! How a log line reads: plain, tab-separated text, or one JSON object.
//!
//! In: a `tracing` event. Out: one line. The mesh opens no spans, so a line shows none.

use std::fmt::{self, Write as _};

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

fn plain(to: &mut Writer<'_>, event: &Event<'_>) -> fmt::Result {
    let mut line = PlainFields::default();
    event.record(&mut line);
    let (level, target) = (level(event), event.metadata().target());
    write!(to, "{}\t{level}\t{target}\t{}", Now, line.message)?;
    if !line.fields.is_empty() {
        write!(to, "\t{}", line.fields)?;
    }
    writeln!(to)
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

impl fmt::Display for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = OffsetDateTime::now_utc();
        let (year, month, day) = (now.year(), u8::from(now.month()), now.day());
        let (hour, minute, second, micros) =
            (now.hour(), now.minute(), now.second(), now.microsecond());
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
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
        let _ = write!(self.fields, "{}={value:?}", field.name());
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
