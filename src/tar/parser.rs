//! The push parser: cuts the stream into headers, bodies and padding, and keeps the byte account.
//!
//! Contents pass through as slices of what was pushed. Only headers that straddle two pushes, bodies of extended
//! headers and sparse maps are gathered, each bounded by a limit and grown by what arrived, never by what was claimed.

use super::account::Account;
use super::header::{BLOCK, Block, Header, SparseBlock, ZERO, looks_like_header};
use super::links::LinkCheck;
use super::member::{self, Body, Extensions, Member};
use super::names;
use super::sparse::{Map, MapReader};
use crate::error::{Error, Result};
use crate::format::entry::{Entry, EntryKind};
use crate::limits::Limits;

/// Most bytes of a name in an error.
const SHOWN: usize = 256;

/// Receives what a [`Parser`] finds, in stream order. An error stops the parser and is returned as it is.
pub(crate) trait Sink {
    /// Verbatim bytes that are no file's content: headers, extended headers, sparse maps, padding, the end.
    fn segment(&mut self, bytes: &[u8]) -> Result<()>;
    /// An entry, after the segment bytes up to its content.
    fn entry(&mut self, entry: Entry) -> Result<()>;
    /// Stored content of the last entry; `entry.kind.stored_len()` bytes in total.
    fn content(&mut self, bytes: &[u8]) -> Result<()>;
}

/// What a whole tar held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Entries given to the sink.
    pub(crate) entries: u64,
    /// Bytes pushed.
    pub(crate) bytes: u64,
}

/// What the next byte belongs to.
enum State {
    Header,
    /// The body of an extended header of type `kind`.
    Extension {
        kind: u8,
        left: u64,
    },
    /// An extension block of an old GNU sparse map.
    OldMap(Box<Pending>, Map),
    /// The map of a sparse file of format 1.0.
    DataMap(Box<Pending>, MapReader),
    /// Content that a hard link claims, `left` bytes of it to come.
    Doubtful {
        left: u64,
    },
    Content {
        left: u64,
    },
    /// Segment bytes without meaning: what a reader skips, then padding up to the next block.
    Skip {
        left: u64,
    },
    Padding,
    /// The end marker, `zeros` bytes of it so far.
    End {
        zeros: u64,
    },
}

/// A sparse file whose map is still being read.
struct Pending {
    entry: Entry,
    /// Logical size.
    size: u64,
    /// Bytes the tar still holds for the entry: content, and in format 1.0 the map.
    left: u64,
}

/// A push parser of one tar. After an error it must not be used again.
pub(crate) struct Parser {
    limits: Limits,
    state: State,
    /// Gathers a block that straddles two pushes.
    block: Block,
    filled: usize,
    /// Bytes consumed, the gathered ones included.
    offset: u64,
    /// Where the current header begins, and the name it gave, for errors.
    header_at: u64,
    name: Vec<u8>,
    extensions: Extensions,
    links: LinkCheck,
    account: Account,
}

