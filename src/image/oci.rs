//! Reading an OCI image layout (image-spec `image-layout.md`), from a directory or an archive.

use crate::codec::media::LayerType;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::image::members::Members;
use crate::image::plan::{
    Candidate, ImagePlan, MAX_CANDIDATES, MAX_REFERENCE, PlannedLayer, Platform, RawManifest, verify,
};
use crate::image::spec::{
    CONTAINERD_NAME, Config, DOCKER_REFERENCE_TYPE, Descriptor, Index, JSON_LIMIT, Manifest, REF_NAME, bounded, parse,
};
use serde::Deserialize;
use std::collections::HashSet;

/// Indexes in indexes: the specification has no limit, practice one level.
const MAX_DEPTH: usize = 8;

/// The manifests of a layout; a candidate's `number` is the place in it.
pub(crate) struct Layout {
    manifests: Vec<Descriptor>,
}

/// What the layout says of itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

/// The walk through the indexes.
struct Walk<'a> {
    members: &'a Members,
    manifests: Vec<Descriptor>,
    candidates: Vec<Candidate>,
    /// Indexes already read, by name and digest: one under two names is read for each, one under one name once.
    seen: HashSet<(Option<String>, Digest)>,
}

/// What an index passes down to those in it.
struct Name {
    reference: Option<String>,
    aliases: Vec<String>,
}

impl Layout {
    /// Reads all indexes.
    pub(crate) fn read(members: &Members) -> Result<(Self, Vec<Candidate>)> {
        let marker = members.read("oci-layout", JSON_LIMIT)?.unwrap_or_default();
        let version = parse::<Marker>("oci-layout", &marker)?.image_layout_version;
        if !version.starts_with("1.") {
            let e = Error::new(ErrorKind::Unsupported, "unknown version of the OCI layout");
            return Err(e.expected("1.*").actual(version));
        }
        let json = members.read("index.json", JSON_LIMIT)?.unwrap_or_default();
        let index: Index = parse("index.json", &json)?;
        let mut walk = Walk { members, manifests: vec![], candidates: vec![], seen: HashSet::new() };
        for descriptor in index.manifests.unwrap_or_default() {
            let name = Name::of(&descriptor)?;
            walk.visit(descriptor, &name, 0)?;
        }
        Ok((Self { manifests: walk.manifests }, walk.candidates))
    }

    /// Reads and verifies manifest and config of a candidate.
    pub(crate) fn plan(&self, members: &Members, candidate: &Candidate) -> Result<ImagePlan> {
        let descriptor = &self.manifests[candidate.number];
        let json = read_blob(members, "the manifest", descriptor)?;
        let manifest: Manifest = parse("the manifest", &json)?;
        if manifest.schema_version != 2 {
            let e = Error::new(ErrorKind::Unsupported, "unknown version of the manifest");
            return Err(e.expected(2).actual(manifest.schema_version));
        }
        if !manifest.config.is_image_config() {
            let e = Error::new(ErrorKind::Unsupported, "an artifact and not an image: its config is something else");
            return Err(e.actual(&manifest.config.media_type));
        }
        let config = read_blob(members, "the config", &manifest.config)?;
        Platform::read(&config)?;
        let parsed: Config = parse("the config", &config)?;
        let layers = manifest.layers.unwrap_or_default();
        let diff_ids = parsed.diff_ids(layers.len())?;
        let plan_one = |(number, (layer, &diff_id))| {
            plan_layer(members, layer, diff_id).map_err(|e: Error| e.subject(format!("layer {number}")))
        };
        let layers = layers.iter().zip(diff_ids).enumerate().map(plan_one).collect::<Result<_>>()?;
        Ok(ImagePlan {
            reference: candidate.reference.clone(),
            manifest: Some(RawManifest {
                digest: descriptor.digest()?,
                media_type: descriptor.media_type.clone(),
                json,
            }),
            config_digest: manifest.config.digest()?,
            config,
            layers,
        })
    }
}

impl Walk<'_> {
    fn visit(&mut self, descriptor: Descriptor, name: &Name, depth: usize) -> Result<()> {
        if descriptor.annotation(DOCKER_REFERENCE_TYPE).is_some() {
            return Ok(());
        }
        let platform = descriptor.platform.as_ref().map(Platform::from_raw).transpose()?.flatten();
        if platform.as_ref().is_some_and(Platform::is_unknown) {
            return Ok(());
        }
        if descriptor.is_index() {
            return self.visit_index(&descriptor, name, depth);
        }
        // The specification wants unknown media types passed over.
        if !descriptor.is_manifest() {
            return Ok(());
        }
        let manifest = descriptor.digest()?;
        // An image may have been copied for one platform only, with the index for all.
        if depth > 0 && self.members.open(&blob_name(manifest))?.is_none() {
            return Ok(());
        }
        if self.candidates.len() == MAX_CANDIDATES {
            return Err(Error::limit("too many manifests in the layout", MAX_CANDIDATES, "more"));
        }
        let platform = platform.or_else(|| self.platform_of(&descriptor));
        let known = self.candidates.iter().find(|c| c.manifest == Some(manifest)).map(|c| c.number);
        let number = known.unwrap_or(self.manifests.len());
        if known.is_none() {
            // The rest is of any length, and not needed any more.
            self.manifests.push(Descriptor { annotations: None, platform: None, urls: None, ..descriptor });
        }
        let (reference, aliases) = (name.reference.clone(), name.aliases.clone());
        self.candidates.push(Candidate { reference, platform, manifest: Some(manifest), aliases, number });
        Ok(())
    }

    fn visit_index(&mut self, descriptor: &Descriptor, name: &Name, depth: usize) -> Result<()> {
        if depth == MAX_DEPTH {
            return Err(Error::limit("indexes are nested too deeply", MAX_DEPTH, depth + 1));
        }
        if !self.seen.insert((name.reference.clone(), descriptor.digest()?)) {
            return Ok(());
        }
        if self.seen.len() > MAX_CANDIDATES {
            return Err(Error::limit("too many indexes in the layout", MAX_CANDIDATES, "more"));
        }
        let json = read_blob(self.members, "an index", descriptor)?;
        for child in parse::<Index>("an index", &json)?.manifests.unwrap_or_default() {
            self.visit(child, name, depth + 1)?;
        }
        Ok(())
    }

    /// The platform by the config, where the index does not give one. What can not be read says nothing here; it will
    /// when the candidate is selected.
    fn platform_of(&self, descriptor: &Descriptor) -> Option<Platform> {
        let json = read_blob(self.members, "the manifest", descriptor).ok()?;
        let manifest: Manifest = parse("the manifest", &json).ok()?;
        let config =
            manifest.config.is_image_config().then(|| read_blob(self.members, "the config", &manifest.config))?;
        Platform::read(&config.ok()?).ok()?
    }
}

