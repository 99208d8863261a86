//! What a path holds, and the images in it.
//!
//! Told by content, never by name: a directory with `oci-layout` or `manifest.json`; a tar of the same, in whatever
//! order; or, if it is neither, a bare layer. Docker writes both: the OCI index says more, but versions of it (25.0.0,
//! moby/moby#47210) leave images out that `manifest.json` has, so both are read. An archive may be compressed as a
//! whole (`docker load` takes those too); it is then spooled to an unnamed file, as its members are read in another
//! order than they come.

use crate::codec::blob::BlobReader;
use crate::codec::media::Compression;
use crate::digest::OciDigest;
use crate::error::{Advice, Error, ErrorKind, Result};
use crate::image::archive::Source;
use crate::image::members::{MemberReader, Members};
use crate::image::plan::{
    Candidate, ImagePlan, Listed, MAX_CANDIDATES, PlannedLayer, Selector, ambiguous, fitting, has_name, one_image,
};
use crate::image::spec::{JSON_LIMIT, Manifest};
use crate::image::{archive, docker, oci};
use crate::limits::Limits;
use crate::sys::space::free_space;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

/// Names by which an image archive is known at once are looked for among so many.
const FIRST_NAMES: usize = 4;

/// Names that a layer may have as well are looked for among so many: an image of a thousand layers has no more.
const NAMES: usize = 4096;

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
    layout: Option<oci::Layout>,
    /// Candidates whose number is beyond those of the layout are here.
    archive: Option<docker::Archive>,
    candidates: Vec<Candidate>,
    /// What the source lists and is no candidate, each with the reason.
    passed_over: Vec<String>,
}

/// Tells what `path` holds, and reads the list of images if it holds any.
///
/// An archive that is compressed as a whole is decompressed into an unnamed file in `spool_dir`, up to the end of the tar
/// in it: at most [`Limits::layer_size`] bytes, and an eighth of the space that is free stays free.
///
/// # Errors
/// [`LimitExceeded`](crate::ErrorKind::LimitExceeded) for one that is larger;
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a directory that holds no image and for a damaged archive;
/// [`Unsupported`](crate::ErrorKind::Unsupported) for an archive of Docker before 1.10.
pub fn detect(path: &Path, spool_dir: &Path, limits: &Limits) -> Result<Detected> {
    detect_at(path, spool_dir, limits).map_err(|e| e.subject(path.display()))
}

fn detect_at(path: &Path, spool_dir: &Path, limits: &Limits) -> Result<Detected> {
    let mut file = File::open(path).map_err(|e| Error::io("cannot open", e))?;
    let metadata = file.metadata().map_err(|e| Error::io("cannot open", e))?;
    if metadata.is_dir() {
        let members = Members::directory(path)?;
        let old = members.open("repositories")?.is_some();
        let e = || Error::invalid("the directory holds no image").expected("oci-layout or manifest.json");
        let e = || if old { old_archive() } else { e() };
        return ImageSource::read(members)?.map(Detected::Image).ok_or_else(e);
    }
    if !metadata.is_file() {
        return Err(Error::invalid("neither a file nor a directory"));
    }
    let mut head = Vec::new();
    (&file).take(16).read_to_end(&mut head).map_err(|e| Error::io("cannot read", e))?;
    file.rewind().map_err(|e| Error::io("cannot read", e))?;
    let compressed = Compression::detect(&head)? != Compression::None;
    let look = if compressed { look_at_head(&file, spool_dir, limits)? } else { Look::at(&file, limits) };
    if look == Look::Layer {
        return Ok(Detected::Layer);
    }
    file.rewind().map_err(|e| Error::io("cannot read", e))?;
    let members = if compressed { spool(&file, spool_dir, limits) } else { Members::archive(file, limits) };
    // Those names alone make no image: many a web site has a `manifest.json`.
    let no_image = |e: &Error| look == Look::Perhaps && e.kind() != ErrorKind::Io;
    match members {
        Err(e) if no_image(&e) => Ok(Detected::Layer),
        members => in_archive(members?, no_image),
    }
}

/// What an archive holds that has names as in an image. `no_image` tells of errors whether a layer may give them.
fn in_archive(members: Members, no_image: impl Fn(&Error) -> bool) -> Result<Detected> {
    let blobs = |members: &Members| members.any(|name| name.starts_with("blobs/sha"));
    let (index, marker) = (members.open("index.json")?.is_some(), members.open("oci-layout")?.is_some());
    let cut = (marker && blobs(&members) && !index).then_some("the archive has no index.json");
    let unmarked = (index && blobs(&members) && !marker).then_some("the archive has no oci-layout");
    let layer = |name: &str| name.strip_suffix("/layer.tar").is_some_and(|id| hex_digits(id) == id.len());
    let old = members.open("repositories")?.is_some() && members.any(layer);
    let read = match ImageSource::read(members) {
        Err(e) if no_image(&e) => return Ok(Detected::Layer),
        read => read?,
    };
    match (read, cut.or(unmarked)) {
        (Some(source), _) => Ok(Detected::Image(source)),
        (None, Some(lacks)) => Err(Error::invalid(lacks).expected("an OCI layout").advise(Advice::GetAgain)),
        (None, None) if old => Err(old_archive()),
        (None, None) => Ok(Detected::Layer),
    }
}

