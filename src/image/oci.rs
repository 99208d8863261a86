//! Reading an OCI image layout (image-spec `image-layout.md`), from a directory or an archive.

use crate::codec::media::LayerType;
use crate::digest::{Digest, OciDigest};
use crate::error::{Advice, Error, ErrorKind, Result};
use crate::format::base64;
use crate::image::members::Members;
use crate::image::plan::{Candidate, ImagePlan, MAX_CANDIDATES, MAX_REFERENCE, PlannedLayer, RawManifest, verify};
use crate::image::platform::Platform;
use crate::image::spec::{
    CONTAINERD_NAME, Config, DOCKER_MANIFEST, DOCKER_REFERENCE_TYPE, Descriptor, Index, JSON_LIMIT, Manifest, REF_NAME,
    Unknown, bounded, parse,
};
use serde::Deserialize;
use std::collections::HashSet;

/// Indexes in indexes: the specification has no limit, practice one level.
const MAX_DEPTH: usize = 8;

/// What is passed over is listed up to here, and each with as many characters of what the index says.
const MAX_PASSED_OVER: usize = 20;
const MAX_SHOWN: usize = 100;

/// The manifests of a layout; a candidate's `number` is the place in it.
pub(crate) struct Layout {
    manifests: Vec<Descriptor>,
    passed_over: Vec<String>,
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
    /// What the indexes list and is no candidate.
    passed_over: Vec<String>,
    /// Indexes already read, by name and digest: one under two names is read for each, one under one name once.
    seen: HashSet<(Option<String>, OciDigest)>,
}

/// What an index passes down to those in it.
#[derive(Clone)]
struct Name {
    /// What has the name.
    of: Option<OciDigest>,
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
        let index = Index::parse("index.json", &json)?;
        let (manifests, candidates, passed_over, seen) = (vec![], vec![], vec![], HashSet::new());
        let mut walk = Walk { members, manifests, candidates, passed_over, seen };
        for descriptor in index.manifests.unwrap_or_default() {
            let name = Name::of(&descriptor)?;
            walk.visit(descriptor, &name, 0)?;
        }
        Ok((Self { manifests: walk.manifests, passed_over: walk.passed_over }, walk.candidates))
    }

    /// What the indexes list and is no candidate, each with the reason.
    pub(crate) fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// How many images there are.
    pub(crate) fn len(&self) -> usize {
        self.manifests.len()
    }

    /// The digest of a candidate's configuration, if its manifest can be read.
    pub(crate) fn config(&self, members: &Members, candidate: &Candidate) -> Option<OciDigest> {
        let json = read_blob(members, "the manifest", self.manifests.get(candidate.number)?).ok()?;
        Manifest::parse("the manifest", &json).ok()?.config.digest().ok()
    }

    /// Reads and verifies manifest and config of a candidate.
    pub(crate) fn plan(&self, members: &Members, candidate: &Candidate) -> Result<ImagePlan> {
        let descriptor = &self.manifests[candidate.number];
        let json = read_blob(members, "the manifest", descriptor)?;
        let manifest = Manifest::parse("the manifest", &json)?;
        if manifest.schema_version != 2 {
            let e = Error::new(ErrorKind::Unsupported, "unknown version of the manifest");
            return Err(e.expected(2).actual(manifest.schema_version));
        }
        let config = read_config(members, descriptor, &manifest)?;
        let parsed: Config = parse("the config", &config)?;
        let config_digest = manifest.config.digest()?;
        let layers = manifest.layers.unwrap_or_default();
        let diff_ids = parsed.diff_ids(layers.len())?;
        let plan_one = |(number, (layer, &diff_id))| {
            plan_layer(members, layer, diff_id).map_err(|e: Error| e.subject(format!("layer {number}")))
        };
        let layers = layers.iter().zip(diff_ids).enumerate().map(plan_one).collect::<Result<_>>()?;
        Ok(ImagePlan {
            reference: candidate.reference.clone(),
            own: [descriptor.digest()?, config_digest].into_iter().chain(candidate.named).collect(),
            manifest: Some(RawManifest { digest: Digest::of(&json), media_type: descriptor.media_type.clone(), json }),
            config_digest: Digest::of(&config),
            config,
            layers,
            passed_over: vec![],
        })
    }
}

