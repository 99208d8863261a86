//! Standard output: a writer that notices when its reader leaves, sizes, tables, times.
//!
//! Sizes are in powers of 1000 (kB, MB) everywhere, progress bars included.

use crate::errors::Failure;
use crate::interrupt;
use layerstore::Error;
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Buffered standard output.
pub(crate) struct Out {
    stdout: Mutex<BufWriter<Watched>>,
    terminal: bool,
}

struct Watched(Stdout);

static READER_LEFT: AtomicBool = AtomicBool::new(false);

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        interrupt::check()?;
        self.0.write(bytes).inspect_err(note)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().inspect_err(note)
    }
}

fn note(error: &io::Error) {
    if error.kind() == io::ErrorKind::BrokenPipe {
        READER_LEFT.store(true, Ordering::Relaxed);
    }
}

impl Out {
    pub(crate) fn stdout() -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self { stdout: Mutex::new(BufWriter::with_capacity(64 << 10, Watched(stdout))), terminal }
    }

    /// The writer, for bytes as they are.
    pub(crate) fn lock(&self) -> MutexGuard<'_, impl Write + use<>> {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    pub(crate) fn line(&self, line: impl Display) -> Result<(), Failure> {
        Ok(writeln!(self.lock(), "{line}")?)
    }

    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|e| Error::io("write JSON", io::Error::from(e)))?;
        self.line(text)
    }

    pub(crate) fn flush(&self) -> Result<(), Failure> {
        Ok(self.lock().flush()?)
    }

    /// Whether the program at the other end of a pipe has closed it.
    pub(crate) fn reader_left(&self) -> bool {
        READER_LEFT.load(Ordering::Relaxed)
    }
}

/// `1.5 GB`: three digits that matter.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        // 999.5 would round to 1000 of this unit.
        let digits = if unit == "B" || value >= 99.95 {
            0
        } else if value >= 9.995 {
            1
        } else {
            2
        };
        if value < 999.5 || unit == "TB" {
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    unreachable!("the last unit takes all")
}

pub(crate) fn seconds(duration: std::time::Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// Columns padded to the widest cell; those whose title starts with `>` are flush right.
pub(crate) struct Table {
    titles: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        Self { titles: titles.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.titles.len());
        self.rows.push(cells.to_vec());
    }

    pub(crate) fn print(&self, out: &Out, indent: &str) -> Result<(), Failure> {
        let titles: Vec<String> = self.titles.iter().map(|t| t.trim_start_matches('>').to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&titles).chain(&self.rows).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..titles.len()).map(width).collect();
        for line in &lines {
            let mut text = String::from(indent);
            for ((cell, width), title) in line.iter().zip(&widths).zip(&self.titles) {
                let cell = if title.starts_with('>') { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                text += &cell;
                text += "  ";
            }
            out.line(text.trim_end())?;
        }
        Ok(())
    }
}

/// `2026-01-31 23:59` in UTC.
pub(crate) fn time(secs: i64) -> String {
    let text = layerstore::Time { secs, nanos: 0 }.to_rfc3339().replace('T', " ");
    // Without the seconds.
    text[..text.len() - ":00Z".len()].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_999, "10.0 kB"),
            (99_960, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (1_234_567_890, "1.23 GB"),
            (5_000_000_000_000_000, "5000 TB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_have_minutes() {
        assert_eq!((time(0), time(1_700_000_000)), ("1970-01-01 00:00".into(), "2023-11-14 22:13".into()));
    }
}