/// Its layers have no diff_ids, and its configurations are of another form.
fn old_archive() -> Error {
    let message = "an image archive of Docker before 1.10, which has 'repositories' and no manifest.json";
    Error::new(ErrorKind::Unsupported, message).advise(Advice::OldForm)
}

/// What the names in a tar tell. It saves scanning, or even spooling, a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// One of the first names is as in nothing but an image archive.
    Image,
    /// There is a name that an image archive has, and a layer may have too.
    Perhaps,
    Layer,
}

impl Look {
    fn at(file: &File, limits: &Limits) -> Self {
        let names = archive::first_names(file, limits, NAMES);
        let perhaps = ["manifest.json", "repositories", "index.json", "oci-layout"];
        if names.iter().take(FIRST_NAMES).any(|name| is_image_name(name)) {
            Self::Image
        } else if names.iter().any(|name| perhaps.contains(&name.as_str())) {
            Self::Perhaps
        } else {
            Self::Layer
        }
    }
}

/// The same for a compressed tar, from the little that its first bytes give.
fn look_at_head(file: &File, spool_dir: &Path, limits: &Limits) -> Result<Look> {
    let mut head = Vec::new();
    let mut reader = BlobReader::new(file, limits)?;
    reader.by_ref().take(HEAD).read_to_end(&mut head).map_err(|e| Error::from_io("cannot read", e))?;
    let mut spool = spool_file(spool_dir)?;
    spool.write_all(&head).map_err(|e| Error::io("cannot write the spool file", e))?;
    Ok(Look::at(&spool, limits))
}

fn spool_file(spool_dir: &Path) -> Result<File> {
    tempfile::tempfile_in(spool_dir)
        .map_err(|e| Error::io("cannot create a spool file", e).subject(spool_dir.display()))
}

fn is_image_name(name: &str) -> bool {
    let (first, rest) = name.split_once('/').unwrap_or((name, ""));
    let first = first.strip_prefix("sha256:").unwrap_or(first);
    // Configs and layers are named by their hex digest, with `.json`, `.tar` or a directory after it.
    hex_digits(first) == 64 || first == "oci-layout" || (first == "blobs" && rest.starts_with("sha"))
}

