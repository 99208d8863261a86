//! Bars on a terminal for the library's events: one per layer while importing, one in all while exporting; and lines for
//! what was left out.

use crate::interrupt;
use crate::names::escape;
use crate::output::to_json;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use layerstore::{Event, Observer};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

const KNOWN_SIZE: &str =
    "{prefix:10} [{bar:30}] {decimal_bytes:>9} of {decimal_total_bytes:<9} {decimal_bytes_per_sec:>11}  {eta} left";
const UNKNOWN_SIZE: &str = "{prefix:10} {spinner} {decimal_bytes:>9} {decimal_bytes_per_sec:>11}";

/// An [`Observer`] that draws, or not, and stops work after Ctrl-C.
pub(crate) struct Progress {
    bars: Option<Bars>,
    total: Option<u64>,
    reports: Reports,
}

/// How what was left out is told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reports {
    None,
    Text,
    Json,
}

impl Reports {
    fn skipped(self, path: &[u8], reason: &str) -> Option<String> {
        match self {
            Self::None => None,
            Self::Text => Some(format!("left out {}: {}", escape(path), escape(reason.as_bytes()))),
            Self::Json => {
                let json = serde_json::json!({ "left_out": String::from_utf8_lossy(path), "reason": reason });
                Some(to_json(&json))
            }
        }
    }

    /// Work that ended left something behind, which the next opening of the store tries to remove again.
    pub(crate) fn leftover(self, why: &layerstore::Error) -> Option<String> {
        match self {
            Self::None => None,
            Self::Text => Some(format!("left behind, to be removed later: {why}")),
            Self::Json => Some(to_json(&serde_json::json!({ "left_behind": why.to_string() }))),
        }
    }
}

struct Bars {
    all: MultiProgress,
    /// By layer number; exports have one for all.
    each: Mutex<HashMap<usize, ProgressBar>>,
}

impl Progress {
    /// `total` is the number of bytes to come, where the library does not know it.
    pub(crate) fn new(draw: bool, total: Option<u64>, reports: Reports) -> Self {
        let bars = || Bars {
            all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)),
            each: Mutex::default(),
        };
        Self { bars: draw.then(bars), total, reports }
    }

    /// Takes the bars off the terminal, so that the report has it to itself.
    pub(crate) fn clear(&self) {
        if let Some(bars) = &self.bars {
            // A terminal that cannot be cleared has gone away.
            let _ = bars.all.clear();
        }
    }
}

impl Bars {
    fn add(&self, number: usize, name: String, total: Option<u64>) -> ProgressBar {
        let template = if total.is_some() { KNOWN_SIZE } else { UNKNOWN_SIZE };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let bar = self.all.add(bar.with_style(style.progress_chars("=> ")).with_prefix(name));
        self.each.lock().unwrap_or_else(PoisonError::into_inner).insert(number, bar.clone());
        bar
    }

    fn get(&self, number: usize) -> Option<ProgressBar> {
        self.each.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }
}

impl Observer for Progress {
    fn event(&self, event: Event) {
        let Some(bars) = &self.bars else { return };
        match event {
            Event::LayerStarted { layer, total } => {
                bars.add(layer, format!("layer {}", layer + 1), total.or(self.total));
            }
            Event::LayerProgress { layer, bytes } => bars.get(layer).iter().for_each(|bar| bar.inc(bytes)),
            // Finished bars go: what is still at work deserves the lines, and the report names every layer.
            Event::LayerFinished { layer, .. } => bars.get(layer).iter().for_each(ProgressBar::finish_and_clear),
            Event::Exported { bytes } => {
                bars.get(0).unwrap_or_else(|| bars.add(0, "export".into(), self.total)).inc(bytes);
            }
            _ => {}
        }
    }

    fn skipped(&self, path: &[u8], reason: &str) {
        let Some(line) = self.reports.skipped(path, reason) else { return };
        match &self.bars {
            Some(bars) => bars.all.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    fn cancelled(&self) -> bool {
        interrupt::requested()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