/// Reads the configuration of an image; that of an artifact is refused.
fn read_config(members: &Members, descriptor: &Descriptor, manifest: &Manifest) -> Result<Vec<u8>> {
    let artifact = || {
        let e = Error::new(ErrorKind::Unsupported, "an artifact and not an image: its config is something else");
        e.actual(&manifest.config.media_type)
    };
    if manifest.config.is_image_config() {
        let config = read_blob(members, "the config", &manifest.config)?;
        Platform::read(&config)?;
        return Ok(config);
    }
    // Under another media type, everything else must be an image's.
    let layers = manifest.layers.as_deref().unwrap_or_default();
    let docker =
        [Some(&descriptor.media_type), manifest.media_type.as_ref()].contains(&Some(&DOCKER_MANIFEST.to_owned()));
    let tars = !layers.is_empty() && layers.iter().all(|layer| LayerType::parse(&layer.media_type).is_some());
    if !manifest.config.may_be_image_config() || !tars || !(docker || manifest.artifact_type.is_none()) {
        return Err(artifact());
    }
    let config = read_blob(members, "the config", &manifest.config)?;
    let parsed = parse::<Config>("the config", &config).map_err(|e| artifact().source(e))?;
    parsed.diff_ids(layers.len()).map_err(|e| artifact().source(e))?;
    Platform::read(&config)?;
    Ok(config)
}

impl Walk<'_> {
    fn visit(&mut self, mut descriptor: Descriptor, name: &Name, depth: usize) -> Result<()> {
        if descriptor.annotation(DOCKER_REFERENCE_TYPE).is_some() {
            return self.pass_over(&descriptor, "an attestation");
        }
        let platform = descriptor.platform.as_ref().map(Platform::from_raw).transpose()?.flatten();
        if platform.as_ref().is_some_and(Platform::is_unknown) {
            return self.pass_over(&descriptor, "for an unknown platform");
        }
        if descriptor.media_type.is_empty() {
            descriptor.media_type = self.told_by_bytes(&descriptor).unwrap_or_default();
        }
        if descriptor.is_index() {
            return self.visit_index(&descriptor, name, depth);
        }
        // The specification wants unknown media types passed over.
        if !descriptor.is_manifest() {
            let media_type = shown(&descriptor.media_type);
            return self.pass_over(&descriptor, &format!("of type '{media_type}'"));
        }
        let manifest = descriptor.digest()?;
        // An image may have been copied for one platform only, with the index for all.
        if depth > 0 && descriptor.data.is_none() && self.members.open(&blob_name(manifest))?.is_none() {
            let platform = platform.map_or_else(String::new, |platform| format!("{platform}, "));
            return self.pass_over(&descriptor, &format!("{}not in the layout", shown(&platform)));
        }
        if self.candidates.len() == MAX_CANDIDATES {
            return Err(Error::limit("too many manifests in the layout", MAX_CANDIDATES, "more"));
        }
        let platform = platform.or_else(|| self.platform_of(&descriptor));
        let inner = if name.reference.is_none() && depth > 0 { Name::of(&descriptor)? } else { name.clone() };
        let known = self.candidates.iter().find(|c| c.manifest == Some(manifest)).map(|c| c.number);
        let number = known.unwrap_or(self.manifests.len());
        if known.is_none() {
            // The rest is of any length, and not needed any more.
            self.manifests.push(Descriptor { annotations: None, platform: None, urls: None, ..descriptor });
        }
        let Name { reference, aliases, .. } = inner;
        let (manifest, named) = (Some(manifest), name.of);
        self.candidates.push(Candidate { reference, platform, manifest, config: None, named, aliases, number });
        Ok(())
    }

    /// Remembers what is no candidate, for the error that there is none.
    fn pass_over(&mut self, descriptor: &Descriptor, reason: &str) -> Result<()> {
        match self.passed_over.len() {
            MAX_PASSED_OVER => self.passed_over.push("others".into()),
            len if len > MAX_PASSED_OVER => {}
            _ => self.passed_over.push(format!("{} ({reason})", shown(&descriptor.digest))),
        }
        Ok(())
    }

    /// The media type of a document whose descriptor has none.
    fn told_by_bytes(&self, descriptor: &Descriptor) -> Option<String> {
        let json = read_blob(self.members, "the manifest", descriptor).ok()?;
        parse::<Unknown>("the manifest", &json).ok()?.media_type()
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
        for child in Index::parse("an index", &json)?.manifests.unwrap_or_default() {
            self.visit(child, name, depth + 1)?;
        }
        Ok(())
    }

    /// The platform by the config, where the index does not give one. What can not be read says nothing here; it will
    /// when the candidate is selected.
    fn platform_of(&self, descriptor: &Descriptor) -> Option<Platform> {
        let json = read_blob(self.members, "the manifest", descriptor).ok()?;
        let manifest = Manifest::parse("the manifest", &json).ok()?;
        Platform::read(&read_config(self.members, descriptor, &manifest).ok()?).ok()?
    }
}

