//! What a path holds, and the images in it.
//!
//! Told by content, never by name: a directory with `oci-layout` or `manifest.json`; a tar of the same; or, if it is
//! neither, a bare layer. An archive may be compressed as a whole (`docker load` takes those too); it is then spooled
//! to an unnamed file, as its members are read in another order than they come.

use crate::codec::blob::BlobReader;
use crate::codec::media::Compression;
use crate::error::{Error, Result};
use crate::image::archive::Source;
use crate::image::members::{MemberReader, Members};
use crate::image::plan::{Candidate, ImagePlan, PlannedLayer, Selector, choose};
use crate::image::spec::JSON_LIMIT;
use crate::image::{archive, docker, oci};
use crate::limits::Limits;
use crate::sys::space::free_space;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

/// How many names are looked at to tell an image archive from a layer.
const FIRST_NAMES: usize = 4;

/// What of a compressed tar is looked at for those names.
const HEAD: u64 = 64 << 10;

const SPOOL_LIMIT: &str = "the archive takes too much space when it is decompressed";

/// Bytes that may follow the end of a compressed tar: writers fill up a record, of 10 KiB mostly.
const AFTER_END: u64 = 1 << 20;

/// What a path holds.
#[non_exhaustive]
pub enum Detected {
    /// One or more images.
    Image(ImageSource),
    /// Something else: taken to be a layer's tar, compressed or not. It was not read to its end.
    Layer,
}

/// Images in a directory or an archive.
pub struct ImageSource {
    members: Members,
    contents: Contents,
    candidates: Vec<Candidate>,
}

enum Contents {
    Oci(oci::Layout),
    Docker(docker::Archive),
}

/// Tells what `path` holds, and reads the list of images if it holds any.
///
/// An archive that is compressed as a whole is decompressed into an unnamed file in `spool_dir`, up to the end of the tar
/// in it: at most [`Limits::layer_size`] bytes, and an eighth of the space that is free stays free.
///
/// # Errors
/// [`LimitExceeded`](crate::ErrorKind::LimitExceeded) for one that is larger;
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a directory that holds no image and for a damaged archive.
pub fn detect(path: &Path, spool_dir: &Path, limits: &Limits) -> Result<Detected> {
    detect_at(path, spool_dir, limits).map_err(|e| e.subject(path.display()))
}

fn detect_at(path: &Path, spool_dir: &Path, limits: &Limits) -> Result<Detected> {
    let mut file = File::open(path).map_err(|e| Error::io("cannot open", e))?;
    let metadata = file.metadata().map_err(|e| Error::io("cannot open", e))?;
    if metadata.is_dir() {
        let source = ImageSource::read(Members::directory(path)?)?;
        let e = || Error::invalid("the directory holds no image").expected("oci-layout or manifest.json");
        return source.map(Detected::Image).ok_or_else(e);
    }
    if !metadata.is_file() {
        return Err(Error::invalid("neither a file nor a directory"));
    }
    let mut head = Vec::new();
    (&file).take(16).read_to_end(&mut head).map_err(|e| Error::io("cannot read", e))?;
    file.rewind().map_err(|e| Error::io("cannot read", e))?;
    if Compression::detect(&head)? != Compression::None {
        if !head_is_image(&file, spool_dir, limits)? {
            return Ok(Detected::Layer);
        }
        file.rewind().map_err(|e| Error::io("cannot read", e))?;
        let source = ImageSource::read(spool(&file, spool_dir, limits)?)?;
        return Ok(source.map_or(Detected::Layer, Detected::Image));
    }
    if !looks_like_image(&file, limits) {
        return Ok(Detected::Layer);
    }
    let source = ImageSource::read(Members::archive(file, limits)?)?;
    Ok(source.map_or(Detected::Layer, Detected::Image))
}

/// Whether one of the first names is as in an image archive. It saves scanning, or even spooling, a layer.
fn looks_like_image(file: &File, limits: &Limits) -> bool {
    archive::first_names(file, limits, FIRST_NAMES).iter().any(|name| is_image_name(name))
}

/// The same for a compressed tar, from the little that its first bytes give.
fn head_is_image(file: &File, spool_dir: &Path, limits: &Limits) -> Result<bool> {
    let mut head = Vec::new();
    let mut reader = BlobReader::new(file, limits)?;
    reader.by_ref().take(HEAD).read_to_end(&mut head).map_err(|e| Error::from_io("cannot read", e))?;
    let mut spool = spool_file(spool_dir)?;
    spool.write_all(&head).map_err(|e| Error::io("cannot write the spool file", e))?;
    Ok(looks_like_image(&spool, limits))
}

fn spool_file(spool_dir: &Path) -> Result<File> {
    tempfile::tempfile_in(spool_dir)
        .map_err(|e| Error::io("cannot create a spool file", e).subject(spool_dir.display()))
}

