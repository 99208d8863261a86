//! The JSON of images, as far as it is needed; everything else in it is passed over.
//!
//! Sources: OCI image-spec 1.1 (`descriptor.md`, `image-index.md`, `manifest.md`, `config.md`), Docker image-spec 1.2.

use crate::digest::Digest;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

/// No JSON document of an image may be larger (registries have the same limit for manifests).
pub(crate) const JSON_LIMIT: u64 = 4 << 20;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
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
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    pub(crate) platform: Option<RawPlatform>,
    pub(crate) urls: Option<Vec<String>>,
}

impl Descriptor {
    pub(crate) fn digest(&self) -> Result<Digest> {
        self.digest.parse()
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
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
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RawPlatform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    pub(crate) variant: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Option<Vec<Descriptor>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u64,
    pub(crate) media_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Option<Vec<Descriptor>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) rootfs: RootFs,
    pub(crate) history: Option<Vec<History>>,
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
    pub(crate) kind: String,
    pub(crate) diff_ids: Option<Vec<Digest>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct History {
    pub(crate) empty_layer: Option<bool>,
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
    pub(crate) fn diff_ids(&self, layers: usize) -> Result<&[Digest]> {
        if self.rootfs.kind != "layers" {
            return Err(Error::invalid("unknown rootfs type").expected("layers").actual(&self.rootfs.kind));
        }
        let ids = self.rootfs.diff_ids.as_deref().unwrap_or_default();
        if ids.len() != layers {
            let e = Error::invalid("manifest and config do not have the same number of layers");
            return Err(e.expected(ids.len()).actual(layers));
        }
        // Less history than layers is common (squashed or converted images); more means a layer is missing.
        let history = self.history.as_deref().unwrap_or_default();
        let described = history.iter().filter(|h| h.empty_layer != Some(true)).count();
        if described > ids.len() {
            let e = Error::invalid("the config's history describes more layers than there are");
            return Err(e.expected(ids.len()).actual(described));
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(diff_ids: usize, history: &str) -> Config {
        let ids: Vec<_> = (0..diff_ids).map(|i| Digest::of(&[i as u8])).collect();
        let ids = serde_json::to_string(&ids).unwrap();
        let json = format!(r#"{{"os":"linux","rootfs":{{"type":"layers","diff_ids":{ids}}},"history":{history}}}"#);
        parse("config", json.as_bytes()).unwrap()
    }

    #[test]
    fn counts_layers_against_diff_ids_and_history() {
        let history = r#"[{"created_by":"ADD"},{"empty_layer":true},{"empty_layer":false}]"#;
        assert_eq!(config(2, history).diff_ids(2).unwrap().len(), 2);
        assert_eq!(config(3, history).diff_ids(3).unwrap().len(), 3, "a layer without history is fine");
        assert!(config(1, history).diff_ids(1).unwrap_err().message().contains("history"));
        assert!(config(2, "null").diff_ids(1).is_err());
    }

    #[test]
    fn refuses_a_field_given_twice() {
        let json = br#"{"schemaVersion":2,"schemaVersion":2,"config":{"digest":"x","size":1}}"#;
        assert!(parse::<Manifest>("manifest", json).unwrap_err().message().contains("duplicate"));
    }
}