impl Parser {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            limits: limits.clone(),
            state: State::Header,
            block: ZERO,
            filled: 0,
            offset: 0,
            header_at: 0,
            name: Vec::new(),
            extensions: Extensions::default(),
            links: LinkCheck::new(),
            account: Account::default(),
        }
    }

    /// Takes the next bytes of the tar, of any number.
    pub(crate) fn push<S: Sink>(&mut self, mut bytes: &[u8], sink: &mut S) -> Result<()> {
        let total = self.offset.saturating_add(bytes.len() as u64);
        if total > self.limits.layer_size {
            return Err(Error::limit("the layer is too large", self.limits.layer_size, total));
        }
        while !bytes.is_empty() {
            let used = match self.state {
                State::Header | State::OldMap(..) | State::Doubtful { .. } => self.gather(bytes, sink)?,
                State::Extension { kind, left } => self.extension_body(kind, left, bytes, sink)?,
                State::DataMap(..) => self.data_map(bytes, sink)?,
                State::Content { left } => {
                    let piece = prefix(bytes, left);
                    sink.content(piece)?;
                    self.passed(piece.len(), left, |left| State::Content { left })
                }
                State::Skip { left } => {
                    let piece = prefix(bytes, left);
                    sink.segment(piece)?;
                    self.passed(piece.len(), left, |left| State::Skip { left })
                }
                State::Padding => {
                    let padding = self.padding();
                    let piece = prefix(bytes, padding);
                    sink.segment(piece)?;
                    self.passed(piece.len(), padding, |_| State::Padding)
                }
                State::End { zeros } => self.end_marker(zeros, bytes, sink)?,
            };
            bytes = &bytes[used..];
        }
        Ok(())
    }

    /// Accounts for `used` of `left` bytes that were passed on.
    fn passed(&mut self, used: usize, left: u64, more: impl Fn(u64) -> State) -> usize {
        self.offset += used as u64;
        self.state = match left - used as u64 {
            0 => self.after_body(),
            left => more(left),
        };
        used
    }

    /// Ends the tar; an error if it may not end here.
    ///
    /// As in Go the end marker may be missing, wholly or its second block, and so may the padding of the last body.
    pub(crate) fn finish(self) -> Result<Summary> {
        let cut = match &self.state {
            State::Header if self.filled > 0 => {
                let start = self.offset - self.filled as u64;
                return Err(at(Error::invalid("the tar ends inside a header"), b"", start));
            }
            State::Header | State::Padding if self.extensions.pending() => Some("the entry of an extended header"),
            State::Header | State::Padding => None,
            // One block or at least the two of a whole marker.
            State::End { zeros } if *zeros == BLOCK as u64 || *zeros >= 2 * BLOCK as u64 => None,
            State::End { .. } => Some("the end marker"),
            State::Extension { .. } => Some("an extended header"),
            State::OldMap(..) | State::DataMap(..) => Some("a sparse map"),
            State::Doubtful { .. } | State::Content { .. } | State::Skip { .. } => Some("the content of an entry"),
        };
        match cut {
            Some(cut) => Err(self.at(Error::invalid(format!("the tar ends before or in {cut}")))),
            None => Ok(Summary { entries: self.account.entries(), bytes: self.offset }),
        }
    }

    /// Handles one block as soon as it is whole.
    fn gather<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize> {
        if self.filled == 0
            && let Some(block) = bytes.first_chunk::<BLOCK>()
        {
            self.offset += BLOCK as u64;
            self.on_block(block, sink)?;
            return Ok(BLOCK);
        }
        let piece = prefix(bytes, (BLOCK - self.filled) as u64);
        self.block[self.filled..self.filled + piece.len()].copy_from_slice(piece);
        self.filled += piece.len();
        self.offset += piece.len() as u64;
        if self.filled == BLOCK {
            self.filled = 0;
            let block = self.block;
            self.on_block(&block, sink)?;
        }
        Ok(piece.len())
    }

    fn on_block<S: Sink>(&mut self, block: &Block, sink: &mut S) -> Result<()> {
        sink.segment(block)?;
        match std::mem::replace(&mut self.state, State::Header) {
            State::OldMap(pending, mut map) => {
                let part = SparseBlock::extension(block);
                member::push_old(&mut map, part.ranges(), &self.limits).map_err(|e| self.at(e))?;
                if part.extended {
                    self.state = State::OldMap(pending, map);
                    return Ok(());
                }
                self.map_done(*pending, map, sink)
            }
            State::Doubtful { left } => {
                if block == &ZERO || looks_like_header(block) {
                    let message =
                        "a hard link that claims content in which some readers find the next entry or the end";
                    return Err(self.at(Error::invalid(message)));
                }
                self.state = match left.saturating_sub(BLOCK as u64) {
                    0 => State::Header,
                    left => State::Doubtful { left },
                };
                Ok(())
            }
            _ => self.header(block, sink),
        }
    }

    fn header<S: Sink>(&mut self, block: &Block, sink: &mut S) -> Result<()> {
        self.header_at = self.offset - BLOCK as u64;
        if block == &ZERO {
            if self.extensions.pending() {
                return Err(self.at(Error::invalid("an extended header without its entry")));
            }
            self.state = State::End { zeros: BLOCK as u64 };
            return Ok(());
        }
        self.name.clear();
        let header = Header::parse(block).map_err(|e| self.at(e))?;
        header.name_into(&mut self.name);
        match header.kind() {
            kind @ (b'x' | b'g' | b'L' | b'K') => self.extension(kind, &header).map_err(|e| self.at(e)),
            _ => self.entry(&header, sink),
        }
    }

    fn extension(&mut self, kind: u8, header: &Header<'_>) -> Result<()> {
        let (limits, ext) = (&self.limits, &mut self.extensions);
        ext.chain += 1;
        if ext.chain > limits.extension_chain {
            return Err(Error::limit("too many extended headers in a row", limits.extension_chain, ext.chain));
        }
        let size = header.size()?;
        let left = u64::try_from(size).map_err(|_| Error::invalid("a negative size").actual(size))?;
        if left > limits.extension {
            return Err(Error::limit("an extended header is too long", limits.extension, left));
        }
        // Go drops what came before a global header, others do not.
        let clash = match kind {
            b'x' => ext.has_pax,
            b'g' => ext.pending(),
            b'L' => !ext.long_name.is_empty(),
            _ => !ext.long_link.is_empty(),
        };
        if clash {
            return Err(Error::invalid("extended headers for one entry that readers combine differently"));
        }
        if kind == b'g' {
            check_global_name(&self.name, self.account.entries())?;
        }
        ext.body(kind).clear();
        if left > 0 {
            self.state = State::Extension { kind, left };
            return Ok(());
        }
        self.extension_done(kind)
    }

    fn extension_body<S: Sink>(&mut self, kind: u8, left: u64, bytes: &[u8], sink: &mut S) -> Result<usize> {
        let piece = prefix(bytes, left);
        sink.segment(piece)?;
        self.extensions.body(kind).extend_from_slice(piece);
        self.offset += piece.len() as u64;
        self.state = State::Extension { kind, left: left - piece.len() as u64 };
        if left == piece.len() as u64 {
            self.extension_done(kind).map_err(|e| self.at(e))?;
        }
        Ok(piece.len())
    }

    fn extension_done(&mut self, kind: u8) -> Result<()> {
        self.extensions.finish(kind, &self.limits)?;
        self.state = self.after_body();
        Ok(())
    }

    fn entry<S: Sink>(&mut self, header: &Header<'_>, sink: &mut S) -> Result<()> {
        self.extensions.override_name(&mut self.name);
        let member = member::build(header, &self.name, &mut self.extensions, &self.limits);
        let Member { entry, body, outward } = member.map_err(|e| self.at(e))?;
        self.extensions.clear();
        let entries = self.account.entries() + 1;
        if entries > self.limits.entries {
            return Err(self.at(Error::limit("the layer has too many entries", self.limits.entries, entries)));
        }
        let length = match body {
            Body::Content(left) | Body::Ignored(left) | Body::Doubtful(left) => left,
            Body::OldMap { stored, .. } => stored,
            Body::DataMap { length, .. } => length,
        };
        let end = self.offset.saturating_add(length);
        if end > self.limits.layer_size {
            return Err(self.at(Error::limit("the content reaches too far", self.limits.layer_size, end)));
        }
        match body {
            Body::Content(left) => return self.emit(entry, left, sink),
            Body::Doubtful(left) => self.state = State::Doubtful { left },
            Body::Ignored(0) => self.state = State::Header,
            Body::Ignored(left) => self.state = State::Skip { left },
            Body::OldMap { map, size, stored } => {
                self.state = State::OldMap(Box::new(Pending { entry, size, left: stored }), map);
                return Ok(());
            }
            Body::DataMap { length: 0, .. } => return Err(self.at(Error::invalid("a sparse file without its map"))),
            Body::DataMap { size, length } => {
                self.state = State::DataMap(Box::new(Pending { entry, size, left: length }), MapReader::default());
                return Ok(());
            }
        }
        self.give(entry, outward, sink)
    }

    /// Reads the lines of the map and then the rest of its last block.
    fn data_map<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize> {
        let padding = self.padding();
        let State::DataMap(pending, reader) = &mut self.state else { return Ok(0) };
        let piece = prefix(bytes, pending.left);
        let fed = match reader.is_done() {
            true => Ok(prefix(piece, padding).len()),
            false => reader.feed(piece, &self.limits),
        };
        let used = fed.map_err(|e| at(e, &self.name, self.header_at))?;
        pending.left -= used as u64;
        self.offset += used as u64;
        let complete = reader.is_done() && self.offset.is_multiple_of(BLOCK as u64);
        let exhausted = pending.left == 0;
        sink.segment(&bytes[..used])?;
        if complete {
            if let State::DataMap(pending, reader) = std::mem::replace(&mut self.state, State::Header) {
                self.map_done(*pending, reader.into_map(), sink)?;
            }
        } else if exhausted {
            return Err(self.at(Error::invalid("a sparse map that does not end inside its entry")));
        }
        Ok(used)
    }

    /// Completes a sparse file whose map came after its header.
    fn map_done<S: Sink>(&mut self, pending: Pending, map: Map, sink: &mut S) -> Result<()> {
        let Pending { mut entry, size, left } = pending;
        let sparse = Some(map.finish(size, left).map_err(|e| self.at(e))?);
        entry.kind = EntryKind::File { size, sparse };
        self.emit(entry, left, sink)
    }

    /// Gives the sink an entry with `left` bytes of content.
    fn emit<S: Sink>(&mut self, entry: Entry, left: u64, sink: &mut S) -> Result<()> {
        self.state = if left > 0 { State::Content { left } } else { State::Header };
        self.give(entry, false, sink)
    }

    fn give<S: Sink>(&mut self, entry: Entry, outward: bool, sink: &mut S) -> Result<()> {
        self.account.add(&entry, self.limits.attributes).map_err(|e| self.at(e))?;
        self.links.entry(&entry, outward).map_err(|e| self.at(e))?;
        sink.entry(entry)
    }

    fn end_marker<S: Sink>(&mut self, zeros: u64, bytes: &[u8], sink: &mut S) -> Result<usize> {
        if !bytes.chunks(BLOCK).all(|chunk| chunk == &ZERO[..chunk.len()]) {
            let at = self.offset + bytes.iter().take_while(|&&b| b == 0).count() as u64;
            return Err(Error::invalid("data after the end of the archive").subject(format!("byte {at}")));
        }
        sink.segment(bytes)?;
        self.offset += bytes.len() as u64;
        self.state = State::End { zeros: zeros + bytes.len() as u64 };
        Ok(bytes.len())
    }

    /// Bytes up to the next block.
    fn padding(&self) -> u64 {
        self.offset.next_multiple_of(BLOCK as u64) - self.offset
    }

    fn after_body(&self) -> State {
        if self.padding() == 0 { State::Header } else { State::Padding }
    }

    fn at(&self, error: Error) -> Error {
        at(error, &self.name, self.header_at)
    }
}

