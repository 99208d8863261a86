//! containerd's filter language, to choose snapshots by their fields.
//!
//! ```text
//! filter    := selector ("," selector)*          all must match; an empty filter matches everything
//! selector  := fieldpath [operator value]        without operator: the field is there
//! fieldpath := field ("." field)*                name, parent, kind, labels.NAME
//! field     := [A-Za-z0-9_]+ | quoted            only with '"'
//! operator  := "==" | "!=" | "~="                equal, not equal, matches the regular expression
//! value     := quoted | [^,\s]+                  after "~=" also quoted with '/' or '|'
//! quoted    := a Go string literal
//! ```
//! White space around fields, operators and values is skipped. Of several filters one must match. Names in `labels.a.b`
//! are joined by dots; a snapshot without parent has the empty one. A field that is not there equals nothing, differs from everything, and matches as an empty text.
//!
//! Source: containerd `pkg/filters/parser.go`, `scanner.go`, `quote.go`, and `core/snapshots/storage/bolt.go` for the
//! fields. Regular expressions are those of the regex crate, which has the syntax and the linear time of Go's.

use super::model::SnapshotInfo;
use crate::error::{Error, Result};
use regex::{Regex, RegexBuilder};

/// A list of filters, parsed. It matches what any of them matches; an empty list matches everything.
#[derive(Clone, Debug, Default)]
pub struct SnapshotFilter {
    any: Vec<Vec<Selector>>,
}

#[derive(Clone, Debug)]
struct Selector {
    field: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    Differs(String),
    /// `None` is an expression that does not compile: it matches nothing, as in containerd.
    Matches(Option<Regex>),
}

/// What a regular expression of a filter may take once compiled, and what its search may remember, bytes.
const REGEX_SIZE: usize = 1 << 20;
const REGEX_CACHE: usize = 1 << 18;
/// Regular expressions in a list of filters.
const REGEXES_MAX: usize = 16;
/// Filters in a list, and bytes of all of them.
const FILTERS_MAX: usize = 64;
const FILTERS_LEN: usize = 64 << 10;

impl SnapshotFilter {
    /// Parses filters.
    ///
    /// # Errors
    /// `InvalidInput`, with the place, for one that is no filter; for more than 64 filters, 64 KiB of text or 16 regular
    /// expressions together.
    pub fn parse<S: AsRef<str>>(filters: impl IntoIterator<Item = S>) -> Result<Self> {
        let filters: Vec<S> = filters.into_iter().take(FILTERS_MAX + 1).collect();
        let len: usize = filters.iter().map(|text| text.as_ref().len()).sum();
        if filters.len() > FILTERS_MAX || len > FILTERS_LEN {
            let e = Error::invalid("the list of filters is too long");
            return Err(e.expected(format!("at most {FILTERS_MAX} filters, {FILTERS_LEN} bytes together")));
        }
        let mut regexes = 0;
        let parse = |text: S| {
            let text = text.as_ref();
            let mut parser = Parser { text, at: 0, regexes };
            let all = if text.is_empty() { Ok(vec![]) } else { parser.filter() };
            regexes = parser.regexes;
            all.map_err(|e| e.subject(format!("filter {text}")))
        };
        Ok(Self { any: filters.into_iter().map(parse).collect::<Result<_>>()? })
    }

    /// Whether a snapshot is chosen.
    pub fn matches(&self, info: &SnapshotInfo) -> bool {
        self.any.is_empty() || self.any.iter().any(|all| all.iter().all(|selector| selector.matches(info)))
    }
}

