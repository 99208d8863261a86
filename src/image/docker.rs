//! Reading `docker save` archives: `manifest.json` names a config and layers for each image.
//!
//! The names are paths in the archive: `<hex>.json` and `<id>/layer.tar` before Docker 25 (a layer.tar may be a link to
//! another image's), `blobs/sha256/<hex>` since, `<hex>.tar` from skopeo, `sha256:<hex>` and `<hex>.tar.gz` from crane.
//! Where a name is a digest, it is held against the bytes. Source: Docker image-spec 1.2, "Combined Image JSON +
//! Filesystem".

use crate::digest::{Digest, OciDigest};
use crate::error::{Advice, Error, Result};
use crate::image::members::Members;
use crate::image::plan::{Candidate, ImagePlan, MAX_CANDIDATES, MAX_REFERENCE, PlannedLayer, verify};
use crate::image::platform::Platform;
use crate::image::spec::{Config, DockerImage, JSON_LIMIT, bounded, parse};

/// What old versions of Docker wrote for an image without a name.
const NO_NAME: &str = "<none>:<none>";

/// The images of an archive; a candidate's `number` is the place in it.
pub(crate) struct Archive {
    images: Vec<DockerImage>,
}

impl Archive {
    pub(crate) fn read(members: &Members, manifest: &[u8]) -> Result<(Self, Vec<Candidate>)> {
        // Go writes a list that it does not have as null.
        let images = parse::<Option<Vec<DockerImage>>>("manifest.json", manifest)?.unwrap_or_default();
        let mut candidates = Vec::new();
        for (number, image) in images.iter().enumerate() {
            let json = members.read(&image.config, JSON_LIMIT).ok().flatten();
            let config = json.as_deref().map(|json| config_digest(&image.config, json));
            // What can not be read says nothing here; it will when the candidate is selected.
            let platform = json.as_deref().and_then(|json| Platform::read(json).ok()?);
            let mut add = |reference: Option<&String>| {
                if candidates.len() == MAX_CANDIDATES {
                    return Err(Error::limit("too many images in the archive", MAX_CANDIDATES, "more"));
                }
                bounded("RepoTags", reference.map_or("", String::as_str), MAX_REFERENCE)?;
                let (reference, platform) = (reference.cloned(), platform.clone());
                let (manifest, named, aliases) = (None, None, vec![]);
                candidates.push(Candidate { reference, platform, manifest, config, named, aliases, number });
                Ok(())
            };
            let tags = image.repo_tags.as_deref().unwrap_or_default();
            let mut tags = tags.iter().filter(|tag| !tag.is_empty() && *tag != NO_NAME).peekable();
            match tags.peek() {
                None => add(None)?,
                Some(_) => tags.try_for_each(|tag| add(Some(tag)))?,
            }
        }
        Ok((Self { images }, candidates))
    }

    pub(crate) fn plan(&self, members: &Members, candidate: &Candidate) -> Result<ImagePlan> {
        let image = &self.images[candidate.number];
        let config = members.read(&image.config, JSON_LIMIT)?;
        let missing = |what: &str, name: &str| Error::not_found(what).subject(name).advise(Advice::GetAgain);
        let config = config.ok_or_else(|| missing("the archive lacks the config", &image.config))?;
        verify("the config", &config, config_digest(&image.config, &config))?;
        Platform::read(&config)?;
        let parsed: Config = parse("the config", &config)?;
        let names = image.layers.as_deref().unwrap_or_default();
        let diff_ids = parsed.diff_ids(names.len())?;
        let plan_one = |(name, &diff_id): (&String, &OciDigest)| {
            let reader = members.open(name)?;
            let reader = reader.ok_or_else(|| missing("the archive lacks the layer", name))?;
            // Only in `blobs` is the name the digest of the bytes as stored; `<hex>.tar` is that of the bare tar.
            let blob = name.strip_prefix("blobs/").and_then(|name| name.replacen('/', ":", 1).parse().ok());
            Ok(PlannedLayer { diff_id, blob, size: Some(reader.len()), media_type: None, member: name.clone() })
        };
        let layers = names.iter().zip(diff_ids).map(plan_one).collect::<Result<_>>()?;
        let config_digest = Digest::of(&config);
        let own = [config_digest.into()].into_iter().chain(candidate.config).collect();
        let (reference, passed_over) = (candidate.reference.clone(), vec![]);
        Ok(ImagePlan { reference, manifest: None, config_digest, config, layers, passed_over, own })
    }
}

