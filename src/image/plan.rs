//! What can be chosen from an image source, and what was chosen.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::image::spec::{ConfigPlatform, RawPlatform, bounded, parse};
use std::fmt;
use std::str::FromStr;

/// Candidates in one source; OCI's indexes are counted by the same.
pub(crate) const MAX_CANDIDATES: usize = 10_000;

/// The longest reference: every candidate has its own copy. Registries stop at 255 bytes and a tag of 128.
pub(crate) const MAX_REFERENCE: usize = 4096;

/// The longest of a platform's fields: every candidate has its own copy. Go knows none longer than `loongarch64`.
const MAX_PLATFORM_FIELD: usize = 64;

/// Operating system and processor an image is for, in Go's words: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// The platform this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: std::env::consts::OS.into(), architecture: architecture.into(), variant: None }
    }

    /// The same operating system and architecture, and the same variant where this one names any.
    fn accepts(&self, other: &Self) -> bool {
        let same = self.os == other.os && self.architecture == other.architecture;
        same && (self.variant.is_none() || self.variant() == other.variant())
    }

    /// The variant; `v8` is what arm64 has when it names none.
    fn variant(&self) -> Option<&str> {
        let default = if self.architecture == "arm64" { Some("v8") } else { None };
        self.variant.as_deref().or(default)
    }

    /// What BuildKit gives to manifests that are no image.
    pub(crate) fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    pub(crate) fn from_raw(raw: &RawPlatform) -> Result<Option<Self>> {
        check_fields([Some(&raw.os), Some(&raw.architecture), raw.variant.as_ref()])?;
        Ok(Self::known(&raw.os, &raw.architecture, raw.variant.as_deref()))
    }

    /// The platform in a config that nobody has checked yet.
    pub(crate) fn read(config: &[u8]) -> Result<Option<Self>> {
        let config: ConfigPlatform = parse("the config", config)?;
        check_fields([config.os.as_ref(), config.architecture.as_ref(), config.variant.as_ref()])?;
        Ok(Self::from_config(&config))
    }

    pub(crate) fn from_config(config: &ConfigPlatform) -> Option<Self> {
        Self::known(config.os.as_deref()?, config.architecture.as_deref()?, config.variant.as_deref())
    }

    fn known(os: &str, architecture: &str, variant: Option<&str>) -> Option<Self> {
        let variant = variant.filter(|v| !v.is_empty()).map(str::to_owned);
        let known = !os.is_empty() && !architecture.is_empty();
        known.then(|| Self { os: os.into(), architecture: architecture.into(), variant })
    }

    /// As an index entry's `platform`.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::json!({ "os": self.os, "architecture": self.architecture });
        if let Some(variant) = &self.variant {
            json["variant"] = variant.as_str().into();
        }
        json
    }
}

/// Operating system, architecture and variant against their limit.
fn check_fields(values: [Option<&String>; 3]) -> Result<()> {
    let mut fields = ["os", "architecture", "variant"].into_iter().zip(values);
    fields.try_for_each(|(field, value)| bounded(field, value.map_or("", String::as_str), MAX_PLATFORM_FIELD))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |v| write!(f, "/{v}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<_> = text.split('/').collect();
        let platform = match parts[..] {
            [os, architecture] => Self::known(os, architecture, None),
            [os, architecture, variant] if !variant.is_empty() => Self::known(os, architecture, Some(variant)),
            _ => None,
        };
        platform.ok_or_else(|| Error::invalid("not a platform").subject(text).expected("os/architecture[/variant]"))
    }
}

/// Which image of a source is wanted. The default asks for the only one there is.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    reference: Option<String>,
    platform: Option<Platform>,
}

impl Selector {
    /// Wants the image of this name (as in the source), tag, or manifest digest.
    #[must_use]
    pub fn reference(mut self, reference: impl Into<String>) -> Self {
        self.reference = Some(reference.into());
        self
    }

    /// Wants the image for this platform.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }
}

