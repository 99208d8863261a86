//! Counters, and their text for Prometheus.
//!
//! Format: Prometheus "text-based exposition format", version 0.0.4.

use layerstore::Store;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tonic::Code;

/// What the daemon has done since it started.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    calls: Mutex<BTreeMap<(&'static str, i32), Calls>>,
    pub(crate) layers_imported: AtomicU64,
    pub(crate) layers_known: AtomicU64,
    pub(crate) blob_bytes: AtomicU64,
    pub(crate) absorbed: AtomicU64,
    pub(crate) directories_removed: AtomicU64,
    pub(crate) background_failures: AtomicU64,
    /// Committed snapshots that cannot become layers, now.
    pub(crate) not_absorbed: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    count: u64,
    time: Duration,
}

impl Metrics {
    /// A call of `method` is over.
    pub(crate) fn called(&self, method: &'static str, code: Code, time: Duration) {
        let mut calls = self.calls.lock().unwrap_or_else(|e| e.into_inner());
        let entry = calls.entry((method, code as i32)).or_default();
        entry.count += 1;
        entry.time += time;
    }

    /// All of it as text, with what the store takes.
    pub(crate) fn text(&self, store: &Store) -> String {
        let mut out = String::new();
        let calls = self.calls.lock().unwrap_or_else(|e| e.into_inner()).clone();
        head(&mut out, "layerstore_calls_total", "counter", "Calls answered, by method and gRPC code.");
        for ((method, code), Calls { count, .. }) in &calls {
            let _ = writeln!(out, "layerstore_calls_total{{method=\"{method}\",code=\"{code}\"}} {count}");
        }
        head(&mut out, "layerstore_call_seconds_total", "counter", "Time spent in calls.");
        for ((method, code), Calls { time, .. }) in &calls {
            let time = time.as_secs_f64();
            let _ = writeln!(out, "layerstore_call_seconds_total{{method=\"{method}\",code=\"{code}\"}} {time}");
        }
        let counters = [
            ("layers_imported_total", &self.layers_imported, "Layers read from blobs and stored."),
            ("layers_known_total", &self.layers_known, "Layers that were here already, so that nothing was read."),
            ("blob_bytes_total", &self.blob_bytes, "Bytes of layer blobs read."),
            ("snapshots_absorbed_total", &self.absorbed, "Directories of committed snapshots made into layers."),
            ("directories_removed_total", &self.directories_removed, "Directories of snapshots that were removed."),
            ("background_failures_total", &self.background_failures, "Background work that failed; see the log."),
        ];
        for (name, value, help) in counters {
            let name = format!("layerstore_{name}");
            head(&mut out, &name, "counter", help);
            let _ = writeln!(out, "{name} {}", value.load(Relaxed));
        }
        let failed = self.not_absorbed.load(Relaxed);
        gauge(&mut out, "snapshots_not_absorbed", failed, "Committed snapshots that could not be made into layers.");
        if let Ok(usage) = store.content_usage() {
            let gauges = [
                ("store_layers", usage.layers, "Layers in the store."),
                ("store_chunks", usage.chunks, "Distinct chunks in the store."),
                ("store_content_bytes", usage.raw, "Distinct content in the store, before compression."),
                ("store_disk_bytes", usage.total(), "Disk taken by packs, records, blobs and the database."),
            ];
            for (name, value, help) in gauges {
                gauge(&mut out, name, value, help);
            }
        }
        out
    }
}

fn gauge(out: &mut String, name: &str, value: u64, help: &str) {
    let name = format!("layerstore_{name}");
    head(out, &name, "gauge", help);
    let _ = writeln!(out, "{name} {value}");
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_calls_and_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("s")).unwrap();
        let metrics = Metrics::default();
        metrics.called("Prepare", Code::Ok, Duration::from_millis(250));
        metrics.called("Prepare", Code::Ok, Duration::from_millis(250));
        let text = metrics.text(&store);
        assert!(text.contains("layerstore_calls_total{method=\"Prepare\",code=\"0\"} 2\n"), "{text}");
        assert!(text.contains("layerstore_call_seconds_total{method=\"Prepare\",code=\"0\"} 0.5\n"), "{text}");
        assert!(text.contains("\nlayerstore_store_layers 0\n"), "{text}");
        // Every sample has its type before it.
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(text.contains(&format!("# TYPE {name} ")), "{line}");
        }
    }
}
