//! How a failure leaves the program: an exit code by kind, and words that say what to do next.

use crate::output::to_json;
use layerstore::{Advice, Error, ErrorKind, printable};
use std::fmt::Write;
use std::process::ExitCode;

/// What clap refuses.
pub(crate) const USAGE: u8 = 2;
/// As a shell reports a program that SIGPIPE ended.
pub(crate) const READER_LEFT: u8 = 141;

/// A library error with what the command knows about the way out.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Error,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error::new(kind, message).into()
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        self.error.kind()
    }

    pub(crate) fn advice(&self) -> Option<Advice> {
        self.error.advice()
    }

    pub(crate) fn is_disk_full(&self) -> bool {
        self.error.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::StorageFull)
    }

    /// Tells the user, and gives the exit code.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        let text = if json { self.to_json() } else { self.to_text() };
        eprintln!("{text}");
        ExitCode::from(exit_code(self.error.kind()))
    }

    /// What lies behind the error, outermost first.
    fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = std::error::Error::source(&self.error);
        while let Some(cause) = next {
            causes.push(printable(&cause.to_string()).into_owned());
            next = cause.source();
        }
        causes
    }

    fn to_text(&self) -> String {
        let mut text = format!("error: {}", self.error);
        for cause in self.causes() {
            let _ = write!(text, "\ncause: {cause}");
        }
        if let Some(hint) = self.hint.as_deref().or_else(|| hint(&self.error)) {
            let _ = write!(text, "\nhint: {}", printable(hint));
        }
        text
    }

    fn to_json(&self) -> String {
        let (expected, actual) = self.error.mismatch();
        to_json(&serde_json::json!({
            "error": self.error.to_string(),
            "kind": self.error.kind().as_str(),
            "exit_code": exit_code(self.error.kind()),
            "subjects": self.error.subjects(),
            "expected": expected,
            "actual": actual,
            "causes": self.causes(),
            "hint": self.hint.as_deref().or_else(|| hint(&self.error)),
        }))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, hint: None }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Error::from_io("cannot write the output", error).into()
    }
}

/// Adds a hint to what fails.
pub(crate) trait Hint<T> {
    /// Whatever it is.
    fn hint(self, hint: &str) -> Result<T, Failure>;

    /// If it is of this kind and brings no advice of its own. The hint must be true of all errors of this kind that the
    /// call can give.
    fn hint_on(self, kind: ErrorKind, hint: &str) -> Result<T, Failure>;

    /// If it brings this advice, which the command can word better.
    fn hint_for(self, advice: Advice, hint: &str) -> Result<T, Failure>;
}

impl<T> Hint<T> for layerstore::Result<T> {
    fn hint(self, hint: &str) -> Result<T, Failure> {
        self.map_err(|e| Failure::from(e).hint(hint))
    }

    fn hint_on(self, kind: ErrorKind, hint: &str) -> Result<T, Failure> {
        self.map_err(Failure::from).hint_on(kind, hint)
    }

    fn hint_for(self, advice: Advice, hint: &str) -> Result<T, Failure> {
        self.map_err(Failure::from).hint_for(advice, hint)
    }
}

impl<T> Hint<T> for Result<T, Failure> {
    fn hint(self, hint: &str) -> Self {
        self.map_err(|e| e.hint(hint))
    }

    fn hint_on(self, kind: ErrorKind, hint: &str) -> Self {
        self.map_err(|e| if e.kind() == kind && e.advice().is_none() { e.hint(hint) } else { e })
    }

    fn hint_for(self, advice: Advice, hint: &str) -> Self {
        self.map_err(|e| if e.advice() == Some(advice) { e.hint(hint) } else { e })
    }
}

/// A failure to mount, with what helps those who are not root.
pub(crate) fn mounting(error: Error) -> Failure {
    let failure = Failure::from(error);
    match failure.kind() == ErrorKind::Unsupported && !rustix::process::geteuid().is_root() {
        true => failure.hint("mounting needs root; `layerstore extract` does not"),
        false => failure,
    }
}

/// Documented in `layerstore --help`; never renumbered.
pub(crate) fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::NotFound => 3,
        ErrorKind::AlreadyExists => 4,
        ErrorKind::InvalidInput => 5,
        ErrorKind::FailedPrecondition => 6,
        ErrorKind::Unsupported => 7,
        ErrorKind::Corrupt => 8,
        ErrorKind::Busy => 9,
        ErrorKind::LimitExceeded => 10,
        ErrorKind::Cancelled => 11,
        _ => 1,
    }
}