impl Selector {
    fn matches(&self, info: &SnapshotInfo) -> bool {
        let value = self.value(info);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::Differs(other) => value.unwrap_or_default() != other,
            Test::Matches(expression) => expression.as_ref().is_some_and(|e| e.is_match(value.unwrap_or_default())),
        }
    }

    fn value<'i>(&self, info: &'i SnapshotInfo) -> Option<&'i str> {
        match (self.field[0].as_str(), &self.field[1..]) {
            ("name", _) => Some(&info.key),
            ("parent", _) => Some(info.parent.as_deref().unwrap_or_default()),
            ("kind", _) => Some(info.kind.as_str()),
            ("labels", names) => info.labels.get(&names.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    /// Regular expressions of the list until now.
    regexes: usize,
}

impl Parser<'_> {
    fn filter(&mut self) -> Result<Vec<Selector>> {
        let mut all = vec![self.selector()?];
        loop {
            match self.peek() {
                None => return Ok(all),
                Some(',') => {
                    self.at += 1;
                    all.push(self.selector()?);
                }
                Some(_) => return Err(self.wrong("unexpected input")),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector> {
        let mut field = vec![self.field()?];
        while self.peek() == Some('.') {
            self.at += 1;
            field.push(self.field()?);
        }
        let operator = self.take_while(|c| "=!~".contains(c)).to_owned();
        let test = match operator.as_str() {
            "" if matches!(self.peek(), None | Some(',')) => Test::Present,
            "==" => Test::Equal(self.value("\"")?),
            "!=" => Test::Differs(self.value("\"")?),
            "~=" => {
                let expression = self.value("\"/|")?;
                self.regexes += 1;
                if self.regexes > REGEXES_MAX {
                    return Err(self.wrong("too many regular expressions in the list of filters"));
                }
                let limits = |mut r: RegexBuilder| r.size_limit(REGEX_SIZE).dfa_size_limit(REGEX_CACHE).build().ok();
                Test::Matches(limits(RegexBuilder::new(&expression)))
            }
            _ => return Err(self.wrong("expected one of the operators ==, != and ~=")),
        };
        self.skip_space();
        Ok(Selector { field, test })
    }

    fn field(&mut self) -> Result<String> {
        match self.skip_space().peek() {
            Some('"') => self.quoted('"'),
            _ => {
                let name = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_').to_owned();
                self.skip_space();
                if name.is_empty() { Err(self.wrong("expected a field's name")) } else { Ok(name) }
            }
        }
    }

    fn value(&mut self, quotes: &str) -> Result<String> {
        match self.skip_space().peek() {
            Some(quote) if quotes.contains(quote) => self.quoted(quote),
            // What would be a quoted value elsewhere is no value here.
            Some('/' | '|') | None => Err(self.wrong("expected a value")),
            Some(_) => {
                let value = self.take_while(|c| c != ',' && !c.is_whitespace() && !c.is_control()).to_owned();
                if value.is_empty() { Err(self.wrong("expected a value")) } else { Ok(value) }
            }
        }
    }

    /// A Go string literal: escapes as in Go, the quote itself after a backslash, no line breaks.
    fn quoted(&mut self, quote: char) -> Result<String> {
        self.at += quote.len_utf8();
        let mut bytes = Vec::new();
        loop {
            let c = self.next().ok_or_else(|| self.wrong("quoted text does not end"))?;
            match c {
                '\n' => return Err(self.wrong("quoted text does not end")),
                '\\' => self.escape(quote, &mut bytes)?,
                c if c == quote => break,
                c => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        self.skip_space();
        String::from_utf8(bytes).map_err(|_| self.wrong("quoted text is not UTF-8"))
    }

    fn escape(&mut self, quote: char, out: &mut Vec<u8>) -> Result<()> {
        let c = self.next().ok_or_else(|| self.wrong("quoted text does not end"))?;
        match c {
            'a' => out.push(7),
            'b' => out.push(8),
            'f' => out.push(12),
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            'v' => out.push(11),
            '\\' => out.push(b'\\'),
            'x' => out.push(self.number(2, 16)? as u8),
            '0'..='7' => {
                self.at -= 1;
                let byte = u8::try_from(self.number(3, 8)?).map_err(|_| self.wrong("an octal escape is too large"))?;
                out.push(byte);
            }
            'u' | 'U' => {
                let code = self.number(if c == 'u' { 4 } else { 8 }, 16)?;
                let c = char::from_u32(code).ok_or_else(|| self.wrong("an escape is no character"))?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            c if c == quote => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => return Err(self.wrong("unknown escape")),
        }
        Ok(())
    }

    fn number(&mut self, digits: usize, radix: u32) -> Result<u32> {
        let text = self.text.get(self.at..self.at + digits);
        let text = text.filter(|t| t.bytes().all(|b| (b as char).is_digit(radix)));
        let number = text.and_then(|t| u32::from_str_radix(t, radix).ok());
        let number = number.ok_or_else(|| self.wrong("malformed numeric escape"))?;
        self.at += digits;
        Ok(number)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn skip_space(&mut self) -> &mut Self {
        self.take_while(char::is_whitespace);
        self
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn wrong(&self, message: &str) -> Error {
        Error::invalid(format!("{message} at byte {}", self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::entry::Time;
    use crate::snapshot::{Labels, SnapshotKind};

    fn info(key: &str, parent: Option<&str>, kind: SnapshotKind, labels: &[(&str, &str)]) -> SnapshotInfo {
        let labels: Labels = labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let time = Time { secs: 0, nanos: 0 };
        SnapshotInfo { key: key.into(), parent: parent.map(Into::into), kind, labels, created: time, updated: time }
    }

    fn corpus() -> Vec<SnapshotInfo> {
        use SnapshotKind::{Active, Committed, View};
        vec![
            info("foo", None, Committed, &[("foo", "true")]),
            info("bar", Some("foo"), Active, &[]),
            info("foo 2", None, View, &[("foo", "present"), ("more complex label", "present")]),
            info("a/b \"c\"", Some("bar"), Active, &[("with \\ and \"", "1"), ("a.b", "omg_asdf.asdf-qwer")]),
        ]
    }

    fn chosen(filters: &[&str]) -> Vec<usize> {
        let filter = SnapshotFilter::parse(filters).unwrap();
        corpus().iter().enumerate().filter(|(_, info)| filter.matches(info)).map(|(n, _)| n).collect()
    }

    #[test]
    fn lists_of_filters_have_bounds() {
        let parse = |filters: Vec<String>| SnapshotFilter::parse(filters).map(drop).map_err(|e| e.kind());
        let refused = Err(crate::ErrorKind::InvalidInput);
        let regexes = |n| vec![vec!["name~=a"; n].join(",")];
        assert_eq!(parse(vec!["kind".into(); FILTERS_MAX]), Ok(()));
        assert_eq!(parse(vec!["kind".into(); FILTERS_MAX + 1]), refused);
        assert_eq!(parse(vec![format!("name=={}", "a".repeat(FILTERS_LEN))]), refused);
        assert_eq!(parse(regexes(REGEXES_MAX)), Ok(()));
        assert_eq!(parse(regexes(REGEXES_MAX + 1)), refused);
        assert_eq!(parse(vec!["name~=a".into(); REGEXES_MAX + 1]), refused);
    }

    #[test]
    fn chooses() {
        let cases: &[(&[&str], &[usize])] = &[
            (&[], &[0, 1, 2, 3]),
            (&[""], &[0, 1, 2, 3]),
            (&["name"], &[0, 1, 2, 3]),
            (&["parent==\"\""], &[0, 2]),
            (&["labels.foo"], &[0, 2]),
            (&["labels.foo,name"], &[0, 2]),
            (&["labels.foo==true"], &[0]),
            (&["labels.foo!=true"], &[1, 2, 3]),
            (&["parent!=foo"], &[0, 2, 3]),
            (&["name==foo"], &[0]),
            (&["name==foo", "name==bar"], &[0, 1]),
            (&["name==foo,labels.foo==present"], &[]),
            (&["name==\"foo 2\""], &[2]),
            (&["kind==active"], &[1, 3]),
            (&["kind~=/^[cC]ommitted$/"], &[0]),
            (&["labels.\"more complex label\"==present"], &[2]),
            (&["labels.\"with \\\\ and \\\"\"==1"], &[3]),
            (&["labels.a.b==omg_asdf.asdf-qwer"], &[3]),
            (&["labels.\"a.b\"~=omg.*"], &[3]),
            (&["name~=|^a/b|"], &[3]),
            (&["name~=/^a\\/b/"], &[3]),
            (&["name~=fo{2}"], &[0, 2]),
            (&["name~=[unclosed"], &[]),
            (&[" name == foo , labels.foo "], &[0]),
            (&["name==\"\\x66\\157\\u006f\""], &[0]),
            (&["unknown"], &[]),
            (&["unknown!=x"], &[0, 1, 2, 3]),
            (&["labels"], &[]),
        ];
        for (filters, expected) in cases {
            assert_eq!(chosen(filters), *expected, "{filters:?}");
        }
    }

    /// What containerd's metadata asks a snapshotter for a layer it may have.
    #[test]
    fn chooses_what_the_remote_protocol_asks_for() {
        let ours = info("x", None, SnapshotKind::Committed, &[("containerd.io/snapshot.ref", "sha256:12")]);
        let matches = |filter| SnapshotFilter::parse([filter]).unwrap().matches(&ours);
        assert!(matches(r#"labels."containerd.io/snapshot.ref"==sha256:12,parent=="""#));
        assert!(!matches(r#"labels."containerd.io/snapshot.ref"==sha256:12,parent=="y""#));
    }

    #[test]
    fn refuses_what_is_no_filter() {
        let wrong = [
            "name==foo,",
            "labels.",
            "image~=,id?=?fbaq",
            "labels.ns/key==value",
            "labels.key==/value",
            "labels.key==/value/",
            "labels.|foo|==x",
            "labels.?\"x\"",
            "name=foo",
            "name===foo",
            "name==",
            "name==\"foo",
            "name==\"\\q\"",
            "name==\"\\xg0\"",
            "name==\"\\777\"",
            "name==\"\\ud800\"",
            "name foo",
            "==foo",
            ",",
        ];
        for filter in wrong {
            let error = SnapshotFilter::parse([filter]).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput, "{filter}");
        }
    }
}
