//! Where an import's time goes, stage by stage, on data of one's own.

use super::options::ImportOptions;
use crate::chunk::bundle::Bundle;
use crate::chunk::cutter::Cutter;
use crate::codec::blob::BlobReader;
use crate::codec::chunk::Encoder;
use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::format::entry::{Entry, EntryKind};
use crate::format::params::Chunking;
use crate::id::ContentId;
use crate::observe::{Observer, check};
use crate::tar::{Parser, Sink};
use std::io::Read;
use std::time::{Duration, Instant};

/// Bytes read at a time, from a blob and from the tar in it.
const BUFFER: usize = 128 << 10;

/// A stage of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Reading the blob from its source.
    Read,
    /// SHA-256 of the blob.
    BlobDigest,
    /// Decompressing it.
    Inflate,
    /// SHA-256 of the tar, the diff_id.
    TarDigest,
    /// Taking the tar apart.
    Parse,
    /// Finding where to cut larger files (FastCDC).
    Cut,
    /// BLAKE3 of small files and of chunks.
    Identify,
    /// Compressing chunks.
    Compress,
}

impl Stage {
    /// All of them, in the order that bytes go through them.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::BlobDigest,
        Self::Inflate,
        Self::TarDigest,
        Self::Parse,
        Self::Cut,
        Self::Identify,
        Self::Compress,
    ];
}

/// What one thread took for a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageTime {
    /// Bytes that went in.
    pub bytes: u64,
    /// Time, by the wall.
    pub time: Duration,
}

/// What one thread took for each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes([StageTime; Stage::ALL.len()]);

impl StageTimes {
    /// Of one stage.
    pub fn of(&self, stage: Stage) -> StageTime {
        self.0[stage as usize]
    }

    /// Adds those of another blob.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(&other.0) {
            sum.bytes += more.bytes;
            sum.time += more.time;
        }
    }

    /// Time of all stages.
    pub fn total(&self) -> Duration {
        self.0.iter().map(|stage| stage.time).sum()
    }

    fn time<T>(&mut self, stage: Stage, bytes: usize, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let out = work();
        self.note(stage, bytes, begin.elapsed());
        out
    }

    fn note(&mut self, stage: Stage, bytes: usize, time: Duration) {
        let sum = &mut self.0[stage as usize];
        sum.bytes += bytes as u64;
        sum.time += time;
    }
}

/// Takes a layer's blob apart as an import into an empty store does, on this thread alone, and times each stage by itself.
/// Nothing is kept: writing is no stage. `open` gives the blob, twice, as its digest is taken in a pass of its own.
///
/// An import does the stages side by side, so with many CPUs it takes as long as its slowest chain of them, with few as
/// long as their sum by the number of CPUs, at best.
///
/// # Errors
/// Those of [`import_layer`](crate::Store::import_layer) for a blob that is none, and of `open`. `Cancelled`.
pub fn time_stages<R: Read>(
    open: impl Fn() -> Result<R>,
    chunking: &Chunking,
    options: &ImportOptions,
    observer: &dyn Observer,
) -> Result<StageTimes> {
    chunking.validate()?;
    let mut times = StageTimes::default();
    let (mut buffer, mut hasher, mut blob) = (vec![0; BUFFER], Hasher::default(), open()?);
    loop {
        check(observer)?;
        let begin = Instant::now();
        let n = blob.read(&mut buffer).map_err(|e| Error::from_io("read the blob", e))?;
        times.note(Stage::Read, n, begin.elapsed());
        if n == 0 {
            break;
        }
        times.time(Stage::BlobDigest, n, || hasher.update(&buffer[..n]));
    }
    let known = times.of(Stage::Read).time + times.of(Stage::BlobDigest).time;
    let (mut tar, mut hasher) = (BlobReader::new(open()?, &options.limits)?, Hasher::default());
    let (mut parser, mut taker) = (Parser::new(&options.limits), Taker::new(chunking, options, times)?);
    loop {
        check(observer)?;
        let begin = Instant::now();
        let n = tar.read(&mut buffer).map_err(|e| Error::from_io("read the blob", e))?;
        taker.times.note(Stage::Inflate, n, begin.elapsed());
        if n == 0 {
            break;
        }
        taker.times.time(Stage::TarDigest, n, || hasher.update(&buffer[..n]));
        let (begin, before) = (Instant::now(), taker.inside());
        parser.push(&buffer[..n], &mut taker)?;
        taker.note_around(Stage::Parse, n, begin, before);
    }
    parser.finish()?;
    taker.bundle()?;
    let mut times = taker.times;
    // The reader reads and hashes the blob as well, which the first pass has told.
    let inflate = &mut times.0[Stage::Inflate as usize].time;
    *inflate = inflate.saturating_sub(known);
    Ok(times)
}

/// Contents on their way to packs.
struct Taker<'a> {
    chunking: &'a Chunking,
    coder: Coder,
    cutter: Cutter,
    /// Bytes of the present file that are to come.
    left: u64,
    small: bool,
    file: Vec<u8>,
    bundle: Bundle,
    times: StageTimes,
}

struct Coder(Encoder);