/// What helps: the library's advice in this program's words, or else what is true of every error of the kind.
fn hint(error: &Error) -> Option<&'static str> {
    if let Some(advice) = error.advice() {
        return in_words(advice);
    }
    match error.kind() {
        ErrorKind::Corrupt => {
            Some("stored bytes are damaged: `layerstore fsck` tells what, `layerstore repair SOURCE` mends it")
        }
        ErrorKind::LimitExceeded => Some("the limits and their reasons are in docs/LIMITS.md"),
        ErrorKind::Io => match error.io_error()?.kind() {
            std::io::ErrorKind::StorageFull => Some("the disk is full: free some space on it, or choose another"),
            std::io::ErrorKind::QuotaExceeded => Some("the quota is used up: free some space, or have it raised"),
            _ => None,
        },
        _ => None,
    }
}

fn in_words(advice: Advice) -> Option<&'static str> {
    Some(match advice {
        Advice::ChooseByName => "--ref NAME or --ref DIGEST chooses one",
        Advice::ChooseByPlatform => "--platform OS/ARCH[/VARIANT] chooses one",
        Advice::ChooseByDigest => "--ref DIGEST chooses one",
        Advice::ChooseAnother => "--ref and --platform choose one of those",
        Advice::OtherName => "choose another name",
        Advice::GetAgain => "get the input again from where it came, in full",
        Advice::OldForm => {
            "newer versions of the program that wrote it write another form: load it there and save it anew"
        }
        Advice::OtherCompression => "layers may be plain, gzip or zstd",
        Advice::OtherDriver => {
            "another driver may: --driver erofs, overlay or copy; `layerstore doctor` tells which work here"
        }
        Advice::List => "`layerstore images` and `layerstore layers` list what there is",
        Advice::OtherStore => "choose another store with --store DIR",
        Advice::OtherVersion => "another version of layerstore is needed, one that knows this format",
        Advice::TryAgain => "another process is at work on this; try again when it is done",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_error_cause_and_hint() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let failure = Failure::from(Error::io("write a pack", full));
        let text = failure.to_text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "error: write a pack");
        assert!(lines[1].starts_with("cause: ") && lines[2].starts_with("hint: the disk is full"), "{text}");
    }

    #[test]
    fn a_hint_for_one_kind_leaves_the_others_theirs() {
        let hint_of = |e: Error| Err::<(), _>(e).hint_on(ErrorKind::NotFound, "look").expect_err("fails").to_text();
        assert!(hint_of(Error::not_found("it")).ends_with("hint: look"));
        assert!(hint_of(Error::corrupt("it")).contains("fsck"));
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert!(hint_of(Error::io("it", full)).contains("disk is full"));
    }

    /// Most errors of these kinds have causes that no general advice is true of.
    #[test]
    fn without_advice_there_is_no_hint() {
        let kinds = [ErrorKind::NotFound, ErrorKind::AlreadyExists, ErrorKind::InvalidInput, ErrorKind::Busy];
        for kind in
            kinds.into_iter().chain([ErrorKind::FailedPrecondition, ErrorKind::Unsupported, ErrorKind::Cancelled])
        {
            assert!(!Failure::new(kind, "it").to_text().contains("hint"), "{kind}");
        }
        for kind in [std::io::ErrorKind::PermissionDenied, std::io::ErrorKind::NotFound] {
            assert!(!Failure::from(Error::io("it", std::io::Error::from(kind))).to_text().contains("hint"), "{kind}");
        }
    }

    #[test]
    fn advice_goes_before_what_is_said_of_the_kind() {
        let hint = |e: Error| Err::<(), _>(e).hint_on(ErrorKind::NotFound, "look").expect_err("fails");
        let text = hint(Error::not_found("it").advise(Advice::GetAgain)).to_text();
        assert!(text.contains("get the input again") && !text.contains("look"), "{text}");
        let told = Err::<(), _>(Error::invalid("it").advise(Advice::OtherName)).hint_for(Advice::OtherName, "--name");
        assert!(told.expect_err("fails").to_text().ends_with("hint: --name"));
    }

    #[test]
    fn json_has_the_kind_and_both_sides() {
        let failure = Failure::from(Error::invalid("blob digest does not match").expected("a").actual("b"));
        let json: serde_json::Value = serde_json::from_str(&failure.to_json()).expect("JSON");
        assert_eq!((&json["kind"], &json["exit_code"]), (&"invalid-input".into(), &5.into()));
        assert_eq!((&json["expected"], &json["actual"]), (&"a".into(), &"b".into()));
    }
}