/// Judges the name of a global header, which means nothing to most readers.
///
/// containerd and Docker treat the header as an entry of that name until they see its type: a whiteout's name removes a
/// file, and another name removes what the layer has there so far. So a whiteout is refused, and after the first entry
/// so is a name that no writer of tars gives to such headers.
fn check_global_name(name: &[u8], entries: u64) -> Result<()> {
    const USUAL: [&[u8]; 3] = [b"pax_global_header", b"GlobalHead", b"PaxHeader"];
    let usual = || USUAL.iter().any(|usual| name.windows(usual.len()).any(|part| part == *usual));
    if names::is_whiteout(name) || entries > 0 && !usual() {
        return Err(Error::invalid("a global PAX header whose name would remove a file in containerd"));
    }
    Ok(())
}

/// Says which entry an error is about.
fn at(error: Error, name: &[u8], offset: u64) -> Error {
    match &name[..name.len().min(SHOWN)] {
        b"" => error.subject(format!("header at byte {offset}")),
        shown => error.subject(format!("entry \"{}\" at byte {offset}", shown.escape_ascii())),
    }
}

/// At most `len` bytes of the beginning of `bytes`.
fn prefix(bytes: &[u8], len: u64) -> &[u8] {
    &bytes[..usize::try_from(len).map_or(bytes.len(), |len| len.min(bytes.len()))]
}
