//! Importing layers: read, verify, take apart, store, and acknowledge only what is durable.
//!
//! Each layer has two threads, one that reads, hashes and inflates the blob, and one that hashes the tar and takes it
//! apart; workers shared by all layers of an import hash and compress chunks. Between them are bounded queues, so memory
//! does not depend on a layer's size.

use super::assemble::Assembler;
use super::options::ImportOptions;
use crate::codec::blob::{BlobReader, BlobSummary};
use crate::codec::media::Compression;
use crate::digest::{Digest, Hasher, OciDigest, OciHasher};
use crate::error::{Error, Result};
use crate::observe::{Event, Observer, check};
use crate::store::{BlobInfo, Change, Ingest, LayerInfo, Outcome, Store};
use crate::sys::lock::Lock;
use crate::sys::publish::Draft;
use crate::tar::Parser;
use crossbeam_channel::{Receiver, Sender};
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Bytes of tar handed from thread to thread at a time.
const BUFFER: usize = 128 << 10;
/// Buffers in flight per layer.
const BUFFERS: usize = 8;

/// What became of one imported layer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerImport {
    /// The layer's id.
    pub diff_id: Digest,
    /// Digest of the blob that was read; `None` if the store had the layer and nothing was read.
    pub blob: Option<Digest>,
    /// Bytes of the uncompressed tar.
    pub tar_size: u64,
    /// Entries in the tar.
    pub entries: u64,
    /// The store had the layer before.
    pub known: bool,
}

/// What an import added to the store, in bytes; the rest was there before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportStats {
    /// File content that was read.
    pub content: u64,
    /// Content that was new, before compression.
    pub new_raw: u64,
    /// What the new content takes after compression.
    pub new_stored: u64,
    /// New chunks.
    pub new_chunks: u64,
}

/// A layer to import.
pub(crate) struct LayerJob<'a> {
    /// Its number in the image.
    pub(crate) number: usize,
    pub(crate) source: Box<dyn FnOnce() -> Result<Box<dyn Read + Send + 'a>> + Send + 'a>,
    /// Size of the blob where known.
    pub(crate) size: Option<u64>,
    pub(crate) expected_blob: Option<OciDigest>,
    pub(crate) expected_diff_id: Option<OciDigest>,
}

/// A layer taken in but not yet published.
pub(crate) struct LayerDone {
    pub(crate) number: usize,
    pub(crate) info: LayerInfo,
    pub(crate) blob: BlobSummary,
    content: u64,
    record: Draft,
    kept: Option<Draft>,
    /// Its record takes extents over from other layers, which may be gone since they were looked at.
    borrowed: bool,
}

impl LayerDone {
    /// A layer made here: its blob is its tar.
    pub(super) fn made(info: LayerInfo, content: u64, record: Draft) -> Self {
        let (digest, size) = (info.diff_id, info.tar_size);
        let blob = BlobSummary { digest, size, compression: Compression::None, tar_len: size };
        Self { number: 0, info, blob, content, record, kept: None, borrowed: true }
    }

    /// The record, to be published by itself: what it refers to is on disk already.
    pub(crate) fn into_record(self) -> (LayerInfo, Draft) {
        (self.info, self.record)
    }

    /// Adds the layer's files to `outcome`; returns what the database is to know.
    pub(crate) fn publish(self, store: &Store, outcome: &mut Outcome) -> (LayerInfo, BlobInfo) {
        let diff_id = self.info.diff_id;
        outcome.records.push((diff_id, self.record));
        outcome.borrowed |= self.borrowed;
        let kept = self.kept.is_some();
        outcome.files.extend(self.kept.map(|draft| (draft, store.blob_path(&self.blob.digest))));
        let blob = BlobInfo { digest: self.blob.digest, diff_id, size: self.blob.size, kept };
        (self.info, blob)
    }
}

