//! The JSON of images, as far as it is needed; everything else in it is passed over.
//!
//! Sources: OCI image-spec 1.1 (`descriptor.md`, `image-index.md`, `manifest.md`, `config.md`), Docker image-spec 1.2.

use crate::digest::OciDigest;
use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

/// No JSON document of an image may be larger (registries have the same limit for manifests).
pub(crate) const JSON_LIMIT: u64 = 4 << 20;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The tag, or the whole reference, of an index entry.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole reference where `REF_NAME` is only the tag (containerd, Docker 25).
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Marks an index entry that says something about another (BuildKit attestations).
pub(crate) const DOCKER_REFERENCE_TYPE: &str = "vnd.docker.reference.type";

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    /// Text, so that one digest of an unknown algorithm does not make the whole document unreadable.
    pub(crate) digest: String,
    pub(crate) size: u64,
    /// Go reads null as no text.
    pub(crate) annotations: Option<BTreeMap<String, Option<String>>>,
    pub(crate) platform: Option<RawPlatform>,
    pub(crate) urls: Option<Vec<String>>,
    /// The bytes themselves in base64; they may be here alone.
    pub(crate) data: Option<String>,
}

impl Descriptor {
    pub(crate) fn digest(&self) -> Result<OciDigest> {
        self.digest.parse()
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key)?.as_deref()
    }

    pub(crate) fn is_index(&self) -> bool {
        [OCI_INDEX, DOCKER_LIST].contains(&self.media_type.as_str())
    }

    pub(crate) fn is_manifest(&self) -> bool {
        [OCI_MANIFEST, DOCKER_MANIFEST].contains(&self.media_type.as_str())
    }

    pub(crate) fn is_image_config(&self) -> bool {
        [OCI_CONFIG, DOCKER_CONFIG].contains(&self.media_type.as_str())
    }

    /// Whether it may be an image's configuration that was pushed under another media type, as Docker's registry once
    /// stored them (moby/moby#22378, #30083). Artifacts have these types too, so the manifest and the bytes decide.
    pub(crate) fn may_be_image_config(&self) -> bool {
        let essence = self.media_type.split(';').next().unwrap_or_default().trim();
        ["application/octet-stream", "application/json", "text/html", "text/plain", ""].contains(&essence)
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RawPlatform {
    pub(crate) os: Option<String>,
    pub(crate) architecture: Option<String>,
    pub(crate) variant: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) manifests: Option<Vec<Descriptor>>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

impl Index {
    /// Parses an index, and refuses one that could be read as a manifest too (CVE-2021-41190).
    pub(crate) fn parse(what: &str, json: &[u8]) -> Result<Self> {
        let index: Self = parse(what, json)?;
        match index.config.is_some() || index.layers.is_some() || index.fs_layers.is_some() {
            true => Err(Error::invalid("an index that is a manifest as well").subject(what)),
            false => Ok(index),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u64,
    pub(crate) media_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Option<Vec<Descriptor>>,
    pub(crate) artifact_type: Option<String>,
    manifests: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

impl Manifest {
    /// Parses a manifest, and refuses one that could be read as an index or an old manifest too (CVE-2021-41190).
    pub(crate) fn parse(what: &str, json: &[u8]) -> Result<Self> {
        let manifest: Self = parse(what, json)?;
        match manifest.manifests.is_some() || manifest.fs_layers.is_some() {
            true => Err(Error::invalid("a manifest that is something else as well").subject(what)),
            false => Ok(manifest),
        }
    }
}

/// What a document without a media type turns out to be.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Unknown {
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

impl Unknown {
    /// The media type it says it has, or else that of its fields; none if they are of no kind or of two.
    pub(crate) fn media_type(self) -> Option<String> {
        let by_fields = match (self.manifests.is_some(), self.layers.is_some()) {
            (true, false) => Some(OCI_INDEX.to_owned()),
            (false, true) => Some(OCI_MANIFEST.to_owned()),
            _ => None,
        };
        self.media_type.filter(|said| !said.is_empty()).or(by_fields)
    }
}

/// Its history is not read: nothing that is done here depends on it, and other tools write more entries than layers.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) rootfs: RootFs,
}

/// The platform fields alone: all that listing candidates needs of a config.
#[derive(Debug, Deserialize)]
pub(crate) struct ConfigPlatform {
    pub(crate) os: Option<String>,
    pub(crate) architecture: Option<String>,
    pub(crate) variant: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) diff_ids: Option<Vec<OciDigest>>,
}

/// One element of the array in a `docker save` archive's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    pub(crate) config: String,
    pub(crate) repo_tags: Option<Vec<String>>,
    pub(crate) layers: Option<Vec<String>>,
}

/// Parses a JSON document; `what` names it in the error.
pub(crate) fn parse<'a, T: Deserialize<'a>>(what: &str, json: &'a [u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|e| Error::invalid(format!("unexpected JSON: {e}")).subject(what))
}

/// Refuses text that is too long to be kept for every image; `field` names it in the error.
pub(crate) fn bounded(field: &str, text: &str, limit: usize) -> Result<()> {
    match text.len() {
        len if len > limit => Err(Error::limit(format!("'{field}' is too long"), limit, len)),
        _ => Ok(()),
    }
}

impl Config {
    /// The diff_ids, checked against what the document says elsewhere and the number of layers there are.
    pub(crate) fn diff_ids(&self, layers: usize) -> Result<&[OciDigest]> {
        // Others do not look at the type; what says that it is something else is something else.
        let kind = self.rootfs.kind.as_deref().unwrap_or_default();
        if !["layers", ""].contains(&kind) {
            return Err(Error::invalid("unknown rootfs type").expected("layers").actual(kind));
        }
        let ids = self.rootfs.diff_ids.as_deref().unwrap_or_default();
        if ids.len() != layers {
            let e = Error::invalid("manifest and config do not have the same number of layers");
            return Err(e.expected(ids.len()).actual(layers));
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn config(diff_ids: usize, history: &str) -> Config {
        let ids: Vec<_> = (0..diff_ids).map(|i| Digest::of(&[i as u8])).collect();
        let ids = serde_json::to_string(&ids).unwrap();
        let json = format!(r#"{{"os":"linux","rootfs":{{"type":"layers","diff_ids":{ids}}},"history":{history}}}"#);
        parse("config", json.as_bytes()).unwrap()
    }

    /// jib wrote more entries than layers onto old bases, and others write fewer (GoogleContainerTools/jib#991).
    #[test]
    fn counts_layers_against_diff_ids_and_not_against_history() {
        let history = r#"[{"created_by":"ADD"},{"empty_layer":true},{"empty_layer":false},null]"#;
        for layers in 0..4 {
            assert_eq!(config(layers, history).diff_ids(layers).unwrap().len(), layers);
        }
        assert!(config(2, "null").diff_ids(1).is_err());
    }

    #[test]
    fn refuses_a_field_given_twice() {
        let json = br#"{"schemaVersion":2,"schemaVersion":2,"config":{"digest":"x","size":1}}"#;
        assert!(Manifest::parse("manifest", json).unwrap_err().message().contains("duplicate"));
    }

    #[test]
    fn refuses_a_document_of_two_kinds() {
        let manifest = |more: &str| format!(r#"{{"schemaVersion":2,"config":{{"digest":"x","size":1}}{more}}}"#);
        for (more, taken) in [("", true), (r#","manifests":null"#, true), (r#","manifests":[]"#, false)] {
            assert_eq!(Manifest::parse("m", manifest(more).as_bytes()).is_ok(), taken, "{more}");
        }
        assert!(Index::parse("i", br#"{"manifests":[]}"#).is_ok());
        assert!(Index::parse("i", br#"{"manifests":[],"layers":[]}"#).is_err());
    }
}