impl Name {
    fn of(descriptor: &Descriptor) -> Result<Self> {
        for key in [REF_NAME, CONTAINERD_NAME] {
            bounded(key, descriptor.annotation(key).unwrap_or_default(), MAX_REFERENCE)?;
        }
        let tag = descriptor.annotation(REF_NAME).map(str::to_owned);
        Ok(match descriptor.annotation(CONTAINERD_NAME) {
            Some(full) => Self { reference: Some(full.to_owned()), aliases: tag.into_iter().collect() },
            None => Self { reference: tag, aliases: vec![] },
        })
    }
}

fn plan_layer(members: &Members, layer: &Descriptor, diff_id: Digest) -> Result<PlannedLayer> {
    let Some(layer_type) = LayerType::parse(&layer.media_type) else {
        return Err(Error::new(ErrorKind::Unsupported, "not a tar layer").actual(&layer.media_type));
    };
    let blob = layer.digest()?;
    let member = blob_name(blob);
    match members.open(&member)? {
        Some(reader) if reader.len() != layer.size => {
            let e = Error::invalid("the blob does not have the size the manifest says").subject(blob);
            return Err(e.expected(layer.size).actual(reader.len()));
        }
        Some(_) => {}
        None if layer_type.foreign || layer.urls.as_ref().is_some_and(|u| !u.is_empty()) => {
            let message = "a foreign layer: the image has only URLs for it, and nothing is downloaded";
            return Err(Error::new(ErrorKind::Unsupported, message).subject(blob));
        }
        None => return Err(Error::not_found("the layout lacks the blob").subject(blob)),
    }
    let media_type = Some(layer.media_type.clone());
    Ok(PlannedLayer { diff_id, blob: Some(blob), size: Some(layer.size), media_type, member })
}

pub(crate) fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads a JSON blob, checked against size and digest.
fn read_blob(members: &Members, what: &str, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let digest = descriptor.digest()?;
    let bytes = members.read(&blob_name(digest), JSON_LIMIT)?;
    let bytes = bytes.ok_or_else(|| Error::not_found("the layout lacks the blob").subject(digest).subject(what))?;
    if bytes.len() as u64 != descriptor.size {
        let e = Error::invalid("the blob does not have the size its descriptor says").subject(digest).subject(what);
        return Err(e.expected(descriptor.size).actual(bytes.len()));
    }
    verify(what, &bytes, digest)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::spec::OCI_MANIFEST;
    use serde_json::{Value, json};

    /// Reads a layout with one entry, which has `key` besides what it must have.
    fn read(key: &str, value: Value) -> Result<(Layout, Vec<Candidate>)> {
        let dir = tempfile::tempdir().unwrap();
        let mut entry = json!({ "mediaType": OCI_MANIFEST, "digest": Digest::of(b"m"), "size": 1 });
        entry[key] = value;
        std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(dir.path().join("index.json"), json!({ "manifests": [entry] }).to_string()).unwrap();
        Layout::read(&Members::directory(dir.path())?)
    }

    #[test]
    fn what_every_candidate_copies_is_bounded() {
        for key in [REF_NAME, CONTAINERD_NAME] {
            let named = |len| read("annotations", json!({ key: "x".repeat(len) }));
            assert!(named(MAX_REFERENCE).is_ok());
            let e = named(MAX_REFERENCE + 1).err().unwrap();
            assert!(e.kind() == ErrorKind::LimitExceeded && e.message().contains(key), "{e}");
        }
        let on = |len| read("platform", json!({ "os": "x".repeat(len), "architecture": "arm" }));
        assert!(on(64).is_ok());
        let e = on(65).err().unwrap();
        assert!(e.kind() == ErrorKind::LimitExceeded && e.message().contains("os"), "{e}");
    }

    #[test]
    fn only_what_is_needed_of_an_entry_is_kept() {
        let (layout, _) = read("annotations", json!({ "other": "x" })).unwrap();
        assert!(layout.manifests[0].annotations.is_none());
    }
}