impl Store {
    /// Imports one layer from its blob: a tar, plain or compressed with gzip or zstd, recognised by its bytes.
    ///
    /// When this returns `Ok`, the layer is durable. If the store has it already, nothing is added.
    ///
    /// # Errors
    /// `InvalidInput` for a tar or a compressed stream that is malformed, ambiguous or hostile, and for a digest other
    /// than expected; `LimitExceeded`; `Unsupported` for other compressions; `Cancelled`; `Io`. In all of these nothing
    /// of the layer stays.
    pub fn import_layer(
        &self,
        blob: impl Read + Send,
        options: &ImportOptions,
        observer: &dyn Observer,
    ) -> Result<(LayerImport, ImportStats)> {
        self.import_layer_for(blob, options, observer, &hold)
    }

    /// [`import_layer`](Self::import_layer) whose last transaction, the one that makes the layer visible, also has what
    /// keeps it: `keep` is called in it.
    pub(crate) fn import_layer_for(
        &self,
        blob: impl Read + Send,
        options: &ImportOptions,
        observer: &dyn Observer,
        keep: Keep<'_>,
    ) -> Result<(LayerImport, ImportStats)> {
        let lock = match options.expected_diff_id {
            Some(diff_id) => Some(self.lock_layer(&diff_id, options.patience, observer)?),
            None => None,
        };
        if let Some(known) = options.expected_diff_id.map(|d| self.known_layer(&d)).transpose()?.flatten()
            && self.with_index(|index| index.write(|change| keep_if_there(change, &known.diff_id, keep)))?
        {
            return Ok((known, ImportStats::default()));
        }
        let job = LayerJob {
            number: 0,
            source: Box::new(move || Ok(Box::new(blob))),
            size: None,
            expected_blob: options.expected_blob,
            expected_diff_id: options.expected_diff_id.map(OciDigest::from),
        };
        let ingest = Ingest::begin(self, options.compress, options.threads)?;
        let mut done = import_layers(&ingest, vec![job], options, observer)?;
        let stats = import_stats(&ingest, &done);
        let Some(layer) = done.pop() else { return Err(Error::invalid("no layer was given")) };
        // Nobody said what it is to be: a file that was never written, rather than a layer.
        if layer.info.tar_size == 0 && options.expected_blob.is_none() && options.expected_diff_id.is_none() {
            return Err(Error::invalid("an empty file is no layer").expected("a tar, which ends with zeros"));
        }
        let import = self.keep_layer(ingest, layer, lock, (options.patience, observer), keep)?;
        Ok((import, stats))
    }

    /// Makes a layer that was taken in durable; `keep` is called in the transaction that makes it visible. If the store
    /// has it by now, nothing else is added.
    pub(super) fn keep_layer(
        &self,
        ingest: Ingest<'_>,
        layer: LayerDone,
        mut lock: Option<Lock>,
        (patience, observer): (Duration, &dyn Observer),
        keep: Keep<'_>,
    ) -> Result<LayerImport> {
        let diff_id = layer.info.diff_id;
        if lock.is_none() {
            // Only now it is known which layer this is; somebody else may have imported it meanwhile.
            lock = Some(self.lock_layer(&diff_id, patience, observer)?);
        }
        let known = self.with_index(|index| index.layer(&diff_id))?.is_some();
        let mut outcome = Outcome::default();
        let (info, blob) = layer.publish(self, &mut outcome);
        let record = |change: &Change<'_>| {
            change.add_layer(&info)?;
            change.add_blob(&blob)?;
            keep(change, &diff_id)
        };
        // If it is there still, what was stored on the way goes with the ingest.
        let keep_there = |change: &Change<'_>| {
            let there = keep_if_there(change, &diff_id, keep)?;
            if there {
                change.add_blob(&blob)?;
            }
            Ok(there)
        };
        if !known || blob.kept || !self.with_index(|index| index.write(keep_there))? {
            ingest.commit(outcome, record)?;
        }
        drop(lock);
        let (blob, LayerInfo { tar_size, entries, .. }) = (Some(blob.digest), info);
        Ok(LayerImport { diff_id, blob, tar_size, entries, known })
    }

    /// What an import says of a layer that the store has.
    pub(crate) fn known_layer(&self, diff_id: &Digest) -> Result<Option<LayerImport>> {
        let info = self.with_index(|index| index.layer(diff_id))?;
        Ok(info.map(|i| LayerImport {
            diff_id: i.diff_id,
            blob: None,
            tar_size: i.tar_size,
            entries: i.entries,
            known: true,
        }))
    }
}

