//! Short texts from outside: digests, platforms, filters of containerd's clients, and the `STORE` file.

use crate::digest::Digest;
use crate::format::entry::Time;
use crate::format::params;
use crate::image::platform::Platform;
use crate::snapshot::{SnapshotFilter, SnapshotInfo, SnapshotKind};

/// The first byte says which text the rest is. Whatever it is: no panic, and what is read is written as it was read.
pub fn texts(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    match kind % 5 {
        0 => {
            if let Ok(digest) = text.parse::<Digest>() {
                assert_eq!(digest.to_string(), text);
            }
        }
        1 => {
            if let Ok(platform) = text.parse::<Platform>() {
                assert_eq!(platform.to_string().parse::<Platform>().expect("a platform that was read"), platform);
            }
        }
        2 => {
            if let Ok(chunking) = params::decode(&text) {
                assert_eq!(params::encode(&chunking), text);
            }
        }
        // It tries every byte: short texts only.
        3 if rest.len() <= 512 => drop(params::mend(rest)),
        3 => {}
        _ => {
            if let Ok(filter) = SnapshotFilter::parse(text.split('\0')) {
                filter.matches(&snapshot());
            }
        }
    }
}

fn snapshot() -> SnapshotInfo {
    SnapshotInfo {
        key: "key".into(),
        parent: Some("parent".into()),
        kind: SnapshotKind::Committed,
        labels: [("a.b".to_owned(), "value".to_owned())].into(),
        created: Time::default(),
        updated: Time::default(),
    }
}