/// The digest that a config has by its name, or else by its bytes.
fn config_digest(name: &str, json: &[u8]) -> OciDigest {
    digest_in(name).unwrap_or_else(|| Digest::of(json).into())
}

/// The digest a config's name is made of, if it is.
fn digest_in(name: &str) -> Option<OciDigest> {
    let last = name.rsplit('/').next()?;
    let last = last.strip_suffix(".json").unwrap_or(last);
    OciDigest::from_hex(last).or_else(|| last.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use serde_json::{Value, json};

    /// An unpacked archive with one config, for the operating system `os`.
    fn members(os: &str) -> (tempfile::TempDir, Members) {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({ "os": os, "architecture": "arm", "rootfs": { "type": "layers" } });
        std::fs::write(dir.path().join("c"), config.to_string()).unwrap();
        let members = Members::directory(dir.path()).unwrap();
        (dir, members)
    }

    #[test]
    fn what_every_candidate_copies_is_bounded() {
        let (_dir, members) = members(&"x".repeat(65));
        let read = |manifest: Value| Archive::read(&members, manifest.to_string().as_bytes());
        let (archive, candidates) = read(json!([{ "Config": "c" }])).unwrap();
        assert!(candidates[0].platform.is_none());
        let e = archive.plan(&members, &candidates[0]).unwrap_err();
        assert!(e.kind() == ErrorKind::LimitExceeded && e.message().contains("os"), "{e}");
        let tagged = |len| read(json!([{ "Config": "c", "RepoTags": ["x".repeat(len)] }]));
        assert!(tagged(MAX_REFERENCE).is_ok());
        let e = tagged(MAX_REFERENCE + 1).err().unwrap();
        assert!(e.kind() == ErrorKind::LimitExceeded && e.message().contains("RepoTags"), "{e}");
    }

    #[test]
    fn candidates_are_counted() {
        let (_dir, members) = members("linux");
        let read = |manifest: Value| Archive::read(&members, manifest.to_string().as_bytes());
        let images = |count| read(json!(vec![json!({ "Config": "none" }); count]));
        let tags = |count| read(json!([{ "Config": "c", "RepoTags": vec!["x"; count] }]));
        assert!(images(MAX_CANDIDATES).is_ok() && tags(MAX_CANDIDATES).is_ok());
        for result in [images(MAX_CANDIDATES + 1), tags(MAX_CANDIDATES + 1)] {
            assert_eq!(result.err().unwrap().kind(), ErrorKind::LimitExceeded);
        }
    }

    #[test]
    fn sees_digests_in_config_names() {
        let digest = Digest::of(b"x");
        let hex = digest.hex();
        for name in [format!("{hex}.json"), format!("blobs/sha256/{hex}"), format!("sha256:{hex}"), hex.clone()] {
            assert_eq!(digest_in(&name), Some(digest.into()), "{name}");
        }
        assert_eq!(digest_in("config.json"), None);
    }

    #[test]
    fn images_without_names_have_digests() {
        let (_dir, members) = members("linux");
        let config = OciDigest::from(Digest::of(&std::fs::read(_dir.path().join("c")).unwrap()));
        for tags in [json!(null), json!([]), json!([""]), json!([NO_NAME])] {
            let manifest = json!([{ "Config": "c", "RepoTags": tags }]);
            let (_, candidates) = Archive::read(&members, manifest.to_string().as_bytes()).unwrap();
            assert_eq!((candidates.len(), &candidates[0].reference), (1, &None), "{tags}");
            assert_eq!(candidates[0].config, Some(config));
            assert!(candidates[0].to_string().contains(&config.hex()), "{}", candidates[0]);
        }
        assert!(Archive::read(&members, b"null").unwrap().1.is_empty());
    }
}