fn is_image_name(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    let first = first.strip_prefix("sha256:").unwrap_or(first);
    // Configs and layers are named by their hex digest, with `.json`, `.tar` or a directory after it.
    let hex = first.bytes().take_while(u8::is_ascii_hexdigit).count();
    hex == 64 || ["oci-layout", "index.json", "blobs", "manifest.json", "repositories"].contains(&first)
}

/// A compressed tar that is written to an unnamed file as far as it is looked at.
struct Spool<'a> {
    reader: BlobReader<&'a File>,
    file: File,
    len: u64,
    /// What the file may get: no longer than a layer, and an eighth of the free space stays free.
    most: u64,
    buffer: Vec<u8>,
}

impl Source for &mut Spool<'_> {
    fn file(&self) -> &File {
        &self.file
    }

    fn up_to(&mut self, end: u64) -> Result<u64> {
        // At the header that says so: nothing is written for what cannot be written whole.
        if end > self.most {
            return Err(Error::limit(SPOOL_LIMIT, self.most, end));
        }
        while self.len < end {
            let n = self.read()?;
            if n == 0 {
                return Ok(self.len);
            }
            self.file.write_all(&self.buffer[..n]).map_err(|e| Error::io("cannot write the spool file", e))?;
            self.len += n as u64;
        }
        Ok(end)
    }
}

impl Spool<'_> {
    fn read(&mut self) -> Result<usize> {
        self.reader.read(&mut self.buffer).map_err(|e| Error::from_io("cannot read the archive", e))
    }

    /// Reads what follows the tar's end, without keeping it: a checksum stands at the end of the stream.
    fn finish(mut self) -> Result<File> {
        let mut after = 0;
        loop {
            match self.read()? {
                0 => return Ok(self.file),
                n => after += n as u64,
            }
            if after > AFTER_END {
                return Err(Error::limit("too many bytes after the end of the archive", AFTER_END, "more"));
            }
        }
    }
}

/// Decompresses an archive into an unnamed file, and finds its members meanwhile: so it ends where they do, and with
/// the first thing that no image archive has.
fn spool(file: &File, spool_dir: &Path, limits: &Limits) -> Result<Members> {
    let reader = BlobReader::new(file, limits)?;
    let file = spool_file(spool_dir)?;
    let free = free_space(&file);
    let most = limits.layer_size.min(free - free / 8);
    let mut spool = Spool { reader, file, len: 0, most, buffer: vec![0; 1 << 20] };
    let table = archive::scan_source(&mut spool, limits)?;
    Ok(Members::scanned(spool.finish()?, table))
}

impl ImageSource {
    /// Reads the list of images; `None` if there is none.
    fn read(members: Members) -> Result<Option<Self>> {
        // Docker 25 writes both; the OCI index says more (the platform, the manifest's digest).
        if members.open("oci-layout")?.is_some() && members.open("index.json")?.is_some() {
            let (layout, candidates) = oci::Layout::read(&members)?;
            return Ok(Some(Self { members, contents: Contents::Oci(layout), candidates }));
        }
        let Some(json) = members.read("manifest.json", JSON_LIMIT)? else { return Ok(None) };
        let (archive, candidates) = docker::Archive::read(&members, &json)?;
        Ok(Some(Self { members, contents: Contents::Docker(archive), candidates }))
    }

    /// The images there are. One image under two names is listed twice.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Picks exactly one image and verifies its manifest and config.
    ///
    /// Where no platform is wanted and several are there, the host's is taken.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if none fits and [`InvalidInput`](crate::ErrorKind::InvalidInput) if
    /// several do, with the list of those there are; [`Unsupported`](crate::ErrorKind::Unsupported) for artifacts that
    /// are no images.
    pub fn select(&self, selector: &Selector) -> Result<ImagePlan> {
        self.plan(&self.candidates[choose(&self.candidates, selector)?])
    }

    /// Every image there is, once, as [`select`](Self::select) gives it.
    pub(crate) fn plans(&self) -> impl Iterator<Item = Result<ImagePlan>> + '_ {
        let first = |(at, c): &(usize, &Candidate)| !self.candidates[..*at].iter().any(|b| b.number == c.number);
        self.candidates.iter().enumerate().filter(first).map(|(_, candidate)| self.plan(candidate))
    }

    fn plan(&self, candidate: &Candidate) -> Result<ImagePlan> {
        let plan = match &self.contents {
            Contents::Oci(layout) => layout.plan(&self.members, candidate),
            Contents::Docker(archive) => archive.plan(&self.members, candidate),
        };
        plan.map_err(|e| e.subject(format!("image {candidate}")))
    }

    /// Opens a layer's blob as stored. Several can be read at once, from several threads.
    pub fn open_layer(&self, layer: &PlannedLayer) -> Result<Box<dyn Read + Send>> {
        let reader: MemberReader = self.members.require(&layer.member)?;
        Ok(Box::new(reader))
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
