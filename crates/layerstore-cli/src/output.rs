//! Standard output: a writer that notices when its reader leaves, sizes, tables, times.
//!
//! Sizes are in powers of 1000 (kB, MB) everywhere, progress bars included.

use crate::errors::Failure;
use crate::interrupt;
use crate::names::escape;
use layerstore::{Error, is_unprintable, printable};
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

    /// One line. Whatever it is made of, nothing in it controls a terminal; line feeds at its beginning are empty lines.
    pub(crate) fn line(&self, line: impl Display) -> Result<(), Failure> {
        let text = line.to_string();
        let rest = text.trim_start_matches('\n');
        let empty = &text[..text.len() - rest.len()];
        Ok(writeln!(self.lock(), "{empty}{}", printable(rest))?)
    }

    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = try_json(value).map_err(|e| Error::io("write JSON", e))?;
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

/// JSON in which nothing controls a terminal: serde_json escapes the control characters that RFC 8259 wants escaped, and
/// leaves DEL, U+0080 to U+009F and what reorders or hides text.
struct Printable;

impl serde_json::ser::Formatter for Printable {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_unprintable(*c)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

fn try_json(value: &impl Serialize) -> io::Result<String> {
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Printable))?;
    String::from_utf8(out).map_err(io::Error::other)
}

/// Formats a JSON value in one line, with everything escaped that a terminal would act on.
pub(crate) fn to_json(value: &serde_json::Value) -> String {
    try_json(value).unwrap_or_default()
}

/// Bytes from outside for standard output: as they are, or on a terminal with escapes for what would control it. Lines
/// stay lines.
pub(crate) struct Shown<W> {
    out: W,
    escaped: bool,
    /// The beginning of a character whose end is still to come.
    pending: Vec<u8>,
}

impl<W: Write> Shown<W> {
    pub(crate) fn new(out: W, escaped: bool) -> Self {
        Self { out, escaped, pending: Vec::new() }
    }

    /// Writes what was held back; without it an incomplete character at the end is lost.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(escape(&self.pending).as_bytes())
    }

    fn write_text(&mut self, bytes: &[u8]) -> io::Result<()> {
        for (number, line) in bytes.split(|&b| b == b'\n').enumerate() {
            if number > 0 {
                self.out.write_all(b"\n")?;
            }
            for (number, part) in line.split(|&b| b == b'\t').enumerate() {
                if number > 0 {
                    self.out.write_all(b"\t")?;
                }
                // The backslashes of what is no name mean nothing.
                self.out.write_all(escape(part).replace("\\\\", "\\").as_bytes())?;
            }
        }
        Ok(())
    }
}

impl<W: Write> Write for Shown<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.escaped {
            return self.out.write(bytes);
        }
        let mut text = std::mem::take(&mut self.pending);
        text.extend_from_slice(bytes);
        // A character of up to four bytes may be cut in two.
        let incomplete = |at: &usize| std::str::from_utf8(&text[*at..]).is_err_and(|e| e.error_len().is_none());
        let cut = (text.len().saturating_sub(3)..text.len()).find(|at| text[*at] >= 0xc0 && incomplete(at));
        self.pending = text.split_off(cut.unwrap_or(text.len()));
        self.write_text(&text)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
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
    fn json_and_bytes_for_a_terminal_control_nothing() {
        let hostile = "a\u{1b}\u{7f}\u{9b}\u{202e}\u{e0001}\\\"\u{e9}";
        let json = to_json(&serde_json::json!({ hostile: hostile }));
        assert!(!json.chars().any(is_unprintable), "{json:?}");
        let back: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(back[hostile], hostile);

        let show = |escaped: bool, parts: &[&[u8]]| {
            let mut out = Vec::new();
            let mut shown = Shown::new(&mut out, escaped);
            parts.iter().for_each(|part| shown.write_all(part).expect("memory"));
            shown.finish().expect("memory");
            String::from_utf8_lossy(&out).into_owned()
        };
        assert_eq!(
            show(true, &[b"a\t\\b\n\x1b[0m\xff", b"\xc3", b"\xa9\xc2", b"\x9b\xe2\x80"]),
            "a\t\\b\n\\u{1b}[0m\\xff\u{e9}\\u{9b}\\xe2\\x80"
        );
        assert_eq!(show(false, &[b"\x1b", b"[0m"]), "\u{1b}[0m");
    }

    #[test]
    fn times_have_minutes() {
        assert_eq!((time(0), time(1_700_000_000)), ("1970-01-01 00:00".into(), "2023-11-14 22:13".into()));
    }
}
