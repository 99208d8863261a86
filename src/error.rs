//! The one error type of the library.
//!
//! Callers decide by [`Error::kind`]; people read the rest. An error names its subject (which layer, entry, file),
//! says what was expected and what was found where both are known, and keeps its cause as `source()`.

use std::borrow::Cow;
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

/// What would help, where the place that failed knows it. Programs say it in their own words.
///
/// Most errors have none: advice that is not true is worse than no advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// Several images fit: choose one by its name.
    ChooseByName,
    /// Several images fit: choose one by its platform.
    ChooseByPlatform,
    /// Several images fit: only their digests tell them apart.
    ChooseByDigest,
    /// No image fits, and the message lists those that are there.
    ChooseAnother,
    /// The name cannot be used: give another.
    OtherName,
    /// The input is damaged or incomplete: get it again from where it came.
    GetAgain,
    /// The input is of a form that is no longer in use: newer versions of what wrote it write another.
    OldForm,
    /// Layers are taken plain, or compressed with gzip or zstd.
    OtherCompression,
    /// Another driver can do it.
    OtherDriver,
    /// What the store has can be listed.
    List,
    /// This directory cannot be a store, or not this user's.
    OtherStore,
    /// A version of this library is needed that knows the format.
    OtherVersion,
    /// Somebody else holds what is needed, for a while.
    TryAgain,
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
    advice: Option<Advice>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` whose message says what is wrong, without naming the subject.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: printable(&message.into()).into_owned(),
            subjects: Vec::new(),
            expected: None,
            actual: None,
            advice: None,
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
        self.0.subjects.insert(0, printable(&subject.to_string()).into_owned());
        self
    }

    /// What should have been there.
    #[must_use]
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = Some(printable(&expected.to_string()).into_owned());
        self
    }

    /// What was there.
    #[must_use]
    pub fn actual(mut self, actual: impl fmt::Display) -> Self {
        self.0.actual = Some(printable(&actual.to_string()).into_owned());
        self
    }

    /// Says what would help.
    #[must_use]
    pub fn advise(mut self, advice: Advice) -> Self {
        self.0.advice = Some(advice);
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

    /// What would help, where that is known.
    pub fn advice(&self) -> Option<Advice> {
        self.0.advice
    }

    /// The OS error behind this one, where there is one.
    pub fn io_error(&self) -> Option<&std::io::Error> {
        self.0.source.as_deref().and_then(|e| e.downcast_ref())
    }
}

/// Text that may come from outside, for a terminal or a log: what controls a terminal (C0 and C1 control characters,
/// newlines among them) and what reorders or hides text (bidirectional and invisible characters) becomes an escape such as
/// `\u{1b}`. Text that was escaped once stays as it is.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_unprintable(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Whether a terminal would do something else than show this character in its place.
pub fn is_unprintable(c: char) -> bool {
    let invisible = matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    );
    c.is_control() || invisible
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
        // What others say of the cause is not escaped yet.
        let source = self.0.source.as_ref().map(|source| format!("{source:?}"));
        let source = source.as_deref().map(printable);
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &format_args!("{self}"))
            .field("source", &format_args!("{}", source.as_deref().unwrap_or("None")))
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
        let escaped = "layer 1: entry \"a\\u{1b}\": path leaves the root (expected no '..', found ..)";
        assert_eq!(e.to_string(), escaped);
        assert_eq!(std::mem::size_of::<Error>(), std::mem::size_of::<usize>());
    }

    #[test]
    fn nothing_from_outside_reaches_a_terminal_wherever_it_stands_in_an_error() {
        let hostile = "x\u{1b}]0;t\u{7}\u{9b}31m\u{202e}\u{2066}\u{200b}\n\u{7f}";
        let io = std::io::Error::other(hostile);
        let inner = Error::io(format!("cannot run {hostile}"), io);
        let e = Error::invalid(hostile).subject(hostile).expected(hostile).actual(&inner).source(inner);
        for text in [e.to_string(), format!("{e:?}"), format!("{e:#?}").replace('\n', "")] {
            assert!(!text.chars().any(is_unprintable), "{text:?}");
        }
        assert_eq!(printable("a\\u{1b} \u{1b}"), "a\\u{1b} \\u{1b}", "escaped once");
        let twice = Error::invalid(Error::invalid(hostile).to_string());
        assert_eq!(twice.message(), Error::invalid(hostile).message());
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
