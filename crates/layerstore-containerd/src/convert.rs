//! The library's types in containerd's protocol.
//!
//! Error codes are those of containerd's errdefs (`errgrpc/grpc.go`), so that its client sees its own errors.

use crate::proto::{snapshots as api, types};
use layerstore::{Error, ErrorKind, Labels, Mount, SnapshotInfo, SnapshotKind, Time};
use prost_types::Timestamp;
use std::collections::HashMap;
use tonic::{Code, Status};

pub(crate) fn status(error: &Error) -> Status {
    let code = match error.kind() {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::InvalidInput => Code::InvalidArgument,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Busy => Code::Unavailable,
        ErrorKind::LimitExceeded => Code::ResourceExhausted,
        ErrorKind::Cancelled => Code::Cancelled,
        _ => Code::Unknown,
    };
    // The cause of an I/O error, "No space left on device", is what people look for.
    let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    // containerd prints it, and clients do on terminals: what others said of the cause is escaped, too.
    Status::new(code, shortened(&layerstore::printable(&format!("{error}{cause}")), STATUS_MAX))
}

/// A status travels in headers, of which clients take 8 KiB and more.
const STATUS_MAX: usize = 4096;

/// The beginning of a text, in at most `most` bytes and the dots that say so.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    format!("{}...", &text[..end])
}

/// An empty key, name or parent is none.
pub(crate) fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

pub(crate) fn labels(labels: HashMap<String, String>) -> Labels {
    labels.into_iter().collect()
}

pub(crate) fn mounts_out(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let mount = |m: Mount| types::Mount { r#type: m.kind, source: m.source, target: m.target, options: m.options };
    mounts.into_iter().map(mount).collect()
}

pub(crate) fn mounts_in(mounts: Vec<types::Mount>) -> Vec<Mount> {
    let mount = |m: types::Mount| Mount { kind: m.r#type, source: m.source, target: m.target, options: m.options };
    mounts.into_iter().map(mount).collect()
}

fn time(time: Time) -> Timestamp {
    Timestamp { seconds: time.secs, nanos: i32::try_from(time.nanos).unwrap_or_default() }
}

pub(crate) fn info(info: SnapshotInfo) -> api::Info {
    let kind = match info.kind {
        SnapshotKind::View => api::Kind::View,
        SnapshotKind::Active => api::Kind::Active,
        SnapshotKind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: info.key,
        parent: info.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(time(info.created)),
        updated_at: Some(time(info.updated)),
        labels: info.labels.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_containerds_codes() {
        let code = |kind| status(&Error::new(kind, "x")).code();
        assert_eq!(code(ErrorKind::NotFound), Code::NotFound);
        assert_eq!(code(ErrorKind::AlreadyExists), Code::AlreadyExists);
        assert_eq!(code(ErrorKind::InvalidInput), Code::InvalidArgument);
        assert_eq!(code(ErrorKind::FailedPrecondition), Code::FailedPrecondition);
        assert_eq!(code(ErrorKind::Unsupported), Code::Unimplemented);
        let full = std::io::Error::from_raw_os_error(28);
        assert!(status(&Error::io("write", full)).message().contains("No space left"));
    }

    #[test]
    fn times_keep_their_nanoseconds() {
        assert_eq!(time(Time { secs: 7, nanos: 999_999_999 }), Timestamp { seconds: 7, nanos: 999_999_999 });
    }
}