/// What the transaction that makes a layer visible also does, so that something keeps the layer from its first moment.
pub(crate) type Keep<'k> = &'k dyn Fn(&Change<'_>, &Digest) -> Result<()>;

/// Keeps a layer that was looked up before; false if gc has taken it since.
fn keep_if_there(change: &Change<'_>, diff_id: &Digest, keep: Keep<'_>) -> Result<bool> {
    let there = change.has_layer(diff_id)?;
    if there {
        keep(change, diff_id)?;
    }
    Ok(there)
}

/// Keeps a layer until its user lets it go.
pub(super) fn hold(change: &Change<'_>, diff_id: &Digest) -> Result<()> {
    change.hold_layer(diff_id, true).map(drop)
}

/// What this import added.
pub(crate) fn import_stats(ingest: &Ingest<'_>, layers: &[LayerDone]) -> ImportStats {
    let c = &ingest.counters;
    ImportStats {
        content: layers.iter().map(|l| l.content).sum(),
        new_raw: c.raw_new.load(Relaxed),
        new_stored: c.stored_new.load(Relaxed),
        new_chunks: c.chunks_new.load(Relaxed),
    }
}

/// Takes layers apart, several at a time, into drafts of `ingest`.
pub(crate) fn import_layers<'a>(
    ingest: &Ingest<'_>,
    mut jobs: Vec<LayerJob<'a>>,
    options: &ImportOptions,
    observer: &dyn Observer,
) -> Result<Vec<LayerDone>> {
    // The largest first, so that the last one running is not the longest.
    jobs.sort_by_key(|job| job.size.unwrap_or(u64::MAX));
    let lanes = options.threads.min(jobs.len()).max(1);
    let (queue, done) = (Mutex::new(jobs), Mutex::new(Vec::new()));
    let lane = || {
        let _guard = ingest.guard();
        loop {
            let job = queue.lock().unwrap_or_else(|e| e.into_inner()).pop();
            let Some(job) = job else { return };
            let number = job.number;
            match import_one(ingest, job, options, observer) {
                Ok(layer) => done.lock().unwrap_or_else(|e| e.into_inner()).push(layer),
                Err(e) => return ingest.fail(e.subject(format!("layer {number}"))),
            }
        }
    };
    ingest.run(options.threads, || {
        std::thread::scope(|scope| (0..lanes).for_each(|_| drop(scope.spawn(lane))));
        Ok(())
    })?;
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by_key(|layer| layer.number);
    Ok(done)
}

fn import_one(
    ingest: &Ingest<'_>,
    job: LayerJob<'_>,
    options: &ImportOptions,
    observer: &dyn Observer,
) -> Result<LayerDone> {
    let number = job.number;
    observer.event(Event::LayerStarted { layer: number, total: job.size });
    let (full, tar) = crossbeam_channel::bounded(BUFFERS);
    let (empty, spare) = crossbeam_channel::bounded(BUFFERS + 2);
    let kept = options.keep_blobs.then(|| ingest.draft()).transpose()?;
    let (expected_blob, expected_diff_id) = (job.expected_blob, job.expected_diff_id);
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut wide = second_hash(expected_blob);
            let inner = (job.source)()?;
            let source = Watched { inner, kept: kept.as_ref(), wide: wide.as_mut(), layer: number, observer };
            let summary = read_blob(source, &options.limits, (&full, &spare), observer)?;
            Ok::<_, Error>((summary, wide.map(OciHasher::finish), kept))
        });
        let parsed = take_apart(ingest, &tar, &empty, options, second_hash(expected_diff_id));
        // Lets a reader that is still sending find out that nobody listens.
        drop(tar);
        let read = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A broken stream makes a broken tar: the reader's reason is the better one, unless it only lost its listener.
        let ((blob, wide, kept), parsed) = match (read, parsed) {
            (Err(e), _) if e.kind() != crate::ErrorKind::Cancelled || observer.cancelled() => return Err(e),
            (_, Err(e)) | (Err(e), _) => return Err(e),
            (Ok(read), Ok(parsed)) => (read, parsed),
        };
        expect("blob digest", expected_blob, wide.unwrap_or(blob.digest.into()))?;
        expect("diff_id", expected_diff_id, parsed.wide.unwrap_or(parsed.diff_id.into()))?;
        let (record, entries, content) = parsed.assembler.finish(parsed.diff_id, parsed.tar_size)?;
        observer.event(Event::LayerFinished { layer: number, diff_id: parsed.diff_id, known: false });
        let info = LayerInfo { diff_id: parsed.diff_id, tar_size: parsed.tar_size, entries, held: false };
        Ok(LayerDone { number, info, blob, content, record, kept, borrowed: false })
    })
}

