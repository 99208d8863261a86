//! The one error type of the library.
//!
//! Callers decide by [`Error::kind`]; people read the rest. An error names its subject (which layer, entry, file),
//! says what was expected and what was found where both are known, and keeps its cause as `source()`.

use std::fmt;

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kinds of failure a caller can act on. They map one to one onto containerd's `errdefs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// What was asked for is not in the store.
    NotFound,
    /// The name or key is taken.
    AlreadyExists,
    /// The input is malformed, ambiguous or hostile; the same bytes will never be accepted.
    InvalidInput,
    /// The store is not in a state that allows this.
    FailedPrecondition,
    /// Well-formed input that this version, kernel or filesystem cannot serve.
    Unsupported,
    /// Bytes of the store do not match their digest or structure; see `fsck`.
    Corrupt,
    /// Somebody else holds what is needed; trying later may succeed.
    Busy,
    /// A configured limit (see [`crate::Limits`]) was exceeded.
    LimitExceeded,
    /// The caller's observer asked to stop.
    Cancelled,
    /// The operating system failed; `source()` holds its error.
    Io,
}

impl ErrorKind {
    /// The kind as one stable lower-case word, for logs and machine-readable output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::InvalidInput => "invalid-input",
            Self::FailedPrecondition => "failed-precondition",
            Self::Unsupported => "unsupported",
            Self::Corrupt => "corrupt",
            Self::Busy => "busy",
            Self::LimitExceeded => "limit-exceeded",
            Self::Cancelled => "cancelled",
            Self::Io => "io",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an operation failed: one word wide, opaque, matched by [`kind`](Error::kind).
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    /// Outermost first: each layer of the library may prepend what it was working on.
    subjects: Vec<String>,
    expected: Option<String>,
    actual: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` whose message says what is wrong, without naming the subject.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            subjects: Vec::new(),
            expected: None,
            actual: None,
            source: None,
        }))
    }

    /// [`ErrorKind::InvalidInput`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// [`ErrorKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// [`ErrorKind::LimitExceeded`], with the limit as `expected` and the value as `actual`: it must be beyond the limit.
    /// One that was cut to the limit says nothing and is left out.
    pub fn limit(message: impl Into<String>, limit: impl fmt::Display, value: impl fmt::Display) -> Self {
        let (limit, value) = (limit.to_string(), value.to_string());
        let error = Self::new(ErrorKind::LimitExceeded, message).expected(format!("at most {limit}"));
        if value == limit { error } else { error.actual(value) }
    }

    /// [`ErrorKind::Io`] with the operation that failed; the OS error becomes `source()`.
    pub fn io(operation: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::new(ErrorKind::Io, operation).source(source.into())
    }

    /// Names what was being worked on. Called again further out, the outer subject comes first.
    #[must_use]
    pub fn subject(mut self, subject: impl fmt::Display) -> Self {
        self.0.subjects.insert(0, escape(&subject.to_string()));
        self
    }

    /// What should have been there.
    #[must_use]
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = Some(escape(&expected.to_string()));
        self
    }

    /// What was there.
    #[must_use]
    pub fn actual(mut self, actual: impl fmt::Display) -> Self {
        self.0.actual = Some(escape(&actual.to_string()));
        self
    }

    /// Attaches the cause.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The kind to act on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was being worked on, outermost first (for example the layer, then the entry).
    pub fn subjects(&self) -> &[String] {
        &self.0.subjects
    }

    /// What went wrong, without the subject.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What should have been there, and what was, where known.
    pub fn mismatch(&self) -> (Option<&str>, Option<&str>) {
        (self.0.expected.as_deref(), self.0.actual.as_deref())
    }

    /// The OS error behind this one, where there is one.
    pub fn io_error(&self) -> Option<&std::io::Error> {
        self.0.source.as_deref().and_then(|e| e.downcast_ref())
    }
}

/// Control characters from untrusted names must not reach a terminal.
fn escape(text: &str) -> String {
    if text.chars().any(char::is_control) { text.escape_debug().to_string() } else { text.to_owned() }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for subject in &self.0.subjects {
            write!(f, "{subject}: ")?;
        }
        f.write_str(&self.0.message)?;
        match (&self.0.expected, &self.0.actual) {
            (Some(e), Some(a)) => write!(f, " (expected {e}, found {a})"),
            (Some(e), None) => write!(f, " (expected {e})"),
            (None, Some(a)) => write!(f, " (found {a})"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &format_args!("{self}"))
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

/// Lets `?` carry a library error through `std::io` traits and back.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::NotFound => std::io::ErrorKind::NotFound,
            ErrorKind::AlreadyExists => std::io::ErrorKind::AlreadyExists,
            ErrorKind::InvalidInput | ErrorKind::Corrupt => std::io::ErrorKind::InvalidData,
            ErrorKind::Unsupported => std::io::ErrorKind::Unsupported,
            _ => std::io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl Error {
    /// Unwraps an `io::Error` that carries a library error; any other becomes [`ErrorKind::Io`] with `operation`.
    pub fn from_io(operation: &str, error: std::io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(inner) => inner,
            Err(error) => Self::io(operation, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_subjects_outermost_first_and_escapes_names() {
        let e = Error::invalid("path leaves the root")
            .subject("entry \"a\x1b\"")
            .subject("layer 1")
            .expected("no '..'")
            .actual("..");
        let escaped = "layer 1: entry \\\"a\\u{1b}\\\": path leaves the root (expected no '..', found ..)";
        assert_eq!(e.to_string(), escaped);
        assert_eq!(std::mem::size_of::<Error>(), std::mem::size_of::<usize>());
    }

    #[test]
    fn no_limit_is_exceeded_by_itself() {
        let text = |value: u64| Error::limit("too large", u64::MAX, value).to_string();
        assert_eq!(text(u64::MAX), "too large (expected at most 18446744073709551615)");
        assert_eq!(Error::limit("too large", 7, 8).to_string(), "too large (expected at most 7, found 8)");
    }

    #[test]
    fn survives_a_trip_through_io_error() {
        let io: std::io::Error = Error::corrupt("bad chunk").subject("c1").into();
        let back = Error::from_io("read", io);
        assert_eq!((back.kind(), back.to_string().as_str()), (ErrorKind::Corrupt, "c1: bad chunk"));
        assert_eq!(Error::from_io("read", std::io::Error::other("x")).kind(), ErrorKind::Io);
    }
}