impl Coder {
    fn chunk(&mut self, raw: &[u8], times: &mut StageTimes) -> Result<()> {
        times.time(Stage::Identify, raw.len(), || ContentId::of(raw));
        times.time(Stage::Compress, raw.len(), || self.0.encode(raw, true).map(drop))
    }
}

impl<'a> Taker<'a> {
    fn new(chunking: &'a Chunking, options: &ImportOptions, times: StageTimes) -> Result<Self> {
        let (coder, cutter) = (Coder(Encoder::new(options.compress.validate()?)?), Cutter::new(chunking));
        let (file, bundle) = (Vec::new(), Bundle::default());
        Ok(Self { chunking, coder, cutter, left: 0, small: false, file, bundle, times })
    }

    /// Time of the stages that are within the parser's.
    fn inside(&self) -> Duration {
        [Stage::Cut, Stage::Identify, Stage::Compress].iter().map(|stage| self.times.of(*stage).time).sum()
    }

    /// Notes a stage that began then, when [`inside`](Self::inside) was `before`: what was inside since is not its own.
    fn note_around(&mut self, stage: Stage, bytes: usize, begin: Instant, before: Duration) {
        let inside = self.inside() - before;
        self.times.note(stage, bytes, begin.elapsed().saturating_sub(inside));
    }

    fn bundle(&mut self) -> Result<()> {
        let bundle = std::mem::take(&mut self.bundle);
        if bundle.is_empty() { Ok(()) } else { self.coder.chunk(&bundle.bytes, &mut self.times) }
    }

    fn small_file(&mut self) -> Result<()> {
        let id = self.times.time(Stage::Identify, self.file.len(), || ContentId::of(&self.file));
        if !self.bundle.has_room(self.file.len(), self.chunking.bundle) {
            self.bundle()?;
        }
        self.bundle.add(id, &self.file);
        self.file.clear();
        Ok(())
    }

    /// More of a larger file; with `bytes` empty, its end.
    fn large_file(&mut self, bytes: &[u8]) -> Result<()> {
        let (begin, before) = (Instant::now(), self.inside());
        let (coder, times) = (&mut self.coder, &mut self.times);
        let mut emit = |chunk: &[u8]| coder.chunk(chunk, times);
        match bytes {
            [] => self.cutter.finish(&mut emit)?,
            bytes => self.cutter.push(bytes, &mut emit)?,
        }
        self.note_around(Stage::Cut, bytes.len(), begin, before);
        Ok(())
    }
}

impl Sink for Taker<'_> {
    fn segment(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        self.left = entry.kind.stored_len();
        self.small = self.left < self.chunking.small_file.into();
        debug_assert!(self.left == 0 || matches!(entry.kind, EntryKind::File { .. }));
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<()> {
        self.left = self.left.saturating_sub(bytes.len() as u64);
        if self.small {
            self.file.extend_from_slice(bytes);
            return if self.left == 0 { self.small_file() } else { Ok(()) };
        }
        self.large_file(bytes)?;
        if self.left == 0 { self.large_file(&[]) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Limits, TarWriter, Time};

    fn tar(sizes: &[usize]) -> Vec<u8> {
        let mut tar = TarWriter::new(Vec::new(), &Limits::default());
        for (n, &size) in sizes.iter().enumerate() {
            let kind = EntryKind::File { size: size as u64, sparse: None };
            let path = n.to_string().into_bytes();
            tar.entry(&Entry { path, kind, mode: 0o644, uid: 0, gid: 0, mtime: Time::default(), xattrs: vec![] })
                .unwrap();
            tar.content(&vec![n as u8; size]).unwrap();
        }
        tar.finish().unwrap()
    }

    #[test]
    fn every_byte_goes_through_its_stages_once() {
        let (small, large) = ([100, 0, 5000, 65_535], [65_536, 1_000_000]);
        let tar = tar(&[&small[..], &large[..]].concat());
        let (chunking, options) = (Chunking::default(), ImportOptions::default());
        let times = time_stages(|| Ok(&tar[..]), &chunking, &options, &()).unwrap();
        let bytes = |stage| times.of(stage).bytes as usize;
        for stage in [Stage::Read, Stage::BlobDigest, Stage::Inflate, Stage::TarDigest, Stage::Parse] {
            assert_eq!(bytes(stage), tar.len(), "{stage:?}");
        }
        let (small, large) = (small.iter().sum::<usize>(), large.iter().sum::<usize>());
        assert_eq!(bytes(Stage::Cut), large);
        assert_eq!(bytes(Stage::Compress), small + large);
        // Small files have an id of their own, and so has the bundle they are in.
        assert_eq!(bytes(Stage::Identify), 2 * small + large);
        assert_eq!(times.total(), Stage::ALL.iter().map(|stage| times.of(*stage).time).sum());
    }

    #[test]
    fn what_is_no_layer_is_refused() {
        let options = ImportOptions::default();
        let time = |blob: &'static [u8]| time_stages(|| Ok(blob), &Chunking::default(), &options, &());
        assert_eq!(time(&[1; 700]).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(time(b"\x1f\x8b\x08\0").unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