/// The hash that is wanted beside SHA-256, by which the store names everything.
fn second_hash(expected: Option<OciDigest>) -> Option<OciHasher> {
    expected.filter(|digest| digest.sha256().is_none()).map(|digest| digest.hasher())
}

fn expect(what: &str, expected: Option<OciDigest>, actual: OciDigest) -> Result<()> {
    match expected {
        Some(e) if e != actual => Err(Error::invalid(format!("{what} does not match")).expected(e).actual(actual)),
        _ => Ok(()),
    }
}

/// Reads, hashes and inflates a blob to its last byte.
fn read_blob(
    source: impl Read,
    limits: &crate::Limits,
    (full, spare): (&Sender<Vec<u8>>, &Receiver<Vec<u8>>),
    observer: &dyn Observer,
) -> Result<BlobSummary> {
    let mut blob = BlobReader::new(source, limits)?;
    loop {
        // The source is asked seldom when few bytes of it become very many.
        check(observer)?;
        let mut buffer = spare.try_recv().unwrap_or_default();
        buffer.resize(BUFFER, 0);
        let len = fill(&mut blob, &mut buffer)?;
        buffer.truncate(len);
        if len == 0 {
            return blob.finish();
        }
        if full.send(buffer).is_err() {
            return Err(Error::new(crate::ErrorKind::Cancelled, "nobody listens any more"));
        }
    }
}

/// Reads until `buffer` is full or the source ends.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match source.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::from_io("read the layer's blob", e)),
        }
    }
    Ok(len)
}

struct Parsed<'a> {
    assembler: Assembler<'a>,
    diff_id: Digest,
    /// The digest by the other algorithm, where one is wanted.
    wide: Option<OciDigest>,
    tar_size: u64,
}

/// Hashes the tar and takes it apart.
fn take_apart<'a>(
    ingest: &'a Ingest<'a>,
    tar: &Receiver<Vec<u8>>,
    spare: &Sender<Vec<u8>>,
    options: &ImportOptions,
    mut wide: Option<OciHasher>,
) -> Result<Parsed<'a>> {
    let mut assembler = Assembler::new(ingest)?;
    let mut parser = Parser::new(&options.limits);
    let mut hasher = Hasher::default();
    for buffer in tar {
        ingest.check()?;
        hasher.update(&buffer);
        if let Some(wide) = &mut wide {
            wide.update(&buffer);
        }
        parser.push(&buffer, &mut assembler)?;
        // A full channel means buffers enough are waiting to be used again.
        let _ = spare.try_send(buffer);
    }
    let tar_size = hasher.len();
    parser.finish()?;
    Ok(Parsed { assembler, diff_id: hasher.finish(), wide: wide.map(OciHasher::finish), tar_size })
}

/// A blob's source that reports progress, can be stopped, and keeps a copy where one is wanted.
struct Watched<'a, R> {
    inner: R,
    kept: Option<&'a Draft>,
    /// Hashes the blob a second time, by another algorithm.
    wide: Option<&'a mut OciHasher>,
    layer: usize,
    observer: &'a dyn Observer,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        check(self.observer)?;
        let len = self.inner.read(buffer)?;
        if let Some(wide) = &mut self.wide {
            wide.update(&buffer[..len]);
        }
        if let Some(draft) = self.kept {
            draft.append(&buffer[..len])?;
        }
        self.observer.event(Event::LayerProgress { layer: self.layer, bytes: len as u64 });
        Ok(len)
    }
}