/// One image of a source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Candidate {
    /// Its name in the source, where it has one.
    pub reference: Option<String>,
    /// What it is for, where the source says.
    pub platform: Option<Platform>,
    /// Digest of its manifest; `docker save` archives of the older form have none.
    pub manifest: Option<Digest>,
    /// Other names it goes by: the bare tag beside the full reference.
    pub(crate) aliases: Vec<String>,
    /// The same for two candidates exactly if they are one image under two names.
    pub(crate) number: usize,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reference.as_deref().unwrap_or("(no name)"))?;
        if let Some(platform) = &self.platform {
            write!(f, " {platform}")?;
        }
        self.manifest.map_or(Ok(()), |digest| write!(f, " {digest}"))
    }
}

/// Picks exactly one of `candidates`; its place among them.
pub(crate) fn choose(candidates: &[Candidate], selector: &Selector) -> Result<usize> {
    let named = |c: &Candidate| selector.reference.as_ref().is_none_or(|wanted| has_name(c, wanted));
    let fits = |c: &Candidate| match (&selector.platform, &c.platform) {
        (Some(wanted), Some(platform)) => wanted.accepts(platform),
        (wanted, _) => wanted.is_none(),
    };
    let mut left: Vec<usize> =
        (0..candidates.len()).filter(|&i| named(&candidates[i]) && fits(&candidates[i])).collect();
    if selector.platform.is_none() && !one_image(candidates, &left) {
        let host = Platform::host();
        let native = |&i: &usize| candidates[i].platform.as_ref().is_some_and(|p| host.accepts(p));
        let native: Vec<usize> = left.iter().copied().filter(native).collect();
        if one_image(candidates, &native) {
            left = native;
        }
    }
    match left.first() {
        Some(&first) if one_image(candidates, &left) => Ok(first),
        Some(_) => Err(ambiguous(candidates, &left)),
        None => Err(none_fits(candidates, selector)),
    }
}

fn one_image(candidates: &[Candidate], indices: &[usize]) -> bool {
    let mut numbers = indices.iter().map(|&i| candidates[i].number);
    numbers.next().is_some_and(|first| numbers.all(|n| n == first))
}

fn has_name(candidate: &Candidate, wanted: &str) -> bool {
    let names = candidate.reference.iter().chain(&candidate.aliases);
    let digest = candidate.manifest.is_some_and(|d| d.to_string() == wanted);
    digest || names.into_iter().any(|name| familiar(name) == familiar(wanted))
}

/// Docker writes `docker.io/library/x` and shows `x`.
fn familiar(name: &str) -> &str {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

fn ambiguous(candidates: &[Candidate], left: &[usize]) -> Error {
    let mut names: Vec<_> = left.iter().map(|&i| &candidates[i].reference).collect();
    names.dedup();
    let option = if names.len() > 1 { "reference" } else { "platform" };
    let list = listing(left.iter().map(|&i| &candidates[i]));
    Error::invalid(format!("several images fit; choose one by its {option}: {list}"))
}

fn none_fits(candidates: &[Candidate], selector: &Selector) -> Error {
    let mut wanted = String::new();
    if let Some(reference) = &selector.reference {
        wanted += &format!(" named '{reference}'");
    }
    if let Some(platform) = &selector.platform {
        wanted += &format!(" for {platform}");
    }
    let there = if candidates.is_empty() { "none".into() } else { listing(candidates.iter()) };
    Error::not_found(format!("there is no image{wanted}; there is: {there}"))
}

fn listing<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> String {
    let list: Vec<_> = candidates.map(|c| c.to_string().escape_debug().to_string()).collect();
    list.join(", ")
}

/// One image, verified as far as it can be without reading its layers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImagePlan {
    /// The name it was found under.
    pub reference: Option<String>,
    /// The manifest as it was; none in `docker save` archives of the older form.
    pub manifest: Option<RawManifest>,
    /// Digest of the config.
    pub config_digest: Digest,
    /// The config as it was.
    pub config: Vec<u8>,
    /// The layers, lowest first.
    pub layers: Vec<PlannedLayer>,
}

/// A manifest, verbatim.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RawManifest {
    /// SHA-256 of `json`.
    pub digest: Digest,
    /// Its media type as the index says.
    pub media_type: String,
    /// The bytes.
    pub json: Vec<u8>,
}

/// A layer of an [`ImagePlan`]. Nothing of it was verified yet.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlannedLayer {
    /// What the config says the uncompressed tar hashes to.
    pub diff_id: Digest,
    /// What the blob as stored hashes to, where the source says.
    pub blob: Option<Digest>,
    /// Bytes of the blob as stored.
    pub size: Option<u64>,
    /// The media type in the manifest, if there is one.
    pub media_type: Option<String>,
    /// The member of the source that holds the blob.
    pub(crate) member: String,
}