/// How many hex digits a name begins with.
fn hex_digits(name: &str) -> usize {
    name.bytes().take_while(u8::is_ascii_hexdigit).count()
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
        let mut source = Self { members, layout: None, archive: None, candidates: Vec::new(), passed_over: Vec::new() };
        let members = &source.members;
        if members.open("oci-layout")?.is_some() && members.open("index.json")?.is_some() {
            let (layout, candidates) = oci::Layout::read(members)?;
            source.passed_over = layout.passed_over().to_vec();
            (source.layout, source.candidates) = (Some(layout), candidates);
        }
        if let Some(json) = source.members.read("manifest.json", JSON_LIMIT)? {
            match docker::Archive::read(&source.members, &json) {
                Ok((archive, images)) => source.add_archive(archive, images)?,
                // It may be any file of that name beside a layout that has all images.
                Err(_) if !source.candidates.is_empty() => {}
                Err(_) if Manifest::parse("manifest.json", &json).is_ok() => {
                    let message = "a manifest and blobs without an index, as skopeo's 'dir:' writes them";
                    return Err(Error::new(ErrorKind::Unsupported, message).expected("an OCI layout or an archive"));
                }
                Err(e) => return Err(e),
            }
        }
        Ok((source.layout.is_some() || source.archive.is_some()).then_some(source))
    }

    /// Adds what `manifest.json` has and the layout has not: images, and names of images.
    fn add_archive(&mut self, archive: docker::Archive, images: Vec<Candidate>) -> Result<()> {
        let Some(layout) = &self.layout else {
            (self.archive, self.candidates) = (Some(archive), images);
            return Ok(());
        };
        let offset = layout.len();
        let mut configs = vec![None; offset];
        for candidate in &self.candidates {
            if configs[candidate.number].is_none() {
                configs[candidate.number] = layout.config(&self.members, candidate);
            }
        }
        for image in images {
            let same = configs.iter().position(|config| config.is_some() && *config == image.config);
            match same {
                Some(number) => self.add_name(number, image),
                None if image.config.is_none() && !self.candidates.is_empty() => {
                    let name = image.reference.as_deref().unwrap_or("an image").escape_debug().to_string();
                    self.passed_over.push(format!("{name} in manifest.json (its config is not there)"));
                }
                None => self.candidates.push(Candidate { number: offset + image.number, ..image }),
            }
        }
        self.archive = Some(archive);
        match self.candidates.len() {
            len if len > MAX_CANDIDATES => Err(Error::limit("too many images in the archive", MAX_CANDIDATES, "more")),
            _ => Ok(()),
        }
    }

    /// Gives the name of `image` to the image of this number, if it is new.
    fn add_name(&mut self, number: usize, image: Candidate) {
        let Some(name) = image.reference else { return };
        let same = |c: &&mut Candidate| c.number == number;
        if self.candidates.iter_mut().filter(same).any(|c| has_name(c, &name)) {
            return;
        }
        if let Some(unnamed) = self.candidates.iter_mut().filter(same).find(|c| c.reference.is_none()) {
            unnamed.reference = Some(name);
        } else if let Some(other) = self.candidates.iter().find(|c| c.number == number) {
            let named = Candidate { reference: Some(name), aliases: vec![], ..other.clone() };
            self.candidates.push(named);
        }
    }

    /// The images there are. One image under two names is listed twice.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Picks exactly one image and verifies its manifest and config.
    ///
    /// Where no platform is wanted and several are there, the host's is taken. Of several manifests with one
    /// configuration, whose layers are only compressed in different ways, the one is taken that is read fastest (zstd,
    /// then plain, then gzip); [`ImagePlan::passed_over`] has the others.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if none fits and [`InvalidInput`](crate::ErrorKind::InvalidInput) if
    /// several do, with the list of those there are; [`Unsupported`](crate::ErrorKind::Unsupported) for artifacts that
    /// are no images.
    pub fn select(&self, selector: &Selector) -> Result<ImagePlan> {
        let config = |candidate: &Candidate| self.config(candidate);
        let listed = Listed { candidates: &self.candidates, passed_over: &self.passed_over, config: &config };
        let left = fitting(&listed, selector)?;
        if one_image(&self.candidates, &left) {
            return self.plan(&self.candidates[left[0]]);
        }
        self.same_configuration(&left).unwrap_or_else(|| Err(ambiguous(&self.candidates, &left)))
    }

    /// The best of several images, if they have one name and one configuration.
    fn same_configuration(&self, left: &[usize]) -> Option<Result<ImagePlan>> {
        let all: Vec<&Candidate> = left.iter().map(|&i| &self.candidates[i]).collect();
        let config = self.config(all[0])?;
        let same = |c: &&Candidate| c.reference == all[0].reference && self.config(c) == Some(config);
        if !all.iter().all(same) {
            return None;
        }
        let mut best: Option<Result<(u8, ImagePlan)>> = None;
        for candidate in &all {
            let plan = self.plan(candidate);
            let plan = plan.map(|plan| (plan.layers.iter().map(PlannedLayer::cost).max().unwrap_or_default(), plan));
            // The first of equals stays, and one that cannot be read is none at all.
            let better = match (&best, &plan) {
                (None | Some(Err(_)), Ok(_)) | (None, Err(_)) => true,
                (Some(Ok((least, _))), Ok((cost, _))) => cost < least,
                (Some(_), Err(_)) => false,
            };
            if better {
                best = Some(plan);
            }
        }
        Some(best?.map(|(_, mut plan)| {
            let taken = plan.own.first().copied();
            plan.passed_over = all.iter().filter_map(|c| c.manifest).filter(|m| Some(*m) != taken).collect();
            plan
        }))
    }

    fn config(&self, candidate: &Candidate) -> Option<OciDigest> {
        candidate.config.or_else(|| self.layout.as_ref()?.config(&self.members, candidate))
    }

    /// Every image there is, once, as [`select`](Self::select) gives it.
    pub(crate) fn plans(&self) -> impl Iterator<Item = Result<ImagePlan>> + '_ {
        let first = |(at, c): &(usize, &Candidate)| !self.candidates[..*at].iter().any(|b| b.number == c.number);
        self.candidates.iter().enumerate().filter(first).map(|(_, candidate)| self.plan(candidate))
    }

    fn plan(&self, candidate: &Candidate) -> Result<ImagePlan> {
        let offset = self.layout.as_ref().map_or(0, oci::Layout::len);
        let plan = match (&self.layout, &self.archive) {
            (Some(layout), _) if candidate.number < offset => layout.plan(&self.members, candidate),
            (_, Some(archive)) => {
                archive.plan(&self.members, &Candidate { number: candidate.number - offset, ..candidate.clone() })
            }
            _ => Err(Error::not_found("no such image in the source")),
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
