//! What keys and labels of snapshots may be: what containerd takes, and not more, since all of it is kept.

use super::model::Labels;
use crate::error::{Error, Result};

/// Bytes of a snapshot's key.
const KEY_MAX: usize = 4096;
/// Bytes of a label's name and value together, as in containerd's `pkg/labels/validate.go`.
const LABEL_MAX: usize = 4096;
/// Labels of a snapshot.
const LABELS_MAX: usize = 1024;
/// How much of a long name an error shows, bytes.
const SHOWN: usize = 64;

/// Refuses a key or name that a new snapshot cannot have.
pub(super) fn check_key(key: &str) -> Result<()> {
    let wrong = |what: &str| Error::invalid(what).subject(format!("snapshot {}", start_of(key)));
    if key.is_empty() {
        return Err(Error::invalid("a snapshot's key is empty"));
    }
    if key.len() > KEY_MAX {
        let e = wrong("a snapshot's key is too long");
        return Err(e.expected(format!("at most {KEY_MAX} bytes")).actual(format!("{} bytes", key.len())));
    }
    if key.contains('\0') {
        return Err(wrong("a snapshot's key has a NUL byte"));
    }
    Ok(())
}

/// Refuses labels that a snapshot cannot have.
pub(super) fn check_labels(labels: &Labels) -> Result<()> {
    for (name, value) in labels {
        let len = name.len() + value.len();
        if len > LABEL_MAX {
            let e =
                Error::invalid("a label's name and value are too long").subject(format!("label {}", start_of(name)));
            return Err(e.expected(format!("at most {LABEL_MAX} bytes")).actual(format!("{len} bytes")));
        }
        if name.is_empty() || name.contains('\0') || value.contains('\0') {
            let e = Error::invalid("a label has no name, or a NUL byte");
            return Err(e.subject(format!("label {}", start_of(name))));
        }
    }
    if labels.len() > LABELS_MAX {
        let e = Error::invalid("a snapshot has too many labels");
        return Err(e.expected(format!("at most {LABELS_MAX}")).actual(labels.len()));
    }
    Ok(())
}

fn start_of(name: &str) -> &str {
    let end = (0..=SHOWN.min(name.len())).rev().find(|&end| name.is_char_boundary(end));
    &name[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn refused(done: Result<()>) -> bool {
        done.is_err_and(|e| e.kind() == ErrorKind::InvalidInput)
    }

    #[test]
    fn keys_are_as_long_as_containerds() {
        assert!(check_key(&"k".repeat(KEY_MAX)).is_ok());
        for key in ["", "a\0b", &"k".repeat(KEY_MAX + 1), &"ä".repeat(KEY_MAX)] {
            assert!(refused(check_key(key)), "{}", key.len());
        }
    }

    #[test]
    fn labels_are_as_long_as_containerds() {
        let label = |name: &str, len: usize| Labels::from([(name.to_owned(), "v".repeat(len))]);
        assert!(check_labels(&label("name", LABEL_MAX - 4)).is_ok());
        for labels in [label("name", LABEL_MAX - 3), label("name", 4 << 20), label("", 1), label("a\0", 1)] {
            assert!(refused(check_labels(&labels)));
        }
        let many = |n: usize| (0..n).map(|n| (n.to_string(), String::new())).collect::<Labels>();
        assert!(check_labels(&many(LABELS_MAX)).is_ok());
        assert!(refused(check_labels(&many(LABELS_MAX + 1))));
    }
}
