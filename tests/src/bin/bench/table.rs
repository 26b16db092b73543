//! Prints rows for people.
//!
//! In: rows of one congestion control. Out: a table: a line for each load and path, with ratios to direct and to the relay.

use std::fmt::Write as _;

use crate::sample::Row;

/// The table.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<31} {:<15} {:>10} {:<6} {:>9} {:>8} {:>9} {:>9} {:>11}  {}\n",
        "load", "path", "value", "", "of direct", "of relay", "p50 µs", "p99 µs", "proxies", "runs"
    );
    for row in rows {
        let reference = |path: &str| {
            let of =
                rows.iter().find(|other| other.load == row.load && other.path == path)?.value?;
            Some(format!("{:.2}", row.value? / of))
        };
        let proxies =
            row.cpu.map(|cpu| format!("{cpu:.2} {}", row.cpu_unit.as_deref().unwrap_or_default()));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<31} {:<15} {:>10} {:<6} {:>9} {:>8} {:>9} {:>9} {:>11}  {}",
            row.load,
            row.path,
            row.value.map_or_else(|| "dropped".to_owned(), |value| format!("{value:.1}")),
            row.unit,
            reference("direct").unwrap_or_default(),
            reference("relay").unwrap_or_default(),
            micros(row.p50_us),
            micros(row.p99_us),
            proxies.unwrap_or_default(),
            runs(row),
        );
    }
    text
}

fn micros(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.0}"))
}

/// How much the value rests on, and what spoiled the rest.
fn runs(row: &Row) -> String {
    let mut text = row.runs.to_string();
    if let Some(foreign) = row.foreign_cores {
        let _ = write!(text, " ({} dropped: others used up to {foreign:.1} cores)", row.disturbed);
    }
    if row.errors > 0 {
        let _ = write!(text, " ({} errors)", row.errors);
    }
    if let Some(note) = &row.note {
        let _ = write!(text, " {note}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_beside_their_ratios_and_dropped_rows_say_why() {
        let row = |path: &str, value, foreign_cores| Row {
            path: path.to_owned(),
            load: "rr1".to_owned(),
            value,
            unit: "op/s".to_owned(),
            foreign_cores,
            disturbed: usize::from(foreign_cores.is_some()),
            ..Row::default()
        };
        let table = render(&[
            row("direct", Some(200.0), None),
            row("relay", Some(80.0), None),
            row("mesh", Some(60.0), None),
            row("peer", None, Some(1.5)),
        ]);
        let words: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[3], ["rr1", "mesh", "60.0", "op/s", "0.30", "0.75", "0"]);
        assert!(table.ends_with("0 (1 dropped: others used up to 1.5 cores)\n"), "{table}");
    }
}