/// The config's bytes against the digest they must have.
pub(crate) fn verify(what: &str, bytes: &[u8], expected: Digest) -> Result<()> {
    let actual = Digest::of(bytes);
    if actual != expected {
        let e = Error::new(ErrorKind::InvalidInput, "the bytes do not match their digest").subject(what);
        return Err(e.expected(expected).actual(actual));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(number: usize, reference: &str, platform: &str) -> Candidate {
        Candidate {
            reference: (!reference.is_empty()).then(|| reference.into()),
            platform: (!platform.is_empty()).then(|| platform.parse().unwrap()),
            manifest: Some(Digest::of(&[number as u8])),
            aliases: vec![],
            number,
        }
    }

    fn foreign() -> &'static str {
        if Platform::host().architecture == "arm64" { "linux/amd64" } else { "linux/arm64" }
    }

    #[test]
    fn takes_the_only_image_under_whatever_name() {
        let all = [candidate(0, "a", ""), candidate(0, "b", "")];
        assert_eq!(choose(&all, &Selector::default()).unwrap(), 0);
        assert_eq!(choose(&all, &Selector::default().reference("b")).unwrap(), 1);
    }

    #[test]
    fn prefers_the_host_only_when_no_platform_is_wanted() {
        let host = Platform::host().to_string();
        let all = [candidate(0, "a", foreign()), candidate(1, "a", &host)];
        assert_eq!(choose(&all, &Selector::default()).unwrap(), 1);
        let wanted = Selector::default().platform(foreign().parse().unwrap());
        assert_eq!(choose(&all, &wanted).unwrap(), 0);
        let e = choose(&all, &Selector::default().platform("linux/s390x".parse().unwrap())).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NotFound);
        assert!(e.message().contains(foreign()), "{e}");
    }

    #[test]
    fn names_the_option_that_would_decide() {
        let host = Platform::host().to_string();
        let e = choose(&[candidate(0, "a", &host), candidate(1, "b", &host)], &Selector::default()).unwrap_err();
        assert!(e.kind() == ErrorKind::InvalidInput && e.message().contains("reference"), "{e}");
        assert!(e.message().contains("a linux") && e.message().contains("b linux"), "{e}");
        let same = [candidate(0, "a", "linux/arm/v6"), candidate(1, "a", "linux/arm/v7")];
        assert!(choose(&same, &Selector::default()).unwrap_err().message().contains("platform"));
        let v7 = Selector::default().platform("linux/arm/v7".parse().unwrap());
        assert_eq!(choose(&same, &v7).unwrap(), 1);
    }

    #[test]
    fn finds_an_image_by_digest_or_familiar_name() {
        let all = [candidate(0, "docker.io/library/x:1", ""), candidate(1, "docker.io/me/x:1", "")];
        assert_eq!(choose(&all, &Selector::default().reference("x:1")).unwrap(), 0);
        assert_eq!(choose(&all, &Selector::default().reference("me/x:1")).unwrap(), 1);
        let digest = Digest::of(&[1]).to_string();
        assert_eq!(choose(&all, &Selector::default().reference(digest)).unwrap(), 1);
    }

    #[test]
    fn arm64_is_v8() {
        let wanted: Platform = "linux/arm64/v8".parse().unwrap();
        assert!(wanted.accepts(&"linux/arm64".parse().unwrap()));
        assert!(!wanted.accepts(&"linux/arm64/v9".parse().unwrap()));
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/arm/"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn platform_fields_are_bounded() {
        for field in ["os", "architecture", "variant"] {
            let config = |len| {
                let mut json = serde_json::json!({ "os": "linux", "architecture": "arm", "variant": "v7" });
                json[field] = "x".repeat(len).into();
                json.to_string()
            };
            assert!(Platform::read(config(MAX_PLATFORM_FIELD).as_bytes()).unwrap().is_some());
            let e = Platform::read(config(MAX_PLATFORM_FIELD + 1).as_bytes()).unwrap_err();
            assert!(e.kind() == ErrorKind::LimitExceeded && e.message().contains(field), "{e}");
        }
    }
}