impl Name {
    fn of(descriptor: &Descriptor) -> Result<Self> {
        for key in [REF_NAME, CONTAINERD_NAME] {
            bounded(key, descriptor.annotation(key).unwrap_or_default(), MAX_REFERENCE)?;
        }
        let given = |key| descriptor.annotation(key).filter(|name| !name.is_empty()).map(str::to_owned);
        let (tag, of) = (given(REF_NAME), descriptor.digest().ok());
        Ok(match given(CONTAINERD_NAME) {
            Some(full) => Self { of, reference: Some(full), aliases: tag.into_iter().collect() },
            None => Self { of, reference: tag, aliases: vec![] },
        })
    }
}

/// What an index says, for an error: bounded, and without control characters.
fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect::<String>().escape_debug().to_string()
}

fn plan_layer(members: &Members, layer: &Descriptor, diff_id: OciDigest) -> Result<PlannedLayer> {
    let Some(layer_type) = LayerType::parse(&layer.media_type) else {
        return Err(Error::new(ErrorKind::Unsupported, "not a tar layer").actual(&layer.media_type));
    };
    let blob = layer.digest()?;
    let member = blob_name(blob);
    match members.open(&member)? {
        Some(reader) if reader.len() != layer.size => {
            let e = Error::invalid("the blob does not have the size the manifest says").subject(blob);
            return Err(e.expected(layer.size).actual(reader.len()).advise(Advice::GetAgain));
        }
        Some(_) => {}
        None if layer_type.foreign || layer.urls.as_ref().is_some_and(|u| !u.is_empty()) => {
            let message = "a foreign layer: the image has only URLs for it, and nothing is downloaded";
            return Err(Error::new(ErrorKind::Unsupported, message).subject(blob));
        }
        None => return Err(Error::not_found("the layout lacks the blob").subject(blob).advise(Advice::GetAgain)),
    }
    let media_type = Some(layer.media_type.clone());
    Ok(PlannedLayer { diff_id, blob: Some(blob), size: Some(layer.size), media_type, member })
}

pub(crate) fn blob_name(digest: impl Into<OciDigest>) -> String {
    let digest = digest.into();
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Reads a JSON blob, checked against size and digest.
fn read_blob(members: &Members, what: &str, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let digest = descriptor.digest()?;
    let bytes = match members.read(&blob_name(digest), JSON_LIMIT)? {
        Some(bytes) => Some(bytes),
        None => descriptor.data.as_deref().and_then(base64::decode),
    };
    let missing = || Error::not_found("the layout lacks the blob").advise(Advice::GetAgain);
    let bytes = bytes.ok_or_else(|| missing().subject(digest).subject(what))?;
    if bytes.len() as u64 != descriptor.size {
        let e = Error::invalid("the blob does not have the size its descriptor says").subject(digest).subject(what);
        return Err(e.expected(descriptor.size).actual(bytes.len()).advise(Advice::GetAgain));
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
